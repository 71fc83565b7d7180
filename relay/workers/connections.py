"""The connections of links: from a hub to its workers, and from a worker to its hub.

Owns the connections and their timers. Never encodes or decodes messages (`relay.workers.hub_end` and
`relay.workers.edge_end` do).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from relay.config.model import Config
from relay.core.hub import Hub
from relay.workers.edge_end import Uplink, message_bytes_max
from relay.workers.hub_end import Chunks, Downlink, RequestHandler
from relay.workers.messages import LinkError

BEAT_S = 1.0
SILENT_S = 10.0
"""The hub releases the topics that a worker holds if the worker is silent for this time, ten beats."""

_logger = logging.getLogger("relay.links")


class DownlinkProtocol(asyncio.Protocol):
    """The hub's connection to one worker.

    Args:
        links: the links of the hub; the connection adds and removes itself.
        name: name of the worker in log lines.
        on_heard: called after each input.
    """

    def __init__(self, links: Links, name: str, on_heard: Callable[[], None]) -> None:
        self.down = links.downlink(self.pump)
        self._links = links
        self._name = name
        self._on_heard = on_heard
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        self._transport = cast(asyncio.Transport, transport)
        # At most one segment is buffered; `pump` takes the next one after it is sent.
        self._transport.set_write_buffer_limits(0, 0)
        self._links.add(self)

    def data_received(self, data: bytes) -> None:
        """Process bytes from the worker."""
        assert self._transport is not None
        try:
            self.down.receive(data)
        except LinkError as error:
            _logger.warning("closing the link of %s: %s", self._name, error)
            self.cut()
            return
        if self.down.full:
            self._transport.pause_reading()
        self._on_heard()
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        self.down.lost()
        self._links.all.discard(self)

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
        if transport is None or transport.is_closing():
            return
        while not self._paused and (data := self.down.take()):
            transport.write(data)
        if self._paused:
            return
        if self.down.closing:
            transport.close()  # after the output
        elif not self.down.full:
            transport.resume_reading()

    def cut(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()


class Links:
    """The links from a hub to its workers.

    Args:
        config: the settings.
        hub: the hub whose log the workers follow.
        handler: handles the workers' requests.
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
        self.leaving = False  # Beats tell the workers to report that they are not ready
        self._config = config
        self._hub = hub
        self._handler = handler
        self._clock = clock
        self._chunks = Chunks(hub.log)
        self._pump_due = False
        self._draining = False
        self._timer = loop.call_later(BEAT_S, self._beat)
        hub.on_entry(self._on_entry)

    def downlink(self, wake: Callable[[], None]) -> Downlink:
        """Create the state of one link."""
        return Downlink(
            self._hub,
            self._chunks,
            self._handler,
            bytes_max=message_bytes_max(self._config),
            clock=self._clock,
            wake=lambda: self._soon(wake),
        )

    def _soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    def add(self, link: DownlinkProtocol) -> None:
        """Register a connection."""
        self.all.add(link)
        if self._draining:
            link.down.drain()

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
        for link in list(self.all):
            link.down.beat(SILENT_S, leaving=self.leaving or not self._hub.linked)
            link.pump()

    def drain(self) -> None:
        """Send each worker the rest of the log, then tell it to drain."""
        self._draining = True
        for link in list(self.all):
            link.down.drain()

    def close(self) -> None:
        """Stop beating, and close all links at once."""
        self._timer.cancel()
        for link in list(self.all):
            link.cut()
        self._hub.on_entry(None)


class UplinkProtocol(asyncio.Protocol):
    """A worker's connection to its hub.

    Args:
        uplink: the worker's end of the link.
        loop: runs the timer.
        on_gone: called when the connection is lost.
    """

    def __init__(self, uplink: Uplink, loop: asyncio.AbstractEventLoop, on_gone: Callable[[], None]) -> None:
        self._uplink = uplink
        self._loop = loop
        self._on_gone = on_gone
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send Hello, and start to send Status each second."""
        self._transport = cast(asyncio.Transport, transport)
        self._uplink.connected(self._send)
        self._tick()

    def data_received(self, data: bytes) -> None:
        """Process bytes from the hub."""
        try:
            self._uplink.receive(data)
        except LinkError as error:
            _logger.error("closing the link to the hub: %s", error)
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail pending requests."""
        if self._timer is not None:
            self._timer.cancel()
        self._uplink.lost()
        self._on_gone()

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

    def _tick(self) -> None:
        self._timer = self._loop.call_later(BEAT_S, self._tick)
        self._uplink.tick()
