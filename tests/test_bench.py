"""The measuring tools: they build, they deliver, and they see what goes wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bench import encode, report
from bench.fanout import CASES, Case, measure
from bench.feed import Bench, Feed, run_duel, run_feed
from bench.harness import TARGETS, MeasureError, Server, Target, cpu_s, pss_bytes, tcp_memory_bytes, tree
from bench.runs import apart
from loadtest.native import HERE, Program, ProgramError, build
from loadtest.swarm import Swarm, SwarmReport
from relay import sse
from tests.conftest import NATIVE_ONLY

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
PRIMING = b": hello\nretry: 1000\nid: e-0\n\n"


def frame(number: int, time_ns: int = 1) -> bytes:
    return b'id: e-%d\ndata: {"n":%d,"t":%d,"p":"%s"}\n\n' % (number, number, time_ns, b"x" * 120)


@contextmanager
def serving(pieces: Iterable[bytes]) -> Iterator[int]:
    """The port of a server that sends these pieces to the first client, and waits for it to go."""

    def serve() -> None:
        # The swarm leaves with a reset, so that no port stays taken.
        with listener.accept()[0] as connection, contextlib.suppress(ConnectionResetError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(4096)
            for piece in pieces:
                connection.sendall(piece)
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield listener.getsockname()[1]
        server.join()


def seen(body: bytes, cut: int = 1 << 20, first: int = 1) -> SwarmReport:
    """What a swarm of one stream says of that body, which comes in pieces of `cut` bytes."""
    data = HEAD + body
    pieces = (data[at : at + cut] for at in range(0, len(data), cut))
    with serving(pieces) as port, Swarm(port, 1, seconds=10, first=first) as swarm:
        swarm.ready()
        while (report := swarm.mark()).bytes < len(body):
            assert not report.closed
    return report


def test_the_programs_build_and_are_not_built_again() -> None:
    binary = build(HERE / "swarm.c")
    made = binary.stat().st_mtime_ns
    assert build(HERE / "swarm.c").stat().st_mtime_ns == made


def test_a_source_that_does_not_compile_is_an_error_that_shows_why(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ProgramError, match="nothing"):
        build(source)


def test_a_program_that_ends_without_its_report_is_an_error() -> None:
    with Program(["/bin/true"]) as program, pytest.raises(ProgramError, match="no 'done' report"):
        program.report("done", 5)


@pytest.mark.parametrize("target", TARGETS)
def test_fifty_streams_get_every_event_once_and_in_order(target: str) -> None:
    figures = run_feed(TARGETS[target], Feed(streams=50, rate=500, seconds=0.2), Bench())
    assert figures["deliveries"] == 50 * 100
    assert figures["lost"] == 0
    assert figures["faults"] == 0
    assert figures["cpu_us_per_delivery"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_a_duel_feeds_both_and_loses_nothing() -> None:
    sums = run_duel([TARGETS["floor"], TARGETS["relay"]], Feed(streams=10, rate=200, seconds=0.5), Bench())
    assert list(sums) == ["floor", "relay"]
    for figures in sums.values():
        assert figures["deliveries"] in (1000, 2000)  # one turn, or two if one of them was disturbed
        assert figures["faults"] == 0


def test_stalled_streams_do_not_keep_the_others_from_theirs() -> None:
    feed = Feed(streams=20, rate=5000, seconds=0.4, stalled=4)
    figures = run_feed(TARGETS["floor"], feed, Bench())
    assert figures["deliveries"] == 16 * 2000
    assert figures["lost"] == 0
    assert figures["faults"] == 0


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 150, 1 << 20])
def test_the_swarm_reads_a_stream_cut_anywhere(cut: int) -> None:
    body = PRIMING + b"".join(frame(number) for number in range(1, 6))
    report = seen(body, cut)
    assert (report.deliveries, report.last_max, report.faults) == (5, 5, 0)
    assert report.bytes == len(body)


def test_the_swarm_counts_a_gap_a_duplicate_and_wrong_order() -> None:
    report = seen(b"".join(frame(number) for number in (1, 2, 5, 5, 3, 6)))
    assert (report.deliveries, report.gaps, report.missed) == (6, 1, 2)
    assert (report.duplicates, report.wrong_order) == (1, 1)
    assert report.faults == 4


def test_what_a_stream_was_told_it_missed_is_no_fault() -> None:
    told = b'event: relay.gap\ndata: {"reason":"slow","missed":3,"from":"e-2","to":"e-4"}\n\n'
    report = seen(frame(1) + told + frame(5))
    assert (report.missed, report.told_gaps, report.told_missed, report.faults) == (3, 1, 3, 0)


def test_a_frame_that_was_cut_short_is_seen() -> None:
    report = seen(frame(1) + frame(2)[:60] + b"\n\n" + frame(2))
    assert (report.deliveries, report.torn) == (2, 1)


def test_events_missed_before_the_first_one_count_unless_any_first_one_will_do() -> None:
    assert seen(frame(3) + frame(4)).missed == 2
    assert seen(frame(3) + frame(4), first=0).missed == 0


def test_comments_heartbeats_and_carriage_returns_are_passed_over() -> None:
    body = b":\n" + frame(1).replace(b"\n", b"\r\n") + b"event: relay.heartbeat\ndata: \n\n" + frame(2)
    report = seen(body)
    assert (report.deliveries, report.faults) == (2, 0)


def test_a_refused_stream_is_counted_and_is_not_open() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with serving([refusal]) as port, Swarm(port, 1, seconds=10) as swarm:
        report = swarm.ready()
    assert (report.opened, report.refused) == (0, 1)


def test_the_floor_answers_the_probe_and_is_read_through_proc() -> None:
    with Server(TARGETS["floor"]) as server:
        assert server.get("/readyz")[0] == 200
        assert tree(server.pid) == [server.pid]
        assert cpu_s(server.pid) > 0
        assert pss_bytes(server.pid) > 0
    assert tcp_memory_bytes() >= 0


def test_a_server_that_does_not_start_says_what_it_said() -> None:
    broken = Target("broken", lambda _port, _unix, _extra: ["/bin/sh", "-c", "echo no such luck; exit 3"])
    with pytest.raises(MeasureError, match="no such luck"):
        Server(broken)


@pytest.fixture
def result() -> report.Result:
    """A result made without a server: relay took 1.2, 1.0 and 1.1 of the floor."""
    values = iter([10.0, 12.0, 10.0, 10.0, 10.0, 11.0])
    case = Case(
        name="plain",
        what="a plain case",
        value="v",
        unit="µs",
        limit=1.15,
        ratio=True,
        run=apart(lambda _target, _bench: {"v": next(values)}),
    )
    return measure(case, Bench(), repeat=3, targets=["floor", "relay"], pin=False)


def test_a_result_is_the_median_of_runs_in_turns(result: report.Result) -> None:
    assert result["floor"] == {"median": 10.0, "min": 10.0, "max": 10.0}
    assert result["relay"] == {"median": 11.0, "min": 10.0, "max": 12.0}
    assert (result["ratio"], result["ratio_min"], result["ratio_max"]) == (1.1, 1.0, 1.2)
    assert result["met"] is True


def test_results_are_kept_by_case_and_shown_as_a_table(
    result: report.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    report.write([report.stamp(result, "python -m bench plain")])
    report.write([report.stamp({**result, "met": False}, "python -m bench plain")])
    kept = msgspec.json.decode((tmp_path / "results.json").read_bytes())
    assert [each["case"] for each in kept] == ["plain"]
    text = (tmp_path / "README.md").read_text()
    row = "a plain case | 11 µs (10 to 12) | 10 µs (10 to 10) | 1.10 (1.00 to 1.20) | ≤ 1.15 × floor | **no**"
    assert f"| {row} |" in text
    assert "Short of what is asked: a plain case." in text


@pytest.mark.skipif(NATIVE_ONLY, reason="only the native engine is tested: RELAY_ENGINE=native or RELAY_BUILD=pure")
def test_each_encoder_is_timed_in_its_turn_and_the_chosen_one_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ROUND_S", 1e-5)
    monkeypatch.setattr(encode, "ROUNDS", 1)
    chosen = vars(sse)["encode_event"]
    figures = encode.speed()
    assert figures["ratio"] == figures["ratio_small"] == figures["native_small_ns"] / figures["speedups_small_ns"]
    assert vars(sse)["encode_event"] is chosen


def test_every_case_has_a_limit_and_a_target() -> None:
    assert all(case.targets and case.limit > 0 for case in CASES.values())
