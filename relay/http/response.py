"""HTTP responses: values in, bytes out.

Owns the format of responses and their standard headers. Never chooses a status or a body.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus

import orjson

from relay.config.origins import Allowed

Headers = tuple[tuple[str, str], ...]

JSON: Headers = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


def respond(
    status: int,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    keep_alive: bool = True,
    head_only: bool = False,
) -> bytes:
    """Build a complete response.

    Args:
        status: status code; 204 has no body and no length.
        headers: all but Content-Length and Connection; the caller has validated them.
        body: the body; omitted if `head_only` is set.
        keep_alive: send `Connection: keep-alive` instead of `close`.
        head_only: omit the body and keep its Content-Length, as for a HEAD request.
    """
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + (b"" if head_only else body)


def json_body(value: object) -> tuple[Headers, bytes]:
    """Return the headers and the bytes of a JSON body."""
    return JSON, orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def cors_headers(allowed: Allowed, origin: str | None) -> Headers:
    """Return the CORS headers of a response.

    Args:
        allowed: the origins that may read.
        origin: the request's Origin, None if it had none.
    """
    vary = () if not allowed.listing else (("Vary", "Origin"),)
    if origin is not None and allowed.lists(origin):
        # Fetch section 3.2.5: credentials require a named origin; `*` does not allow them.
        return (("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true"), *vary)
    return (("Access-Control-Allow-Origin", "*"), *vary) if allowed.any else vary


def upload_head(headers: Headers, *, chunked: bool) -> bytes:
    """Build the response head of an upload, whose body is NDJSON. The connection closes after the body.

    Args:
        headers: the date and the CORS headers.
        chunked: whether the body is sent in chunks, or ends when the connection closes.
    """
    framing = (("Transfer-Encoding", "chunked"),) if chunked else ()
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: application/x-ndjson",
        "Cache-Control: no-store",
        "Connection: close",
        "X-Accel-Buffering: no",
        *(f"{name}: {value}" for name, value in (*framing, *headers)),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def stream_head(
    media_type: str, framing: Headers, vary: tuple[str, ...], cors: Headers = (), *, keep_alive: bool = False
) -> bytes:
    """Build the response head of a stream.

    Args:
        media_type: the value of Content-Type.
        framing: the headers that describe the coding of the body. Without Transfer-Encoding, the body ends when the
            connection closes (RFC 9112 section 6.3).
        vary: the request headers that the choice of the form depends on.
        cors: the CORS headers.
        keep_alive: send `Connection: keep-alive` instead of `close`.
    """
    names = (*vary, *(value for name, value in cors if name == "Vary"))
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {media_type}",
        "Cache-Control: no-cache, no-transform",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *(f"{name}: {value}" for name, value in framing),
        f"Vary: {', '.join(names)}",
        "X-Accel-Buffering: no",
        *(f"{name}: {value}" for name, value in cors if name != "Vary"),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Dates:
    """The Date field of every response (RFC 9110 section 6.6.1), formatted once per second.

    Args:
        wall: returns the Unix time in seconds.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._second = -1
        self._text = ""
        self._heads: dict[bytes, bytes] = {}

    def now(self) -> str:
        """Return the value of the field."""
        second = int(self._wall())
        if second != self._second:
            self._renew(second)
        return self._text

    def head(self, head: bytes) -> bytes:
        """Return a response head with Date added; streams that open in the same second share the result."""
        second = int(self._wall())
        if second != self._second:
            self._renew(second)
        dated = self._heads.get(head)
        if dated is None:
            dated = self._heads[head] = head.replace(b"\r\n", f"\r\nDate: {self._text}\r\n".encode("ascii"), 1)
        return dated

    def _renew(self, second: int) -> None:
        self._second, self._text, self._heads = second, formatdate(second, usegmt=True), {}


def page_headers(page: bytes) -> Headers:
    """Return the headers of the page. They allow only its own scripts and styles, and requests to this server."""
    allowed = {}
    for kind in (b"script", b"style"):
        blocks = re.findall(rb"<%b(?:\s[^>]*)?>(.*?)</%b>" % (kind, kind), page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks)
        allowed[kind] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed[b'script']}; style-src {allowed[b'style']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-cache"),
    )
