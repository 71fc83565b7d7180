"""The frames that relay itself sends in a stream: gaps, heartbeats and the reconnection time.

Owns these frames. Never decides when to send them.
"""

from __future__ import annotations

import orjson

from relay.event import Event
from relay.sse import comment, encode

GAP = "relay.gap"

PADDING_BYTES = 2048
"""Number of bytes that some proxies and old polyfills buffer before they forward anything."""

_NOTICE_BYTES_MAX = 64 * 1024  # two ids of `ID_CHARACTERS_MAX`, each of them escaped, and more


def gap(reason: str, missed: int | None, first: str | None, last: str | None) -> bytes:
    """Encode the event that reports missed events to one subscriber.

    It has no id, so that a client that reconnects resumes after the last event that it received.

    Args:
        reason: a value of `relay.core.gaps.GapReason`.
        missed: number of missed events; None if unknown.
        first: id of the first missed event, if known.
        last: id of the last missed event, if known.
    """
    return encode(gap_event(reason, missed, first, last), None, _NOTICE_BYTES_MAX)


def gap_event(
    reason: str, missed: int | None, first: str | None = None, last: str | None = None, topic: str | None = None
) -> Event:
    """Return a gap as an event. A published gap is an entry of its topic, so replays and resumes contain it too.

    Args:
        reason: as for `gap`, or `refused` (events of an upstream that relay cannot publish).
        missed: as for `gap`.
        first: as for `gap`.
        last: as for `gap`.
        topic: the topic to publish it in.
    """
    data = orjson.dumps({"reason": reason, "missed": missed, "from": first, "to": last}).decode()
    # Its own key prevents it from superseding an event under `conflate`.
    return Event(data=data, event=GAP, topic=topic, key=GAP)


def heartbeat(form: str) -> bytes:
    """Encode a heartbeat: `comment` (one line, which clients ignore), `padded` or `event`."""
    if form == "event":
        return encode(Event(data="", event="relay.heartbeat"), None, _NOTICE_BYTES_MAX)
    return comment("" if form == "comment" else " " * PADDING_BYTES)


def come_back(retry_ms: int) -> bytes:
    """Encode the last line of a drained stream.

    No empty line follows it. A client that follows the standard applies `retry` when it reads the field (WHATWG HTML
    9.2.6). Other clients discard the unfinished block; they would take a complete block for an empty event.
    """
    return b"retry: %d\n" % retry_ms
