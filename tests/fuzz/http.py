"""The request head, its body and its route: any bytes are parsed or rejected, at every split."""

from __future__ import annotations

from relay.config.model import Config
from relay.errors import EventError, RequestError
from relay.event import Event
from relay.front.routes import PublishBody, Router
from relay.http.request import RequestParser
from relay.sources.body import parse_body
from tests.fuzz.pieces import cut

HEAD_BYTES_MAX, BODY_BYTES_MAX = 400, 100
WORDS = tuple(
    (
        b"GET |POST |OPTIONS |HEAD |/|/events|/publish|?topic=|&since=| HTTP/1.1\r\n| HTTP/1.0\r\n|Host: a\r\n"
        b"|\r\n\r\n|\r\n|Content-Length: |Transfer-Encoding: chunked\r\n|Connection: close\r\n|Expect: 100-continue\r\n"
        b"|Upgrade: x\r\n|Content-Type: application/json\r\n|Last-Event-ID: |http://a/|*|%00|%c0%ae|0\r\n\r\n|3\r\nabc\r\n|\n|\0|\xff"
    ).split(b"|")
)
ROUTER = Router(Config())


def outcome(pieces: list[bytes]) -> list[object]:
    """List each request with its route and its events, or the status that rejects it. An error ends the list."""
    parser, found, request = RequestParser(HEAD_BYTES_MAX), list[object](), None
    try:
        for piece in pieces:
            parser.feed(piece)
            while request := request or parser.head():
                body = parser.body(BODY_BYTES_MAX)
                if body is None:
                    break
                assert len(body) <= BODY_BYTES_MAX
                try:
                    route = ROUTER.route(request)
                    found.append((request, body, route))
                    if isinstance(route, PublishBody):
                        content_type, fields = request.headers.get("content-type", ""), Event(topic=route.topic)
                        found.append(parse_body(content_type, body, fields, is_data=route.is_data))
                except (RequestError, EventError) as error:
                    found.append(str(error))
                request = None
    except RequestError as error:
        found.append(error.status)
    return found


def check(data: bytes) -> None:
    """Check one input."""
    pieces = cut(data)
    assert outcome(pieces) == outcome([b"".join(pieces)])
