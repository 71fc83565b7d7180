"""A hub without a server, whose streams end in socket pairs: the core, without an event loop or the network.

Owns the hub and the other ends of its streams; never measures.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from relay.config.model import Config
from relay.core.hub import Hub
from relay.core.stream import Subscribe
from relay.speedups import Engine

EPOCH = "0123456789abcdef"
NOW_S = 1000.0
STREAMS_MAX = 10_000
READ_BYTES = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n"


class _Silent:
    """A histogram that discards its values."""

    def observe(self, amount: float, /) -> None:
        """Discard the value."""


class _Measures:
    flush_s = written_s = lag_s = _Silent()


class LocalHub:
    """A hub and its streams.

    Args:
        engine: the class of the engine that holds the streams.
        settings: settings of the hub.
    """

    def __init__(self, engine: type[Engine], **settings: Any) -> None:
        self.peers: list[socket.socket] = []
        config = Config(**settings)
        self.hub = Hub(
            config,
            engine(config.discard_bytes_max),
            epoch=EPOCH,
            streams_max=STREAMS_MAX,
            measures=_Measures(),
            clock=lambda: NOW_S,
            wake=lambda: None,
            draw=lambda: 0.5,
        )

    def socket(self) -> int:
        """Make a socket pair for a new stream; return the descriptor for the hub."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.peers.append(theirs)
        return ours.detach()

    def subscribe(self, *terms: str, fd: int | None = None, since_s: float | None = None) -> None:
        """Open a stream of new events, preceded by those of the last `since_s` seconds if given."""
        request = Subscribe(terms, (), since_s, None, False, HEAD)
        self.hub.subscribe(self.socket() if fd is None else fd, request, "127.0.0.1", NOW_S)

    def flush(self) -> None:
        """Send everything that is pending."""
        while self.hub.turn(NOW_S):
            pass

    def read(self) -> list[bytes]:
        """Read the available bytes of each subscriber, at most 1 MiB each."""
        data = [b""] * len(self.peers)
        for place, peer in enumerate(self.peers):
            with contextlib.suppress(BlockingIOError):
                data[place] = peer.recv(READ_BYTES)
        return data

    def close(self) -> None:
        """Close both ends of all streams."""
        for handle in self.hub.engine.handles():
            self.hub.engine.abort(handle, "closed")
        self.hub.engine.sweep()
        for peer in self.peers:
            peer.close()
