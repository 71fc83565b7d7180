"""relay: events in by pipe, Unix socket or HTTP; Server-Sent Events out to thousands of open streams.

Owns the public names. The codec is loaded on first use, so that a command that needs an engine can report
a faulty engine in one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.errors import ConfigError, EventError, RelayError, RequestError
from relay.event import Event

if TYPE_CHECKING:
    from relay.sse import Decoder, encode

    __version__: str

__all__ = [
    "ConfigError",
    "Decoder",
    "Event",
    "EventError",
    "RelayError",
    "RequestError",
    "__version__",
    "encode",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("relay-sse")
    if name in ("Decoder", "encode"):
        from relay import sse

        return getattr(sse, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
