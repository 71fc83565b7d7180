"""The parsers of requests (relay.http.request relay.http.target relay.http.chunks) give one result at every split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from relay.errors import RequestError
from relay.http.chunks import CHUNK_LINE_BYTES_MAX, CHUNK_LINES_BYTES_MAX
from relay.http.request import Request, RequestParser

HEAD_MAX = 1024
BODY_MAX = 64
Outcome = list[tuple[Request, bytes] | int]


def run(pieces: Iterable[bytes], head_max: int = HEAD_MAX, body_max: int = BODY_MAX) -> Outcome:
    """Feed the pieces; list each request with its body, and the status of the error that ended it."""
    parser = RequestParser(head_max)
    outcome: Outcome = []
    request = None
    try:
        for piece in pieces:
            parser.feed(piece)
            while True:
                request = request or parser.head()
                body = parser.body(body_max) if request else None
                if request is None or body is None:
                    break
                outcome.append((request, body))
                request = None
    except RequestError as error:
        outcome.append(error.status)
    return outcome


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Split the data in every way: not at all, after each byte, and in two at every position."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


def parse(data: bytes, head_max: int = HEAD_MAX, body_max: int = BODY_MAX) -> Outcome:
    """Feed the data in every way, and check that the results are equal."""
    outcome = run([data], head_max, body_max)
    for pieces in ways(data):
        assert run(pieces, head_max, body_max) == outcome
    return outcome


def one(data: bytes) -> Request:
    """Parse data that is one request."""
    (result,) = parse(data)
    assert not isinstance(result, int), f"rejected with {result}"
    return result[0]


def get(target: str = "/", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Build a request without a body."""
    return "\r\n".join((f"{method} {target} HTTP/{version}", "Host: a", *lines, "", "")).encode()


def post(*lines: str, body: bytes = b"") -> bytes:
    """Build a POST request."""
    return get("/publish", *lines, method="POST") + body


CHUNKED = "Transfer-Encoding: chunked"


def test_a_complete_request_is_read() -> None:
    request = one(
        get(
            "/events/a%20b?topic=x+y&topic=%C3%B6&&flag",
            "X-One: 1",
            "x-one:\t2 ",
            "Cookie: a=b",
            "cookie: c=d, e",
            "Accept: text/event-stream",
        )
    )
    assert request.method == "GET"
    assert request.raw_path == "/events/a%20b"
    assert request.path == "/events/a b"
    assert request.query == (("topic", "x+y"), ("topic", "%C3%B6"), ("", ""), ("flag", ""))
    assert request.values("topic") == ["x y", "ö"]
    assert request.headers == {
        "host": "a",
        "x-one": "1, 2",
        "cookie": "a=b; c=d, e",
        "accept": "text/event-stream",
    }
    assert (request.version, request.keep_alive, request.body_length) == ("1.1", True, 0)


def test_an_incomplete_request_is_not_returned() -> None:
    data = get()
    for cut in range(len(data)):
        assert run([data[:cut]]) == []


@pytest.mark.parametrize(
    ("line", "version", "keep"),
    [
        ("X: y", "1.1", True),
        ("X: y", "1.0", False),
        ("Connection: close", "1.1", False),
        ("Connection: Keep-Alive", "1.0", True),
        ("Connection: foo, Close", "1.1", False),
        ("Connection: keep-alive, close", "1.0", False),
    ],
)
def test_keep_alive_depends_on_version_and_connection(line: str, version: str, keep: bool) -> None:
    assert one(get("/", line, version=version)).keep_alive is keep


@pytest.mark.parametrize(
    ("target", "raw_path"),
    [
        ("http://relay.example:8080/events?topic=a", "/events"),
        ("HTTPS://x/events?topic=a", "/events"),
        ("http://x?topic=a", "/"),
        ("http://x", "/"),
        ("//events", "//events"),
        ("/a/../b", "/a/../b"),
    ],
)
def test_each_form_of_a_target_is_read(target: str, raw_path: str) -> None:
    assert one(get(target)).raw_path == raw_path


def test_empty_lines_before_a_request_are_ignored() -> None:
    assert one(b"\r\n\r\n" + get()).path == "/"


def test_an_upgrade_is_ignored() -> None:
    outcome = parse(get("/", "Connection: Upgrade", "Upgrade: h2c") + get("/next"))
    assert [result[0].path for result in outcome if not isinstance(result, int)] == ["/", "/next"]


def test_requests_that_arrive_together_are_returned_one_by_one() -> None:
    data = post("Content-Length: 3", body=b"abc") + get("/a") + post(CHUNKED, body=b"1\r\nx\r\n0\r\n\r\n") + get("/b")
    outcome = parse(data)
    assert [(result[0].path, result[1]) for result in outcome if not isinstance(result, int)] == [
        ("/publish", b"abc"),
        ("/a", b""),
        ("/publish", b"x"),
        ("/b", b""),
    ]


def test_data_after_a_request_is_not_parsed_before_the_next_call() -> None:
    parser = RequestParser(HEAD_MAX)
    parser.feed(get() + b"\0 no request at all")
    assert parser.head() is not None
    assert parser.intact
    assert parser.partial
    with pytest.raises(RequestError):
        parser.head()
    assert not parser.intact


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare LF"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, id="bare LF between fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400, id="bare CR"),
        pytest.param(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="LF first"),
        pytest.param(b"\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="CR first"),
        pytest.param(get("/", "X: a", " b"), 400, id="folded line"),
        pytest.param(get("/", "X: a", "\tb"), 400, id="folded by a tab"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, id="space before the first field"),
        pytest.param(get("/", "X : a"), 400, id="space before colon"),
        pytest.param(get("/", ": a"), 400, id="no field name"),
        pytest.param(get("/", "no colon"), 400, id="no colon"),
        pytest.param(get("/", "X(: a"), 400, id="field name not a token"),
        pytest.param(get("/", "X: a\0b"), 400, id="NUL in a field"),
        pytest.param(get("/", "X: a\x01b"), 400, id="control character in a field"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(get("/", "Host: b"), 400, id="two Hosts"),
        pytest.param(get("/", "Host: a"), 400, id="the same Host twice"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, id="malformed Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, id="Host with a path"),
        pytest.param(get("/", "Authorization: a", "authorization: b"), 400, id="two Authorizations"),
        pytest.param(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="two spaces"),
        pytest.param(b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, id="space at the end of the line"),
        pytest.param(b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="space at the start of the line"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="space in the target"),
        pytest.param(b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="tab for a space"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n", 400, id="more after the version"),
        pytest.param(b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, id="lower case HTTP"),
        pytest.param(b"GET / RTSP/1.0\r\n\r\n", 400, id="RTSP"),
        pytest.param(b"SOURCE / ICE/1.0\r\n\r\n", 400, id="ICE"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 400, id="TLS"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", 400, id="SSH"),
        pytest.param(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + get(), 400, id="PROXY header"),
        pytest.param("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400, id="UTF-8 in the target"),
        pytest.param(get("/a\x01b"), 400, id="control character in the target"),
        pytest.param(get("/a\0b"), 400, id="NUL in the target"),
        pytest.param(get("/a%00b"), 400, id="encoded NUL"),
        pytest.param(get("/a%c0%af"), 400, id="overlong UTF-8"),
        pytest.param(get("/a%ff"), 400, id="no UTF-8"),
        pytest.param(get("/a%ed%a0%80"), 400, id="encoded surrogate"),
        pytest.param(get("/a%2"), 400, id="short escape"),
        pytest.param(get("/a%zz"), 400, id="bad escape"),
        pytest.param(get("/a#b"), 400, id="fragment"),
        pytest.param(get("a/b"), 400, id="relative target"),
        pytest.param(get("ftp://a/b"), 400, id="other scheme"),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501, id="CONNECT"),
        pytest.param(get("a:80"), 400, id="authority form"),
        pytest.param(get("*"), 400, id="asterisk form of GET"),
        pytest.param(get("http:///a"), 400, id="absolute form without a host"),
        pytest.param(get("http://u@a/"), 400, id="absolute form with a user"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, id="Host with a bad port"),
        pytest.param(get(version="0.9"), 505, id="version 0.9"),
        pytest.param(get(version="2.0"), 505, id="version 2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 preface"),
        pytest.param(get(method="FOO"), 501, id="unknown method"),
        pytest.param(get(method="get"), 501, id="lower case method"),
        pytest.param(get("/", "Expect: 200-ok"), 417, id="unknown expectation"),
        pytest.param(post("Content-Length: 3", CHUNKED), 400, id="length, then coding"),
        pytest.param(post(CHUNKED, "Content-Length: 3"), 400, id="coding, then length"),
        pytest.param(post("Content-Length: 3", "Content-Length: 3"), 400, id="two lengths"),
        pytest.param(post("Content-Length: 3, 3"), 400, id="list of lengths"),
        pytest.param(post("Content-Length: +3"), 400, id="length with a plus"),
        pytest.param(post("Content-Length: -3"), 400, id="negative length"),
        pytest.param(post("Content-Length: 0x3"), 400, id="hexadecimal length"),
        pytest.param(post("Content-Length:"), 400, id="empty length"),
        pytest.param(post("Content-Length: 99999999999999999999999"), 400, id="length beyond 64 bits"),
        pytest.param(post("Content-Length: 65"), 413, id="length over the limit"),
        pytest.param(post("Transfer-Encoding: gzip"), 400, id="gzip alone"),
        pytest.param(post("Transfer-Encoding: chunked, gzip"), 400, id="chunked not last"),
        pytest.param(post("Transfer-Encoding: gzip, chunked"), 501, id="gzip and chunked"),
        pytest.param(post("Transfer-Encoding: xchunked"), 400, id="xchunked"),
        pytest.param(post(CHUNKED, CHUNKED), 400, id="chunked twice"),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="chunked in HTTP/1.0"),
        pytest.param(post(CHUNKED, body=b"x\r\n"), 400, id="chunk size not a number"),
        pytest.param(post(CHUNKED, body=b"\r\n"), 400, id="no chunk size"),
        pytest.param(post(CHUNKED, body=b"-1\r\n"), 400, id="negative chunk size"),
        pytest.param(post(CHUNKED, body=b"3 \r\nabc\r\n"), 400, id="space after chunk size"),
        pytest.param(post(CHUNKED, body=b"3\nabc\n0\n\n"), 400, id="chunk with LF"),
        pytest.param(post(CHUNKED, body=b"3;a\nb\r\nabc"), 400, id="LF in an extension"),
        pytest.param(post(CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"), 400, id="chunk longer than its size"),
        pytest.param(post(CHUNKED, body=b"3\r\nabc\n0\r\n\r\n"), 400, id="chunk ends with LF"),
        pytest.param(post(CHUNKED, body=b"fffffffffffffffff\r\n"), 400, id="chunk size beyond 64 bits"),
        pytest.param(post(CHUNKED, body=b"41\r\n"), 413, id="chunk over the limit"),
        pytest.param(post(CHUNKED, body=b"20\r\n" + b"x" * 32 + b"\r\n21\r\n"), 413, id="chunks over the limit"),
        pytest.param(post(CHUNKED, body=b"0\r\nno colon\r\n\r\n"), 400, id="malformed trailer"),
        pytest.param(post(CHUNKED, body=b"0\r\n folded: a\r\n\r\n"), 400, id="folded trailer"),
    ],
)
def test_invalid_http_is_rejected(data: bytes, status: int) -> None:
    assert parse(data) == [status]


def test_a_head_can_have_its_maximum_size_and_no_more() -> None:
    data = get("/", "X: " + "y" * 50)
    for pieces in ways(data):
        assert len(run(pieces, head_max=len(data))) == 1
        assert run(pieces, head_max=len(data) - 1) == [431]


def test_a_head_without_end_is_rejected_at_its_maximum() -> None:
    data = get("/" + "a" * 40)[:-2]
    for pieces in ways(data):
        assert run(pieces, head_max=32) == [414]
    for pieces in ways(get("/", "X: " + "y" * 40)[:-2]):
        assert run(pieces, head_max=32) == [431]
    for pieces in ways(b"X" * 40):
        assert run(pieces, head_max=32) == [501]


def test_a_later_minor_version_is_served_as_1_1() -> None:
    assert one(get(version="1.2")).version == "1.1"


def test_empty_lines_do_not_count_towards_the_head() -> None:
    (result,) = run([b"\r\n"] * 1000 + [get()])
    assert result != 431


def test_a_length_over_the_limit_is_rejected_before_the_body_arrives() -> None:
    parser = RequestParser(HEAD_MAX)
    parser.feed(post("Content-Length: 65"))
    assert parser.head() is not None
    with pytest.raises(RequestError, match="64"):
        parser.body(BODY_MAX)


@pytest.mark.parametrize("length", [0, 1, BODY_MAX])
def test_a_body_is_returned_completely(length: int) -> None:
    body = b"\r\n" * (length // 2) + b"x" * (length % 2)
    ((_, given),) = run([post(f"Content-Length: {length}", body=body)])  # type: ignore[misc]
    assert given == body


def test_chunks_are_joined_and_extensions_and_trailers_dropped() -> None:
    body = b'3\r\na\r\n\r\n2;x="y;z"\r\nbc\r\nA ; q\r\n0123456789\r\n000\r\nX: y\r\nHost: z\r\n\r\n'
    outcome = parse(post(CHUNKED, body=body) + get("/next"))
    assert outcome[0][1] == b"a\r\nbc0123456789"  # type: ignore[index]
    assert outcome[0][0].headers["host"] == "a"  # type: ignore[index]
    assert len(outcome) == 2


def test_a_chunk_line_has_a_maximum() -> None:
    assert run([post(CHUNKED, body=b"1;" + b"x" * CHUNK_LINE_BYTES_MAX)]) == [400]
    assert run([post(CHUNKED, body=b"0\r\nX:" + b"x" * CHUNK_LINE_BYTES_MAX + b"\r\n\r\n")]) == [400]


def test_all_chunk_lines_together_have_a_maximum() -> None:
    trailers = b"X: y\r\n" * (CHUNK_LINES_BYTES_MAX // 6 + 1)
    assert run([post(CHUNKED, body=b"0\r\n" + trailers + b"\r\n")]) == [400]


def test_chunks_of_one_byte_are_accepted() -> None:
    body = b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
    ((_, given),) = run([post(CHUNKED, body=body)], body_max=200_000)  # type: ignore[misc]
    assert given == b"x" * 200_000


def test_continue_is_expected_only_in_1_1() -> None:
    assert one(get("/", "Expect: 100-Continue")).expects_continue
    assert not one(get("/", "Expect: 100-continue", version="1.0")).expects_continue


def test_the_reader_reports_an_outstanding_body() -> None:
    parser = RequestParser(HEAD_MAX)
    assert not parser.partial
    parser.feed(post("Content-Length: 3"))
    assert parser.head() is not None
    assert parser.body(BODY_MAX) is None
    assert parser.partial
    assert not parser.intact
    with pytest.raises(RuntimeError):
        parser.head()
    parser.feed(b"abc")
    assert parser.body(BODY_MAX) == b"abc"
    assert parser.intact
    assert not parser.partial
