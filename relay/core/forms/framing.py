"""Framings: the encodings of a response body, and of its end.

Owns chunks and plain bodies. Never compresses (`relay.core.forms.gzip`).
"""

from __future__ import annotations

from typing import Protocol

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a body in chunks. A body without it is truncated."""

CHUNK_BYTES_MAX = 16
"""Upper bound of the bytes that a chunk adds to its content: the size in hexadecimal digits, and two line ends."""


def wrap(content: bytes) -> bytes:
    """Return a chunk with this content."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def unwrap(chunk: bytes) -> bytes:
    """Return the content of one chunk."""
    return chunk[chunk.index(b"\n") + 1 : -2]


class Framing(Protocol):
    """The encoding of a body."""

    name: str
    """The second part of the names of its forms; empty for the framing of the log."""
    compressed: bool
    """Whether the engine counts the content, and streams may share a compressor."""
    headers: tuple[tuple[str, str], ...]
    """The headers that describe the framing."""
    start: bytes
    """The first bytes of the body."""

    def wrap(self, content: bytes) -> bytes:
        """Encode content of at least one byte as a part of the body."""

    def end(self, crc: int, size: int) -> bytes:
        """Return the end of a complete body.

        Args:
            crc: CRC-32 of the content; only for compressed framings.
            size: bytes of the content modulo 2^32; only for compressed framings.
        """


class Chunked:
    """Chunks, for HTTP/1.1. The log stores entries in this framing."""

    name = ""
    compressed = False
    headers: tuple[tuple[str, str], ...] = (("Transfer-Encoding", "chunked"),)
    start = b""

    def wrap(self, content: bytes) -> bytes:
        """Return a chunk."""
        return wrap(content)

    def end(self, crc: int, size: int) -> bytes:
        """Return the last chunk."""
        return LAST_CHUNK


class Plain:
    """The content alone, for HTTP/1.0. The body ends when the connection closes (RFC 9112 section 6.3)."""

    name = "plain"
    compressed = False
    headers: tuple[tuple[str, str], ...] = ()
    start = b""

    def wrap(self, content: bytes) -> bytes:
        """Return the content."""
        return content

    def end(self, crc: int, size: int) -> bytes:
        """Return nothing."""
        return b""
