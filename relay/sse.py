"""The codec of the event stream: `Event` values to frames, and bytes to `Event` values (WHATWG HTML 9.2).

Owns the wire format, sans-IO. Never handles topics, sockets or time. `relay.speedups` selects the implementation.
"""

from __future__ import annotations

import orjson
from msgspec import UNSET, Raw

from relay.errors import EventError
from relay.event import Event
from relay.speedups import Decoder, encode_event

__all__ = ["Decoder", "comment", "encode", "priming"]

PRIMING_BYTES_MAX = 1024


def encode(event: Event, id: str | None, bytes_max: int, in_chunk: bool = False) -> bytes:
    """Encode one event as one frame.

    Args:
        event: data that is a string or `Raw` is sent unchanged, any other JSON value as compact JSON.
        id: the id for an event without one.
        bytes_max: largest frame, in bytes.
        in_chunk: return the frame in a chunk of an HTTP body, as the log stores it; see `relay.core.forms`.

    Raises:
        EventError: the format cannot carry a field unchanged; the field is `data` if the frame is too large.
    """
    data = event.data
    if not isinstance(data, str):
        if isinstance(data, Raw):
            data = bytes(data)
        else:
            data = None if data is UNSET else _json(data)
    own = event.id
    return encode_event(data, event.event, id if own is None else own, event.retry, bytes_max, in_chunk)


def comment(text: str) -> bytes:
    """Encode a comment as one line. No empty line follows, because some clients would dispatch an empty event.

    Raises:
        EventError: the text has a line end, or a lone surrogate.
    """
    if "\r" in text or "\n" in text:
        raise EventError("comment", "must not contain a line end")
    try:
        return b": %b\n" % text.encode() if text else b":\n"
    except UnicodeEncodeError as error:
        raise EventError("comment", f"lone surrogate at character {error.start}") from None


def priming(retry_ms: int, id: str) -> bytes:
    """Encode the block that gives a new stream its reconnection time and its first id. It dispatches no event.

    Raises:
        EventError: as for an event's `retry` and `id`.
    """
    retry = encode_event(None, None, None, retry_ms, PRIMING_BYTES_MAX)
    return retry[:-1] + encode_event(None, None, id, None, PRIMING_BYTES_MAX)


def _json(data: object) -> bytes:
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError as error:
        raise EventError("data", f"not a JSON value: {error}") from None
