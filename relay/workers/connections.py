"""The connections of links: from a hub to its edges, and from an edge to its hub.

Owns the listener for edges, the timers and the reconnects. Never encodes or decodes messages (`relay.workers.hub_end`
and `relay.workers.edge_end` do).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from relay.backoff import Backoff, half_jitter
from relay.config.model import Config, parse_upstream
from relay.core.hub import Hub
from relay.process.certificate import read_context
from relay.workers.edge_end import Uplink, message_bytes_max
from relay.workers.hub_end import Chunks, Downlink, RequestHandler
from relay.workers.messages import LinkError

BEAT_S = 1.0
SILENT_S = 10.0
"""A link without input for this time, ten beats, is considered dead."""

RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
"""Limits of the pause before an edge reconnects; it doubles, with jitter, so that edges do not reconnect together."""

UNVERIFIED_MAX = 64
"""Connections at the link listener that have not sent a valid Hello; above this limit new ones are closed."""

HELLO_TIMEOUT_S = 10.0
"""Time limit for the Hello of a new connection."""

_logger = logging.getLogger("relay.links")


class DownlinkProtocol(asyncio.Protocol):
    """The hub's connection to one edge.

    Args:
        links: the links of the hub; the connection adds and removes itself.
        token: the token that the edge must send; None for a worker.
        worker: number of the worker, from 1; 0 for an edge on another machine.
        on_heard: called after each input.
    """

    def __init__(
        self,
        links: Links,
        token: str | None,
        *,
        worker: int = 0,
        on_heard: Callable[[], None] | None = None,
    ) -> None:
        self.worker = worker
        self.down = links.downlink(token, self.pump)
        self.over = False
        self._links = links
        self._on_heard = on_heard
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        self._transport = cast(asyncio.Transport, transport)
        # At most one segment is buffered; `pump` takes the next one after it is sent.
        self._transport.set_write_buffer_limits(0, 0)
        self._links.add(self)

    def data_received(self, data: bytes) -> None:
        """Process bytes from the edge."""
        assert self._transport is not None
        linked = self.down.linked
        try:
            self.down.receive(data)
        except LinkError as error:
            _logger.warning("closing the link of %s: %s", self.down.name, error)
            self.cut()
            return
        if self.down.linked and not linked and not self.worker:
            _logger.info("linked %s from %s", self.down.name, self._transport.get_extra_info("peername"))
        if self.down.full:
            self._transport.pause_reading()
        if self._on_heard is not None:
            self._on_heard()
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        if self.down.linked and not self.worker and not self.down.closing:
            _logger.warning("lost the link of %s", self.down.name)
        self.over = True
        self.down.lost()
        self._links.discard(self)

    def pause_writing(self) -> None:
        """Stop writing until the transport's buffer is empty."""
        self._paused = True

    def resume_writing(self) -> None:
        """Resume writing in the next iteration of the event loop, not within `transport.write`."""
        self._paused = False
        self._links.loop.call_soon(self.pump)

    def pump(self) -> None:
        """Write output until the transport pauses writing or no output is left."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended:
            return
        while not self._paused and (data := self.down.take()):
            transport.write(data)
        if not self._paused:
            if self.down.closing:
                self._end(transport)
            elif not self.down.full:
                transport.resume_reading()

    def _end(self, transport: asyncio.Transport) -> None:
        """Close the connection once the edge has read everything.

        The hub closes only its sending side; the edge then closes the connection. If the hub closed both sides, the
        next bytes from the edge would cause a reset, which discards the bytes that the edge has not read. TLS has no
        half-closed state; its close is an exchange of alerts.
        """
        self._ended = True
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:
            transport.close()

    def cut(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()


class Links:
    """The links from a hub to its edges.

    Args:
        config: the settings.
        hub: the hub whose log the edges follow.
        handler: handles the edges' requests.
        loop: the event loop.
        clock: returns the hub's time.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        handler: RequestHandler,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.loop = loop
        self.all: set[DownlinkProtocol] = set()
        self.leaving = False  # Beats tell the edges to report that they are not ready
        self._config = config
        self._hub = hub
        self._handler = handler
        self._clock = clock
        self._chunks = Chunks(hub.log)
        self._pump_due = False
        self._draining = False
        self._gone = asyncio.Event()  # set whenever a link is lost
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        hub.on_entry(self._on_entry)

    def downlink(self, token: str | None, wake: Callable[[], None]) -> Downlink:
        """Create the state of one link."""
        return Downlink(
            self._hub,
            self._chunks,
            self._handler,
            token=token,
            bytes_max=message_bytes_max(self._config),
            clock=self._clock,
            wake=lambda: self._soon(wake),
        )

    def _soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    async def open(self, listener: socket.socket | None) -> None:
        """Start to send beats, and accept edges at `listener` if there is one."""
        self._beat()
        if listener is not None:
            token = self._config.link_token
            certificate, key = self._config.tls_cert, self._config.tls_key
            context = read_context(certificate, key) if certificate else None
            self._server = await self.loop.create_server(
                lambda: DownlinkProtocol(self, token), sock=listener, ssl=context
            )
            scheme = "relay" if context is None else "relays"
            _logger.info("edges at %s://%s:%d", scheme, *listener.getsockname()[:2])

    def add(self, link: DownlinkProtocol) -> None:
        """Register a connection and close it if it sends no valid Hello within `HELLO_TIMEOUT_S`."""
        self.all.add(link)
        if self._draining:
            link.down.drain()
        if link.worker:
            return
        if sum(not each.down.linked for each in self.all) > UNVERIFIED_MAX:
            link.cut()
        self.loop.call_later(HELLO_TIMEOUT_S, lambda: None if link.down.linked or link.over else link.cut())

    def _edges(self) -> list[DownlinkProtocol]:
        return [link for link in self.all if link.down.linked and not link.worker]

    def discard(self, link: DownlinkProtocol) -> None:
        """Unregister a connection."""
        self.all.discard(link)
        self._gone.set()

    def _on_entry(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        for link in list(self.all):
            link.pump()

    def _beat(self) -> None:
        self._timer = self.loop.call_later(BEAT_S, self._beat)
        now_s = self._clock()
        for link in list(self.all):
            link.down.beat(SILENT_S, leaving=self.leaving or not self._hub.linked)
            if not link.worker and link.down.linked and now_s - link.down.heard_s > SILENT_S:
                _logger.warning("closing the link of %s: no input for %.0f s", link.down.name, SILENT_S)
                link.cut()
            else:
                link.pump()

    def drain(self) -> None:
        """Stop accepting edges; send each edge the rest of the log, then drain workers and close other links."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for link in list(self.all):
            link.down.drain()

    async def drained(self, timeout_s: float) -> None:
        """Wait until all edges except workers have received the log and closed their links, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._edges():
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            late = [link.down.name for link in self._edges()]
            _logger.warning("drain: edges did not receive the rest of the log in time: %s", ", ".join(late))

    def close(self) -> None:
        """Stop beating and listening, and close all links at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self.all):
            link.cut()
        self._hub.on_entry(None)


class UplinkProtocol(asyncio.Protocol):
    """The edge's connection to its hub."""

    def __init__(self, uplink: Uplink, loop: asyncio.AbstractEventLoop) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()
        self._uplink = uplink
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send Hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._uplink.connected(self._send)

    def data_received(self, data: bytes) -> None:
        """Process bytes from the hub."""
        try:
            self._uplink.receive(data)
        except LinkError as error:
            _logger.error("closing the link to the hub: %s", error)
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail pending requests and complete `lost`."""
        self._uplink.lost()
        if not self.lost.done():
            self.lost.set_result(None)

    def cut(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> int:
        transport = self._transport
        assert transport is not None
        if not transport.is_closing():
            transport.write(data)
        return transport.get_write_buffer_size()


class Upstream:
    """Maintains an edge's link to its hub.

    Args:
        uplink: the edge's end of the link.
        loop: the event loop.
        clock: returns the edge's time.
        on_gone: called when a worker loses its hub; a link over TCP reconnects instead.
    """

    def __init__(
        self,
        uplink: Uplink,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        on_gone: Callable[[], None],
    ) -> None:
        self._uplink = uplink
        self._loop = loop
        self._clock = clock
        self._on_gone = on_gone
        self._protocol: UplinkProtocol | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._patient = False  # a worker's link ends if its hub dies, so a silent hub is only slow

    def open(self, where: str | socket.socket) -> None:
        """Start the link.

        Args:
            where: `relay://HOST:PORT`, `relays://HOST:PORT` for TLS, or a connected socket.
        """
        if isinstance(where, str):
            self._task = self._loop.create_task(self._keep(where))
        else:
            self._patient = True
            self._task = self._loop.create_task(self._follow(where))
        self._tick()

    def close(self) -> None:
        """Close the link and do not reconnect."""
        for each in (self._task, self._timer):
            if each is not None:
                each.cancel()
        if self._protocol is not None:
            self._protocol.cut()

    async def _follow(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        _, protocol = await self._loop.create_unix_connection(self._make, sock=connection)
        await protocol.lost
        self._on_gone()

    async def _keep(self, where: str) -> None:
        host, port, encrypted = parse_upstream(where)
        context = ssl.create_default_context() if encrypted else None
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        while True:
            try:
                transport, protocol = await self._loop.create_connection(self._make, host, port, ssl=context)
            except OSError as error:
                _logger.warning("cannot link to %s: %s", where, error.strerror or error)
            else:
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                began_s = self._clock()
                await protocol.lost
                _logger.warning("lost the link to %s", where)
                if self._clock() - began_s > RECONNECT_MAX_S:
                    backoff.reset()
            await asyncio.sleep(backoff.next_s())

    def _make(self) -> UplinkProtocol:
        self._protocol = UplinkProtocol(self._uplink, self._loop)
        return self._protocol

    def _tick(self) -> None:
        self._timer = self._loop.call_later(BEAT_S, self._tick)
        self._uplink.tick()
        if not self._patient and self._protocol is not None and self._clock() - self._uplink.heard_s > SILENT_S:
            self._protocol.cut()
