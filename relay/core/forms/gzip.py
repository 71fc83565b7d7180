"""The framing `gzip`, and compressors that many streams share.

Theory of operation. The body is one gzip member (RFC 1952) in chunks. Each event is first available as a stored deflate
block (RFC 1951 section 3.2.4), which has five bytes more than the event and is independent of all other blocks. Every
stream can receive every event in this form, so catching up, cursors and policies work as in other framings.

The streams of one audience receive the same events, so one deflate context can compress for all of them. A flush feeds
its events to the context and ends the output with Z_SYNC_FLUSH, which ends it at a byte boundary. Distances in deflate
count decompressed bytes. A stream can therefore read this output if its last decompressed bytes are exactly the bytes
that the context was fed since its last *key frame*, in any kind of block, with nothing in between. A key frame is a
Z_FULL_FLUSH: later output does not refer to content before it. Since the last key frame, the context was fed exactly
the events from `key_cursor` on. The engine keeps `clean_since` of each stream: since this sequence, the stream has
received all events and nothing else. If `clean_since <= key_cursor`, the stream receives the shared output; otherwise
it receives stored blocks until the next key frame. A gap, a heartbeat, a skip or a conflated read moves `clean_since`
forward.

The trailer contains the CRC-32 of the content of the stream. The engine combines it from the CRC-32 of the parts. Only
a complete body needs it.

A context takes 256 KiB, so their number is bounded. Contexts are an optimisation and can be dropped at any time.

Owns the compressed format and the key frames. Never sends.
"""

from __future__ import annotations

import struct
import zlib

from relay.core.forms.framing import LAST_CHUNK, wrap

KEY_BYTES = 32 * 1024
"""Minimum content between two key frames while less than half of the streams wait. It is the size of deflate's window,
so that a key frame costs little compression."""

STREAMS_MIN = 2
"""Minimum number of streams of an audience for which a compressor is worth its memory."""

_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952 section 2.3: deflate, no time, unknown system
_FINAL_BLOCK = b"\x03\x00"  # RFC 1951 section 3.2.3: an empty last block
_STORED_MAX = 65535
_STORED = struct.Struct("<BHH")
_TRAILER = struct.Struct("<II")


def stored(content: bytes) -> bytes:
    """Return content as stored deflate blocks, none of them the last one."""
    if len(content) <= _STORED_MAX:
        return _STORED.pack(0, len(content), len(content) ^ 0xFFFF) + content
    return b"".join(stored(content[place : place + _STORED_MAX]) for place in range(0, len(content), _STORED_MAX))


class Gzip:
    """gzip in chunks."""

    name = "gzip"
    compressed = True
    headers: tuple[tuple[str, str], ...] = (("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked"))
    start = wrap(_HEADER)

    def wrap(self, content: bytes) -> bytes:
        """Return a chunk with stored blocks."""
        return wrap(stored(content))

    def end(self, crc: int, size: int) -> bytes:
        """Return the last block, the trailer and the last chunk."""
        return wrap(_FINAL_BLOCK + _TRAILER.pack(crc, size)) + LAST_CHUNK


class Compressor:
    """The deflate context that the streams of one audience share.

    Args:
        level: 1 to 9, as zlib defines it.
    """

    def __init__(self, level: int) -> None:
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._fed = 0  # bytes since the last key frame
        self.key_cursor: int | None = None  # None: the next output must begin with a key frame
        self.waiting = 0  # streams that could not read the last output

    def lose(self) -> None:
        """Begin the next output with a key frame, because streams have received content that the context has not."""
        self.key_cursor = None

    def feed(self, content: bytes, cursor: int, streams: int) -> bytes:
        """Compress the events of a flush.

        Args:
            content: the events.
            cursor: the first sequence of the flush; live streams have received everything before it.
            streams: number of streams of the audience.

        Returns:
            a chunk whose compressed content ends at a byte boundary.
        """
        waiting = self.waiting
        if self.key_cursor is None or (waiting and (self._fed >= KEY_BYTES or 2 * waiting >= streams)):
            start = self._deflate.flush(zlib.Z_FULL_FLUSH)
            self.key_cursor, self._fed = cursor, 0
        else:
            start = b""
        self._fed += len(content)
        return wrap(start + self._deflate.compress(content) + self._deflate.flush(zlib.Z_SYNC_FLUSH))
