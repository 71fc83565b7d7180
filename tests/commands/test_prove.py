"""`relay demo --prove`: it keeps count of every event, and reports a broken promise.

Tests of `relay.commands.prove`, `relay.commands.prove_clients`, `relay.commands.prove_record`,
`relay.commands.prove_server` and `relay.commands.server_process`.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from relay.commands import prove
from relay.commands.prove_record import Record, Sums, event_data
from relay.errors import ConfigError
from relay.event import Event
from tests.running import TIMEOUT_S, command, environment, run

ROW = re.compile(r"^(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)$", re.MULTILINE)


def rows(output: str) -> dict[str, Sums]:
    """Return the sums that the command printed, by group."""
    found = {}
    for name, *figures in ROW.findall(output):
        clients, received, unreported, repeated, disordered, reported = (int(text.replace(",", "")) for text in figures)
        found[name] = Sums(clients, received, unreported, repeated, disordered, reported)
    return found


def check_kept(output: str, streams: int) -> None:
    """Check the output of a run that kept the promise."""
    sums = rows(output)
    assert list(sums) == ["stalled", "disconnected", "others", "all"]
    assert sums["all"].clients == streams
    for each in sums.values():
        assert each.received > 0
        assert (each.unreported, each.repeated, each.disordered) == (0, 0, 0)
    assert sums["stalled"].reported > 0
    assert sums["disconnected"].reported == sums["others"].reported == 0
    assert f"{streams:,} connections are lost" in output
    assert re.search(rf"took over {streams:,} streams; 0 connections were lost", output)
    assert "KEPT: " in output


def test_a_small_proof_keeps_the_promise() -> None:
    # The machine may be busy, so the test waits longer than for other commands.
    done = subprocess.run(
        command("demo", "--prove", "--streams", "150", "--seconds", "1"),
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT_S,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    check_kept(done.stdout, 150)


def test_a_file_cannot_be_kept() -> None:
    done = run("demo", "--prove", "--data", "x.db")
    assert done.returncode == 2
    assert "omit --data" in done.stderr


def test_too_few_descriptors_are_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    with pytest.raises(ConfigError, match=r"10000 streams need 10256 .* limit is 4096; .*--streams 3840"):
        prove.check_descriptors(10_000)


def take(record: Record, *events: tuple[str, int, int]) -> None:
    for topic, number, place in events:
        record.take(Event(data=event_data(topic, number, place)))


def gap(missed: int | None) -> Event:
    return Event(event="relay.gap", data=f'{{"reason":"slow","missed":{"null" if missed is None else missed}}}')


PUBLISHED = {"a": 3, "b": 2, "other": 9}


def test_a_client_that_received_everything_is_complete() -> None:
    record = Record(["a", "b"])
    take(record, ("a", 1, 1), ("b", 1, 2), ("a", 2, 4), ("b", 2, 5))
    assert not record.is_complete(PUBLISHED)
    take(record, ("a", 3, 9))
    assert record.is_complete(PUBLISHED)
    assert record.sums(PUBLISHED) == Sums(clients=1, received=5)


def test_missing_events_are_reported_only_as_far_as_gaps_count_them() -> None:
    record = Record(["a", "b"])
    record.take(gap(1))
    take(record, ("a", 2, 3), ("a", 3, 4), ("b", 2, 5))
    sums = record.sums(PUBLISHED)
    assert (sums.reported, sums.unreported) == (1, 1)
    record.take(gap(None))
    assert record.sums(PUBLISHED).unreported == 1
    record.take(gap(1))
    assert record.sums(PUBLISHED).unreported == 0


def test_events_that_never_arrive_are_missed() -> None:
    record = Record(["a"])
    take(record, ("a", 1, 1))
    assert record.sums(PUBLISHED) == Sums(clients=1, received=1, unreported=2)


def test_repeated_and_disordered_events_break_the_promise() -> None:
    record = Record(["a", "b"])
    take(record, ("a", 1, 4), ("a", 1, 4), ("b", 1, 2), ("a", 2, 5), ("a", 3, 6), ("b", 2, 7))
    assert record.sums(PUBLISHED) == Sums(clients=1, received=5, repeated=1, disordered=1)


@pytest.mark.parametrize(
    ("sums", "lost", "text"),
    [
        (Sums(clients=1, unreported=2), 0, "2 events were missed without a report"),
        (Sums(clients=1, repeated=1), 0, "1 events were received twice"),
        (Sums(clients=1, disordered=1), 0, "1 events were received in disorder"),
        (Sums(clients=1), 3, "3 connections were lost in the upgrade"),
    ],
)
def test_a_broken_promise_is_printed_and_fails(
    sums: Sums, lost: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prove.report({"others": sums, "stalled": Sums(clients=1)}, lost) == 1
    assert f"BROKEN: {text}." in capsys.readouterr().out


def test_a_slow_run_states_the_load_of_the_machine() -> None:
    expected = "127 s instead of less than 60; the load average was 9.2 with 2 cores; --streams sets fewer clients"
    assert prove.explain_time(127.4, 9.21, 2) == expected
