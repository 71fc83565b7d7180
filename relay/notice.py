"""What relay itself says in a stream: gaps, heartbeats, and the time to come back after.

Owns these few frames; never decides when they are sent.
"""

from __future__ import annotations

import orjson

from relay.event import Event
from relay.sse import comment, encode

PADDING_BYTES = 2048
"""What some proxies and old polyfills hold back before they pass anything on."""

_NOTICE_BYTES_MAX = 64 * 1024  # two ids of `ID_CHARACTERS_MAX`, each of them escaped, and more


def gap(reason: str, missed: int | None, first: str | None, last: str | None) -> bytes:
    """Encode the event that tells a subscriber what it missed.

    It has no id, so that a client that comes back asks from the last event that it saw.

    Args:
        reason: `slow`, `conflated`, `history` (no longer retained) or `unknown` (an id that this log never gave, or
            has forgotten).
        missed: how many events; None when that is not known.
        first: id of the first one missed, where known.
        last: id of the last one missed, where known.
    """
    data = orjson.dumps({"reason": reason, "missed": missed, "from": first, "to": last}).decode()
    return encode(Event(data=data, event="relay.gap"), None, _NOTICE_BYTES_MAX)


def heartbeat(form: str) -> bytes:
    """Encode a heartbeat: `comment` (one line, which no client takes for an event), `padded` or `event`."""
    if form == "event":
        return encode(Event(data="", event="relay.heartbeat"), None, _NOTICE_BYTES_MAX)
    return comment("" if form == "comment" else " " * PADDING_BYTES)


def come_back(retry_ms: int) -> bytes:
    """Encode the last line of a drained stream.

    A line without an empty one after it: a client by the standard takes `retry` when it reads the field (WHATWG HTML
    9.2.6), and others throw the unfinished block away, where a whole block of only `retry` would be an empty event.
    """
    return b"retry: %d\n" % retry_ms
