"""relay: events in by pipe, Unix socket or HTTP; Server-Sent Events out to thousands of open streams.

Owns the public names. The codec is loaded on first use, so that a command that needs an engine can report
a faulty engine in one line. The client is loaded on first use, because a server does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.errors import ConfigError, EventError, LostError, RelayError, RequestError
from relay.event import Event

if TYPE_CHECKING:
    from relay.client import Gap, Publisher, SyncPublisher, publish, publish_sync, read_gap, subscribe
    from relay.sse import Decoder, encode

__all__ = [
    "ConfigError",
    "Decoder",
    "Event",
    "EventError",
    "Gap",
    "LostError",
    "Publisher",
    "RelayError",
    "RequestError",
    "SyncPublisher",
    "__version__",
    "encode",
    "publish",
    "publish_sync",
    "read_gap",
    "subscribe",
]

__version__ = "0.1.0"

_CODEC = ("Decoder", "encode")
_CLIENT = ("Gap", "Publisher", "SyncPublisher", "publish", "publish_sync", "read_gap", "subscribe")


def __getattr__(name: str) -> Any:
    if name in _CODEC:
        from relay import sse

        return getattr(sse, name)
    if name in _CLIENT:
        from relay import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
