"""The Unix socket: feeders write events as lines of JSON, and may ask for acknowledgements.

Connections are read and written directly, without a transport. When a feeder leaves without reading its answers, a
write to it fails, and a transport would then close the connection and lose the input that the feeder wrote before.
Direct reads also limit each turn to one read, where libuv reads up to 32 times in a row.

Owns the connections, their answers and the removal of the socket file. Never parses or publishes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

from relay.config.formats import parse_group, parse_mode
from relay.config.model import Config
from relay.sources.feeder import READ_BYTES, Feeder, PackedFeeder
from relay.sources.intake import ANSWER_BYTES_MAX, Intake
from relay.sources.lines import LineSplitter, parse_line
from relay.sources.sink import EventSink
from relay.sources.topic_signals import TopicSignals
from relay.sources.unix_listener import bind_unix, identity, parse_users
from relay.telemetry.input_errors import Counter, InputErrors

ACCEPTS_A_TURN = 16
"""Connections accepted in one turn."""

ACCEPT_PAUSE_S = 1.0
"""Pause after a failed accept. Without free descriptors, the next accept would fail at once."""

_logger = logging.getLogger("relay.sources.unix")


class UnixFeeder(Feeder):
    """One connection of a feeder.

    Args:
        connection: the socket, which the feeder owns and closes.
        on_close: called once, when the feeder is closed.
        The other arguments are those of `Feeder`.
    """

    def __init__(
        self,
        name: str,
        connection: socket.socket,
        intake: Intake[bytes],
        sink: EventSink,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        on_close: Callable[[UnixFeeder], None],
    ) -> None:
        super().__init__(name, intake, sink, loop, clock)
        connection.setblocking(False)
        self._connection = connection
        self._fd = connection.fileno()
        self._on_close = on_close
        self._reading = False
        self._unsent = b""
        self._has_answered = False

    def receive_signals(self, signals: TopicSignals) -> None:
        """Receive the signals of the topics that this feeder publishes to."""
        self._intake.topics = signals.feeder(self._signal)

    def _signal(self, line: bytes) -> bool:
        if self.closed or self._unsent or not self._intake.answering:
            return False
        self._answer(line)
        return True

    def pack(self) -> tuple[int, PackedFeeder]:
        """Return the descriptor and the state, for another process."""
        return self._fd, self._packed(self._unsent)

    def adopt(self, packed: PackedFeeder) -> None:
        """Continue with the state of a feeder of another process."""
        self._has_answered = True
        self._answer(packed.unsent)
        self._go_on(packed)

    def _read(self) -> bytes | None:
        if self._has_answered:
            # A feeder that leaves with unread answers leaves an error on the connection. libuv then calls only once
            # more, though there may be much to read. Adding the reader again makes libuv call again.
            self._watch(False)
        try:
            return self._connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            # The feeder left without reading its answers (ECONNRESET). All of its input has been read by now.
            return b""

    def _watch(self, reading: bool) -> None:
        if reading is self._reading:
            return
        self._reading = reading
        if reading:
            self._loop.add_reader(self._fd, self._on_readable)
        else:
            self._loop.remove_reader(self._fd)

    def _room(self) -> int:
        return 0 if self._unsent else ANSWER_BYTES_MAX

    def _answer(self, answers: bytes) -> None:
        if not answers:
            return
        self._has_answered = True
        waiting = bool(self._unsent)
        self._unsent += answers
        if not waiting and not self._send():
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        if not self.closed and self._send():
            self._loop.remove_writer(self._fd)
            self._answered()

    def _send(self) -> bool:
        """Send as much as the socket accepts. Return whether everything is sent."""
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # The feeder no longer reads answers, but its input must still be published.
            self._intake.answering = False
            self._unsent = b""
        return not self._unsent

    def _finish(self) -> None:
        if not self._unsent:
            self.close()

    def _release(self) -> None:
        if self._intake.topics is not None:
            self._intake.topics.close()
        self._loop.remove_writer(self._fd)
        self._connection.close()
        self._on_close(self)


class UnixSource:
    """The listener and its feeders.

    Args:
        config: `unix`, `unix_mode`, `unix_group`, `unix_user`, `topic`, `line_bytes_max`.
        sink: publishes the events.
        metrics: counts bad input as `unix`.
        loop: the event loop.
        signals: receives the topics of the feeders.
        clock: returns the hub's `now_s`.
    """

    def __init__(
        self,
        config: Config,
        sink: EventSink,
        metrics: Counter,
        loop: AbstractEventLoop,
        signals: TopicSignals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signals = signals
        self.feeders: set[UnixFeeder] = set()
        self._config = config
        self._sink = sink
        self._loop = loop
        self._clock = clock
        self._errors = InputErrors("unix", metrics, loop, _logger)
        self._listener: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        self._path = ""
        self._users: frozenset[int] = frozenset()
        self._count = 0

    def open(self, listener: socket.socket | None = None, file: tuple[int, int] | None = None) -> str:
        """Listen and accept feeders.

        Args:
            listener: a listener that another process opened; None opens one at `unix`.
            file: identity of the socket file (`identity`), if this process must remove the file.

        Returns:
            The path.

        Raises:
            ConfigError: the path, its group or a user is not usable.
        """
        config = self._config
        self._users = parse_users(config.unix_user)
        if listener is None:
            mode, gid = parse_mode(config.unix_mode), parse_group(config.unix_group)
            listener = bind_unix(config.unix, mode, gid, config.backlog)
            file = identity(config.unix)
        self._listener, self._file = listener, file
        self._path = str(listener.getsockname())
        self._loop.add_reader(listener.fileno(), self._on_acceptable)
        return self._path

    def close(self) -> None:
        """Stop listening, remove the socket file unless another process replaced it, and drain the feeders."""
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        if self._file is not None and identity(self._path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        for feeder in list(self.feeders):
            feeder.drain()
        self._errors.close()

    def cut(self) -> None:
        """Close the feeders that still wait for answers after `close()`."""
        for feeder in list(self.feeders):
            feeder.close()

    def _on_acceptable(self) -> None:
        listener = self._listener
        if listener is None:
            return
        for _ in range(ACCEPTS_A_TURN):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _logger.error("unix: cannot accept a feeder: %s", error.strerror)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
                return
            self._add(connection)

    def _accept_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._on_acceptable)

    def _add(self, connection: socket.socket) -> None:
        self._count += 1
        pid, user = _peer(connection)
        name = f"unix feeder {self._count} (pid {pid})"
        if self._users and user not in self._users:
            self._errors.report("user", "%s: user %d may not publish", name, user)
            with contextlib.suppress(OSError):
                connection.send(b'{"error": "this user may not publish"}\n', socket.MSG_DONTWAIT)
            connection.close()
            return
        feeder = self._feeder(name, connection)
        self.feeders.add(feeder)
        feeder.start()

    def pack(self) -> tuple[int, tuple[int, int] | None]:
        """Return the listener's descriptor, and the identity of the socket file if this process must remove it."""
        assert self._listener is not None
        return self._listener.fileno(), self._file

    def adopt(self, connection: socket.socket, packed: PackedFeeder) -> None:
        """Continue with a feeder that another process accepted and authorized."""
        self._count += 1
        feeder = self._feeder(f"unix feeder {self._count} (pid {_peer(connection)[0]})", connection)
        self.feeders.add(feeder)
        feeder.adopt(packed)

    def _feeder(self, name: str, connection: socket.socket) -> UnixFeeder:
        errors = self._errors

        def report(kind: str, number: int, reason: str) -> None:
            errors.report(kind, "%s, line %d: %s", name, number, reason)

        splitter = LineSplitter(self._config.line_bytes_max)
        intake = Intake(splitter, parse_line, self._sink, self._config.topic, report, answering=True)
        feeder = UnixFeeder(name, connection, intake, self._sink, self._loop, self._clock, self.feeders.discard)
        feeder.receive_signals(self._signals)
        return feeder


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process id and user id of the peer at the time of connect (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    process, user, _ = struct.unpack("iII", credentials)
    return process, user
