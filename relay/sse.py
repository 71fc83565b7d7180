"""The codec of the event stream: `Event` values to frames, and bytes to `Event` values (WHATWG HTML 9.2).

Owns what a value becomes on the wire; sans-IO: bytes and values only, no topics, no sockets, no clock. The
work is done by the twin that `relay.speedups` chose.
"""

from __future__ import annotations

import orjson
from msgspec import UNSET, Raw

from relay.errors import EventError
from relay.event import Event
from relay.speedups import Decoder, encode_event

__all__ = ["Decoder", "comment", "encode", "priming"]

PRIMING_BYTES_MAX = 1024


def encode(event: Event, id: str | None, bytes_max: int) -> bytes:
    """Encode one event as one frame.

    Args:
        event: a string as data is sent as it is, and so is `Raw`; any other JSON value as compact JSON.
        id: the id to give it when it has none of its own.
        bytes_max: largest frame, in bytes.

    Raises:
        EventError: a field that the format cannot carry unchanged; `data` when the frame is too large.
    """
    data = event.data
    if not isinstance(data, str):
        if isinstance(data, Raw):
            data = bytes(data)
        else:
            data = None if data is UNSET else _json(data)
    own = event.id
    return encode_event(data, event.event, id if own is None else own, event.retry, bytes_max)


def comment(text: str) -> bytes:
    """Encode a comment: one line, and no empty one, which some clients take for an event.

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
    """Encode the block that tells a new stream how soon to reconnect and from where; it dispatches nothing.

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
