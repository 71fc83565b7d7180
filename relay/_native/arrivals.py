"""Accepted connections, and the parts of a request head that the opening of a stream needs.

The counterpart of _speedups/arrivals.pxi, which has the theory of operation. Owns no connection.
"""

from __future__ import annotations

import re
import socket

CUT_HEAD_BYTES_MAX = 2048
"""Longest head that `cut_head` reads."""

_HEAD = re.compile(rb"GET [^\r\n]*\r\n(?:[^:\r\n]*:[^\r\n]*\r\n)*\r\n")
_RETURNED = (b"last-event-id", b"authorization", b"x-forwarded-for")
_MEANINGLESS = (b"cookie", b"user-agent", b"referer", b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate")
_CUT = re.compile(rb"(?<=\n)(" + b"|".join(_RETURNED + _MEANINGLESS) + rb"):([^\r]*)\r\n", re.IGNORECASE)
_SIMPLE = re.compile(rb"[ -~\t]*")


def accept(listener: int, bytes_max: int) -> tuple[int, str, bytes] | None:
    """Accept one waiting connection.

    Args:
        listener: the descriptor of a non-blocking listener of IPv4 or IPv6.
        bytes_max: maximum number of bytes to read from the connection, at most 2,048; 0 to read none.

    Returns:
        (descriptor, the peer's address, the input that had already arrived). The socket does not block. None if no
        connection is waiting.

    Raises:
        OSError: the kernel cannot accept a connection.
    """
    listening = socket.socket(fileno=listener)
    try:
        connection, address = listening.accept()
    except (BlockingIOError, InterruptedError):
        return None
    finally:
        listening.detach()
    connection.setblocking(False)
    arrived = b""
    if bytes_max > 0:
        try:
            arrived = connection.recv(min(bytes_max, CUT_HEAD_BYTES_MAX))
        except OSError:
            arrived = b""  # The next read meets the same condition.
    return connection.detach(), address[0], arrived


def cut_head(input: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Remove the fields that differ between clients from the head of a GET request.

    Returns:
        (shape, Last-Event-ID, Authorization, X-Forwarded-For). The shape is the head without these fields and without
        some others that have no meaning for a stream. A value without white space at its ends is b"" if the field is
        missing. None unless the input is exactly one head, of at most 2,048 bytes, whose removed fields are simple.
    """
    if len(input) > CUT_HEAD_BYTES_MAX or not _HEAD.fullmatch(input):
        return None
    cut = [(name.lower(), value) for name, value in _CUT.findall(input)]
    values = dict(cut)
    if len(values) < len(cut) or not all(_SIMPLE.fullmatch(value) for value in values.values()):
        return None
    last_id, authorization, forwarded = (values.get(name, b"").strip(b" \t") for name in _RETURNED)
    return _CUT.sub(b"", input), last_id, authorization, forwarded
