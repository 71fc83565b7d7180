"""The soak: its check of a reader finds each kind of fault, its slope is right, and a short run passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtest.soak.feed import TOPICS, key_of, topic_of, wants
from loadtest.soak.promise import Numbering, Promise
from loadtest.soak.report import (
    HOUR_S,
    SLOPE_MIB_PER_HOUR_MAX,
    ServerSample,
    SoakSample,
    least_squares,
    result_of,
    text_of,
)
from relay.client import Gap

RUN_S = 400
SHORT = ("--minutes", "0.3", "--share", "0.1", "--rate", "100")
FIRST = 100
"""The sequence before the first event of the logs in these tests."""
MIB = 1024 * 1024


def id_of(number: int) -> str:
    return f"epoch-{FIRST + number}"


def reader(*terms: str) -> Promise:
    """Return the check of a reader of these topics; of all topics by default."""
    numbering = Numbering()
    assert numbering.agrees(id_of(1), 1)
    return Promise(wants(terms or ("**",)), key_of, numbering)


def take(promise: Promise, *numbers: int) -> None:
    for number in numbers:
        promise.event(number, id_of(number))


def gap(first: int, last: int, missed: int | None, reason: str = "slow") -> Gap:
    return Gap(reason, missed, id_of(first), id_of(last))


def test_each_event_once_in_order_is_no_fault() -> None:
    promise = reader()
    take(promise, 3, 4, 5)
    promise.end(5)
    assert (dict(promise.faults), promise.received) == ({}, 3)


def test_events_of_other_topics_are_not_missed() -> None:
    promise = reader(TOPICS[1])
    take(promise, 1, 1 + len(TOPICS))
    promise.end(len(TOPICS))
    assert topic_of(1) == TOPICS[1]
    assert not promise.faults


def test_an_event_that_no_gap_reported_is_a_fault() -> None:
    promise = reader()
    take(promise, 1, 4)
    assert promise.faults == {"a missed event that no gap reported": 2}


def test_an_event_again_is_a_fault() -> None:
    promise = reader()
    take(promise, 1, 2, 2)
    assert promise.faults == {"an event twice, or out of order": 1}


def test_an_event_of_another_topic_is_a_fault() -> None:
    promise = reader(TOPICS[1])
    take(promise, 2)
    assert promise.faults == {"an event of another topic": 1}


def test_an_id_that_does_not_continue_the_log_is_a_fault() -> None:
    promise = reader()
    promise.event(1, id_of(2))
    promise.event(2, "other-102")
    assert promise.faults == {"an id that does not continue the log": 2}


def test_a_gap_reports_exactly_the_missed_events() -> None:
    promise = reader()
    take(promise, 1)
    promise.gap(gap(2, 4, 3))
    promise.gap(gap(5, 6, 2))
    take(promise, 7)
    assert (dict(promise.faults), promise.reported) == ({}, 5)


@pytest.mark.parametrize("missed", [2, 4])
def test_a_gap_with_a_wrong_number_is_a_fault(missed: int) -> None:
    promise = reader()
    take(promise, 1)
    promise.gap(gap(2, 4, missed))
    take(promise, 5)
    assert promise.faults == {"a gap with a wrong number of missed events": 1}


def test_a_gap_without_a_number_covers_its_events() -> None:
    promise = reader()
    take(promise, 1)
    promise.gap(gap(2, 4, None, "history"))
    take(promise, 6)
    assert promise.faults == {"a missed event that no gap reported": 1}


def test_a_resumed_stream_may_receive_the_events_of_a_gap() -> None:
    promise = reader()
    take(promise, 1)
    promise.gap(gap(2, 4, 3))
    promise.opened(id_of(1))
    take(promise, 2, 3, 4, 5)
    assert not promise.faults


def test_a_gap_remains_valid_if_the_last_id_is_after_it() -> None:
    promise = reader()
    take(promise, 1)
    promise.gap(gap(2, 4, None, "history"))
    promise.opened(id_of(4))
    take(promise, 5)
    assert not promise.faults


def test_a_conflated_event_needs_a_newer_one_of_its_key() -> None:
    numbers = [number for number in range(1, 2000) if key_of(number) == key_of(len(TOPICS))]
    promise = reader(topic_of(numbers[0]))
    others = [number for number in range(numbers[0], numbers[2]) if topic_of(number) == topic_of(numbers[0])]
    take(promise, others[0])
    promise.gap(gap(numbers[1], numbers[1], 1, "conflated"))
    take(promise, *(number for number in others[1:] if number != numbers[1]))
    promise.end(others[-1])
    assert promise.faults == {"a conflated event without a newer one of its key": 1}
    promise.faults.clear()
    take(promise, numbers[2])
    promise.end(numbers[2])
    assert not promise.faults


def test_a_reader_that_does_not_reach_the_end_is_a_fault() -> None:
    promise = reader()
    take(promise, 1)
    promise.end(2)
    assert promise.faults == {"the end: stands at 2, not at 3": 1}


def test_the_slope_is_that_of_a_line_with_its_error() -> None:
    assert least_squares([[(0, 1), (1, 3), (2, 5)]]) == (2.0, 0.0)
    slope, error = least_squares([[(0, 0), (1, 2), (2, 1), (3, 3)]])
    assert slope == pytest.approx(0.8)
    assert error == pytest.approx(0.4243, abs=1e-4)


def test_the_slope_of_groups_ignores_their_levels() -> None:
    assert least_squares([[(0, 1), (10, 6)], [(1, 100), (3, 101)], [(5, 7)]])[0] == pytest.approx(0.5)


def samples(slope: float, **changes: Any) -> list[SoakSample]:
    """Return samples of two hours of one server whose memory grows, in MiB per hour."""
    empty = SoakSample(0.0, {}, 0, 0.0, 0.0, 1, 0, 1, 1, 0, 0, 0, {}, 0, {}, {}, [], settled=True)
    return [
        msgspec.structs.replace(
            empty,
            time_s=60.0 * minute,
            servers={"one": ServerSample(round(MIB * (50 + slope * minute / 60)), MIB, 40, 60.0 * minute)},
            servers_cpu_s=6.0 * minute,
            readers_cpu_s=6.0 * minute,
            **changes,
        )
        for minute in range(1, 121)
    ]


def test_a_run_with_a_flat_memory_and_no_fault_passes() -> None:
    result = result_of(samples(0.0))
    assert result.passed
    assert result.memory["one"].mib_per_hour == 0.0
    assert result.cores == 0.2
    assert "| one | 51.0 | 51.0 | 51.0 | +0.00 ± 0.00 | 40 | 40 |" in text_of(result)


def test_the_slope_of_a_replaced_server_compares_processes_of_the_same_age() -> None:
    taken = samples(0.0)
    for minute, sample in enumerate(taken):
        age = minute % 20
        grown = round(MIB * (50 + 2 * age + 3 * minute / 60))
        sample.servers = {"one": ServerSample(grown, 0, 40, 60.0 * age)}
    assert result_of(taken).memory["one"].mib_per_hour == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize(
    ("slope", "changes"),
    [
        (SLOPE_MIB_PER_HOUR_MAX + 0.5, {}),
        (0.0, {"faults": {"an event twice, or out of order": 1}}),
        (0.0, {"errors": ["cannot serve a stream"]}),
    ],
)
def test_a_run_fails(slope: float, changes: dict[str, Any]) -> None:
    assert not result_of(samples(slope, **changes)).passed


def test_a_run_that_was_cut_does_not_pass() -> None:
    assert samples(0.0)[-1].time_s >= HOUR_S
    assert not result_of(samples(0.0, settled=False)).passed


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RELAY_ENGINE") == "native", reason="run with the compiled engine")
def test_a_short_soak_passes(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    command = [sys.executable, "-m", "loadtest.soak", *SHORT, "--samples", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = msgspec.json.decode(path.read_bytes().splitlines()[-1], type=SoakSample)
    assert set(last.servers) == {"node-a", "node-b", "file", "single"}
    assert min(last.published, last.received, last.connections) > 0
    assert last.actions["upgrades"] >= 1
    assert not last.faults
