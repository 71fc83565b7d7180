"""HTTP/1.1, sans-IO: bytes in, requests out.

Owns the grammar of requests. Never touches a socket or a clock, and never interprets a path
(`relay.front.routes`) or builds a response (`relay.http.response`).

Theory of operation. `feed()` only stores bytes. `head()` returns the next request once its head is complete. `body()`
returns the body of that request. The parser reads nothing beyond this body before the next call of `head()`. So bytes
that follow a request for a stream are never parsed, and pipelined requests are served one after the other.

    state    call      input                 next state
    HEAD     head()    a head without body   HEAD       (`body()` returns b"" at once)
    HEAD     head()    a head with body      BODY
    BODY     body()    the complete body     HEAD
    BODY     body_part()  the end of the body  HEAD
    any      any       not HTTP, too large   FAILED     (the start of the next request is unknown)

llhttp in its strict mode validates the field lines (bare CR and LF, folded lines, white space before the colon,
control characters, Content-Length that is repeated, malformed or combined with Transfer-Encoding). This module
rejects the errors that llhttp accepts: other protocols and versions, a loose request line, a missing or repeated
Host, Transfer-Encoding in HTTP/1.0 or other than `chunked`. `relay.http.chunks` decodes chunks, because llhttp does not
report the position of a message's end in the input.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from enum import Enum

import httptools

from relay.errors import RequestError
from relay.http.chunks import BARE_LF, ChunkedBody, too_large
from relay.http.target import IP_LITERAL, NAME, parse_target, unescape
from relay.limits import Limit

PREFACE_HEAD = b"PRI * HTTP/2.0\r\n\r\n"
"""The part of HTTP/2's preface that looks like a request head (RFC 9113 section 3.4)."""
LONG_BYTES = 2048
"""Maximum size of a request for a stream that is parsed at once: a hundred topics take half a millisecond."""

_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_HOST = re.compile(rf"({IP_LITERAL}|{NAME}*)(?::[0-9]*)?")
_LAST_ID = re.compile(rb"(\r\nlast-event-id:)([^\r\n]*)(?=\r\n)", re.IGNORECASE)
# Repeated fields of these names are rejected: joining their values would change the meaning.
_SINGLE = frozenset(("host", "authorization", "content-type", "origin", "content-encoding"))


class Http2PrefaceError(RequestError):
    """The client uses HTTP/2. The unread bytes continue after `PREFACE_HEAD`."""

    def __init__(self) -> None:
        super().__init__(505, "HTTP/2 is off or not possible on this connection; use HTTP/1.1")


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request.

    Args:
        method: as sent; a method that llhttp knows.
        raw_path: the path as sent, with its escapes; `*` for the server as a whole.
        path: the path with its escapes decoded.
        query: the pairs of the query in order; names are decoded, values are as sent.
        headers: names in lower case; values in Latin-1; repeated fields joined by a comma, cookies by a semicolon.
        version: `1.0`, or `1.1` for 1.1 and every later minor version.
        keep_alive: the client keeps the connection open after the response.
        expects_continue: the client waits for status 100 before it sends the body.
        body_length: bytes of the body; None if it is chunked.
        host: the host of the target, else of the Host field; in lower case, without the port.
    """

    method: str
    raw_path: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    version: str
    keep_alive: bool
    expects_continue: bool
    body_length: int | None
    host: str = ""

    def values(self, name: str) -> list[str]:
        """Return all values of a query name, decoded, in order.

        Other values are not decoded, because links may contain foreign names with malformed values.

        Raises:
            RequestError: 400 if a value is malformed.
        """
        return [unescape(value.replace("+", " "), name) for value in self.raw_values(name)]

    def raw_values(self, name: str) -> list[str]:
        """Return all values of a query name as sent, in order."""
        return [value for key, value in self.query if key == name]


class _Reading(Enum):
    HEAD = 1
    BODY = 2
    FAILED = 3


class RequestParser:
    """Parses the requests of one connection.

    Args:
        head_bytes_max: largest request head, including the request line and the empty line.
    """

    __slots__ = ("_buffer", "_chunks", "_head_bytes_max", "_length", "_scanned", "_state")

    def __init__(self, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._buffer = bytearray()
        self._scanned = 0
        self._state = _Reading.HEAD
        self._length: int | None = 0
        self._chunks: ChunkedBody | None = None

    @property
    def intact(self) -> bool:
        """Whether `head()` may be called: no error has occurred and no body is pending."""
        return self._state is _Reading.HEAD

    @property
    def partial(self) -> bool:
        """Whether a request is incomplete: there are unread bytes, or its body has not arrived."""
        return bool(self._buffer) or self._state is _Reading.BODY

    @property
    def long_get(self) -> bool:
        """Whether the unread bytes begin with GET and are long, such as a request for a stream of many topics."""
        return len(self._buffer) > LONG_BYTES and self._buffer.startswith(b"GET ")

    @property
    def unread(self) -> bytes:
        """The bytes that are not parsed yet. If this parser is intact, another parser can continue with them."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Store received bytes. The caller bounds the buffer: it reads complete requests before it feeds more."""
        self._buffer += data

    def head(self) -> Request | None:
        """Return the next request, or None if its head is incomplete.

        Raises:
            RequestError: 400 not HTTP, 414 or 431 too large, 417 unknown expectation, 501 unknown method or coding,
                505 unsupported version.
        """
        if self._state is not _Reading.HEAD:
            raise RuntimeError("head() called before the previous body was read, or after an error")
        try:
            head = self._take_head()
            if head is None:
                return None
            if head == PREFACE_HEAD:
                raise Http2PrefaceError
            request = parse_head(head)
        except RequestError:
            self._state = _Reading.FAILED
            raise
        self._length = request.body_length
        if self._length != 0:
            self._state = _Reading.BODY
            self._chunks = ChunkedBody() if self._length is None else None
        return request

    def body(self, bytes_max: int) -> bytes | None:
        """Return the body of the request that `head()` returned last, or None if the body is incomplete.

        Args:
            bytes_max: largest body; a larger Content-Length is rejected before the body is read.

        Raises:
            RequestError: 413 too large, 400 malformed chunks.
        """
        if self._state is _Reading.HEAD:
            return b""
        if self._state is _Reading.FAILED:
            raise RuntimeError("body() called after an error")
        try:
            body = self._take_body(bytes_max)
        except RequestError:
            self._state = _Reading.FAILED
            raise
        if body is not None:
            self._state = _Reading.HEAD
            self._chunks = None
        return body

    def body_part(self) -> tuple[bytes, bool]:
        """Return the bytes of the body that arrived since the last call, and whether the body is complete.

        A request whose body is read in parts has no limit on its size. Do not combine this with `body()`.

        Raises:
            RequestError: 400 malformed chunks.
        """
        if self._state is _Reading.HEAD:
            return b"", True
        if self._state is _Reading.FAILED:
            raise RuntimeError("body_part() called after an error")
        if self._chunks is not None:
            try:
                complete = self._chunks.take(self._buffer, sys.maxsize)
            except RequestError:
                self._state = _Reading.FAILED
                raise
            part = self._chunks.pop()
        else:
            length = self._length or 0
            part = bytes(self._buffer[:length])
            del self._buffer[:length]
            self._length = length - len(part)
            complete = not self._length
        if complete:
            self._state = _Reading.HEAD
            self._chunks = None
        return part, complete

    def _take_head(self) -> bytes | None:
        """Remove the head from the buffer and return it; None if it is incomplete."""
        buffer = self._buffer
        if self._scanned == 0 and (empty := _EMPTY_LINES.match(buffer)):
            # RFC 9112 section 2.2: ignore empty lines before a request line.
            del buffer[: empty.end()]
        if not buffer or buffer == b"\r":
            return None
        if buffer[0] not in _TOKEN_BYTES:
            raise RequestError(400, "this is not an HTTP request")
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) + 4
        known = min(end if end >= 4 else len(buffer), self._head_bytes_max)
        if BARE_LF.search(buffer, self._scanned, known):
            raise RequestError(400, "a line ends with LF instead of CRLF")
        if end < 4:
            if len(buffer) >= self._head_bytes_max:
                raise self._oversize()
            self._scanned = len(buffer)
            return None
        if end > self._head_bytes_max:
            raise self._oversize()
        head = bytes(buffer[:end])
        del buffer[:end]
        self._scanned = 0
        return head

    def _oversize(self) -> RequestError:
        """Return the error for the part that is too large (RFC 9112 section 3, RFC 6585 section 5)."""
        line = bytes(self._buffer[: self._head_bytes_max]).partition(b"\r\n")
        if line[1]:
            reason = f"the request head is larger than {self._head_bytes_max} bytes"
            return RequestError(431, reason, limit=Limit.HEAD_BYTES_MAX)
        if b" " in line[0]:
            reason = f"the request target is larger than {self._head_bytes_max} bytes"
            return RequestError(414, reason, limit=Limit.HEAD_BYTES_MAX)
        return RequestError(501, "unknown method")

    def _take_body(self, bytes_max: int) -> bytes | None:
        """Remove the body from the buffer and return it; None if it is incomplete."""
        if self._chunks is not None:
            return bytes(self._chunks.body) if self._chunks.take(self._buffer, bytes_max) else None
        length = self._length or 0
        if length > bytes_max:
            raise too_large(bytes_max)
        if len(self._buffer) < length:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[:length])
        del self._buffer[:length]
        return body


class _Fields:
    """Collects the field lines that httptools parses."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store one field line."""
        self.lines.append((name, value))


def parse_head(head: bytes) -> Request:
    """Parse one complete request head.

    Args:
        head: from the first byte of the request line to the empty line that ends it.

    Raises:
        RequestError: 400, 417, 501 or 505.
    """
    line = _REQUEST_LINE.fullmatch(head, 0, head.index(b"\r\n"))
    if line is None:
        raise RequestError(400, "malformed request line")
    if line[3] != b"1":
        raise RequestError(505, "unsupported version; use HTTP/1.0 or HTTP/1.1")
    if line[1] == b"CONNECT":
        raise RequestError(501, "CONNECT is not supported; relay is not a proxy")
    # RFC 9110 section 2.5: serve a later minor version as 1.1, because llhttp accepts no other.
    version = "1.0" if line[4] == b"0" else "1.1"
    last_ids, fields_head = _cut_last_ids(head[line.end(4) :])
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(head[: line.start(3)] + version.encode() + fields_head)
    except httptools.HttpParserUpgrade:
        pass  # RFC 9110 section 7.8: a server may ignore Upgrade.
    except httptools.HttpParserInvalidMethodError:
        raise RequestError(501, "unknown method") from None
    except httptools.HttpParserError as error:
        raise RequestError(400, f"malformed request: {error}") from None
    headers = _join(fields.lines)
    if last_ids:
        # Several values are not an id. No id contains LF, so the values joined by LF match no id.
        headers["last-event-id"] = "\n".join(value.strip(b" \t").decode("latin-1") for value in last_ids)
    host = _HOST.fullmatch(headers.get("host", "" if version == "1.0" else " "))
    if host is None:
        raise RequestError(400, "the Host field is missing or malformed")
    authority, raw_path, path, query = parse_target(line[2].decode("ascii"), asterisk=line[1] == b"OPTIONS")
    connection = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    expect = headers.get("expect", "").lower()
    if expect not in ("", "100-continue"):
        raise RequestError(417, "unknown expectation; only 100-continue is supported")
    return Request(
        method=line[1].decode("ascii"),
        raw_path=raw_path,
        path=path,
        query=query,
        headers=headers,
        version=version,
        keep_alive="close" not in connection and (version == "1.1" or "keep-alive" in connection),
        expects_continue=expect != "" and version == "1.1",
        body_length=_body_length(headers, version),
        host=(authority or host[1]).lower(),  # RFC 9112 section 3.2.2: the target's host has precedence.
    )


def _cut_last_ids(fields: bytes) -> tuple[list[bytes], bytes]:
    """Remove the values of Last-Event-ID from the field lines before llhttp validates them.

    An id may contain any bytes, because an EventSource does not reconnect after status 400. A bare CR or a folded line
    would change the end of the field; both stay in place, and llhttp rejects them.
    """
    if b"\r\nlast-event-id:" not in fields.lower():
        return [], fields
    return [match[2] for match in _LAST_ID.finditer(fields)], _LAST_ID.sub(rb"\1", fields)


def _join(lines: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Join the field lines into one value per name."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in lines:
        name = raw_name.decode("ascii").lower()
        value = raw_value.strip(b" \t").decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise RequestError(400, f"the field {name} is repeated")
            # RFC 9113 section 8.2.3: the parts of a Cookie field are joined with a semicolon.
            value = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}"
        headers[name] = value
    return headers


def _body_length(headers: dict[str, str], version: str) -> int | None:
    """Return the length of the body (RFC 9112 section 6.3), None if chunked; llhttp has validated the number."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return int(headers.get("content-length", "0"))
    if version == "1.0":
        raise RequestError(400, "Transfer-Encoding is not allowed in HTTP/1.0")
    if coding.lower() != "chunked":
        raise RequestError(501, "unknown transfer coding; only chunked is supported")
    return None
