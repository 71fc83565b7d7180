"""The measuring tools build, deliver every event, and detect faults."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bench import encode, report
from bench.feed import Bench, Feed, run_duel, run_feed
from bench.limits import CASES, Case, measure
from bench.runs import apart
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, MeasureError, cpu_s, pss_bytes, tcp_memory_bytes, tree
from loadtest.rig.native import HERE, Program, ProgramError, build
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.rig.targets import Target
from relay import sse
from tests.twins import NATIVE_ONLY

pytestmark = [pytest.mark.slow, pytest.mark.alone]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
PRIMING = b": hello\nretry: 1000\nid: e-0\n\n"


def frame(number: int, time_ns: int = 1) -> bytes:
    return b'id: e-%d\ndata: {"n":%d,"t":%d,"p":"%s"}\n\n' % (number, number, time_ns, b"x" * 120)


@contextmanager
def serving(pieces: Iterable[bytes]) -> Iterator[int]:
    """Run a server that sends these pieces to the first client and waits until it disconnects. Yield the port."""

    def serve() -> None:
        # The swarm closes with a reset, so that no port stays in use.
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


def seen(body: bytes, cut: int = 1 << 20, first: int = 1, topics: int = 0, head: bytes = HEAD) -> SwarmReport:
    """Return the report of a swarm of one stream that receives this body in pieces of `cut` bytes."""
    data = head + body
    pieces = (data[at : at + cut] for at in range(0, len(data), cut))
    with serving(pieces) as port, Swarm(port, 1, seconds=10, first=first, topics=topics) as swarm:
        swarm.ready()
        while (report := swarm.mark()).bytes < len(body):
            assert not report.closed
    return report


def test_the_programs_are_built_once() -> None:
    binary = build(HERE / "swarm.c")
    made = binary.stat().st_mtime_ns
    assert build(HERE / "swarm.c").stat().st_mtime_ns == made


def test_a_compile_error_is_reported_with_its_reason(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ProgramError, match="nothing"):
        build(source)


def test_a_program_that_exits_without_its_report_is_an_error() -> None:
    with Program(["/bin/true"]) as program, pytest.raises(ProgramError, match="no 'done' report"):
        program.report("done", 5)


@pytest.mark.parametrize("target", ["floor", "relay"])
def test_fifty_streams_receive_every_event_once_and_in_order(target: str) -> None:
    figures = run_feed(TARGETS[target], Feed(streams=50, rate=500, seconds=0.2), Bench())
    assert figures["deliveries"] == 50 * 100
    assert figures["lost"] == 0
    assert figures["faults"] == 0
    assert figures["cpu_us_per_delivery"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_a_duel_feeds_both_servers_and_loses_nothing() -> None:
    sums = run_duel([TARGETS["floor"], TARGETS["relay"]], Feed(streams=10, rate=200, seconds=0.5), Bench())
    assert list(sums) == ["floor", "relay"]
    for figures in sums.values():
        assert figures["deliveries"] in (1000, 2000)  # one run, or two if a disturbance occurred
        assert figures["faults"] == 0


def test_stalled_streams_do_not_delay_the_others() -> None:
    feed = Feed(streams=20, rate=5000, seconds=0.4, stalled=4)
    figures = run_feed(TARGETS["floor"], feed, Bench())
    assert figures["deliveries"] == 16 * 2000
    assert figures["lost"] == 0
    assert figures["faults"] == 0


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 150, 1 << 20])
def test_the_swarm_reads_a_stream_split_at_any_byte(cut: int) -> None:
    body = PRIMING + b"".join(frame(number) for number in range(1, 6))
    report = seen(body, cut)
    assert (report.deliveries, report.last_max, report.faults) == (5, 5, 0)
    assert report.bytes == len(body)


def test_the_swarm_counts_a_gap_a_duplicate_and_wrong_order() -> None:
    report = seen(b"".join(frame(number) for number in (1, 2, 5, 5, 3, 6)))
    assert (report.deliveries, report.gaps, report.missed) == (6, 1, 2)
    assert (report.duplicates, report.wrong_order) == (1, 1)
    assert report.faults == 4


def test_a_reported_gap_is_not_a_fault() -> None:
    gap = b'event: relay.gap\ndata: {"reason":"slow","missed":3,"from":"e-2","to":"e-4"}\n\n'
    report = seen(frame(1) + gap + frame(5))
    assert (report.missed, report.told_gaps, report.told_missed, report.faults) == (3, 1, 3, 0)


def test_a_truncated_frame_is_detected() -> None:
    report = seen(frame(1) + frame(2)[:60] + b"\n\n" + frame(2))
    assert (report.deliveries, report.torn) == (2, 1)


def test_events_missed_before_the_first_count_unless_any_first_event_is_allowed() -> None:
    assert seen(frame(3) + frame(4)).missed == 2
    assert seen(frame(3) + frame(4), first=0).missed == 0


def test_comments_heartbeats_and_carriage_returns_are_ignored() -> None:
    body = b":\n" + frame(1).replace(b"\n", b"\r\n") + b"event: relay.heartbeat\ndata: \n\n" + frame(2)
    report = seen(body)
    assert (report.deliveries, report.faults) == (2, 0)


def in_chunks(body: bytes, sizes: Iterable[int]) -> bytes:
    """Return the body in chunks of these sizes. The last size repeats until the end."""
    chunks, at = b"", 0
    for size in itertools.chain(sizes, itertools.repeat(len(body))):
        if at >= len(body):
            return chunks
        piece = body[at : at + size]
        chunks += b"%X;ext=1\r\n%b\r\n" % (len(piece), piece)
        at += size
    return chunks


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 64, 1 << 20])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_a_chunked_body_is_read_at_every_split(cut: int, size: int) -> None:
    body = PRIMING + b"".join(frame(number) for number in range(1, 4))
    head = HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding:  Chunked\r\nX: y\r\n\r\n")
    report = seen(in_chunks(body, itertools.repeat(size, len(body) // size)), cut, head=head)
    assert (report.deliveries, report.last_max, report.faults) == (3, 3, 0)


def test_the_last_chunk_ends_a_stream() -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    with serving([head, in_chunks(frame(1), []), b"0\r\n\r\n"]) as port, Swarm(port, 1, seconds=10) as swarm:
        swarm.ready()
        while not (report := swarm.mark()).closed:
            assert report.deliveries <= 1
    assert (report.deliveries, report.closed, report.faults) == (1, 1, 0)


@pytest.mark.parametrize("cut", [1, 3, 100, 1 << 20])
def test_data_that_a_server_wraps_is_read_too(cut: int) -> None:
    wrap = b'data:{"channel":"default","pub":{"data":'
    body = b"".join(frame(number).replace(b"data: ", wrap).replace(b'"}\n', b'"}}}\r\n') for number in (1, 2))
    short = frame(3).replace(b"data: ", wrap)
    report = seen(body + short[:120] + b"\n\n", cut)
    assert (report.deliveries, report.last_max, report.torn) == (2, 2, 1)


def test_the_id_can_follow_the_data() -> None:
    report = seen(b"".join(b'data:{"n":%d,"t":1}\nid:%d\n\n' % (number, number) for number in (1, 2)))
    assert (report.deliveries, report.samples, report.faults) == (2, 2, 0)


def test_a_stream_of_one_of_n_topics_expects_every_nth_event() -> None:
    whole = seen(frame(10) + frame(20) + frame(30), topics=10)
    assert (whole.deliveries, whole.last_max, whole.faults) == (3, 39, 0)
    assert seen(frame(30), first=21, topics=10).faults == 0
    broken = seen(frame(10) + frame(10) + frame(40) + frame(20), topics=10)
    assert (broken.duplicates, broken.gaps, broken.missed, broken.wrong_order) == (1, 1, 2, 1)


def test_an_event_of_another_topic_is_a_fault() -> None:
    report = seen(frame(10) + frame(11) + frame(20), topics=10)
    assert (report.foreign, report.faults) == (1, 1)


def test_each_stream_requests_its_own_topic_and_is_awaited() -> None:
    with MeasuredServer(TARGETS["relay"]) as server:
        paths = "/events?topic=t.{}"
        with Swarm(server.port, 7, path=paths, topics=3) as swarm, socket.socket(socket.AF_UNIX) as feeder:
            assert swarm.ready().opened == 7
            feeder.connect(str(server.unix))
            for number in range(1, 12):
                feeder.sendall(b'{"topic":"t.%d","data":{"n":%d,"t":1}}\n' % (number % 3, number))
            report = swarm.finish(10)
    # Numbers 1 to 11: three with remainder 0 at three streams, four each with remainders 1 and 2 at two streams each.
    assert (report.deliveries, report.reached, report.faults) == (3 * 3 + 4 * 2 + 4 * 2, 7, 0)


def test_a_gap_on_one_stream_excuses_no_loss_on_another() -> None:
    gap = b'event: relay.gap\ndata: {"missed":5}\n\n'
    report = seen(frame(1) + frame(4) + gap + frame(5))
    assert (report.missed, report.told_missed, report.untold, report.faults) == (2, 5, 2, 2)


def test_after_a_gap_of_unknown_size_any_event_can_follow() -> None:
    gap = b'event: relay.gap\ndata: {"reason":"unknown","missed":null,"from":null}\n\n'
    report = seen(frame(1) + gap + frame(9) + frame(11))
    assert (report.told_gaps, report.missed, report.faults) == (1, 1, 1)


def test_a_rejected_stream_is_counted_and_is_not_open() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with serving([refusal]) as port, Swarm(port, 1, seconds=10) as swarm:
        report = swarm.ready()
    assert (report.opened, report.refused) == (0, 1)


def test_the_floor_answers_the_probe_and_is_measured_through_proc() -> None:
    with MeasuredServer(TARGETS["floor"]) as server:
        assert server.get("/readyz")[0] == 200
        assert tree(server.pid) == [server.pid]
        assert cpu_s(server.pid) > 0
        assert pss_bytes(server.pid) > 0
    assert tcp_memory_bytes() >= 0


def test_a_server_that_fails_to_start_is_reported_with_its_output() -> None:
    broken = Target("broken", lambda _place, _extra: ["/bin/sh", "-c", "echo no such luck; exit 3"])
    with pytest.raises(MeasureError, match="no such luck"):
        MeasuredServer(broken)


@pytest.fixture
def result() -> report.Result:
    """Return a result without a server: relay's values are 1.2, 1.0 and 1.1 times those of the floor."""
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


def test_a_result_is_the_median_of_alternating_runs(result: report.Result) -> None:
    assert result["floor"] == {"median": 10.0, "min": 10.0, "max": 10.0}
    assert result["relay"] == {"median": 11.0, "min": 10.0, "max": 12.0}
    assert (result["ratio"], result["ratio_min"], result["ratio_max"]) == (1.1, 1.0, 1.2)
    assert result["met"] is True


def test_results_are_stored_by_case_and_printed_as_a_table(
    result: report.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(
        "<!-- limits: written by a program; do not edit -->\n<!-- limits: end -->\n"
    )
    report.write([report.stamp(result, "python -m bench plain")])
    report.write([report.stamp({**result, "met": False}, "python -m bench plain")])
    kept = msgspec.json.decode((tmp_path / "results.json").read_bytes())
    assert [each["case"] for each in kept] == ["plain"]
    text = (tmp_path / "README.md").read_text()
    row = "a plain case | 11 µs (10 to 12) | 10 µs (10 to 10) | 1.10 (1.00 to 1.20) | ≤ 1.15 × floor | **no**"
    assert f"| {row} |" in text
    assert "Short of what is asked: a plain case." in text


@pytest.mark.skipif(NATIVE_ONLY, reason="only the native engine is tested: RELAY_ENGINE=native or RELAY_BUILD=pure")
def test_each_encoder_is_timed_and_the_selected_one_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ROUND_S", 1e-5)
    monkeypatch.setattr(encode, "ROUNDS", 1)
    chosen = vars(sse)["encode_event"]
    figures = encode.speed()
    assert figures["ratio"] == figures["ratio_small"] == figures["native_small_ns"] / figures["speedups_small_ns"]
    assert vars(sse)["encode_event"] is chosen


def test_every_case_has_a_limit_and_a_target() -> None:
    assert all(case.targets and case.limit > 0 for case in CASES.values())
