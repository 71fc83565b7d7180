"""The acceptor accepts connections from the listeners and passes them to the front, within the limits.

Owns the timing of accepts, the steps before the first request of a connection (PROXY header, TLS), and the choice of
the connection to close when no descriptor is free. Never serves a request and never opens a listener.

Theory of operation. Connections that are not accepted wait in the backlog of the listener. So when a limit is reached,
the acceptor stops watching its listeners for a short time; it neither spins nor rejects. It counts descriptors and
does not wait for EMFILE. Streams may not use the last descriptors. These are reserved for ordinary requests, so
/healthz and /metrics respond even if no more streams fit. If silent connections hold all descriptors, the acceptor
closes the connection that has waited longest. If the kernel has no descriptor all the same, because its limit was
lowered or other parts hold more than expected, the acceptor gives up a spare one, so each client receives a response.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

from relay.errors import RequestError
from relay.front.connection import FrontProtocol
from relay.front.deadlines import Waiting
from relay.front.front import Front
from relay.front.h2 import Http2Connection
from relay.front.openings import Openings
from relay.front.rate import Rates
from relay.front.tls import DESCRIPTORS_A_STREAM, Tls
from relay.http.forwarded import BINARY_BYTES_MAX, read_header, trusted
from relay.limits import Limit
from relay.process.listeners import ListenerGroup
from relay.speedups import accept
from relay.telemetry.input_errors import InputErrors

ACCEPTS_A_TURN = 16
"""Connections accepted from one listener per turn of the event loop. With 64, 64 handshakes ran at the same time, which
cost 0.3 MB permanently and a sixth of the rate (`python -m bench memory-10000 accept-10000`)."""
BURST_S = 0.1
"""Burst of `accept-rate`, in seconds of the rate."""
PATIENCE_S = 0.5
"""When no descriptor is free: minimum idle time of a connection before the acceptor closes it to accept another."""
HALF_OPEN_PATIENCE_S = 5.0
"""The same at `half-open-max`: long enough for busy clients that all reconnect at the same time."""
PAUSE_S = 0.05
"""Pause of the acceptor when a limit is reached."""
SPARE = 32
"""Descriptors reserved for uses that begin after the start: feeders, files, links."""
HTTP2_SPARE = 96
"""Descriptors that HTTP/2 streams leave for new connections. `streams-max` cannot reserve them, because it does not
distinguish HTTP/2 streams, which have two descriptors each."""
HTTP2_DESCRIPTORS = 3
"""Descriptors of a stream of HTTP/2 at its hand-over: both ends of the pair, and a duplicate."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_logger = logging.getLogger("relay.acceptor")


class Acceptor:
    """Accepts the connections of one front.

    Args:
        front: receives the connections.
        tls: encrypts the connections; None for plain HTTP.
        descriptors: limit of open descriptors in this process.
        streams: returns the number of open streams.
        loop: the event loop.
    """

    def __init__(
        self,
        front: Front,
        tls: Tls | None,
        descriptors: int,
        streams: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._front = front
        self._tls = tls
        self._streams = streams
        self._loop = loop
        self._cost = 1 if tls is None else DESCRIPTORS_A_STREAM
        self._room = descriptors - len(os.listdir("/proc/self/fd")) - SPARE
        self._rates = Rates(front.config.accept_rate, BURST_S)
        self._listeners: Sequence[socket.socket] = ()
        self._admin: Sequence[socket.socket] = ()
        self._resume: asyncio.TimerHandle | None = None
        self._spare: int | None = None
        self._errors = InputErrors("accept", front.metrics, loop, _logger)
        self._openings = Openings(front)
        front.hub.on_answer(self._take_back)
        # A connection that begins with TLS or a PROXY header does not begin with a request.
        self._read_bytes = 0 if tls is not None or front.config.proxy_protocol else self._openings.bytes_max

    def open(self, listeners: ListenerGroup) -> None:
        """Listen, and start to accept connections."""
        self._listeners, self._admin = listeners.all, listeners.admin
        for each in self._listeners:
            each.listen(self._front.config.backlog)
        self._has_spare()
        self._watch()

    def close(self) -> None:
        """Stop accepting. The listeners and the accepted connections stay open."""
        self._look_away()
        self._listeners = ()
        self._release_spare()
        self._errors.close()

    def abort(self) -> None:
        """Abort the connections that have not reached the front, and all TLS connections."""
        self.close()
        for task in self._front.arriving:
            task.cancel()
        if self._tls is not None:
            self._tls.abort()

    # When to accept.

    def _watch(self) -> None:
        self._resume = None
        if not self._has_spare():
            self._cut_one()
            self._pause(Limit.DESCRIPTORS, PAUSE_S)
            return
        for each in self._listeners:
            self._loop.add_reader(each.fileno(), self._accept, each)

    def _look_away(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for each in self._listeners:
            self._loop.remove_reader(each.fileno())

    def _pause(self, limit: Limit, pause_s: float) -> None:
        self._front.metrics.limited(limit)
        self._look_away()
        self._resume = self._loop.call_later(pause_s, self._watch)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._count_room()):
            if (wait_s := self._rates.take("", 1, self._front.clock())) > 0:
                self._pause(Limit.ACCEPT_RATE, wait_s)
                return
            try:
                accepted = accept(listener.fileno(), self._read_bytes)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._errors.report("descriptors", "cannot accept connections: %s", error.strerror)
                    if not self._cut_one():
                        self._accept_with_spare(listener)
                    self._pause(Limit.DESCRIPTORS, PAUSE_S)
                    return
                continue  # The client has disconnected.
            if accepted is None:
                return
            fd, address, received = accepted
            if not received or not self._openings.open(fd, address, received):
                self._start(listener, fd, address, received)

    def _start(self, listener: socket.socket, fd: int, address: str, received: bytes) -> None:
        """Open a connection of the front for an accepted socket and the input that was read from it."""
        connection = socket.socket(listener.family, listener.type, listener.proto, fd)
        self._add_arriving(self._open(connection, address, received, is_admin=listener in self._admin))

    def _take_back(self, fd: int, address: str, data: bytes, keep: bool) -> None:
        """Continue the connection of a poll that has waited as a stream, and send its answer."""
        self._add_arriving(self._resume_connection(socket.socket(fileno=fd), address, data, keep))

    async def _resume_connection(self, connection: socket.socket, address: str, data: bytes, keep: bool) -> None:
        become = partial(FrontProtocol, self._front, address)
        try:
            _, protocol = await self._loop.connect_accepted_socket(become, connection)
        except (OSError, asyncio.CancelledError):  # The client has disconnected, or its descriptor is needed.
            connection.close()
        else:
            protocol.send(data, keep=keep)

    def _add_arriving(self, step: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(step)
        self._front.arriving[task] = self._loop.time()
        task.add_done_callback(self._front.arriving.__delitem__)

    # The spare descriptor. If streams have all others, it lets one connection at a time receive a response.

    def _has_spare(self) -> bool:
        """Open the spare descriptor unless it is open; return whether it is."""
        if self._spare is None:
            with contextlib.suppress(OSError):  # No descriptor is free yet; the caller tries again.
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._spare is not None

    def _release_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _accept_with_spare(self, listener: socket.socket) -> None:
        """Accept one connection in place of the spare descriptor. A stream gets 503, because none is left for it."""
        self._release_spare()
        with contextlib.suppress(OSError):  # Another process took the descriptor.
            accepted = accept(listener.fileno(), 0)
            if accepted is not None:
                self._start(listener, *accepted)

    def _count_room(self) -> int:
        """Return the number of connections to accept in this turn. If it is 0, close a connection or pause."""
        front, count = self._front, ACCEPTS_A_TURN
        if front.config.half_open_max:
            waiting = front.deadlines.count(Waiting.HEAD) + len(front.arriving)
            count = min(count, front.config.half_open_max - waiting)
            if count <= 0:
                self._make_room(Limit.HALF_OPEN_MAX, HALF_OPEN_PATIENCE_S, resting=False)
                return 0
        free = self._room - self._used() - 1  # a hand-over duplicates a descriptor
        if free < self._cost:
            self._make_room(Limit.DESCRIPTORS, PATIENCE_S, resting=True)
            return 0
        return min(count, free // self._cost)

    def _used(self) -> int:
        """Return the number of descriptors that connections and streams use.

        Each has one. A pump of TLS has two more, a connection of HTTP/2 has one, and each of its streams one more.
        """
        front = self._front
        pumps = 0 if self._tls is None else 2 * len(self._tls.pumps)
        http2 = len(front.http2) + front.http2_streams
        return self._streams() + len(front.connections) + len(front.arriving) + pumps + http2

    def _has_room_for_http2(self) -> bool:
        return self._used() + HTTP2_DESCRIPTORS + HTTP2_SPARE <= self._room

    def _make_room(self, limit: Limit, patience_s: float, *, resting: bool) -> None:
        """Close a connection, so that the next turn can accept one; pause if none can be closed."""
        if self._cut_one(patience_s, resting=resting):
            self._front.metrics.limited(limit)
        else:
            self._pause(limit, PAUSE_S)

    def _cut_one(self, patience_s: float = PATIENCE_S, *, resting: bool = True) -> bool:
        """Close the least useful connection. Return False if every connection is new or active."""
        if resting and (
            self._front.cut_oldest(Waiting.REST, 0.0) or self._front.cut_oldest(Waiting.LINGER, patience_s)
        ):
            return True
        task = next(iter(self._front.arriving), None)
        if task is not None and self._loop.time() - self._front.arriving[task] > patience_s:
            self._front.arriving[task] = self._loop.time()
            return task.cancel()
        return self._front.cut_oldest(Waiting.HEAD, patience_s)

    # Steps before the first request.

    async def _open(self, connection: socket.socket, address: str, received: bytes, *, is_admin: bool) -> None:
        """Read the PROXY header, start TLS, and pass the connection to the front."""
        front = self._front
        try:
            if front.config.proxy_protocol and trusted(address, front.proxies):
                async with asyncio.timeout(front.config.head_timeout_s):
                    address = await self._read_proxy_header(connection) or address
            if self._tls is not None:
                http1 = partial(FrontProtocol, front, address, is_admin=is_admin)
                await self._tls.open(connection, http1, partial(self._http2, address, is_admin), self._loop)
                return
            become = partial(self._become_http2, address, is_admin) if front.config.http2 == "on" else None
            protocol = partial(FrontProtocol, front, address, become, received, is_admin=is_admin)
            await self._loop.connect_accepted_socket(protocol, connection)
        except RequestError as error:
            self._errors.report("proxy", "rejected a connection from %s: %s", address, error.reason)
            connection.close()
        except TimeoutError:
            front.metrics.limited(Limit.HEAD_TIMEOUT)
            connection.close()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                front.metrics.limited(Limit.DESCRIPTORS)
            # The text of a TLS error describes the handshake; it contains no decrypted data.
            self._errors.report("tls", "failed to open a connection from %s: %s", address, error.strerror or error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()

    def _http2(self, address: str, is_admin: bool) -> Http2Connection:
        return Http2Connection(self._front, address, self._has_room_for_http2, is_admin=is_admin)

    def _become_http2(self, address: str, is_admin: bool, transport: asyncio.Transport, received: bytes) -> None:
        """Continue a connection of HTTP/1.1 whose client has begun with the preface of HTTP/2."""
        connection = self._http2(address, is_admin)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(received)

    async def _read_proxy_header(self, connection: socket.socket) -> str | None:
        """Read exactly the PROXY header, because TLS or the front reads the bytes after it; return the address.

        Raises:
            RequestError: the header is malformed or incomplete.
        """
        head = b""
        while True:
            await _readable(connection, self._loop)
            more = connection.recv(BINARY_BYTES_MAX, socket.MSG_PEEK)
            if not more:
                raise RequestError(400, "the PROXY header is incomplete")
            try:
                found = read_header(head + more)
            except RequestError:
                connection.recv(len(more))  # unread bytes turn the close into a reset
                raise
            taken = connection.recv(len(more) if found is None else found[1] - len(head))
            head += taken
            if found is not None:
                return found[0]


async def _readable(connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    """Wait until the connection is readable."""
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection.fileno(), _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
