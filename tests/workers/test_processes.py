"""Tests of real servers with several processes, some of which are killed, stopped or disconnected.

They cover relay.workers.processes, connections, membership, aggregate, hub_end and edge_end.

Covers `relay.workers.connections` and `relay.workers.membership`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.event import Event
from tests.oracle import Oracle, Published
from tests.running import ASIDE_BYTES, TIMEOUT_S, Feeder, Relay, Stream, eventually, relay, run


def is_readable(feeder: Feeder) -> bool:
    """Return whether an answer has arrived."""
    return bool(select.select([feeder.socket], [], [], 0)[0])


def workers(server: Relay) -> list[int]:
    """Return the process ids of the workers, in the order of their start."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def started_instead(server: Relay, dead: int, other: int) -> int:
    """Wait for the worker that replaces a dead one."""
    eventually(lambda: set(workers(server)) - {dead, other} != set(), "a new worker")
    [started] = set(workers(server)) - {dead, other}
    return started


Spread = Callable[..., list[Stream]]


@pytest.fixture
def spread() -> Iterator[Spread]:
    """Open streams until each worker has one; the kernel distributes them. They are closed after the test."""
    with contextlib.ExitStack() as stack:

        def streams_at_each(server: Relay, count: int = 12) -> list[Stream]:
            streams = [stack.enter_context(Stream(server.port, "topic=a")) for _ in range(count)]
            while not all(each["streams"] for each in server.stats()["workers"]):
                assert len(streams) < 100, server.stats()
                streams.append(stack.enter_context(Stream(server.port, "topic=a")))
            return streams

        yield streams_at_each


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Relay]:
    """A hub with two workers."""
    with relay("--workers", "2", "--unix", str(tmp_path / "u")) as running:
        yield running


@pytest.fixture
def unix(tmp_path: Path) -> Path:
    """Path of the Unix socket for feeders."""
    return tmp_path / "u"


def test_streams_at_every_worker_receive_the_same_ids_in_order_from_every_source(
    server: Relay, unix: Path, spread: Spread
) -> None:
    streams = spread(server)
    ids = []
    with Feeder(unix) as feeder:
        for number in range(50):
            ids.append(feeder.publish(topic="a", data=f"unix {number}"))
            ids += server.publish(f"http {number}", "a")
    for stream in streams:
        with stream:
            assert [event.id for event in stream.take(100)] == ids
    assert len(set(ids)) == 100


def test_an_event_is_encoded_once_for_all_workers(server: Relay, spread: Spread) -> None:
    spread(server)
    for _ in range(10):
        server.publish("x", "a")
    metrics = server.request("GET", "/metrics")[2].decode()
    encodes = {line for line in metrics.splitlines() if line.startswith("relay_encodes_total")}
    assert encodes == {
        'relay_encodes_total{worker="hub"} 10.0',
        'relay_encodes_total{worker="1"} 0.0',
        'relay_encodes_total{worker="2"} 0.0',
    }


def test_every_worker_reports_the_totals_of_all_processes(server: Relay, spread: Spread) -> None:
    streams = spread(server)
    count = len(streams)
    server.publish("x", "a")
    for stream in streams:
        stream.next()
    for _ in range(8):  # each request uses a new connection, to either worker
        stats = server.stats()
        assert stats["streams"] == count
        assert stats["events"] == 1
        assert stats["deliveries"] == count
        assert [each["worker"] for each in stats["workers"]] == [1, 2]
        assert sum(each["streams"] for each in stats["workers"]) == count
        assert server.metric("relay_streams") == count
        assert server.metric("relay_deliveries_total") == count
        assert server.metric("relay_events_total") == 1
        assert server.metric("relay_worker_up") == 2
        assert server.request("GET", "/readyz")[0] == 200
    topic = {"topic": "a", "subscribers": count, "retained": 1, "events": 1}
    eventually(lambda: server.stats()["topics"] == [topic], "the list of topics, up to one second old")


def test_top_shows_the_totals_and_each_worker(server: Relay, spread: Spread) -> None:
    count = len(spread(server))
    done = run("top", "--once", server.url)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"streams +{count} ", done.stdout)
    rows = re.findall(r"^ *([12]) +(\d+) +0 +[\d.]+ +0 events", done.stdout, re.MULTILINE)
    assert sorted(number for number, _ in rows) == ["1", "2"]  # the worker with more streams is first
    assert sum(int(streams) for _, streams in rows) == count


def test_a_worker_answers_publish_errors_like_a_single_process(server: Relay) -> None:
    headers = {"Authorization": "Bearer a-token-for-tests", "Content-Type": "application/json"}
    for body in (b'{"data":"x","id":"a\\u0000"}', b'{"data":%b1}' % (b"[" * 600), b'{"data":"\\ud800"}'):
        status, _, answer = server.request("POST", "/publish", body, headers)
        assert status == 400, answer
        assert "error" in json.loads(answer)
    assert server.stats()["events"] == 0
    number = b"123456789012345678901234567890.50"
    assert server.request("POST", "/publish", b'{"data": {"v": %b}}' % number, headers)[0] == 200
    with Stream(server.port, "since=earliest") as stream:
        assert stream.next().data == f'{{"v":{number.decode()}}}'


@pytest.mark.parametrize(("size", "status"), [(1_500_000, 400), (4_500_000, 400), (7_000_000, 413)])
def test_a_body_that_grows_beyond_the_link_limit_is_rejected_and_keeps_the_link(
    server: Relay, size: int, status: int
) -> None:
    """JSON needs six bytes for a control character, so 7 MB of text become 42 MB."""
    before = workers(server)
    headers = {"Authorization": "Bearer a-token-for-tests", "Content-Type": "text/plain"}
    assert server.request("POST", "/publish", b"\x01" * size, headers)[0] == status
    assert server.publish("after") != []
    assert workers(server) == before


def test_an_id_resumes_at_any_worker(server: Relay) -> None:
    ids = [server.publish(str(number), "a")[0] for number in range(5)]
    for place, id in enumerate(ids * 4):
        with Stream(server.port, "topic=a", {"Last-Event-ID": id}) as stream:
            assert [event.id for event in stream.take(4 - place % 5)] == ids[place % 5 + 1 :]


def test_a_killed_worker_is_restarted_and_its_clients_resume_without_a_gap(server: Relay, unix: Path) -> None:
    published = Published()
    followers = [Follower(server.port, published) for _ in range(12)]
    killed, other = workers(server)
    with Feeder(unix) as feeder:
        for number in range(300):
            if number in (100, 200):
                os.kill(killed, signal.SIGKILL)
                killed = started_instead(server, killed, other)
            event = Event(data=str(number), topic="a")
            published.add(event, feeder.publish(topic="a", data=event.data))
        last = feeder.publish(topic="a", data="last")
        published.add(Event(data="last", topic="a"), last)
    for follower in followers:
        follower.finish(last)
    assert any(follower.resumes for follower in followers)
    assert any(not follower.resumes for follower in followers), "the other worker's streams are not affected"
    eventually(lambda: len(workers(server)) == 2, "two workers")
    assert server.stats()["worker_restarts"] == 2


class Follower:
    """A client in its own thread that reconnects with its last id; an oracle checks its events.

    Args:
        port: port of the server.
        published: the events published in the meantime.
    """

    def __init__(self, port: int, published: Published) -> None:
        self.resumes = 0
        self._oracle = Oracle(published, ("a",))
        self._port = port
        self._events: list[Event | None] = []  # None for each reconnect
        self._wanted: str | None = None
        self._stream = Stream(port, "topic=a")
        self._stream.read_until(b"\nid: ")
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                try:
                    event = self._stream.next()
                except (AssertionError, OSError):
                    self._reconnect()
                    continue
                self._events.append(event)
                if event.data == "last":
                    return
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    def _reconnect(self) -> None:
        last_id = self._stream.last_event_id
        self._stream.close()
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self._stream = Stream(self._port, "topic=a", {"Last-Event-ID": last_id})
            except (AssertionError, OSError):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                break
        self.resumes += 1
        self._events.append(None)

    def finish(self, last: str) -> None:
        """Wait for the last event and check all received events."""
        self._thread.join(TIMEOUT_S)
        assert self._failure is None, self._failure
        assert not self._thread.is_alive(), "the last event has not arrived"
        self._stream.close()
        self._oracle.connect(1)
        for event in self._events:
            if event is None:
                self._oracle.connect(None)
            else:
                self._oracle.receive(event)
        self._oracle.finish()
        assert self._oracle.gaps == 0
        assert self._stream.last_event_id == last


@pytest.mark.slow
def test_a_stopped_worker_does_not_delay_the_others_or_cost_memory(tmp_path: Path, spread: Spread) -> None:
    settings = ("--workers", "2", "--unix", str(tmp_path / "u"), "--history-bytes", "4MiB")
    with relay(*settings) as server:
        streams = spread(server)
        stopped = workers(server)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            before = server_memory(server)
            with Feeder(tmp_path / "u") as feeder:
                first = feeder.publish(topic="a", data="first")
                running = [stream for stream in streams if has_all(stream, first)]
                assert running
                for number in range(200):
                    last = feeder.publish(topic="a", data="x" * 100_000 + str(number))
                    # At full speed, the hub could lap the running worker too.
                    assert running[0].next().id == last
            # The hub acknowledged 20 MB and retains 4 MB. The streams of the running worker receive all of it.
            assert server_memory(server) - before < 16 * 1024 * 1024 + ASIDE_BYTES
            assert all(has_all(stream, last) for stream in running[1:])
        finally:
            os.kill(stopped, signal.SIGCONT)
        for stream in streams:
            if stream not in running:
                # These streams were lapped. They are closed, and a reconnect receives a gap event.
                stream.rest()
                eventually(lambda: receives_gap(server, stream.last_event_id), "a gap")  # noqa: B023


def receives_gap(server: Relay, last_id: str) -> bool:
    """Reconnect with an id; return whether the first event is a gap. It is not one at a worker that still lags."""
    with Stream(server.port, "topic=a", {"Last-Event-ID": last_id}) as stream:
        try:
            return stream.next().event == "relay.gap"
        except AssertionError:
            return False


def server_memory(server: Relay) -> int:
    """Return the resident bytes of the hub's process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def has_all(stream: Stream, last: str) -> bool:
    """Read events; return whether the last one arrived before the stream was silent for 2 s."""
    stream.socket.settimeout(2.0)
    try:
        while stream.next().id != last:
            pass
    except TimeoutError:
        return False
    finally:
        stream.socket.settimeout(TIMEOUT_S)
    return True


def test_the_workers_of_a_killed_hub_drain_and_exit(server: Relay, spread: Spread) -> None:
    streams = spread(server)
    pids = workers(server)
    server.publish("x", "a")
    assert {stream.next().data for stream in streams} == {"x"}
    server.process.kill()
    for stream in streams:
        with stream:
            assert stream.rest() == []
            assert stream.raw.rstrip(b"\n").rpartition(b"\n")[2].startswith(b"retry: ")
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the workers exit")


def test_a_drain_sends_all_entries_of_the_log_to_every_stream(server: Relay, spread: Spread) -> None:
    streams = spread(server)
    ids = [server.publish(str(number), "a")[0] for number in range(100)]
    assert server.stop() == 0
    for stream in streams:
        with stream:
            assert [event.id for event in stream.rest()] == ids


def test_a_block_stream_at_a_worker_holds_only_the_publishers_of_its_topic(tmp_path: Path) -> None:
    settings = ("--policy-for", "a=block lag-events=10 lag-bytes=100KiB", "--block-timeout", "60s")
    with relay("--workers", "2", "--unix", str(tmp_path / "u"), *settings) as server:
        stream = Stream(server.port, "topic=a", receive_buffer=4096)
        stream.read_until(b"\nid: ")

        def is_held() -> bool:
            # The workers answer too, so each worker has received every event that was published before the call.
            return server.metric("relay_topics_held") > 0

        with Feeder(tmp_path / "u") as feeder, Feeder(tmp_path / "u") as other:
            sent = 0
            while not is_held():
                assert sent < 200, "the feeder is never held"
                feeder.send({"topic": "a", "data": "x" * 10_000 + str(sent), "ack": sent})
                sent += 1
                eventually(lambda: is_readable(feeder) or is_held(), "an answer, or the hold")
                if is_readable(feeder):
                    feeder.answer()
            assert other.publish(topic="b", data="free")
            with stream:
                got = stream.take(sent)
        assert [int(event.data.lstrip("x")) for event in got] == list(range(sent))
