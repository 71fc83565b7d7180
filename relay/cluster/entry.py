"""The format of an event in the broker, version 1.

An entry contains one JSON object with the fields that relay accepts from publishers, except `dedup`:
`topic` (required), `data`, `event`, `id`, `retry`, `key` and `ttl`. `docs/reference/broker-entries.md` documents the
format for other programs. A node encodes the frame of an event when it follows the entry, because the default id
contains the sequence, which the broker assigns.

Owns the format and its version. Never connects to a broker.
"""

from __future__ import annotations

import msgspec

from relay.core.ended import END
from relay.core.log import Entry
from relay.core.notice import gap_event
from relay.core.writer import RESERVED, check_key, check_ttl
from relay.errors import EventError
from relay.event import Event
from relay.event_json import parse_event
from relay.ids import may_keep
from relay.sse import encode
from relay.topic import check_topic

FORM = b"v1"
"""The version of the format. Each change of the format has a new version."""

_GAP_BYTES_MAX = 64 * 1024

_encode_json = msgspec.json.Encoder().encode


def encode_payload(event: Event) -> bytes:
    """Encode an event that was checked before.

    Raises:
        EventError: the data is not a JSON value.
    """
    try:
        # A copy, because a subclass has further fields.
        return _encode_json(
            Event(event.data, event.event, event.id, event.retry, event.key, event.topic, ttl=event.ttl)
        )
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        raise EventError("data", f"not a JSON value: {error}") from None


def decode_payload(form: bytes, payload: bytes, epoch: str, sequence: int, time_s: float, bytes_max: int) -> Entry:
    """Decode an entry of the broker, and encode its frame.

    Args:
        form: the version of the format.
        payload: the bytes of the event.
        epoch: the epoch of the log.
        sequence: the sequence of the entry.
        time_s: the time of the entry, on the node's clock.
        bytes_max: largest frame.

    Raises:
        EventError: the entry is not an event that this node can relay.
    """
    if form != FORM:
        raise EventError("event", f"has the format {form[:20]!r}; this version of relay reads only {FORM!r}")
    event = parse_event(payload)
    topic, id = event.topic, event.id
    if topic is None:
        raise EventError("topic", "is missing")
    check_topic(topic)
    if event.event is not None and event.event.startswith(RESERVED) and event.event != END:
        raise EventError("event", f"types that begin with `{RESERVED}` are reserved")
    if id is not None and not may_keep(id, epoch):
        raise EventError("id", "is not an id that clients can send back")
    check_key(event)
    check_ttl(event)
    frame = encode(event, f"{epoch}-{sequence}", bytes_max, True)
    return Entry(sequence, time_s, topic, id, event.key, frame, event.ttl)


def replacement(epoch: str, sequence: int, time_s: float, topic: str) -> Entry:
    """Return the entry that replaces one that cannot be decoded: a gap of one event, which subscribers receive."""
    gap = gap_event("refused", 1, topic=topic)
    return Entry(sequence, time_s, topic, None, gap.key, encode(gap, f"{epoch}-{sequence}", _GAP_BYTES_MAX, True))
