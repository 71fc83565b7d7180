"""Any bytes, in any pieces, are parsed or rejected with a RequestError."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.model import Config
from relay.errors import EventError, RequestError
from relay.event import Event
from relay.front.routes import Router
from relay.http.request import RequestParser
from relay.sources.body import parse_body
from relay.topic import TermTree, check_term, check_topic, is_pattern
from tests.oracle import matches

ROUTER = Router(Config(cors_origin=("https://a.example",)))
PARTS = st.sampled_from(
    (
        b"GET |POST |OPTIONS |HEAD |/|/events|/publish| HTTP/1.1\r\n| HTTP/1.0\r\n|?topic=|&since=|&policy="
        b"|a.*|%C3|%00|*|10s|3| |:|\r\n|\r\n\r\n|\n|\r|\0|0\r\n\r\n|Host: a\r\n|Content-Length: "
        b"|Transfer-Encoding: chunked\r\n|Connection: close\r\n|Expect: 100-continue\r\n|Upgrade: x\r\n"
        b"|Origin: https://a.example\r\n|Last-Event-ID: \xff\r\n"
    ).split(b"|")
)
STREAM = st.lists(PARTS | st.binary(max_size=6), max_size=40).map(b"".join)
GOOD = st.builds(
    lambda path, query, lines, body: b"".join(
        (
            b"POST ",
            path,
            query,
            b" HTTP/1.1\r\nHost: a\r\n",
            *lines,
            b"Content-Length: %d\r\n\r\n" % len(body),
            body,
        )
    ),
    st.sampled_from([b"/", b"/events", b"/events/a", b"/publish"]),
    st.lists(PARTS.filter(lambda part: b"\r" not in part and b" " not in part), max_size=4).map(b"".join),
    st.lists(st.sampled_from([b"X: y\r\n", b"Authorization: Bearer t\r\n"]), unique=True),
    st.binary(max_size=40),
)


def outcome(pieces: list[bytes]) -> list[object]:
    """Feed the pieces to the parser and the routes. An error ends the result."""
    parser = RequestParser(200)
    results: list[object] = []
    request = None
    try:
        for piece in pieces:
            parser.feed(piece)
            while request := request or parser.head():
                body = parser.body(100)
                if body is None:
                    break
                try:
                    results.append((request, body, ROUTER.route(request)))
                except RequestError as error:
                    results.append(error.status)
                request = None
    except RequestError as error:
        results.append(error.status)
    return results


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Split the data at these places."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@settings(deadline=None)
@given(data=STREAM, places=st.lists(st.integers(0, 10_000), max_size=8))
def test_any_bytes_are_parsed_or_rejected_at_every_split(data: bytes, places: list[int]) -> None:
    assert outcome(cut(data, places)) == outcome([data])


@settings(deadline=None)
@given(requests=st.lists(GOOD, min_size=1, max_size=4), places=st.lists(st.integers(0, 10_000), max_size=8))
def test_consecutive_requests_are_read_like_single_ones(requests: list[bytes], places: list[int]) -> None:
    apart: list[object] = []
    for request in requests:
        result = outcome([request])
        apart += result
        if not result or (result[-1] in (400, 431) and not ends_at_a_request(request)):
            break
    assert outcome(cut(b"".join(requests), places)) == apart


def ends_at_a_request(data: bytes) -> bool:
    """Return whether the parser can continue after this data."""
    parser = RequestParser(200)
    parser.feed(data)
    try:
        return parser.head() is not None and parser.body(100) is not None
    except RequestError:
        return False


@given(
    st.sampled_from(["application/json", "application/x-ndjson", "text/plain", "text/event-stream", "", "a;charset=x"]),
    st.booleans(),
    st.booleans(),
    st.binary() | st.text().map(str.encode),
)
def test_any_body_becomes_events_or_is_rejected(
    content_type: str, is_data: bool, as_lines: bool, body: bytes
) -> None:
    fields, members = Event(topic="t", dedup="d"), {"id": ".a.b"}
    try:
        events = parse_body(content_type, body, fields, is_data=is_data, as_lines=as_lines, members=members)
    except (EventError, RequestError):
        return
    assert all(isinstance(event.topic, str) for event in events)


TERM = st.lists(st.sampled_from(["a", "b", "*", "**", "", "a*"]), max_size=4).map(".".join) | st.text(max_size=8)


@given(TERM, TERM)
def test_a_term_tree_matches_like_a_single_pattern(term: str, topic: str) -> None:
    try:
        check_term(term)
        check_topic(topic)
    except EventError:
        return
    tree: TermTree[str] = TermTree()
    tree.add(term, term)
    assert bool(tree.covering(topic)) == matches(term, topic)
    assert is_pattern(term) or matches(term, topic) == (term == topic)
