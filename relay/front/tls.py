"""TLS in the process: the certificate, and a pump for each connection.

Owns the current certificate, and the bytes in transit between a client and the front. Never parses a request.

Theory of operation. The pump writes decrypted bytes to one end of a socket pair. The other end is an ordinary
connection of the front. Its descriptor is handed over to the engine, which sends to it as to the socket of a client.
So streams with TLS use the same delivery and the same slow-client handling as plain ones. Each side of the pump stops
reading when the buffer of the other side is full. A client that does not read fills its socket, then the pump, then
the pair. Then the kernel accepts only a part of the engine's send, as for any slow client.

    client ── TCP, TLS ── outer ══ pump ══ inner ── pair of sockets ── the front, later the engine

The front ends a connection by shutting down its end of the pair. The pump then sends the remaining bytes and TLS's
close_notify to the client. It closes the pair when the client has closed, or after `CLOSE_GRACE_S`. When the client
closes, both directions end at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import typing
from collections.abc import Callable

from relay.config.model import Config
from relay.core.catchup import CLOSE_GRACE_S
from relay.errors import ConfigError
from relay.front.pair import connect_pair
from relay.process.certificate import read_context, read_expiry_s

DESCRIPTORS_A_STREAM = 3
"""The socket of the client, and both ends of the pair."""
BUFFER_BYTES = 64 * 1024
"""Unsent bytes of one side above which the pump stops reading from the other."""

_logger = logging.getLogger("relay.tls")


class Tls:
    """Encrypts the connections of one front.

    Args:
        config: the settings, with the paths of the certificate and its key.

    Raises:
        ConfigError: a file cannot be read, or the key does not match the certificate.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.expires_s: float | None = None  # Unix time; None if the file does not show it
        self._context = self._read()
        self.pumps: set[Pump] = set()

    def _read(self) -> ssl.SSLContext:
        path = self._config.tls_cert
        context = read_context(path, self._config.tls_key, http2=self._config.http2 == "on")
        try:
            self.expires_s = read_expiry_s(path)
        except (OSError, ValueError) as error:
            self.expires_s = None
            _logger.warning("tls-cert: cannot read the expiry of %s: %s", path, error)
        return context

    def reload(self) -> None:
        """Reload the certificate and the key for new connections. On an error, keep the current ones."""
        try:
            self._context = self._read()
        except ConfigError as error:
            _logger.error("kept the current certificate: %s", error)
        else:
            _logger.info("reloaded the certificate")

    async def open(
        self,
        connection: socket.socket,
        http1: Callable[[], asyncio.Protocol],
        http2: Callable[[], asyncio.Protocol],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Perform the handshake with a client, and connect the client to the front.

        Args:
            connection: the socket of the client; the pump owns it from now on.
            http1: creates the protocol of the front's side.
            http2: creates the protocol for a client that has chosen HTTP/2, which needs no pump.
            loop: the event loop.

        Raises:
            OSError: the handshake failed or timed out, or no descriptor is free.
        """
        pump = Pump(self.pumps)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: pump.outer,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._config.head_timeout_s,
                ssl_shutdown_timeout=CLOSE_GRACE_S,
            )
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                pump.release()
                protocol = http2()
                transport.set_protocol(protocol)
                protocol.connection_made(transport)
                transport.resume_reading()
                return
            await connect_pair(loop, self._config.client_buffer, lambda: pump.inner, http1)
            pump.start()
        except BaseException:
            pump.abort()
            raise

    def abort(self) -> None:
        """Abort all connections."""
        for pump in list(self.pumps):
            pump.abort()


class Pump:
    """Copies the bytes of one connection between TLS and the front.

    Args:
        pumps: the open pumps; this one adds and removes itself.
    """

    def __init__(self, pumps: set[Pump]) -> None:
        self._pumps = pumps
        self.outer = _Side(self)
        self.inner = _Side(self)
        pumps.add(self)

    def start(self) -> None:
        """Start to read from the client, now that the side of the front is connected."""
        if self.outer.transport is None or self.outer.transport.is_closing():
            self.abort()
        else:
            self.outer.transport.resume_reading()

    def ended(self, side: _Side) -> None:
        """Close the other side after it has sent its remaining bytes."""
        other = self.other(side).transport
        if other is not None:
            other.close()
        if side is self.outer:
            self._pumps.discard(self)

    def other(self, side: _Side) -> _Side:
        """Return the other side."""
        return self.inner if side is self.outer else self.outer

    def abort(self) -> None:
        """Abort both sides."""
        for side in (self.outer, self.inner):
            if side.transport is not None:
                side.transport.abort()
            else:
                side.release()
        self._pumps.discard(self)

    def release(self) -> None:
        """End without closing the connection, which has another protocol now."""
        self.outer.release()
        self.inner.release()
        self._pumps.discard(self)


class _Side(asyncio.Protocol):
    """One side of a pump."""

    __slots__ = ("_pump", "transport")

    def __init__(self, pump: Pump) -> None:
        self._pump: Pump | None = pump
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Limit the buffer. Do not read from the client until the side of the front is connected."""
        self.transport = typing.cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(BUFFER_BYTES, BUFFER_BYTES // 4)
        if self._pump is None:
            self.transport.abort()
        elif self is self._pump.outer:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Write the data to the other side."""
        if (target := self._open_other()) is not None:
            target.write(data)

    def pause_writing(self) -> None:
        """Stop reading from the other side."""
        if (source := self._open_other()) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        """Resume reading from the other side."""
        if (source := self._open_other()) is not None:
            source.resume_reading()

    def _open_other(self) -> asyncio.Transport | None:
        """Return the transport of the other side, unless it is closing or not connected."""
        transport = self._pump.other(self).transport if self._pump is not None else None
        return None if transport is None or transport.is_closing() else transport

    def eof_received(self) -> bool:
        """Close the other side. The side of the front stays open until the client has received everything."""
        if self._pump is None:
            return False
        self._pump.ended(self)
        return self is self._pump.inner

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side."""
        if self._pump is not None:
            self._pump.ended(self)
        self.release()

    def release(self) -> None:
        """Release the transport and the pump, which refer to this side.

        The TLS state of a connection takes 30 KB. In a cycle, it would stay in memory until the garbage collector
        collects the oldest generation, which it hardly ever does (`relay.server.server.COLLECTIONS`).
        """
        self._pump = self.transport = None
