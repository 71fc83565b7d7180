"""Another process replaces a running relay: no client is disconnected, and no event is lost or repeated.

Covers relay.commands.upgrade.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.errors import RelayError
from relay.event import Event
from relay.upgrade.messages import Channel, Got, Ready, Start, UpgradeHello
from tests.oracle import Oracle, Published
from tests.running import TIMEOUT_S, Feeder, Relay, Stream, eventually, relay, run

STREAMS = 200
UPGRADES = 3
BATCH_S = 0.01
"""Time between two batches of the feed."""



def upgrade_fails(server: Relay) -> str:
    """Request an upgrade that fails; return the reason in the log."""
    count = len(server.messages("the upgrade failed"))
    os.kill(server.pid, signal.SIGUSR2)
    eventually(lambda: len(server.messages("the upgrade failed")) > count, "the upgrade fails")
    assert server.process.poll() is None
    return server.messages("the upgrade failed")[-1]


def test_streams_feeders_and_connections_continue_in_the_new_process(tmp_path: Path) -> None:
    with relay("--unix", str(tmp_path / "relay.sock")) as server:
        path = server.unix_path
        with Stream(server.port, "topic=*") as stream, Feeder(path) as feeder:
            resting = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
            begun = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
            with resting, begun:
                begun.sendall(b"GET /healthz HTTP/1.1\r\nHo")
                assert feeder.publish(data=1, topic="a").endswith("-1")
                feeder.socket.sendall(b'{"data": 2, "topic": "b", ')
                server.upgrade()
                assert server.process.wait(TIMEOUT_S) == 0
                feeder.socket.sendall(b'"ack": "half"}\n')
                assert feeder.answer()["ack"] == "half"
                server.publish("3", "c")
                assert [event.data for event in stream.take(3)] == ["1", "2", "3"]
                begun.sendall(b"st: x\r\n\r\n")
                resting.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                for connection in (resting, begun):
                    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        with Stream(server.port, "topic=*", {"Last-Event-ID": stream.last_event_id.replace("-3", "-1")}) as stream:
            assert [event.data for event in stream.take(2)] == ["2", "3"]
        with Feeder(path) as feeder:
            assert feeder.publish(data=4).endswith("-4")
        server.stop()
        assert not path.exists()


def test_a_stalled_stream_continues_within_its_half_sent_frame() -> None:
    with relay("--client-buffer", "16KiB") as server, Stream(server.port, receive_buffer=8192) as stream:
        lines = "\n".join(json.dumps({"data": f"{number}:" + "x" * 3000}) for number in range(500))
        server.publish(lines, content_type="application/x-ndjson")
        for _ in range(2):
            server.upgrade()
        assert [event.data.partition(":")[0] for event in stream.take(500)] == [str(number) for number in range(500)]


def test_the_missed_events_of_a_slow_stream_are_counted_across_an_upgrade() -> None:
    limits = ("--history-bytes", "64KiB", "--event-bytes-max", "16KiB", "--lag-bytes", "0", "--client-buffer", "4KiB")
    with relay(*limits) as server, Stream(server.port, receive_buffer=4096) as stream:
        for number in range(300):
            server.publish(f"{number}:" + "x" * 1000)
        server.upgrade()
        for number in range(300, 320):
            server.publish(f"{number}:" + "x" * 1000)
        seen = missed = 0
        while seen + missed < 320:
            event = stream.next()
            if event.event == "relay.gap":
                missed += json.loads(event.data)["missed"]
            else:
                seen += 1
        assert (seen + missed, event.data.partition(":")[0]) == (320, "319")
        assert missed > 0


def test_lines_of_standard_input_continue() -> None:
    with relay("--stdin", "lines", stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        stdin = server.process.stdin
        assert stdin is not None
        stdin.write(b"one\ntw")
        stdin.flush()
        assert stream.next().data == "one"
        server.upgrade()
        stdin.write(b"o\n")
        stdin.close()
        assert stream.next().data == "two"


def test_an_event_stream_on_standard_input_cannot_be_passed_on() -> None:
    with relay("--stdin", "sse", stdin=subprocess.PIPE) as server:
        assert "standard input" in upgrade_fails(server)
        assert server.process.stdin is not None
        server.process.stdin.close()


def test_retention_limits_and_leases_pass_on() -> None:
    with relay("--history-events", "3", "--streams-per-address-max", "1", "--max-age", "10m") as server:
        for number in range(5):
            server.publish(str(number), topic="a" if number else "rare")
        with Stream(server.port):
            server.upgrade()
            with Stream(server.port) as refused:
                assert refused.head.startswith(b"HTTP/1.1 429 ")
        eventually(lambda: server.stats()["streams"] == 0, "the stream is closed")
        with Stream(server.port, "topic=a&since=earliest") as stream:
            assert [event.data for event in stream.take(3)] == ["2", "3", "4"]
        epoch = stream.last_event_id.partition("-")[0]
        eventually(lambda: server.stats()["streams"] == 0, "the stream is closed")
        with Stream(server.port, "topic=rare", {"Last-Event-ID": f"{epoch}-1"}) as stream:
            stream.read_until(f"id: {epoch}-2\n".encode())
            assert b"relay.gap" not in stream.raw
        eventually(lambda: server.stats()["streams"] == 0, "the stream is closed")
        with Stream(server.port, "topic=a", {"Last-Event-ID": f"{epoch}-1"}) as stream:
            assert stream.next().event == "relay.gap"


@pytest.mark.parametrize("first", ["*", "silent"])
def test_streams_of_patterns_and_of_topics_without_events_pass_on_in_any_order(first: str) -> None:
    with relay("--history-events", "2") as server:
        [id] = server.publish("0", "gone")
        server.publish("1", "a")
        server.publish("2", "a")  # no event of `gone` is retained
        terms = sorted(["*", "silent", "gone", "a"], key=lambda term: term != first)
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(Stream(server.port, f"topic={term}")) for term in terms]
            server.upgrade()
            server.upgrade()
            for topic in ("a", "gone", "silent"):
                server.publish("later", topic)
            for stream, term in zip(streams, terms, strict=True):
                stream.take(3 if term == "*" else 1)
        for topic, gaps in (("gone", True), ("other", False)):
            with Stream(server.port, f"topic={topic}", {"Last-Event-ID": id[:-1] + "0"}) as stream:
                server.publish("last", topic)
                stream.read_until(b"data: last\n")
                assert (b"relay.gap" in stream.raw) == gaps


def test_if_the_new_process_rejects_its_settings_the_old_one_continues(tmp_path: Path) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text('topic = "default"')
    with relay("--config", str(settings)) as server, Stream(server.port) as stream:
        server.publish("before")
        settings.write_text('no-such-setting = "1"')
        assert "does not start" in upgrade_fails(server)
        server.publish("after")
        assert [event.data for event in stream.take(2)] == ["before", "after"]
        settings.write_text("")
        server.upgrade()
        server.publish("later")
        assert stream.next().data == "later"


def test_if_the_new_process_is_silent_the_old_one_continues(tmp_path: Path) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text('topic = "default"')
    with relay("--config", str(settings), "--upgrade-timeout", "1s") as server, Stream(server.port) as stream:
        settings.unlink()
        os.mkfifo(settings)  # The new process waits for its settings.
        # No upgrade succeeds afterwards in this test: on a busy machine, a start takes longer than a second.
        for number in range(2):
            assert "took longer than 1 s" in upgrade_fails(server)
            server.publish(str(number))
            assert stream.next().data == str(number)


def test_if_the_new_process_dies_while_it_reads_the_log_the_old_one_continues() -> None:
    with relay("--history-bytes", "256MiB") as server, Stream(server.port) as stream:
        events = "\n".join(json.dumps({"data": f"{number}:" + "x" * 1000, "topic": "old"}) for number in range(5000))
        for _ in range(8):
            server.publish(events, content_type="application/x-ndjson")
        count = len(server.messages("the upgrade failed"))
        os.kill(server.pid, signal.SIGUSR2)
        eventually(lambda: any(text.endswith("is taking over") for text in server.messages("relay ")), "it begins")
        [begun] = [text for text in server.messages("relay ") if text.endswith("is taking over")]
        os.kill(int(begun.split("pid ")[1].split(",")[0]), signal.SIGKILL)
        eventually(lambda: len(server.messages("the upgrade failed")) > count, "the upgrade fails")
        server.publish("after")
        assert stream.next().data == "after"
        server.upgrade()
        server.publish("later")
        assert stream.next().data == "later"
        assert server.stats()["events"] == 40_002


def test_workers_cannot_be_upgraded() -> None:
    with relay("--workers", "2") as server:
        os.kill(server.pid, signal.SIGUSR2)
        eventually(lambda: bool(server.messages("the upgrade failed")), "the upgrade is refused")
        server.publish("served")


def test_an_upgrade_of_another_program_is_rejected() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        done = run("upgrade", str(other.pid))
        assert (done.returncode, other.poll()) == (1, None)
        assert "is not a relay" in done.stderr
        other.communicate(b"\n")
    assert "does not exist" in run("upgrade", str(other.pid)).stderr


def test_the_manager_is_notified_of_the_new_process(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind(str(tmp_path / "notify"))
        with relay(environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert manager.recv(4096).startswith(b"READY=1")
            server.upgrade()
            assert manager.recv(4096).startswith(b"RELOADING=1")
            assert manager.recv(4096) == f"MAINPID={server.pid}".encode()
            assert manager.recv(4096).startswith(b"READY=1")


class Load:
    """A steady feed into a relay, and streams that are each checked by an oracle."""

    def __init__(self, server: Relay) -> None:
        self.server = server
        self.published = Published()
        self.streams = [Stream(server.port, f"topic=all&topic=t.{number % 10}") for number in range(STREAMS)]
        self.oracles = [Oracle(self.published, ("all", f"t.{number % 10}")) for number in range(STREAMS)]
        for oracle in self.oracles:
            oracle.connect(1)
        self.over = threading.Event()
        self.feeder = threading.Thread(target=self._feed)
        self.reader = threading.Thread(target=self._read)
        self.failure: BaseException | None = None

    def _feed(self) -> None:
        try:
            with Feeder(self.server.unix_path) as feeder:
                number = 0
                while not self.over.wait(BATCH_S):
                    batch = []
                    for _ in range(10):
                        number += 1
                        topic = "all" if number % 2 else f"t.{number % 10}"
                        batch.append({"data": f"{number}:" + "x" * (number % 300), "topic": topic, "ack": number})
                    feeder.send(*batch)
                    for line in batch:
                        answer = feeder.answer()
                        assert answer["ack"] == line["ack"]
                        self.published.add(Event(data=str(line["data"]), topic=str(line["topic"])), answer["id"])
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error

    def _read(self) -> None:
        with selectors.DefaultSelector() as ready:
            for number, stream in enumerate(self.streams):
                ready.register(stream.socket, selectors.EVENT_READ, number)
            idle = 0
            while idle < 10:
                found = ready.select(0.1)
                idle = idle + 1 if not found and self.over.is_set() else 0
                for key, _ in found:
                    data = self.streams[key.data].socket.recv(65536)
                    if not data:
                        self.failure = AssertionError("a stream was closed")
                        return
                    self.streams[key.data].take_bytes(data)

    def __enter__(self) -> Load:
        self.feeder.start()
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.feeder.join()
        self.reader.join()
        for stream in self.streams:
            stream.close()

    def judge(self) -> int:
        """Check the received events of every stream against the promise; return their number."""
        if self.failure is not None:
            raise self.failure
        for stream, oracle in zip(self.streams, self.oracles, strict=True):
            for event in stream.events():
                oracle.receive(event)
            oracle.finish()
            assert oracle.gaps == 0
        return sum(oracle.seen for oracle in self.oracles)


def test_three_upgrades_do_not_affect_two_hundred_streams_under_a_steady_feed(tmp_path: Path) -> None:
    with relay("--unix", str(tmp_path / "relay.sock")) as server:
        with Load(server) as load:
            for _ in range(UPGRADES):
                before = len(load.published.events)
                eventually(lambda before=before: len(load.published.events) > before + 200, "the feed continues")  # type: ignore[misc]
                server.upgrade()
            assert server.stats()["closes"] == {}
        assert len(server.messages("took over 200 streams")) == UPGRADES
        assert load.judge() > STREAMS * UPGRADES * 100


# The channel


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """Return both ends of a channel."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(TIMEOUT_S)
    with contextlib.closing(Channel(ours)) as one, contextlib.closing(Channel(theirs)) as other:
        yield one, other


def test_a_message_arrives_with_its_descriptors_and_is_answered(channels: tuple[Channel, Channel]) -> None:
    one, other = channels
    with open(os.devnull) as file:
        sender = threading.Thread(target=one.send, args=(Ready(), [file.fileno()] * 3))
        sender.start()
        message, fds = other.receive()
        sender.join()
        assert (message, len(fds)) == (Ready(), 3)
        for fd in fds:
            assert os.fstat(fd) == os.fstat(file.fileno())
            assert not os.get_inheritable(fd)
            os.close(fd)


def test_an_invalid_message_and_a_closed_peer_are_errors(channels: tuple[Channel, Channel]) -> None:
    one, other = channels
    one.send(UpgradeHello(1, "x"))
    with pytest.raises(RelayError, match="UpgradeHello instead of Start"):
        other.expect(Start)
    one.socket.send(b"\0\0\0\1\0\0!")
    with pytest.raises(RelayError, match="invalid message"):
        other.receive()
    one.socket.send(Channel.encode(Got())[:-1])
    one.close()
    with pytest.raises(RelayError, match="closed the channel"):
        other.receive()
    with pytest.raises(RelayError, match="closed the channel"):
        other.receive()
    with pytest.raises(RelayError, match="cannot send"):
        other.send(Got())


def test_the_file_passes_on_with_acknowledged_events_and_dedup_keys(tmp_path: Path) -> None:
    arguments = ("--unix", str(tmp_path / "relay.sock"), "--data", str(tmp_path / "relay.db"), "--durable")
    with relay(*arguments) as server, Stream(server.port) as stream, Feeder(server.unix_path) as feeder:
        first = feeder.publish(data="0", dedup="zero")
        for turn in range(2):
            server.upgrade()
            assert feeder.publish(data="0", dedup="zero") == first
            feeder.publish(data=str(turn + 1))
        assert [event.data for event in stream.take(3)] == ["0", "1", "2"]
        os.kill(server.pid, signal.SIGKILL)
    with relay(*arguments) as server, Stream(server.port, "topic=default&since=earliest") as stream:
        assert [event.data for event in stream.take(3)] == ["0", "1", "2"]


def test_dedup_keys_pass_on_without_a_file() -> None:
    with relay() as server:
        body = json.dumps({"data": 1, "dedup": "one"})
        first = server.publish(body, content_type="application/json")
        server.upgrade()
        assert server.publish(body, content_type="application/json") == first


def test_an_upgrade_to_another_file_is_rejected(tmp_path: Path) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text(f'data = "{tmp_path}/a.db"')
    with relay("--config", str(settings)) as server:
        settings.write_text("")
        upgrade_fails(server)
        assert server.messages("relay: data: '' cannot take over from")
        server.publish("after")
        settings.write_text(f'data = "{tmp_path}/a.db"')
        server.upgrade()
        server.publish("later")
        with Stream(server.port, "topic=default&since=earliest") as stream:
            assert [event.data for event in stream.take(2)] == ["after", "later"]


def test_an_id_that_was_evicted_before_an_upgrade_does_not_match_a_later_event(tmp_path: Path) -> None:
    with relay("--history-events", "3", "--unix", str(tmp_path / "relay.sock")) as server:
        path = server.unix_path
        with Feeder(path) as feeder:
            for number in range(1, 6):
                feeder.publish(data=f"old {number}", id=str(number))
        server.upgrade()
        with Feeder(path) as feeder:
            for number in (1, 2):  # the publisher restarts
                feeder.publish(data=f"new {number}", id=str(number))
        with Stream(server.port, headers={"Last-Event-ID": "1"}) as stream:
            gap = stream.next()
            assert (gap.event, json.loads(gap.data)["reason"]) == ("relay.gap", "unknown")
            assert [event.data for event in stream.take(3)] == ["old 5", "new 1", "new 2"]
        with Stream(server.port, headers={"Last-Event-ID": "5"}) as stream:
            assert [event.data for event in stream.take(2)] == ["new 1", "new 2"]
