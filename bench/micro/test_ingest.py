"""Append lines of NDJSON to the log, as a feeder on the Unix socket sends them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bench.local_hub import NOW_S, LocalHub
from bench.micro.conftest import Measure, Twins
from bench.samples import SAMPLES
from relay.sources.feeder import READ_BYTES
from relay.sources.intake import ANSWER_BYTES_MAX, Intake, State
from relay.sources.lines import LineSplitter, parse_line

ENTRIES = 10_000


def test_ndjson_to_log(twins: Twins, make_rig: Callable[..., LocalHub], measure: Measure) -> None:
    log = (hub := make_rig(history_events=ENTRIES).hub).log
    line = msgspec.json.encode({"topic": "default", "data": SAMPLES["small"]}) + b"\n"
    count = READ_BYTES // len(line)
    read = line * count

    def complain(kind: str, number: int, reason: str) -> None:
        raise AssertionError(f"{kind} {number}: {reason}")

    intake = Intake(LineSplitter(1 << 20), parse_line, hub, "default", complain, True)

    def ingest() -> int:
        before = log.head
        intake.receive(read)
        while intake.work(NOW_S, ANSWER_BYTES_MAX) is State.BUSY:
            pass
        return log.head - before

    while len(log) < ENTRIES:
        ingest()
    assert measure("NDJSON line to log", "150 bytes of data", twins.label, ingest, units=count) == count
    assert SAMPLES["small"].encode() in log.frame(log.head - 1)
