"""What relay itself says in a stream: gaps, heartbeats, and the time to come back after.

Owns these few frames; never decides when they are sent.
"""

from __future__ import annotations

import orjson

from relay.event import Event
from relay.sse import comment, encode

GAP = "relay.gap"

PADDING_BYTES = 2048
"""What some proxies and old polyfills hold back before they pass anything on."""

_NOTICE_BYTES_MAX = 64 * 1024  # two ids of `ID_CHARACTERS_MAX`, each of them escaped, and more


def gap(reason: str, missed: int | None, first: str | None, last: str | None) -> bytes:
    """Encode the event that reports missed events to one subscriber.

    It has no id, so that a client that reconnects resumes after the last event that it received.

    Args:
        reason: `slow`, `conflated`, `history` (no longer retained) or `unknown` (an id that this log never gave, or
            has forgotten).
        missed: how many events; None when that is not known.
        first: id of the first one missed, where known.
        last: id of the last one missed, where known.
    """
    return encode(gap_event(reason, missed, first, last), None, _NOTICE_BYTES_MAX)


def gap_event(
    reason: str, missed: int | None, first: str | None = None, last: str | None = None, topic: str | None = None
) -> Event:
    """Return a gap as an event; one that is published is an entry of its topic, and reaches replays and resumes too.

    Args:
        reason: as for `gap`, or `refused` (events of an upstream that relay cannot publish).
        missed: as for `gap`.
        first: as for `gap`.
        last: as for `gap`.
        topic: where it is published.
    """
    data = orjson.dumps({"reason": reason, "missed": missed, "from": first, "to": last}).decode()
    # With a key of its own it replaces no event under `conflate`.
    return Event(data=data, event=GAP, topic=topic, key=GAP)


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
