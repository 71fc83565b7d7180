"""Requests that the standards forbid or barely allow, with the answers that they require.

Each case names the section of RFC 9110 or RFC 9112 that decides it, or `relay` where the server may choose.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.running import TOKEN

HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 64 * 1024
CLOSE, OPEN, STREAM = "close", "open", "stream"


@dataclass(frozen=True, slots=True)
class Case:
    """The bytes of a case and the expected result.

    Args:
        data: sent at once.
        statuses: of the answers, in order.
        end: the final state of the connection: closed by the server, open for the next request, or a stream.
        published: data of the events that the answers acknowledge, in order.
        header: a field that the head of the last answer must have, as `name: value`.
    """

    data: bytes
    statuses: tuple[int, ...]
    end: str
    published: tuple[str, ...] = ()
    header: str = ""


def case(
    id: str, data: bytes, *statuses: int, end: str, published: tuple[str, ...] = (), header: str = ""
) -> pytest.ParameterSet:
    """Make a parameter of a case."""
    return pytest.param(Case(data, statuses, end, published, header), id=id)


def request(target: bytes = b"/healthz", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """Make a request without a body; version 1.1 includes Host."""
    host = (b"Host: a",) if version == b"1.1" and not any(field.startswith(b"Host") for field in fields) else ()
    return b"\r\n".join((b"%b %b HTTP/%b" % (method, target, version), *host, *fields, b"", b""))


def publish(*fields: bytes, body: bytes = b"", token: bytes = TOKEN.encode()) -> bytes:
    """Make a request that publishes text on `torture`."""
    fields = (b"Authorization: Bearer " + token, b"Content-Type: text/plain", *fields)
    return request(b"/publish?topic=torture", *fields, method=b"POST") + body


def line(text: bytes) -> bytes:
    """Make a request from a request line."""
    return text + b"\r\nHost: a\r\n\r\n"


def chunked(body: bytes) -> bytes:
    """Make a request that publishes a body in chunks."""
    return publish(b"Transfer-Encoding: chunked", body=body)


SMUGGLED = publish(b"Content-Length: 8", body=b"smuggled")
"""A whole request, for places where the server must not look for one."""

REQUEST_LINES = [
    case("9112-3 two spaces", line(b"GET  /healthz HTTP/1.1"), 400, end=CLOSE),
    case("9112-3 space at the end", line(b"GET /healthz HTTP/1.1 "), 400, end=CLOSE),
    case("9112-3 space at the start", line(b" GET /healthz HTTP/1.1"), 400, end=CLOSE),
    case("9112-3 tabs", line(b"GET\t/healthz\tHTTP/1.1"), 400, end=CLOSE),
    case("9112-3 space in the target", line(b"GET /a b HTTP/1.1"), 400, end=CLOSE),
    case("9112-2.2 bare CR", line(b"GET /healthz\rHTTP/1.1"), 400, end=CLOSE),
    case("9112-2.2 bare LF ends each line", b"GET /healthz HTTP/1.1\nHost: a\n\n", 400, end=CLOSE),
    case("9112-2.2 bare LF ends one line", b"GET /healthz HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, end=CLOSE),
    case("9112-2.2 empty lines before it", b"\r\n\r\n" + request(), 200, end=OPEN),
    case("9112-2.2 white space before the first field", line(b"GET /healthz HTTP/1.1\r\n X: y"), 400, end=CLOSE),
    case("9112-2.3 lower case version", line(b"GET /healthz http/1.1"), 400, end=CLOSE),
    case("9112-2.3 version of three digits", line(b"GET /healthz HTTP/1.10"), 400, end=CLOSE),
    case("9112-2.3 version without a point", line(b"GET /healthz HTTP/11"), 400, end=CLOSE),
    case("9110-2.5 a minor version to come", line(b"GET /healthz HTTP/1.2"), 200, end=OPEN),
    case("9110-2.5 HTTP/1.9 needs a Host too", b"GET /healthz HTTP/1.9\r\n\r\n", 400, end=CLOSE),
    case("9110-15.6.6 HTTP/2.0", line(b"GET /healthz HTTP/2.0"), 505, end=CLOSE),
    case("9110-15.6.6 HTTP/0.9 with a version", line(b"GET /healthz HTTP/0.9"), 505, end=CLOSE),
    case("9112-2.3 HTTP/0.9", b"GET /healthz\r\n\r\n", 400, end=CLOSE),
    case("9110-9.1 unknown method", request(method=b"BREW"), 501, end=CLOSE),
    case("9110-9.1 methods know case", request(method=b"get"), 501, end=CLOSE),
    case("9110-9.3.6 CONNECT", line(b"CONNECT a:80 HTTP/1.1"), 501, end=CLOSE),
    case("9110-9.3.8 TRACE", request(method=b"TRACE"), 405, end=OPEN, header="allow: GET, HEAD, OPTIONS"),
    case(
        "9110-15.5.6 DELETE", request(b"/events", method=b"DELETE"), 405, end=OPEN, header="allow: GET, HEAD, OPTIONS"
    ),
    case("9110-15.5.6 GET of publish", request(b"/publish"), 405, end=OPEN, header="allow: POST, OPTIONS"),
    case(
        "9110-9.3.7 OPTIONS", request(b"/events", method=b"OPTIONS"), 204, end=OPEN, header="allow: GET, HEAD, OPTIONS"
    ),
    case("9110-9.3.2 HEAD of a document", request(method=b"HEAD"), 200, end=OPEN, header="content-length: 16"),
    case("9110-9.3.2 HEAD of a stream", request(b"/events", method=b"HEAD"), 200, end=CLOSE),
    case("9112-3 method without an end", b"X" * HEAD_BYTES_MAX, 501, end=CLOSE),
    case("9112-3 target without an end", b"GET /" + b"x" * HEAD_BYTES_MAX, 414, end=CLOSE),
    case("relay TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400, end=CLOSE),
    case("relay SSLv2 client hello", b"\x80\x2e\x01\x00\x02" + bytes(41), 400, end=CLOSE),
    case("relay SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400, end=CLOSE),
    case("relay zeros", bytes(100), 400, end=CLOSE),
    case("relay PROXY header that nobody asked for", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + request(), 400, end=CLOSE),
]

TARGETS = [
    case("9112-3.2.2 absolute form", request(b"http://a/healthz"), 200, end=OPEN),
    case("9112-3.2.2 absolute form wins over Host", request(b"HTTP://b:80/healthz", b"Host: a"), 200, end=OPEN),
    case("9112-3.2.2 absolute form without a path", request(b"http://a"), 200, end=OPEN),
    case("9112-3.2.2 absolute form needs a Host too", b"GET http://a/ HTTP/1.1\r\n\r\n", 400, end=CLOSE),
    case("9110-4.2.1 absolute form without a host", request(b"http:///healthz"), 400, end=CLOSE),
    case("9110-4.2.4 absolute form with a user", request(b"http://u:p@a/healthz"), 400, end=CLOSE),
    case("9112-3.2.2 other scheme", request(b"ftp://a/healthz"), 400, end=CLOSE),
    case("9112-3.2.3 authority form", request(b"a:80"), 400, end=CLOSE),
    case("9112-3.2.4 asterisk form", request(b"*", method=b"OPTIONS"), 204, end=OPEN),
    case("9112-3.2.4 asterisk form of GET", request(b"*"), 400, end=CLOSE),
    case("9112-3.2 fragment", request(b"/healthz#a"), 400, end=CLOSE),
    case("9112-3.2 NUL", request(b"/a\0b"), 400, end=CLOSE),
    case("9112-3.2 DEL", request(b"/a\x7fb"), 400, end=CLOSE),
    case("9112-3.2 raw UTF-8", request("/é".encode()), 400, end=CLOSE),
    case("relay encoded NUL in the path", request(b"/events/a%00b"), 400, end=CLOSE),
    case("relay encoded NUL in a topic", request(b"/events?topic=a%00b"), 400, end=OPEN),
    case("relay encoded CRLF in a topic", request(b"/events?topic=a%0d%0aX:%20y"), 400, end=OPEN),
    case("relay topic ..", request(b"/events/.."), 400, end=OPEN),
    case("relay topic .. encoded", request(b"/events/%2e%2e"), 400, end=OPEN),
    case("relay path over ..", request(b"/events/../publish"), 404, end=OPEN),
    case("relay overlong UTF-8", request(b"/events/%c0%ae%c0%ae"), 400, end=CLOSE),
    case("relay overlong NUL", request(b"/events?topic=%c0%80"), 400, end=OPEN),
    case("relay encoded surrogate", request(b"/events?topic=%ed%a0%80"), 400, end=OPEN),
    case("3986-2.1 short escape", request(b"/events?topic=%2"), 400, end=OPEN),
    case("3986-2.1 bad escape", request(b"/events?topic=%zz"), 400, end=OPEN),
    case("relay encoded slash is part of the topic", request(b"/events/a%2Fb"), 200, end=STREAM),
    case("relay empty topic", request(b"/events?topic="), 400, end=OPEN),
    case("relay a topic too long", request(b"/events/" + b"t" * 257), 400, end=OPEN),
    case(
        "relay too many topics", request(b"/events?" + b"&".join(b"topic=%d" % n for n in range(1001))), 400, end=OPEN
    ),
    case("relay last id with CRLF", request(b"/events?lastEventId=1%0d%0a2"), 200, end=STREAM),
    case("relay two of what comes once", request(b"/events?since=1&since=2"), 400, end=OPEN),
]

FIELDS = [
    case("9112-3.2 no Host", b"GET /healthz HTTP/1.1\r\n\r\n", 400, end=CLOSE),
    case("9112-3.2 two Hosts", request(b"/healthz", b"Host: a", b"Host: a"), 400, end=CLOSE),
    case("9112-3.2 Host with a space", request(b"/healthz", b"Host: a b"), 400, end=CLOSE),
    case("9112-3.2 Host with a path", request(b"/healthz", b"Host: a/b"), 400, end=CLOSE),
    case("9112-3.2 Host with a user", request(b"/healthz", b"Host: u@a"), 400, end=CLOSE),
    case("9112-3.2 Host with a port that is none", request(b"/healthz", b"Host: a:b"), 400, end=CLOSE),
    case("9112-3.2 empty Host", request(b"/healthz", b"Host:"), 200, end=OPEN),
    case("9112-3.2 Host of IPv6", request(b"/healthz", b"Host: [::1]:80"), 200, end=OPEN),
    case("9112-5.1 space before the colon", request(b"/healthz", b"X : y"), 400, end=CLOSE),
    case("9112-5.2 obs-fold", request(b"/healthz", b"X: y\r\n z"), 400, end=CLOSE),
    case("9110-5.1 empty name", request(b"/healthz", b": y"), 400, end=CLOSE),
    case("9110-5.1 no colon", request(b"/healthz", b"X"), 400, end=CLOSE),
    case("9110-5.1 8-bit name", request(b"/healthz", b"X\xff: y"), 400, end=CLOSE),
    case("9110-5.5 NUL in a value", request(b"/healthz", b"X: a\0b"), 400, end=CLOSE),
    case("9110-5.5 CR in a value", request(b"/healthz", b"X: a\rb"), 400, end=CLOSE),
    case("9110-5.5 control character in a value", request(b"/healthz", b"X: a\x01b"), 400, end=CLOSE),
    case("9110-5.5 8-bit in a value", request(b"/healthz", b"X: \xe9\xff"), 200, end=OPEN),
    case("9110-5.3 two Last-Event-IDs", request(b"/events", b"Last-Event-ID: 1", b"last-event-id: 2"), 200, end=STREAM),
    case("9110-5.3 two Authorizations", publish(b"Authorization: Bearer x", b"Content-Length: 0"), 400, end=CLOSE),
    case("html-9.2.3 Last-Event-ID not UTF-8", request(b"/events", b"Last-Event-ID: \xff\xfe"), 200, end=STREAM),
    case("html-9.2.3 Last-Event-ID with NUL", request(b"/events", b"Last-Event-ID: a\0b"), 200, end=STREAM),
    case("9110-5.5 Last-Event-ID with a CR", request(b"/events", b"Last-Event-ID: a\rHost: b"), 400, end=CLOSE),
    case("html-9.2.3 empty Last-Event-ID", request(b"/events", b"Last-Event-ID:"), 200, end=STREAM),
    case("6585-5 a large field", request(b"/healthz", b"X: " + b"y" * HEAD_BYTES_MAX), 431, end=CLOSE),
    case("6585-5 many fields", request(b"/healthz", *(b"X: y",) * 3000), 431, end=CLOSE),
    case("9110-5.4 many fields that are few enough", request(b"/healthz", *(b"X: y",) * 2000), 200, end=OPEN),
    case("9112-9.6 close", request(b"/healthz", b"Connection: close"), 200, end=CLOSE, header="connection: close"),
    case("9112-9.3 HTTP/1.0", request(version=b"1.0"), 200, end=CLOSE),
    case(
        "9112-9.3 HTTP/1.0 kept alive", request(b"/healthz", b"Connection: Keep-Alive", version=b"1.0"), 200, end=OPEN
    ),
    case("9112-9.3 a stream of HTTP/1.0", request(b"/events", version=b"1.0"), 200, end=STREAM),
    case("9110-7.8 Upgrade to h2c", request(b"/healthz", b"Connection: Upgrade", b"Upgrade: h2c"), 200, end=OPEN),
    case(
        "6455-4.1 websocket",
        request(b"/events", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
        200,
        end=STREAM,
    ),
    case(
        "9110-7.8 Upgrade with a body",
        publish(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2", body=b"up") + request(),
        200,
        200,
        end=OPEN,
        published=("up",),
    ),
    case("9110-14.2 Range", request(b"/healthz", b"Range: bytes=0-1"), 200, end=OPEN, header="content-length: 16"),
    case("9110-12.5.3 Accept-Encoding", request(b"/healthz", b"Accept-Encoding: identity;q=0, *;q=0"), 200, end=OPEN),
    case("9110-10.1.1 Expect", publish(b"Expect: 100-continue", b"Content-Length: 1"), 100, end=STREAM),
    case(
        "9110-10.1.1 Expect with its body",
        publish(b"Expect: 100-Continue", b"Content-Length: 4", body=b"here"),
        100,
        200,
        end=OPEN,
        published=("here",),
    ),
    case(
        "9110-10.1.1 Expect without a body",
        publish(b"Expect: 100-continue", b"Content-Length: 0"),
        200,
        end=OPEN,
        published=("",),
    ),
    case(
        "9110-10.1.1 Expect and a wrong token",
        publish(b"Expect: 100-continue", b"Content-Length: 9", token=b"x"),
        401,
        end=CLOSE,
    ),
    case("9110-10.1.1 Expect too much", publish(b"Expect: 100-continue", b"Content-Length: 99999999"), 413, end=CLOSE),
    case(
        "9110-10.1.1 Expect of HTTP/1.0", request(b"/healthz", b"Expect: 100-continue", version=b"1.0"), 200, end=CLOSE
    ),
    case("9110-10.1.1 unknown expectation", request(b"/healthz", b"Expect: 200-ok"), 417, end=CLOSE),
    case("9110-10.1.1 two expectations", request(b"/healthz", b"Expect: 100-continue, x"), 417, end=CLOSE),
    case("9110-8.4 unknown coding", publish(b"Content-Encoding: compress", b"Content-Length: 0"), 415, end=OPEN),
    case("9110-8.4 empty gzip", publish(b"Content-Encoding: gzip", b"Content-Length: 0"), 400, end=OPEN),
]

BODIES = [
    case(
        "9112-6.1 length and coding",
        publish(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
        400,
        end=CLOSE,
    ),
    case(
        "9112-6.1 coding and length",
        publish(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED),
        400,
        end=CLOSE,
    ),
    case("9112-6.3 two lengths", publish(b"Content-Length: 0", b"Content-Length: 200", body=SMUGGLED), 400, end=CLOSE),
    case("9112-6.3 a list of lengths", publish(b"Content-Length: 3, 3", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 plus", publish(b"Content-Length: +3", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 minus", publish(b"Content-Length: -3", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 hexadecimal", publish(b"Content-Length: 0x3", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 empty", publish(b"Content-Length:", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 space within", publish(b"Content-Length: 1 0", body=b"abc"), 400, end=CLOSE),
    case("9110-8.6 beyond 64 bits", publish(b"Content-Length: " + b"9" * 30), 400, end=CLOSE),
    case("9110-8.6 zeros before", publish(b"Content-Length: 003", body=b"abc"), 200, end=OPEN, published=("abc",)),
    case("9110-15.5.14 too long", publish(b"Content-Length: %d" % (BODY_BYTES_MAX + 1)), 413, end=CLOSE),
    case("9110-9.3.1 body of GET", request(b"/healthz", b"Content-Length: 3") + b"abc", 413, end=CLOSE),
    case("9110-9.3.1 body of a stream's request", request(b"/events", b"Content-Length: 3") + b"abc", 413, end=CLOSE),
    case("9112-6.3 no length is no body", publish(body=request()), 200, 200, end=OPEN, published=("",)),
    case("9112-6.1 gzip, chunked", publish(b"Transfer-Encoding: gzip, chunked", body=SMUGGLED), 501, end=CLOSE),
    case("9112-6.3 chunked, gzip", publish(b"Transfer-Encoding: chunked, gzip", body=SMUGGLED), 400, end=CLOSE),
    case("9112-6.1 chunked twice", publish(b"Transfer-Encoding: chunked, chunked", body=SMUGGLED), 400, end=CLOSE),
    case("9112-6.1 identity", publish(b"Transfer-Encoding: identity", body=SMUGGLED), 400, end=CLOSE),
    case("9112-6.1 xchunked", publish(b"Transfer-Encoding: xchunked", body=SMUGGLED), 400, end=CLOSE),
    case(
        "9112-6.1 coding with a vertical tab", publish(b"Transfer-Encoding: \x0bchunked", body=SMUGGLED), 400, end=CLOSE
    ),
    case(
        "9112-5.1 coding with a space before the colon",
        publish(b"Transfer-Encoding : chunked", body=SMUGGLED),
        400,
        end=CLOSE,
    ),
    case(
        "9112-6.1 coding in HTTP/1.0",
        request(b"/publish", b"Transfer-Encoding: chunked", version=b"1.0") + SMUGGLED,
        400,
        end=CLOSE,
    ),
    case(
        "9112-7 names of codings know no case",
        publish(b"Transfer-Encoding: Chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        200,
        end=OPEN,
        published=("abc",),
    ),
    case("9112-7.1 chunks", chunked(b"1\r\na\r\n002\r\nbc\r\n0\r\n\r\n"), 200, end=OPEN, published=("abc",)),
    case("9112-7.1.1 extensions", chunked(b'3;a;b="c;d"\r\nabc\r\n0 ; x\r\n\r\n'), 200, end=OPEN, published=("abc",)),
    case("9112-7.1.1 LF in an extension", chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-7.1.1 an extension too long", chunked(b"3;" + b"x" * 2000 + b"\r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case(
        "9112-7.1.2 trailers",
        chunked(b"3\r\nabc\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n"),
        200,
        end=OPEN,
        published=("abc",),
    ),
    case("9112-7.1.2 a trailer without a colon", chunked(b"0\r\nX\r\n\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-5.2 a folded trailer", chunked(b"0\r\nX: y\r\n z\r\n\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-7.1.2 trailers without an end", chunked(b"0\r\n" + b"X: y\r\n" * 12_000), 400, end=CLOSE),
    case("9112-7.1 no chunk size", chunked(b"\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-7.1 size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case("9112-7.1 size with a minus", chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case("9112-7.1 size with a plus", chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case("9112-7.1 space after the size", chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case("9112-7.1 size beyond 64 bits", chunked(b"1" + b"0" * 16 + b"3\r\nabc\r\n0\r\n\r\n"), 400, end=CLOSE),
    case("9112-7.1 bare LF after the size", chunked(b"3\nabc\n0\n\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-7.1 bare LF after the data", chunked(b"3\r\nabc\n0\r\n\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9112-7.1 data longer than its size", chunked(b"3\r\nabcd\r\n0\r\n\r\n" + SMUGGLED), 400, end=CLOSE),
    case("9110-15.5.14 chunks too long", chunked(b"10000\r\n" + b"x" * BODY_BYTES_MAX + b"\r\n1\r\n"), 413, end=CLOSE),
    case(
        "9112-6 data that looks like a request",
        publish(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
        200,
        end=OPEN,
        published=(SMUGGLED.decode(),),
    ),
]

PIPELINES = [
    case("9112-9.3.2 three in a row", request() * 3, 200, 200, 200, end=OPEN),
    case("9112-9.3.2 a hundred in a row", request() * 100, *(200,) * 100, end=OPEN),
    case("9112-9.3.2 good and then bad", request() + b"GARBAGE\r\n\r\n", 200, 400, end=CLOSE),
    case("9112-9.6 nothing after close", request(b"/healthz", b"Connection: close") + SMUGGLED, 200, end=CLOSE),
    case(
        "9112-9.3.2 two that publish",
        publish(b"Content-Length: 1", body=b"1") + publish(b"Content-Length: 1", body=b"2"),
        200,
        200,
        end=OPEN,
        published=("1", "2"),
    ),
    case("9112-9.3.2 a document and a stream", request() + request(b"/events"), 200, 200, end=STREAM),
    case("relay nothing after a stream", request(b"/events") + SMUGGLED, 200, end=STREAM),
    case("relay refused, and then a stream", request(b"/nothing") + request(b"/events"), 404, 200, end=STREAM),
]

CASES = [*REQUEST_LINES, *TARGETS, *FIELDS, *BODIES, *PIPELINES]
