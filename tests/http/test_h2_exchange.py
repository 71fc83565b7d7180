"""An exchange of HTTP/2 in the form of HTTP/1.1: requests that the front parses, and responses at every split."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RequestError
from relay.http.h2_exchange import Exchange, Fields, MalformedError
from relay.http.request import RequestParser

PSEUDO: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/x?y")]
POST: Fields = [(b":method", b"POST"), *PSEUDO[1:]]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"


def test_a_request_becomes_one_of_http1() -> None:
    fields = [*PSEUDO, (b"te", b"trailers"), (b"x", b""), (b"accept", b"text/event-stream")]
    expected = b"GET /x?y HTTP/1.1\r\nhost: a\r\nx: \r\naccept: text/event-stream\r\n\r\n"
    assert Exchange(fields, ended=True).request == expected
    assert Exchange([*PSEUDO[:2], PSEUDO[3], (b"host", b"b")], ended=True).request.startswith(
        b"GET /x?y HTTP/1.1\r\nhost: b\r\n"
    )


def test_a_body_of_unknown_length_becomes_chunks() -> None:
    exchange = Exchange(POST, ended=False)
    assert exchange.request.endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n")
    assert exchange.body(b"hello") + exchange.body(b"") + exchange.end() == b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize("body", [b"", b"1234", b"123456"])
def test_a_body_that_differs_from_its_length_is_malformed(body: bytes) -> None:
    exchange = Exchange([*POST, (b"content-length", b"5")], ended=False)

    def send() -> None:
        exchange.body(body)
        exchange.end()

    with pytest.raises(MalformedError):
        send()


def test_an_id_of_any_bytes_passes() -> None:
    for value in (b"\x0b\x0c", b"\xff\xfe", b"a b", b"\x01"):
        parser = RequestParser(4096)
        parser.feed(Exchange([*PSEUDO, (b"last-event-id", value)], ended=True).request)
        request = parser.head()
        assert request is not None
        assert request.headers["last-event-id"] == value.decode("latin-1")


names = st.binary(max_size=6) | st.sampled_from(
    (b"host", b"cookie", b"content-length", b"connection", b"last-event-id")
)
values = st.binary(max_size=12) | st.sampled_from((b"5", b"a", b"chunked", b"x\r\ny: z", b"/a b"))


@given(
    method=values | st.sampled_from((b"GET", b"OPTIONS", b"CONNECT")),
    path=values | st.just(b"/events"),
    authority=values,
    fields=st.lists(st.tuples(names, values), max_size=4),
    ended=st.booleans(),
)
def test_no_request_smuggles_another(method: bytes, path: bytes, authority: bytes, fields: Fields, ended: bool) -> None:
    """Whatever the fields are, the front finds exactly one request, or rejects it."""
    pseudo = [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path)]
    try:
        exchange = Exchange([*pseudo, *fields], ended=ended)
        sent = exchange.request if ended else exchange.request + exchange.body(b"12345") + exchange.end()
    except MalformedError:
        return
    parser = RequestParser(4096)
    parser.feed(sent)
    try:
        request = parser.head()
        assert request is not None
        assert parser.body(100) == (b"" if ended else b"12345")
    except RequestError:
        return
    assert parser.unread == b""
    assert request.raw_path.encode() == path.partition(b"?")[0] or method == b"CONNECT"


def outcome(pieces: list[bytes]) -> tuple[int, bytes, bool]:
    """Return the status, the body and whether the response is complete."""
    exchange, status, body, complete = Exchange(PSEUDO, ended=True), 0, b"", False
    for piece in pieces:
        for event in exchange.receive(piece):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                complete = True
    return status, body, complete


def test_a_response_is_read_at_every_split_and_a_truncated_one_is_an_error() -> None:
    assert outcome([CHUNKED]) == (200, b"hello!", True)
    for place in range(1, len(CHUNKED)):
        assert outcome([CHUNKED[:place], CHUNKED[place:]]) == (200, b"hello!", True)
        with pytest.raises(MalformedError):
            outcome([CHUNKED[:place], b""])


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    assert outcome([b"HTTP/1.1 200 OK\r\n\r\nhello"]) == (200, b"hello", False)
    assert outcome([b"HTTP/1.1 200 OK\r\n\r\nhello", b""]) == (200, b"hello", True)


def test_a_response_to_head_has_no_body() -> None:
    exchange = Exchange([(b":method", b"HEAD"), *PSEUDO[1:]], ended=True)
    head, end = exchange.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert isinstance(head, h11.Response)
    assert isinstance(end, h11.EndOfMessage)
