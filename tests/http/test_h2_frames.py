"""The frames of HTTP/2: found at every split, and bounded."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes

from relay.http.h2_frames import HEAD_BYTES, PAYLOAD_BYTES_MAX, PREFACE, Frame, FrameError, FrameKind, FrameReader

FRAMES = (
    (FrameKind.SETTINGS, 0, 0, b"\0\4\0\0\0\1"),
    (FrameKind.DATA, 1, 1, b""),
    (FrameKind.DATA, 0, 2**31 - 1, b"x" * 100),
    (0xFE, 0xFF, 3, b"unknown"),
)


def encode(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


BYTES = [encode(*each) for each in FRAMES]
EXPECTED = [
    Frame(kind, flags, stream_id, len(payload), (b"" if place else PREFACE) + BYTES[place])
    for place, (kind, flags, stream_id, payload) in enumerate(FRAMES)
]


def read(pieces: list[bytes]) -> list[Frame]:
    reader, found = FrameReader(), list[Frame]()
    for piece in pieces:
        reader.feed(piece)
        while (frame := reader.next()) is not None:
            found.append(frame)
    return found


def test_frames_are_found_whole_byte_by_byte_and_at_every_split() -> None:
    data = PREFACE + b"".join(BYTES)
    assert read([data]) == EXPECTED
    assert read([bytes((byte,)) for byte in data]) == EXPECTED
    for place in range(len(data)):
        assert read([data[:place], data[place:]]) == EXPECTED


def test_the_reserved_bit_of_a_stream_is_ignored() -> None:
    [frame] = read([PREFACE + encode(0, 0, 2**31 + 5, b"")])
    assert frame.stream_id == 5


def test_a_wrong_preface_is_rejected_at_its_first_wrong_byte() -> None:
    for place in range(len(PREFACE)):
        reader = FrameReader()
        reader.feed(PREFACE[:place])
        assert reader.next() is None
        reader.feed(b"?")
        with pytest.raises(FrameError) as raised:
            reader.next()
        assert raised.value.code == ErrorCodes.PROTOCOL_ERROR


def test_a_frame_that_is_too_long_is_rejected_at_its_head() -> None:
    reader = FrameReader()
    reader.feed(PREFACE + (PAYLOAD_BYTES_MAX + 1).to_bytes(3, "big") + bytes(HEAD_BYTES - 3))
    with pytest.raises(FrameError) as raised:
        reader.next()
    assert raised.value.code == ErrorCodes.FRAME_SIZE_ERROR
