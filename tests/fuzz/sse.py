"""The decoder of the event stream: any bytes give events. The twins agree. Splits change nothing. Buffers are small."""

from __future__ import annotations

from typing import Any

from relay._native import codec as native
from relay.errors import EventError
from relay.speedups import Decoder, encode_event
from tests.fuzz.pieces import cut

BYTES_MAX = 64
WORDS = (
    b"data:",
    b"event:",
    b"id:",
    b"retry:",
    b": ",
    b"\n",
    b"\r\n",
    b"\r",
    b"\n\n",
    b"\xef\xbb\xbf",
    b"\0",
    b"\xff",
    b"9" * 12,
)


def decode(decoder: Any, pieces: list[bytes]) -> list[Any]:
    """Return the result of each call, and the state of the decoder after it."""
    found: list[Any] = []
    for piece in [*pieces, b""]:
        try:
            found.append(decoder.feed(piece))
        except EventError as error:
            found.append(str(error))
        found.append((decoder.last_event_id, decoder.retry_ms))
    return found


def events(found: list[Any]) -> list[Any]:
    """Return the events of all calls."""
    return [event for call in found[::2] if isinstance(call, list) for event in call]


def check(data: bytes) -> None:
    """Check one input."""
    pieces = cut(data)
    slow = native.Decoder(BYTES_MAX)
    found = decode(slow, pieces)
    assert decode(Decoder(BYTES_MAX), pieces) == found
    whole = decode(Decoder(BYTES_MAX), [b"".join(pieces)])
    assert events(whole) == events(found)
    assert whole[-1] == found[-1]
    assert len(slow._line) + sum(map(len, slow._data)) <= BYTES_MAX + 2
    for event in events(found):
        frame = encode_event(event.data, event.event, event.id, event.retry, 1 << 20)
        assert frame == native.encode_event(event.data, event.event, event.id, event.retry, 1 << 20)
        assert Decoder(1 << 20).feed(frame) == [event]
