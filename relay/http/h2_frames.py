"""The frames of HTTP/2 (RFC 9113 section 4), sans-IO: bytes in, whole frames out.

Owns the boundaries of frames, so that the caller can count and process each frame separately. Never interprets the
payload of a frame: the library `h2` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from h2.errors import ErrorCodes

from relay.http.request import PREFACE_HEAD

PREFACE = PREFACE_HEAD + b"SM\r\n\r\n"
"""First bytes of a client's connection (RFC 9113 section 3.4)."""
HEAD_BYTES = 9
"""Length of the head of a frame."""
PAYLOAD_BYTES_MAX = 16_384
"""Longest payload of a frame: SETTINGS_MAX_FRAME_SIZE is not raised."""
END_STREAM = 0x1
END_HEADERS = 0x4


class FrameKind(IntEnum):
    """The types of frames (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class FrameError(Exception):
    """The bytes are not HTTP/2.

    Args:
        code: the error code for GOAWAY.
        reason: the reason for the log.
    """

    def __init__(self, code: ErrorCodes, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Args:
        kind: a `FrameKind`, or the number of an unknown type.
        flags: the flags.
        stream_id: the stream; 0 for the connection.
        length: bytes of the payload.
        data: the frame as received, with its head.
    """

    kind: int
    flags: int
    stream_id: int
    length: int
    data: bytes


class FrameReader:
    """Splits the bytes of a connection into frames.

    The buffer has at most one incomplete frame of `PAYLOAD_BYTES_MAX`, and the bytes that the caller has not taken.
    """

    __slots__ = ("_buffer", "_opened")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opened = False

    def feed(self, data: bytes) -> None:
        """Store received bytes. The caller takes all complete frames before it feeds more."""
        self._buffer += data

    def next(self) -> Frame | None:
        """Return the next frame; None if it is incomplete. The preface precedes the first frame's data.

        Raises:
            FrameError: the preface is wrong or a frame is too long.
        """
        preface = 0 if self._opened else len(PREFACE)
        head = self._buffer[: preface + HEAD_BYTES]
        if not PREFACE.startswith(head[:preface]):
            raise FrameError(ErrorCodes.PROTOCOL_ERROR, "the connection does not begin with the preface of HTTP/2")
        if len(head) < preface + HEAD_BYTES:
            return None
        head = head[preface:]
        length = int.from_bytes(head[:3], "big")
        if length > PAYLOAD_BYTES_MAX:
            raise FrameError(ErrorCodes.FRAME_SIZE_ERROR, f"a frame is longer than {PAYLOAD_BYTES_MAX} bytes")
        end = preface + HEAD_BYTES + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._opened = True
        return Frame(head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, length, data)
