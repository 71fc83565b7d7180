"""Standard input: NDJSON, lines of text or an event stream, from a pipe, a file or a terminal.

The descriptor may be shared with a shell and with this process's standard error, so its flags must not change. libuv
would make it non-blocking. The loop watches an epoll descriptor that contains it instead, and a read after an epoll
event does not block. Files that epoll rejects (EPERM: regular files, /dev/null) are always readable. They are read one
chunk per turn.

A named FIFO serves one writer after another. When the last writer closes it, an unfinished line counts as complete, and
reading continues with the next writer. With `exit_on_eof` the input ends there, as with a pipe. A FIFO is read through
a second, non-blocking descriptor, because a writer may open the FIFO and write nothing. While it has no writer, epoll
is edge-triggered; level-triggered epoll would report the hang-up continuously.

Owns reading and the choice of the input format. Never parses or publishes. Never answers; an `ack` is ignored.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

import msgspec

from relay.config.model import Config
from relay.sources.feeder import READ_BYTES, Feeder, PackedFeeder
from relay.sources.intake import Intake
from relay.sources.lines import Line, LineSplitter, StreamSplitter, parse_line, parse_text, pass_event
from relay.sources.sink import EventSink
from relay.telemetry.input_errors import Counter, InputErrors

_logger = logging.getLogger("relay.sources.stdin")


def stdin_fd() -> int | None:
    """Return the descriptor of standard input, or None if the process started without one."""
    # If descriptor 0 was closed at the start, it may now be any other file. Python then sets sys.__stdin__ to None.
    return None if sys.__stdin__ is None else 0


def choose_form(setting: str, fd: int | None) -> str:
    """Return the input format: `ndjson`, `lines`, `sse` or `off`. `auto` is `off` on a terminal, else `ndjson`."""
    if setting != "auto":
        return setting
    return "off" if fd is None or os.isatty(fd) else "ndjson"


def is_fifo(fd: int) -> bool:
    """Return whether a descriptor is a named FIFO, which other writers can open later. A pipe is not."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode) and not os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")


class StdinSource(Feeder):
    """The feeder on standard input.

    Args:
        config: `stdin`, `topic`, `line_bytes_max`, `event_bytes_max`.
        sink: publishes the events.
        metrics: counts bad input as `stdin`.
        loop: the event loop.
        on_eof: called once, after all input is published or after an internal error; never if the format is `off`,
            and never after `close()`.
        fd: descriptor to read, usually `stdin_fd()`; None is an empty input. It is not closed.
        clock: returns the hub's `now_s`.
    """

    def __init__(
        self,
        config: Config,
        sink: EventSink,
        metrics: Counter,
        loop: AbstractEventLoop,
        on_eof: Callable[[], None],
        fd: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.form = choose_form(config.stdin, fd)
        self._errors = InputErrors("stdin", metrics, loop, _logger)
        super().__init__("stdin", _intake(self.form, config, sink, self._report), sink, loop, clock)
        self._on_eof = on_eof
        self._stdin = fd
        self._epoll: select.epoll | None = None
        self._reading = False
        self._exit_on_eof = config.exit_on_eof
        self._fifo: int | None = None  # non-blocking descriptor of a FIFO, opened here
        self._without_writer = False

    def start(self) -> None:
        """Begin to read, unless the format is `off`."""
        if self.form == "off":
            return
        self._open()
        super().start()

    def _open(self) -> None:
        if self._stdin is not None:
            if not self._exit_on_eof and is_fifo(self._stdin):
                self._open_fifo(self._stdin)
            epoll = select.epoll()
            try:
                epoll.register(self._stdin if self._fifo is None else self._fifo, select.EPOLLIN)
                self._epoll = epoll
            except OSError:
                epoll.close()

    def _open_fifo(self, fd: int) -> None:
        try:
            self._fifo = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            _logger.warning("stdin: cannot reopen the FIFO; later writers are not read: %s", error.strerror)

    @property
    def _fd(self) -> int | None:
        return self._stdin if self._fifo is None else self._fifo

    def pack(self) -> PackedFeeder:
        """Return the state, for another process that has the same standard input."""
        return self._packed(b"")

    def adopt(self, packed: PackedFeeder) -> None:
        """Continue with the state of another process."""
        if self.form != "off":
            self._open()
            self._go_on(packed)

    def _read(self) -> bytes | None:
        fd = self._fd
        if fd is None:
            return b""
        try:
            if self._without_writer and self._epoll is not None:
                self._epoll.poll(0)  # Consumes the edge; a write after this call makes another one.
            data = os.read(fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            # A directory (EISDIR) or a terminal that hung up (EIO) has no more input.
            self._errors.report("read", "stdin: cannot read: %s", error.strerror)
            return b""
        if self._without_writer:
            if not data:
                return None
            self._wait_for_writer(False)
        return data

    def _at_end(self) -> bool:
        if self._fifo is None:
            return True
        _logger.info("stdin: the FIFO has no writer; waiting for the next one")
        self._wait_for_writer(True)
        return False

    def _wait_for_writer(self, waiting: bool) -> None:
        self._without_writer = waiting
        if self._epoll is not None and self._fifo is not None:
            self._epoll.modify(self._fifo, select.EPOLLIN | (select.EPOLLET if waiting else 0))

    def _watch(self, reading: bool) -> None:
        if self._epoll is None:
            if reading:
                self._loop.call_soon(self._on_readable)
        elif reading is not self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._epoll.fileno(), self._on_readable)
            else:
                self._loop.remove_reader(self._epoll.fileno())

    def _release(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._fifo is not None:
            os.close(self._fifo)
            self._fifo = None
        self._errors.close()

    def _finish(self) -> None:
        _logger.info("stdin: end of input")
        self.close()
        self._on_eof()

    def _fail(self) -> None:
        super()._fail()
        self._on_eof()

    def _report(self, kind: str, number: int, reason: str) -> None:
        unit = "event" if self.form == "sse" else "line"
        self._errors.report(kind, "stdin, %s %d: %s", unit, number, reason)


def _intake(
    form: str, config: Config, sink: EventSink, report: Callable[[str, int, str], None]
) -> Intake[Any]:
    topic = config.topic
    if form == "sse":
        events = StreamSplitter(topic, config.event_bytes_max)
        return Intake(events, _pass_foreign, sink, topic, report, answering=False, foreign=True)
    lines = LineSplitter(config.line_bytes_max)
    parse = parse_text if form == "lines" else parse_line
    return Intake(lines, parse, sink, topic, report, answering=False)


def _pass_foreign(event: Line) -> Line:
    """Return an event of another server without `retry`, which is for the clients of that server."""
    line = pass_event(event)
    return line if line.retry is None else msgspec.structs.replace(line, retry=None)
