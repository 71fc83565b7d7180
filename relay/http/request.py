"""HTTP/1.1, sans-IO: bytes in, requests out.

Owns the grammar of requests. Never touches a socket or a clock, and never knows what a path means
(`relay.front.routes`) or what is answered (`relay.http.response`).

Theory of operation. The caller pulls: `feed()` only stores, `head()` gives the next request as soon as its
head is whole, `body()` gives that request's body, and nothing behind it is looked at before. So whatever
follows a request for a stream is never parsed, and requests that arrive together are served one after the
other.

    state    call      what is there         next state
    HEAD     head()    a head without body   HEAD       (`body()` gives b"" at once)
    HEAD     head()    a head with body      BODY
    BODY     body()    the whole body        HEAD
    any      any       not HTTP, too large   FAILED     (nothing after it can be told apart)

llhttp in its strict mode judges the field lines (bare CR and LF, folded lines, white space before the colon,
control characters, Content-Length twice, malformed or beside Transfer-Encoding). What it lets through is
refused here: other protocols and versions, a loose request line, several Hosts or none, Transfer-Encoding in
HTTP/1.0 or other than `chunked`. `relay.http.chunks` decodes chunks, since llhttp does not report where in the
input a message ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote_to_bytes

import httptools

from relay.errors import RequestError
from relay.http.chunks import BARE_LF, ChunkedBody, too_large
from relay.limits import Limit

LONG_BYTES = 2048
"""Up to here a request for a stream is quick: a hundred topics take half a millisecond."""

_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_NAME = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_IP_LITERAL = r"\[[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
# RFC 9110 section 4.2: in a target a host is not empty, and no user stands before it.
_ABSOLUTE = re.compile(rf"https?://({_IP_LITERAL}|{_NAME}+)(?::[0-9]*)?(?=[/?#]|$)", re.IGNORECASE)
_HOST = re.compile(rf"({_IP_LITERAL}|{_NAME}*)(?::[0-9]*)?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LAST_ID = re.compile(rb"(\r\nlast-event-id:)([^\r\n]*)(?=\r\n)", re.IGNORECASE)
# Fields whose meaning changes when two of them are joined to one list.
_SINGLE = frozenset(("host", "authorization", "content-type", "origin", "content-encoding"))


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request.

    Args:
        method: as sent; a method that llhttp knows.
        raw_path: the path as sent, escapes and all; `*` for the whole server.
        path: the path with its escapes decoded.
        query: the query's pairs, in order: names decoded, values as sent.
        headers: names in lower case; values in Latin-1; repeated fields joined by a comma, cookies by a semicolon.
        version: `1.0`, or `1.1` for that and every later minor version.
        keep_alive: the client wants to go on after the response.
        expects_continue: the client waits for a 100 before it sends the body.
        body_length: bytes of the body; None when it comes in chunks.
        host: the target's host, or else the Host field's, in lower case and without the port.
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

        Only values that are asked for are decoded: links from elsewhere carry names of others, with any value.

        Raises:
            RequestError: 400, one is malformed.
        """
        return [_unescape(value.replace("+", " "), name) for value in self.raw_values(name)]

    def raw_values(self, name: str) -> list[str]:
        """Return all values of a query name as sent, in order."""
        return [value for key, value in self.query if key == name]


class _Reading(Enum):
    HEAD = 1
    BODY = 2
    FAILED = 3


class RequestParser:
    """Parser of one connection's requests.

    Args:
        head_bytes_max: largest request head, request line and empty line included.
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
        """Whether the next request can be read: nothing failed, and no body is outstanding."""
        return self._state is _Reading.HEAD

    @property
    def partial(self) -> bool:
        """Whether there is a beginning of something: unread bytes, or a body that is not whole."""
        return bool(self._buffer) or self._state is _Reading.BODY

    @property
    def long_get(self) -> bool:
        """Whether what is unread begins with a GET and is long, as the request for a stream of many topics is."""
        return len(self._buffer) > LONG_BYTES and self._buffer.startswith(b"GET ")

    @property
    def unread(self) -> bytes:
        """What came in and is not used; another parser that is fed it goes on from there, if this one is intact."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Store what came in. Bounded by the caller, who pulls what is whole before it feeds again."""
        self._buffer += data

    def head(self) -> Request | None:
        """Give the next request, or None when its head is not whole yet.

        Raises:
            RequestError: 400 not HTTP, 414 or 431 too large, 417, 501 unknown method or coding, 505 version.
        """
        if self._state is not _Reading.HEAD:
            raise RuntimeError("head() before the last body was read")
        try:
            head = self._take_head()
            if head is None:
                return None
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
        """Give the body of the request that `head()` gave last, or None when it is not whole yet.

        Args:
            bytes_max: largest body; a Content-Length above it is refused before the body is read.

        Raises:
            RequestError: 413 too large, 400 malformed chunks.
        """
        if self._state is _Reading.HEAD:
            return b""
        if self._state is _Reading.FAILED:
            raise RuntimeError("body() after a failure")
        try:
            body = self._take_body(bytes_max)
        except RequestError:
            self._state = _Reading.FAILED
            raise
        if body is not None:
            self._state = _Reading.HEAD
            self._chunks = None
        return body

    def _take_head(self) -> bytes | None:
        """Cut the head off the buffer, once it is whole."""
        buffer = self._buffer
        if self._scanned == 0 and (empty := _EMPTY_LINES.match(buffer)):
            # RFC 9112 section 2.2: empty lines before a request line are passed over.
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
        """Tell what is too large: RFC 9112 section 3 for the parts of the request line, RFC 6585 section 5."""
        line = bytes(self._buffer[: self._head_bytes_max]).partition(b"\r\n")
        if line[1]:
            reason = f"the request head is over {self._head_bytes_max} bytes"
            return RequestError(431, reason, limit=Limit.HEAD_BYTES_MAX)
        if b" " in line[0]:
            reason = f"the request target is over {self._head_bytes_max} bytes"
            return RequestError(414, reason, limit=Limit.HEAD_BYTES_MAX)
        return RequestError(501, "unknown method")

    def _take_body(self, bytes_max: int) -> bytes | None:
        """Cut the body off the buffer, once it is whole."""
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
    """Receives the field lines from httptools."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store one line as llhttp read it."""
        self.lines.append((name, value))


def parse_head(head: bytes) -> Request:
    """Parse one whole request head.

    Args:
        head: from the first byte of the request line to the empty line that ends it.

    Raises:
        RequestError: 400, 417, 501 or 505.
    """
    line = _REQUEST_LINE.fullmatch(head, 0, head.index(b"\r\n"))
    if line is None:
        raise RequestError(400, "malformed request line")
    if line[3] != b"1":
        raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if line[1] == b"CONNECT":
        raise RequestError(501, "this is no proxy")
    # RFC 9110 section 2.5: a later minor version is served as 1.1, which is all that llhttp takes.
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
        # Several of them stand for no id, and no id contains LF.
        headers["last-event-id"] = "\n".join(value.strip(b" \t").decode("latin-1") for value in last_ids)
    host = _HOST.fullmatch(headers.get("host", "" if version == "1.0" else " "))
    if host is None:
        raise RequestError(400, "the Host field is missing or malformed")
    authority, raw_path, path, query = _parse_target(line[2].decode("ascii"), asterisk=line[1] == b"OPTIONS")
    connection = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    expect = headers.get("expect", "").lower()
    if expect not in ("", "100-continue"):
        raise RequestError(417, "only 100-continue can be expected")
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
        host=(authority or host[1]).lower(),  # RFC 9112 section 3.2.2: the target's host replaces the field's.
    )


def _cut_last_ids(fields: bytes) -> tuple[list[bytes], bytes]:
    """Take the values of Last-Event-ID out of the field lines, before they are judged.

    An id of any bytes is answered, since an EventSource gives up after a 400. What changes where a line ends is left
    to be refused: a bare CR, and a folded line.
    """
    if b"\r\nlast-event-id:" not in fields.lower():
        return [], fields
    return [match[2] for match in _LAST_ID.finditer(fields)], _LAST_ID.sub(rb"\1", fields)


def _join(lines: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Turn field lines into one value a name."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in lines:
        name = raw_name.decode("ascii").lower()
        value = raw_value.strip(b" \t").decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise RequestError(400, f"the field {name} comes twice")
            # RFC 9113 section 8.2.3: what was split of a Cookie field is joined as cookies are.
            value = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}"
        headers[name] = value
    return headers


def _body_length(headers: dict[str, str], version: str) -> int | None:
    """Tell the body's length from the fields (RFC 9112 section 6.3); llhttp has checked the number."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return int(headers.get("content-length", "0"))
    if version == "1.0":
        raise RequestError(400, "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != "chunked":
        raise RequestError(501, "the only transfer coding is chunked")
    return None


def _parse_target(target: str, *, asterisk: bool) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    """Split a request target: origin form, absolute form or, for OPTIONS, `*` (RFC 9112 section 3.2).

    Returns:
        the host, empty in the other forms, the path as sent, the path decoded, and the query's pairs.
    """
    host = ""
    if not target.startswith("/") and (absolute := _ABSOLUTE.match(target)):
        host, target = absolute[1], target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/") and not (asterisk and target == "*"):
        raise RequestError(400, "malformed request target")
    if "#" in target:
        raise RequestError(400, "a request target has no fragment")
    raw_path, _, raw_query = target.partition("?")
    pairs = []
    for pair in raw_query.split("&") if raw_query else ():
        name, _, value = pair.partition("=")
        try:
            pairs.append((_unescape(name.replace("+", " "), "query"), value))
        except RequestError:
            continue  # what cannot be decoded is no name of ours
    path = _unescape(raw_path, "path")
    if "\0" in path:
        raise RequestError(400, "the path contains NUL")
    return host, raw_path, path, tuple(pairs)


def _unescape(text: str, where: str) -> str:
    """Decode percent escapes to strict UTF-8; `where` is the part of the target, for errors."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise RequestError(400, f"{where}: malformed percent escape")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise RequestError(400, f"{where}: a percent escape is not UTF-8") from None
