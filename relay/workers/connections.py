"""The links' connections: those of a hub's edges, and an edge's own to its hub.

Owns the listener for edges, the timers and the reconnecting. Never speaks (`relay.workers.hub_end`,
`relay.workers.edge_end`).
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
"""After this time without a word from the other end it is taken for gone: ten beats."""

RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
"""Pause before an edge connects again: doubled each time, and drawn, so that edges do not come all at once."""

STRANGERS_MAX = 64
"""Connections to the link's listener that have not said Hello."""

STRANGER_S = 10.0
"""How long they may take."""

_logger = logging.getLogger("relay.links")


class DownlinkProtocol(asyncio.Protocol):
    """The connection of one edge."""

    def __init__(self, links: Links, token: str | None, *, worker: int = 0) -> None:
        self.worker = worker
        self.down = links.downlink(token, self.pump)
        self.over = False
        self._links = links
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the edge in."""
        self._transport = cast(asyncio.Transport, transport)
        # What waits here is one segment: the next is asked for when it has left.
        self._transport.set_write_buffer_limits(0, 0)
        self._links.add(self)

    def data_received(self, data: bytes) -> None:
        """Hear the edge."""
        assert self._transport is not None
        linked = self.down.linked
        try:
            self.down.receive(data)
        except LinkError as error:
            _logger.warning("link of %s: %s", self.down.name, error)
            self.cut()
            return
        if self.down.linked and not linked and not self.worker:
            _logger.info("%s has linked from %s", self.down.name, self._transport.get_extra_info("peername"))
        if self.down.full:
            self._transport.pause_reading()
        if self.worker:
            self._links.on_heard()
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the edge."""
        if self.down.linked and not self.worker and not self.down.closing:
            _logger.warning("%s has gone", self.down.name)
        self.over = True
        self.down.lost()
        self._links.discard(self)

    def pause_writing(self) -> None:
        """Wait until the edge has taken what was written."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on, in a turn of its own, outside of the write."""
        self._paused = False
        self._links.loop.call_soon(self.pump)

    def pump(self) -> None:
        """Write what is due, as long as the edge takes it."""
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

        The edge closes its end after ours. If we closed first, the next word of the edge would be answered by a reset,
        which discards what the edge has not read. TLS has no half-closed state; its close is an exchange.
        """
        self._ended = True
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:
            transport.close()

    def cut(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()


class Links:
    """The edges of a hub.

    Args:
        config: the settings.
        hub: whose log they follow.
        handler: answers what they ask.
        loop: the event loop.
        clock: the hub's time.
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
        self.leaving = False  # the edges' readiness shall fail
        self._config = config
        self.on_heard: Callable[[], None] = lambda: None  # called when a worker has said something
        self._hub = hub
        self._handler = handler
        self._clock = clock
        self._chunks = Chunks(hub.log)
        self._pump_due = False
        self._draining = False
        self._gone = asyncio.Event()  # set whenever a link has gone
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        hub.on_entry = self._on_entry

    def downlink(self, token: str | None, wake: Callable[[], None]) -> Downlink:
        """Make the state of one link."""
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
        """Begin to beat, and take edges over TCP if there is a listener for them."""
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
        """Take a connection in; a stranger has to say Hello soon."""
        self.all.add(link)
        if self._draining:
            link.down.drain()
        if link.worker:
            return
        if sum(not each.down.linked for each in self.all) > STRANGERS_MAX:
            link.cut()
        self.loop.call_later(STRANGER_S, lambda: None if link.down.linked or link.over else link.cut())

    def _edges(self) -> list[DownlinkProtocol]:
        return [link for link in self.all if link.down.linked and not link.worker]

    def discard(self, link: DownlinkProtocol) -> None:
        """Forget a connection."""
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
            link.down.beat(SILENT_S, leaving=self.leaving)
            if not link.worker and link.down.linked and now_s - link.down.heard_s > SILENT_S:
                _logger.warning("%s is silent: its link is cut", link.down.name)
                link.cut()
            else:
                link.pump()

    def drain(self) -> None:
        """Take no more edges; let the workers drain, and the other edges have what is in the log."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for link in list(self.all):
            link.down.drain()

    async def drained(self, timeout_s: float) -> None:
        """Wait until all edges but workers have the whole log and have closed their links, for this time at most."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._edges():
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            late = [link.down.name for link in self._edges()]
            _logger.warning("edges that did not take the rest of the log in time: %s", ", ".join(late))

    def close(self) -> None:
        """Cut all links."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self.all):
            link.cut()
        self._hub.on_entry = None


class UplinkProtocol(asyncio.Protocol):
    """An edge's connection to its hub."""

    def __init__(self, uplink: Uplink, loop: asyncio.AbstractEventLoop) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()
        self._uplink = uplink
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say Hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._uplink.connected(self._send)

    def data_received(self, data: bytes) -> None:
        """Hear the hub."""
        try:
            self._uplink.receive(data)
        except LinkError as error:
            _logger.error("link to the hub: %s", error)
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the owner of the link know."""
        self._uplink.lost()
        if not self.lost.done():
            self.lost.set_result(None)

    def cut(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> int:
        transport = self._transport
        assert transport is not None
        if not transport.is_closing():
            transport.write(data)
        return transport.get_write_buffer_size()


class Upstream:
    """Keeps the link of an edge to its hub.

    Args:
        uplink: what speaks.
        loop: the event loop.
        clock: the edge's time.
        on_gone: called when a worker's hub is gone; a link over TCP is made again instead.
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
        self._patient = False  # a worker's hub that is silent is only slow: it cannot be gone without the link's end

    def open(self, where: str | socket.socket) -> None:
        """Begin: with `relay://HOST:PORT`, `relays://` over TLS, or with a connected socket."""
        if isinstance(where, str):
            self._task = self._loop.create_task(self._keep(where))
        else:
            self._patient = True
            self._task = self._loop.create_task(self._follow(where))
        self._tick()

    def close(self) -> None:
        """Leave the hub."""
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
                _logger.warning("the link to %s is gone", where)
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
