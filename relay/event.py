"""The event as a value, as publishers send it and decoders return it.

Owns this value. Never knows the bytes of a stream, the rules of topics or the time.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One event. The garbage collector does not track it (`gc=False`), because JSON values have no cycles.

    Args:
        data: a string, sent as it is; `msgspec.Raw`, which is JSON text and sent as it is; or any JSON value, sent as
            compact JSON; UNSET for an event without data, which dispatches nothing.
        event: the event type of WHATWG HTML 9.2.6; None for `message`.
        id: the event's id; None lets the log assign one. A decoder sets None if the block had no `id` field.
        retry: reconnection time in milliseconds.
        key: the policy `conflate` keeps the newest event of each key; None stands for the topic.
        topic: the topic to publish on; None lets the source choose.
        dedup: identifies the event within its topic. An event with a known key is not published again.
        ttl: time in seconds after which relay no longer retains the event; None for no such time.
    """

    data: Any = msgspec.UNSET
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    key: str | None = None
    topic: str | None = None
    dedup: str | None = None
    ttl: float | None = None

