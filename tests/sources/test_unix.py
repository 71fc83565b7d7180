"""`relay.sources.unix` and `relay.sources.feeder`: the input of feeders on a real Unix socket is published.

That holds however the feeders connect, behave and disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from relay.config.model import Config
from relay.core.hub import Hub
from relay.sources import unix
from relay.sources.intake import ANSWER_BYTES_MAX, TURN_LINES
from relay.sources.topic_signals import TopicSignals
from relay.sources.unix import UnixSource
from relay.sources.unix_listener import bind_unix
from tests.sources.fakes import FakeHub, FakeMetrics, on_uvloop, value


class Relay:
    """A listening source, its hub and its metrics."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = str(folder / "relay.sock")
        self.hub = FakeHub()
        self.metrics = FakeMetrics()
        config = Config(unix=self.path, **settings)
        self.counts = {"delivered": 0, "dropped": 0}
        self.signals = TopicSignals(self.counts)
        self.source = UnixSource(
            config, cast(Hub, self.hub), self.metrics, asyncio.get_running_loop(), self.signals
        )

    def __enter__(self) -> Relay:
        self.source.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.source.close()
        assert self.source.feeders == set()
        assert not os.path.exists(self.path)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def until_gone(self) -> None:
        """Wait until every feeder is closed."""
        while self.source.feeders:
            await asyncio.sleep(0)


async def read_answers(reader: asyncio.StreamReader, count: int) -> list[Any]:
    return [json.loads(await reader.readline()) for _ in range(count)]


@on_uvloop
async def test_lines_are_published_and_answered(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        writer.write(b'{"topic":"t","data":1,"ack":"a"}\n{"data":2,"ack":2}\n{"data":3}\n{\n')
        assert await read_answers(reader, 3) == [
            {"ack": "a", "id": "e-1"},
            {"ack": 2, "id": "e-2"},
            {"error": "event: not valid JSON: it ends after byte 1", "line": 4},
        ]
        assert [(event.topic, value(event.data)) for event in relay.hub.events] == [
            ("t", 1),
            ("default", 2),
            ("default", 3),
        ]
        assert relay.metrics.errors == [("unix", "json")]
        writer.close()
        await relay.until_gone()


@on_uvloop
async def test_a_bad_line_is_logged_with_its_feeder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        writer.write(b'\n{"data":1,"x":2}\n')
        await reader.readline()
        writer.close()
    name = f"unix feeder 1 (pid {os.getpid()})"
    assert caplog.messages == [f"{name}, line 2: event: Object contains unknown field `x`"]


@on_uvloop
async def test_a_half_closed_feeder_receives_its_answers_and_then_the_end(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        lines = [json.dumps({"data": i, "ack": i}) for i in range(3 * TURN_LINES)]
        writer.write("\n".join(lines).encode())
        writer.write_eof()
        answers = (await reader.read()).splitlines()
        assert len(answers) == len(relay.hub.events) == len(lines)
        assert json.loads(answers[-1]) == {"ack": len(lines) - 1, "id": f"e-{len(lines)}"}
        writer.close()
        await relay.until_gone()


@on_uvloop
async def test_all_input_of_a_feeder_that_closed_is_published(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        feeder = socket.socket(socket.AF_UNIX)
        feeder.connect(relay.path)
        # An error and an answer that is never read, long before the rest.
        feeder.sendall(b'{\n{"data":0,"ack":0}\n' + b'{"data":1}\n' * 8000)
        feeder.close()
        await relay.hub.until_events(8001)
        await relay.until_gone()
        assert len(relay.hub.events) == 8001


@on_uvloop
async def test_all_input_of_a_feeder_that_reset_is_published(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        feeder = socket.socket(socket.AF_UNIX)
        feeder.setblocking(False)
        feeder.connect(relay.path)
        feeder.sendall(b'{"ack":1}\n')
        await relay.hub.until_events(1)
        # The answer is in the receive queue, so a close sends a reset.
        feeder.sendall(b'{"data":1}\n' * 8000 + b'{"data":2}')
        feeder.close()
        await relay.hub.until_events(8002)
        await relay.until_gone()
        assert relay.hub.data[1:] == [1] * 8000 + [2]


@on_uvloop
async def test_one_fast_feeder_does_not_starve_another(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        _, fast = await relay.connect()
        fast.write(b'{"data":"fast"}\n' * 50_000)
        await relay.hub.until_events(TURN_LINES)
        slow_reader, slow = await relay.connect()
        before = len(relay.hub.events)
        slow.write(b'{"data":"slow","ack":1}\n')
        await slow_reader.readline()
        place = relay.hub.data.index("slow")
        assert place - before < 20 * TURN_LINES
        fast.close()
        slow.close()
        await relay.hub.until_events(50_001)
        await relay.until_gone()


@on_uvloop
async def test_a_held_topic_blocks_the_feeder_and_then_continues_in_order(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        relay.hub.holding.add("h")
        feeder = socket.socket(socket.AF_UNIX)
        feeder.setblocking(False)
        feeder.connect(relay.path)
        text = b"".join(b'{"topic":"h","data":%d}\n' % i for i in range(100_000))
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(text):
                sent += feeder.send(text[sent : sent + 10_000])
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(feeder, text[sent:]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert relay.hub.events == []
        assert not sending.done()  # the socket is full, and relay does not read from it

        other_reader, other = await relay.connect()
        other.write(b'{"topic":"free","data":"x","ack":1}\n')
        await other_reader.readline()
        assert relay.hub.data == ["x"]
        other.close()

        relay.hub.release("h")
        await sending
        feeder.close()
        await relay.hub.until_events(100_001)
        assert relay.hub.data[1:] == list(range(100_000))
        await relay.until_gone()


@on_uvloop
async def test_the_feeder_waits_for_a_second_hold_too(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        relay.hub.holding |= {"h", "i"}
        _, writer = await relay.connect()
        writer.write(b'{"topic":"h","data":1}\n{"topic":"i","data":2}\n{"data":3}\n')
        await relay.hub.until(lambda: bool(relay.hub._callbacks))
        relay.hub.release("h")
        await relay.hub.until(lambda: bool(relay.hub._callbacks))
        assert relay.hub.data == [1]
        relay.hub.release("i")
        await relay.hub.until_events(3)
        writer.close()
        await relay.until_gone()


@on_uvloop
async def test_a_feeder_that_reads_no_answers_stops_being_read(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        feeder = socket.socket(socket.AF_UNIX)
        feeder.setblocking(False)
        feeder.connect(relay.path)
        loop = asyncio.get_running_loop()
        text = b"".join(b'{"data":%d,"ack":"%s"}\n' % (i, b"x" * 200) for i in range(20_000))
        sending = loop.create_task(loop.sock_sendall(feeder, text))
        done = -1
        while done != len(relay.hub.events):
            done = len(relay.hub.events)
            for _ in range(50):
                await asyncio.sleep(0)
        assert 0 < done < 20_000
        assert not sending.done()
        (connection,) = relay.source.feeders
        assert len(connection._unsent) < 2 * ANSWER_BYTES_MAX

        answers = 0
        while answers < 20_000:
            answers += (await loop.sock_recv(feeder, 1 << 20)).count(b"\n")
        await sending
        assert relay.hub.data == list(range(20_000))
        feeder.close()
        await relay.until_gone()


@on_uvloop
async def test_a_feeder_without_acks_need_not_read_the_errors(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"{\n" * 50_000 + b'{"data":1}\n')
        await relay.hub.until_events(1)
        assert len(relay.metrics.errors) == 50_000
        writer.close()
        assert reader is not None


@on_uvloop
async def test_a_line_that_is_too_long_is_rejected_once_and_reading_continues(tmp_path: Path) -> None:
    with Relay(tmp_path, line_bytes_max=1000) as relay:
        reader, writer = await relay.connect()
        writer.write(b'{"data":1}\n' + b"x" * 300_000)
        assert await read_answers(reader, 1) == [{"error": "line: longer than 1000 bytes", "line": 2}]
        writer.write(b"x" * 300_000 + b'\n{"data":2,"ack":3}\n')
        assert await read_answers(reader, 1) == [{"ack": 3, "id": "e-2"}]
        assert relay.metrics.errors == [("unix", "line")]
        writer.close()
        await relay.until_gone()


@on_uvloop
async def test_an_internal_error_closes_that_feeder_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        other_reader, other = await relay.connect()
        writer.write(b'{"topic":"broken"}\n')
        assert await reader.read() == b""
        assert "closed after an internal error" in caplog.text
        other.write(b'{"data":1,"ack":1}\n')
        assert await read_answers(other_reader, 1) == [{"ack": 1, "id": "e-1"}]
        for each in (writer, other):
            each.close()
        await relay.until_gone()


@on_uvloop
async def test_closing_publishes_all_read_input(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    with relay:
        reader, writer = await relay.connect()
        writer.write(b'{"data":1,"ack":1}\n' * (2 * TURN_LINES))
        await relay.hub.until_events(1)
        read = len(relay.hub.events)
    assert len(relay.hub.events) > read
    answers = await reader.read()
    assert answers.count(b"\n") == len(relay.hub.events)
    writer.close()


@on_uvloop
async def test_hundreds_of_feeders_connect_and_close_without_a_leak(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        before = 0
        for turn in range(4):
            feeders = [await relay.connect() for _ in range(50)]
            for _, writer in feeders:
                writer.write(b'{"data":1,"ack":1}\n')
            for reader, writer in feeders:
                await reader.readline()
                writer.close()
                await writer.wait_closed()
            await relay.until_gone()
            after = len(os.listdir("/proc/self/fd"))
            before = before or after  # the loop opens some descriptors for the first feeder
            assert after == before, turn
        assert len(relay.hub.events) == 200


@on_uvloop
async def test_an_accept_that_fails_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unix, "ACCEPT_PAUSE_S", 0.0)
    with Relay(tmp_path) as relay:
        listener = relay.source._listener

        class Failing:
            def fileno(self) -> int:
                assert listener is not None
                return listener.fileno()

            def accept(self) -> None:
                relay.source._listener = listener
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        relay.source._listener = Failing()  # type: ignore[assignment]
        reader, writer = await relay.connect()
        writer.write(b'{"data":1,"ack":1}\n')
        assert await read_answers(reader, 1) == [{"ack": 1, "id": "e-1"}]
        assert caplog.messages == ["unix: cannot accept a feeder: Too many open files"]
        writer.close()
        await relay.until_gone()


@on_uvloop
async def test_closing_does_not_remove_the_socket_file_of_another_process(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.source.open()
    os.unlink(relay.path)
    with bind_unix(relay.path, 0o660, -1, 8):
        relay.source.close()
        assert os.path.exists(relay.path)
    relay.source.close()


@on_uvloop
async def test_a_feeder_receives_the_signals_of_its_topics(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        _, other = await relay.connect()
        writer.write(b'{"topic":"a","data":1,"ack":1}\n{"topic":"b","data":2,"ack":2}\n')
        other.write(b'{"topic":"c","data":1}\n')
        await read_answers(reader, 2)
        relay.signals.deliver("a", b'{"action":"stop"}')
        relay.signals.deliver("never", b"null")
        relay.signals.deliver("b", b"null")
        assert await read_answers(reader, 2) == [
            {"signal": {"action": "stop"}, "topic": "a"},
            {"signal": None, "topic": "b"},
        ]
        assert relay.counts == {"delivered": 2, "dropped": 0}
        writer.close()
        other.close()
        await relay.until_gone()
        assert relay.signals.topics == {}


@on_uvloop
async def test_signals_to_a_feeder_that_does_not_read_are_dropped(tmp_path: Path) -> None:
    with Relay(tmp_path) as relay:
        reader, writer = await relay.connect()
        writer.write(b'{"topic":"a","data":1,"ack":1}\n')
        await read_answers(reader, 1)
        sent = 0
        while not relay.counts["dropped"]:
            relay.signals.deliver("a", b'"%b"' % (b"x" * 10_000))
            sent += 1
            assert sent < 1000, "the socket never fills"
        writer.write(b'{"topic":"a","data":2,"ack":2}\n')
        lines = await read_answers(reader, sent)  # all but one signal, and the acknowledgement
        assert lines[-1]["ack"] == 2
        relay.signals.deliver("a", b"1")
        assert await read_answers(reader, 1) == [{"signal": 1, "topic": "a"}]
        writer.close()
        await relay.until_gone()
