"""HTTP responses: values in, bytes out.

Owns the form of responses and which headers go with what. Never decides what is answered.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from http import HTTPStatus

import orjson

from relay.config import Config

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
    """Build a whole response.

    Args:
        status: status code; 204 has no body and no length.
        headers: besides Content-Length and Connection; of checked content.
        body: sent unless `head_only`, which a HEAD request gets.
        keep_alive: what the Connection field says.
        head_only: leave the body out, and keep its length.
    """
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + (b"" if head_only else body)


def json_body(value: object) -> tuple[Headers, bytes]:
    """Give the headers and the bytes of a JSON body."""
    return JSON, orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def cors_headers(config: Config, origin: str | None) -> Headers:
    """Give the CORS headers of a response.

    Args:
        config: `cors_origin` lists who may read; with `*` everyone.
        origin: the request's Origin, None if it had none.
    """
    if "*" in config.cors_origin:
        return (("Access-Control-Allow-Origin", "*"),)
    if not config.cors_origin:
        return ()
    if origin in config.cors_origin:
        # A page of another origin may have its cookie sent along only where it is named, never under `*`.
        credentials = (("Access-Control-Allow-Credentials", "true"),) if config.jwt_cookie else ()
        return (("Access-Control-Allow-Origin", str(origin)), *credentials, ("Vary", "Origin"))
    return (("Vary", "Origin"),)


def stream_head(config: Config, origin: str | None) -> bytes:
    """Build the response head of a stream, whose body ends with the connection, in HTTP/1.0 as in 1.1."""
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Control: no-cache, no-transform",
        "Connection: keep-alive",
        "X-Accel-Buffering: no",
        *(f"{name}: {value}" for name, value in cors_headers(config, origin)),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def page_headers(page: bytes) -> Headers:
    """Give the headers of the page: it may run its own scripts and styles, and talk to this server only."""
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
