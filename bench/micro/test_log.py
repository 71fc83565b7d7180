"""The log: append one entry, read one segment, find one id. The log has one implementation."""

from __future__ import annotations

import pytest

from bench.micro.conftest import Measure
from bench.micro.table import RELAY
from relay.core.index import SEGMENT_BYTES
from relay.core.log import Log

ENTRIES = 10_000
FRAME = b"id: 0123456789abcdef-12345\ndata: " + b"x" * 150 + b"\n\n"


@pytest.fixture
def log() -> Log:
    """Return a full log of two topics, the usual state of a server; every tenth entry has a publisher's id."""
    log = Log("0123456789abcdef", bytes_max=1 << 30, events_max=ENTRIES)
    for number in range(2 * ENTRIES):
        topic = log.topic("even" if number % 2 == 0 else "odd")
        log.append(topic, FRAME, f"own-{number}" if number % 10 == 0 else None, None, float(number))
    return log


def test_append(log: Log, measure: Measure) -> None:
    topic, now_s = log.topic("even"), float(2 * ENTRIES)
    sequence = measure("log", "append to a full log", RELAY, lambda: log.append(topic, FRAME, None, None, now_s))
    assert len(log) <= ENTRIES
    assert log.frame(sequence) == FRAME


def test_read_of_one_topic(log: Log, measure: Measure) -> None:
    index, cursor = log.topic("even"), log.tail + ENTRIES // 2

    def read() -> list[bytes]:
        number = index.segment(cursor)
        assert number is not None
        return log.pick(index.rows(number, log.tail)[0])

    frames = measure("log", "read 64 KiB of one topic", RELAY, read)
    assert SEGMENT_BYTES - len(FRAME) < sum(map(len, frames)) < SEGMENT_BYTES + len(FRAME)


def test_read_of_two_topics(log: Log, measure: Measure) -> None:
    indexes, cursor = list(log.topics.values()), log.tail + ENTRIES // 2
    batch = measure(
        "log", "read 64 KiB of two topics", RELAY, lambda: log.merge(indexes, cursor, log.head, SEGMENT_BYTES)
    )
    assert batch is not None
    assert batch.sequences == list(range(cursor, cursor + SEGMENT_BYTES // len(FRAME)))


def test_find_a_default_id(log: Log, measure: Measure) -> None:
    wanted = log.tail + ENTRIES // 2
    id = f"{log.epoch}-{wanted}"
    assert measure("log", "find an id that the log gave", RELAY, lambda: log.find((id,), ("even", "odd"))) == wanted


def test_find_a_publishers_id(log: Log, measure: Measure) -> None:
    number, terms = 2 * ENTRIES - 10, ("even", "odd")
    found = measure("log", "find a publisher's own id", RELAY, lambda: log.find((f"own-{number}",), terms))
    assert found == number + 1
