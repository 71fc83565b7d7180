"""The choice between the compiled implementation (`relay._speedups`) and the one in Python (`relay._native`).

Owns this choice. RELAY_ENGINE makes it: `speedups`, `native`, or `auto` for the compiled implementation if it is built.
No other module imports either.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from relay.errors import ConfigError


def _choose(wanted: str) -> str:
    built = find_spec("relay._speedups") is not None
    if wanted == "auto":
        return "speedups" if built else "native"
    if wanted not in ("speedups", "native"):
        raise ConfigError(f"RELAY_ENGINE={wanted}: choose speedups, native or auto")
    if wanted == "speedups" and not built:
        raise ConfigError("RELAY_ENGINE=speedups, but relay was built without them (RELAY_BUILD=pure)")
    return wanted


ENGINE = _choose(os.environ.get("RELAY_ENGINE") or "auto")
"""The implementation in use: `speedups` or `native`."""

if TYPE_CHECKING or ENGINE == "speedups":
    from relay._speedups import (
        Chunk,
        Decoder,
        Engine,
        Members,
        accept,
        counters,
        cut_head,
        encode_event,
        json_data,
    )
else:
    from relay._native.arrivals import accept, cut_head
    from relay._native.codec import Decoder, encode_event
    from relay._native.engine import Chunk, Engine, Members, counters
    from relay._native.jsontext import json_data

__all__ = [
    "ENGINE",
    "Chunk",
    "Decoder",
    "Engine",
    "Members",
    "accept",
    "counters",
    "cut_head",
    "encode_event",
    "json_data",
]
