"""The head of a request for a stream: its shape and the removed fields mean the same as the whole head.

Covers `relay._native.arrivals`.
"""

from __future__ import annotations

from dataclasses import replace

from bench.implementations import load
from relay.config.model import Config
from relay.core.stream import Subscribe
from relay.errors import RequestError
from relay.front.routes import Route, Router
from relay.http.request import Request, parse_head
from relay.ids import readings
from tests.twins import NAMES

RETURNED = ("last-event-id", "authorization", "x-forwarded-for")
REMOVED = (*RETURNED, *b"cookie user-agent referer x-real-ip x-request-id traceparent tracestate".decode().split())
WORDS = tuple(
    (
        b"GET |GET /events HTTP/1.1\r\nHost: a\r\n|GET /events?topic=a&since=1h HTTP/1.0\r\n|/events|?topic=a.*"
        b"|&lastEventId=1|&since=x|&padding|HTTP/1.1\r\n|Host: a\r\n|Last-Event-ID: |last-event-id:1\r\n"
        b"|Authorization: x\r\n|X-Forwarded-For: ::1\r\n|Cookie: a=b\r\n|COOKIE :|User-Agent: c\r\n|Referer:\r\n"
        b"|X-Real-IP: \t1 \r\n|X-Request-ID:|traceparent|Tracestate:|Accept: application/x-ndjson\r\n|Origin: b\r\n"
        b"|Connection: close\r\n|Upgrade: h2c\r\n|Expect: 100-continue\r\n|Content-Length: 1\r\n"
        b"|Transfer-Encoding: chunked\r\n|\r\n\r\n|\r\n"
        b"|\r|\n|:| |\t|\0|\x7f|\xff"
    ).split(b"|")
)
CUTS = [load(name, "arrivals").cut_head for name in NAMES]
ROUTER = Router(Config(envelope=("a.b",), compress="gzip"), wall=lambda: 1e9)


def parsed(head: bytes) -> Request | int:
    """Return the request of a head, or the status that rejects it."""
    try:
        return parse_head(head)
    except RequestError as error:
        return error.status


def routed(request: Request) -> Route | str:
    """Return the route of a request, or the error that rejects it."""
    try:
        return ROUTER.route(request)
    except RequestError as error:
        return error.reason


def check(data: bytes) -> None:
    """Check one input, and the same input as the fields of a head that is otherwise valid."""
    check_head(data)
    check_head(b"GET /events?topic=a HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n")


def check_head(head: bytes) -> None:
    """Check one head."""
    cut, *others = [cut_head(head) for cut_head in CUTS]
    assert others in ([], [cut])
    if cut is None:
        return
    shape, *values = cut
    whole, short = parsed(head), parsed(shape)
    if not isinstance(whole, Request) or not isinstance(short, Request):
        assert whole == short
        return
    assert [whole.headers.get(name, "") for name in RETURNED] == [value.decode("ascii") for value in values]
    kept = {name: value for name, value in whole.headers.items() if name not in REMOVED}
    assert replace(whole, headers=kept) == short
    check_route(routed(whole), routed(short), readings(values[0]))


def check_route(whole: Route | str, short: Route | str, ids: tuple[str, ...]) -> None:
    """Check the route of a head and of its shape. A last id in a field replaces the start of the stream."""
    if isinstance(whole, Subscribe) and isinstance(short, Subscribe) and ids:
        assert whole.last_ids == ids
        assert (whole.since_s, whole.must_know, whole.newest) == (None, False, False)
        fields = {"last_ids": ids, "since_s": None, "must_know": False, "newest": False}
        short = Subscribe(**{name: getattr(short, name) for name in Subscribe.__struct_fields__} | fields)
    assert whole == short
