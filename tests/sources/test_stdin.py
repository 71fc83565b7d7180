"""`relay.sources.stdin`: standard input of every kind is published to its end, and its descriptor stays unchanged.

Covers `relay.sources.feeder` and `relay.sources.group`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import socket
import sys
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from relay.config.model import Config
from relay.core.hub import Hub
from relay.sources.stdin import StdinSource, choose_form, stdin_fd
from tests.sources.fakes import FakeHub, FakeMetrics, on_uvloop, value


class Relay:
    """A source that reads a descriptor, its hub and its metrics."""

    def __init__(self, fd: int | None, form: str, **settings: Any) -> None:
        self.hub = FakeHub()
        self.metrics = FakeMetrics()
        self.ended = asyncio.Event()
        config = Config(stdin=form, **settings)
        loop = asyncio.get_running_loop()
        self.source = StdinSource(config, cast(Hub, self.hub), self.metrics, loop, self.ended.set, fd)

    def __enter__(self) -> Relay:
        self.source.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.source.close()


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for fd in (reading, writing):
            with contextlib.suppress(OSError):
                os.close(fd)


@on_uvloop
async def test_ndjson_from_a_pipe_is_published_to_its_end() -> None:
    with pipe() as (reading, writing), Relay(reading, "ndjson", topic="t") as relay:
        os.write(writing, b'{"data":1}\n{"topic":"u","data":2,"ack":1}\n\n{"data"')
        await relay.hub.until_events(2)
        assert not relay.ended.is_set()
        os.write(writing, b":3}")
        os.close(writing)
        await relay.ended.wait()
        assert [(event.topic, value(event.data)) for event in relay.hub.events] == [("t", 1), ("u", 2), ("t", 3)]
        assert relay.metrics.errors == []
        os.fstat(reading)  # the source does not close a descriptor that it does not own


@on_uvloop
async def test_each_line_of_text_is_an_event_with_nothing_stripped() -> None:
    with pipe() as (reading, writing), Relay(reading, "lines", topic="t") as relay:
        os.write(writing, " a\t\n\nü\r\n{}\nlast".encode())
        os.close(writing)
        await relay.ended.wait()
        assert relay.hub.data == [" a\t", "", "ü", "{}", "last"]
        assert {event.topic for event in relay.hub.events} == {"t"}


@on_uvloop
async def test_an_event_stream_is_published_unchanged_except_for_its_reconnection_time() -> None:
    with pipe() as (reading, writing), Relay(reading, "sse", topic="t", event_bytes_max=100) as relay:
        os.write(writing, b": hello\n\nid: 7\nevent: e\nretry: 5\ndata: a\ndata: b\n\n")
        os.write(writing, b"data: " + b"x" * 200 + b"\n\ndata: c\n\ndata: torn")
        os.close(writing)
        await relay.ended.wait()
        assert [(x.data, x.id, x.event, x.retry, x.topic) for x in relay.hub.events] == [
            ("a\nb", "7", "e", None, "t"),
            ("c", None, None, None, "t"),
        ]
        assert relay.metrics.errors == [("stdin", "line"), ("stdin", "event")]  # too long; incomplete


@on_uvloop
async def test_bad_lines_are_counted_and_logged_and_the_others_are_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pipe() as (reading, writing), Relay(reading, "ndjson", line_bytes_max=20) as relay:
        os.write(writing, b'{"data":1}\n{\n' + b"x" * 50 + b'\n{"topic":"bad"}\n{"data":2}\n')
        os.close(writing)
        await relay.ended.wait()
        assert relay.hub.data == [1, 2]
        assert relay.metrics.errors == [("stdin", "json"), ("stdin", "line"), ("stdin", "event")]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "stdin, line 2: event: not valid JSON: it ends after byte 1",
        "stdin, line 3: line: longer than 20 bytes",
        "stdin, line 4: topic: is bad",
    ]


@on_uvloop
async def test_bytes_of_a_text_that_are_not_utf8_are_replaced() -> None:
    with pipe() as (reading, writing), Relay(reading, "lines") as relay:
        os.write(writing, b"a\n\xff\nb\n")
        os.close(writing)
        await relay.ended.wait()
        assert relay.hub.data == ["a", "\N{REPLACEMENT CHARACTER}", "b"]
        assert relay.metrics.errors == []


@on_uvloop
@pytest.mark.parametrize("torn", [b"data: c\n", b"data: c", b"id: 9\ndata: c\n", b"da"])
async def test_an_event_cut_off_by_the_end_of_the_stream_is_counted(torn: bytes) -> None:
    with pipe() as (reading, writing), Relay(reading, "sse") as relay:
        os.write(writing, b"data: a\n\n" + torn)
        os.close(writing)
        await relay.ended.wait()
        assert relay.hub.data == ["a"]
        assert relay.metrics.errors == [("stdin", "event")]


@on_uvloop
async def test_a_comment_at_the_end_of_the_stream_is_not_an_event() -> None:
    with pipe() as (reading, writing), Relay(reading, "sse") as relay:
        os.write(writing, b"data: a\n\n: bye\n: bye")
        os.close(writing)
        await relay.ended.wait()
        assert (relay.hub.data, relay.metrics.errors) == (["a"], [])


@on_uvloop
async def test_a_file_is_read_one_chunk_per_turn_while_other_tasks_run(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"".join(b"%d\n" % i for i in range(100_000)))
    fd = os.open(path, os.O_RDONLY)
    try:
        with Relay(fd, "lines") as relay:
            turns = 0
            while not relay.ended.is_set():
                turns += 1
                await asyncio.sleep(0)
            assert relay.hub.data == [str(i) for i in range(100_000)]
            assert turns > 100
    finally:
        os.close(fd)


@on_uvloop
async def test_a_held_topic_stops_the_reading() -> None:
    with pipe() as (reading, writing), Relay(reading, "lines") as relay:
        relay.hub.holding.add("default")
        os.set_blocking(writing, False)
        text = b"".join(b"%d\n" % i for i in range(200_000))
        sent = 0
        while True:
            try:
                sent += os.write(writing, text[sent : sent + 4096])
            except BlockingIOError:
                if relay.hub._callbacks:
                    break
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            os.write(writing, b"x" * 4096)
        assert relay.hub.events == []
        whole = text[:sent].count(b"\n")
        relay.hub.release("default")
        os.close(writing)
        await relay.ended.wait()
        assert relay.hub.data[:whole] == [str(i) for i in range(whole)]


@on_uvloop
async def test_the_flags_of_a_shared_descriptor_stay_as_they_were() -> None:
    with pipe() as (reading, writing):
        flags = fcntl.fcntl(reading, fcntl.F_GETFL)
        with Relay(reading, "lines") as relay:
            os.write(writing, b"a\n")
            await relay.hub.until_events(1)
            assert fcntl.fcntl(reading, fcntl.F_GETFL) == flags
        assert fcntl.fcntl(reading, fcntl.F_GETFL) == flags


@on_uvloop
async def test_a_terminal_is_read_line_by_line_to_its_end_and_stays_blocking() -> None:
    main, terminal = pty.openpty()
    try:
        with Relay(terminal, "lines") as relay:
            os.write(main, b"a\nb")
            await relay.hub.until_events(1)
            assert os.get_blocking(terminal)
            os.write(main, b"\n\x04")
            await relay.ended.wait()
            assert relay.hub.data == ["a", "b"]
            assert os.get_blocking(terminal)
    finally:
        os.close(main)
        os.close(terminal)


@on_uvloop
async def test_a_terminal_that_hangs_up_is_the_end_of_input() -> None:
    main, terminal = pty.openpty()
    tty.setraw(terminal)
    try:
        with Relay(terminal, "lines") as relay:
            os.write(main, b"a\n")
            await relay.hub.until_events(1)
            os.close(main)
            await relay.ended.wait()
    finally:
        os.close(terminal)


@on_uvloop
async def test_a_fifo_ends_with_its_last_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writers = [os.open(path, os.O_WRONLY) for _ in range(2)]
        with Relay(fd, "lines", exit_on_eof=True) as relay:
            os.write(writers[0], b"a\n")
            await relay.hub.until_events(1)
            os.close(writers[0])
            os.write(writers[1], b"b\n")
            await relay.hub.until_events(2)
            assert not relay.ended.is_set()
            os.close(writers[1])
            await relay.ended.wait()
    finally:
        os.close(fd)


@on_uvloop
async def test_a_fifo_serves_one_writer_after_another(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Relay(fd, "lines") as relay:
            for number in range(20):
                writer = os.open(path, os.O_WRONLY)
                os.write(writer, b"a%d\nlast of %d" % (number, number))
                os.close(writer)
                await relay.hub.until_events(2 * number + 2)
            assert relay.hub.data == [text for n in range(20) for text in (f"a{n}", f"last of {n}")]
            # A silent writer blocks no other, and a closed writer wakes no reader.
            writer = os.open(path, os.O_WRONLY)
            os.write(writer, b"silent\n")
            await relay.hub.until_events(41)
            os.close(writer)
            assert not relay.ended.is_set()
    finally:
        os.close(fd)


@on_uvloop
async def test_a_socket_is_read_to_its_end() -> None:
    near, far = socket.socketpair()
    with near, far, Relay(near.fileno(), "lines") as relay:
        far.sendall(b"a\nb")
        far.close()
        await relay.ended.wait()
        assert relay.hub.data == ["a", "b"]


@on_uvloop
async def test_without_standard_input_the_input_ends_immediately() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for fd in (null, None):
            with Relay(fd, "ndjson") as relay:
                await relay.ended.wait()
                assert relay.metrics.errors == []
    finally:
        os.close(null)


@on_uvloop
async def test_a_descriptor_that_cannot_be_read_is_logged_and_is_the_end_of_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with Relay(fd, "ndjson") as relay:
            await relay.ended.wait()
            assert "stdin: cannot read: Is a directory" in caplog.messages
            assert relay.metrics.errors == [("stdin", "read")]
    finally:
        os.close(fd)


@on_uvloop
async def test_off_reads_nothing_and_never_ends() -> None:
    with pipe() as (reading, writing), Relay(reading, "off") as relay:
        os.write(writing, b"a\n")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not relay.ended.is_set()
        assert os.read(reading, 10) == b"a\n"


@on_uvloop
async def test_an_internal_error_ends_the_input(caplog: pytest.LogCaptureFixture) -> None:
    with pipe() as (reading, writing), Relay(reading, "ndjson") as relay:
        os.write(writing, b'{"topic":"broken"}\n')
        await relay.ended.wait()
        assert "stdin: closed after an internal error" in caplog.messages
        assert relay.source.closed


@on_uvloop
async def test_draining_publishes_all_read_input() -> None:
    with pipe() as (reading, writing), Relay(reading, "lines") as relay:
        os.write(writing, b"x\n" * 5000)
        await relay.hub.until_events(1)
        relay.source.drain()
        assert len(relay.hub.events) == 5000
        assert not relay.ended.is_set()


@on_uvloop
async def test_input_that_a_drain_leaves_unpublished_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pipe() as (reading, writing), Relay(reading, "ndjson") as relay:
        relay.hub.holding.add("held")
        os.write(writing, b'{"data":1}\n{"topic":"held","data":2}\n{"data":3}\n{"data')
        await relay.hub.until(lambda: bool(relay.hub._callbacks))
        relay.source.drain()
        assert relay.hub.data == [1]
        assert relay.metrics.errors == [("stdin", "unpublished")] * 3
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "stdin, line 2: not published: its source closed first",
        "stdin, line 3: not published: its source closed first",
        "stdin, line 4: not published: incomplete when its source closed",
    ]


@on_uvloop
async def test_the_end_of_input_leaves_nothing_unpublished() -> None:
    for form, text in (("ndjson", b'{"data":"a"}'), ("lines", b"a"), ("sse", b"data: a\n\n")):
        with pipe() as (reading, writing), Relay(reading, form) as relay:
            os.write(writing, text)
            os.close(writing)
            await relay.ended.wait()
            assert (relay.hub.data, relay.metrics.errors) == (["a"], [])


def test_auto_is_off_on_a_terminal_and_without_input(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    try:
        assert choose_form("auto", terminal) == "off"
        assert choose_form("lines", terminal) == "lines"
    finally:
        os.close(main)
        os.close(terminal)
    with pipe() as (reading, _):
        assert choose_form("auto", reading) == "ndjson"
    assert choose_form("auto", None) == "off"


def test_a_process_started_without_standard_input_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stdin_fd() == 0
    monkeypatch.setattr(sys, "__stdin__", None)
    assert stdin_fd() is None
