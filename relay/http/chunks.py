"""Chunked bodies of requests, sans-IO: RFC 9112 section 7.1.

Owns the grammar of chunks and the limits on their lines. Never touches a socket and never parses a request head
(`relay.http.request`).
"""

from __future__ import annotations

import re

from relay.errors import RequestError
from relay.limits import Limit

CHUNK_LINE_BYTES_MAX = 1024
"""Longest line that holds the size of a chunk or a trailer. Clients do not send chunk extensions in practice."""
CHUNK_LINES_BYTES_MAX = 64 * 1024
"""Total bytes of these lines, beyond eight times the data. The factor admits chunks of one byte."""

BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")


def too_large(bytes_max: int, *, decoded: bool = False) -> RequestError:
    """Return the error for a body of more than `bytes_max` bytes; 0 means that the path takes no body.

    Args:
        bytes_max: largest body.
        decoded: whether the body is too large only after its content coding was decoded.
    """
    if not bytes_max:
        return RequestError(413, "this path takes no request body")
    reason = f"the {'decoded body' if decoded else 'body'} is larger than {bytes_max} bytes"
    return RequestError(413, reason, limit=Limit.BODY_BYTES_MAX)


class ChunkedBody:
    """Decoder of one chunked body. It checks extensions and trailers, and drops them."""

    __slots__ = ("_left", "_lines_bytes", "_part", "_taken_bytes", "body")

    def __init__(self) -> None:
        self.body = bytearray()
        self._taken_bytes = 0  # of the body, removed by `pop`
        self._part = "size"  # size → data → end → size …; size 0 → trailer
        self._left = 0
        self._lines_bytes = 0

    def take(self, buffer: bytearray, bytes_max: int) -> bool:
        """Consume the buffer; return whether the body is complete.

        Args:
            buffer: the unread bytes of the connection; decoded bytes are removed from it.
            bytes_max: largest body.

        Raises:
            RequestError: 413 too large, 400 malformed chunks.
        """
        while True:
            if self._part == "data":
                taken = buffer[: self._left]
                del buffer[: self._left]
                self.body += taken
                self._left -= len(taken)
                if self._left:
                    return False
                self._part = "end"
            if self._part == "end":
                if not b"\r\n".startswith(buffer[:2]):
                    raise RequestError(400, "a chunk is longer than its size")
                if len(buffer) < 2:
                    return False
                del buffer[:2]
                self._part = "size"
            line = self._line(buffer)
            if line is None:
                return False
            if self._part == "size":
                size = _CHUNK_SIZE.fullmatch(line)
                if size is None:
                    raise RequestError(400, "malformed chunk size")
                self._left = int(size[1], 16)
                if len(self.body) + self._left > bytes_max:
                    raise too_large(bytes_max)
                self._part = "data" if self._left else "trailer"
            elif not line:
                return True
            elif not _TRAILER.fullmatch(line):
                raise RequestError(400, "malformed trailer")

    def pop(self) -> bytes:
        """Remove the decoded bytes and return them, so that a body of any length takes little memory."""
        body = bytes(self.body)
        self._taken_bytes += len(body)
        self.body.clear()
        return body

    def _line(self, buffer: bytearray) -> bytes | None:
        """Remove one line from the buffer and return it without its CRLF; None if the line is incomplete."""
        end = buffer.find(b"\r\n", 0, CHUNK_LINE_BYTES_MAX)
        if end < 0:
            if len(buffer) >= CHUNK_LINE_BYTES_MAX or BARE_LF.search(buffer):
                raise RequestError(400, "malformed line between chunks")
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        self._lines_bytes += end + 2
        if self._lines_bytes > CHUNK_LINES_BYTES_MAX + 8 * (self._taken_bytes + len(self.body)):
            raise RequestError(400, "more chunk lines than data")
        return line
