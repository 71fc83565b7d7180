"""The event: what a publisher hands in and a decoder hands out.

Owns the value; never knows bytes of the stream, topics' rules or time.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One event.

    Args:
        data: a string, sent as it is; `msgspec.Raw`, which is JSON text and sent as it is; or any JSON value, sent as
            compact JSON; UNSET for an event without data, which dispatches nothing.
        event: the event type of WHATWG HTML 9.2.6; None for `message`.
        id: the event's id; None lets the log give one. As decoded, None where the block had no `id` field.
        retry: reconnection time in milliseconds.
        key: what `conflate` keeps the newest of; None stands for the topic itself.
        topic: where it is published; None lets the source choose.
        dedup: what tells it from the topic's other events: one seen before is not published again.
    """

    data: Any = msgspec.UNSET
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    key: str | None = None
    topic: str | None = None
    dedup: str | None = None

