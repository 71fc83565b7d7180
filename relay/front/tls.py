"""TLS in the process: the certificate, and a pump for each connection.

Owns the certificate in force, and what is on its way between a client and the front. Never sees a request.

Theory of operation. What is decrypted goes into one end of a pair of sockets, whose other end is a connection of the
front like any other: its descriptor is handed over to the engine, which sends to it as to a socket of a client. So
there is one way to deliver, and one way to be slow: each side of the pump stops reading when the other's buffer is
full, so that a client that does not read fills, one after the other, its socket, the pump, and the pair; then the
engine's send comes up short.

    client ── TCP, TLS ── outer ══ pump ══ inner ── pair of sockets ── the front, later the engine

The front ends a connection by shutting down its end of the pair; the client is then sent what is left and TLS's own
farewell, and only when it has closed, or `CLOSE_GRACE_S` is over, the pair is closed too. A client that closes ends
both ways at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import typing
from collections.abc import Callable

from relay.config.model import Config
from relay.core.catchup import CLOSE_GRACE_S
from relay.errors import ConfigError
from relay.process.certificate import read_context

DESCRIPTORS_A_STREAM = 3
"""The client's socket, and both ends of the pair."""
BUFFER_BYTES = 64 * 1024
"""Unsent bytes of one side above which nothing more is read from the other."""

_logger = logging.getLogger("relay.tls")


class Tls:
    """Encrypts the connections of one front.

    Args:
        config: names the certificate and its key.

    Raises:
        ConfigError: one of them cannot be read, or they do not belong together.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._context = read_context(config.tls_cert, config.tls_key)
        self.pumps: set[Pump] = set()

    def reload(self) -> None:
        """Read the certificate and the key again, for new connections; what cannot be used changes nothing."""
        try:
            self._context = read_context(self._config.tls_cert, self._config.tls_key)
        except ConfigError as error:
            _logger.error("the certificate stays as it was: %s", error)
        else:
            _logger.info("read the certificate again")

    async def open(
        self, connection: socket.socket, front: Callable[[], asyncio.Protocol], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Shake hands with a client, and connect it to the front.

        Args:
            connection: of the client; it is the pump's from now on.
            front: makes the front's side.
            loop: the event loop.

        Raises:
            OSError: there is no TLS with this client, in time, or no descriptor is left.
        """
        pump = Pump(self.pumps)
        try:
            await loop.connect_accepted_socket(
                lambda: pump.outer,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._config.head_timeout_s,
                ssl_shutdown_timeout=CLOSE_GRACE_S,
            )
            ours, theirs = socket.socketpair()
            for each in (ours, theirs):
                each.setblocking(False)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._config.client_buffer)
            await loop.create_unix_connection(lambda: pump.inner, sock=ours)
            await loop.create_unix_connection(front, sock=theirs)
            pump.start()
        except BaseException:
            pump.abort()
            raise

    def abort(self) -> None:
        """Cut all connections."""
        for pump in list(self.pumps):
            pump.abort()


class Pump:
    """One connection's way from TLS to the front and back.

    Args:
        pumps: where it is as long as it is open.
    """

    def __init__(self, pumps: set[Pump]) -> None:
        self._pumps = pumps
        self.outer = _Side(self)
        self.inner = _Side(self)
        self.outer.other, self.inner.other = self.inner, self.outer
        pumps.add(self)

    def start(self) -> None:
        """Let the client's side read; until now there was nowhere to put it."""
        if self.outer.transport is None or self.outer.transport.is_closing():
            self.abort()
        else:
            self.outer.transport.resume_reading()

    def ended(self, side: _Side) -> None:
        """End the other side as well, with all that it has still to send."""
        if side.other.transport is not None:
            side.other.transport.close()
        if side is self.outer:
            self._pumps.discard(self)

    def abort(self) -> None:
        """Cut both sides."""
        for side in (self.outer, self.inner):
            if side.transport is not None:
                side.transport.abort()
        self._pumps.discard(self)


class _Side(asyncio.Protocol):
    """One side of a pump."""

    __slots__ = ("_pump", "other", "transport")

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self.other: _Side
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the buffer; nothing is read of the client until the front's side is there."""
        self.transport = typing.cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(BUFFER_BYTES, BUFFER_BYTES // 4)
        if self is self._pump.outer:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Hand on."""
        target = self.other.transport
        if target is not None and not target.is_closing():
            target.write(data)

    def pause_writing(self) -> None:
        """Read no more from the other side."""
        source = self.other.transport
        if source is not None and not source.is_closing():
            source.pause_reading()

    def resume_writing(self) -> None:
        """Read from the other side again."""
        source = self.other.transport
        if source is not None and not source.is_closing():
            source.resume_reading()

    def eof_received(self) -> bool:
        """End the other side; the front's own stays until the client has everything."""
        self._pump.ended(self)
        return self is self._pump.inner

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side."""
        self._pump.ended(self)
