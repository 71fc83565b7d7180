"""The start of a stream: any `since`, `lastEventId` and `Last-Event-ID` is a position in the log, or unknown."""

from __future__ import annotations

from math import inf
from urllib.parse import quote_from_bytes

from relay.config.model import Config
from relay.core.log import Log
from relay.core.stream import Subscribe
from relay.errors import RequestError
from relay.front.routes import Router
from relay.http.request import RequestParser

WORDS = (
    b"\n",
    b"5f0c21aa-",
    b"5f0c21aa-3",
    b"own",
    b"earliest",
    b"latest",
    b"30s",
    b"1h30m",
    b"9" * 25,
    b"\0",
    b"\xff",
    b"\xd9\xa3",
)
ROUTER = Router(Config())
LOG = Log("5f0c21aa", bytes_max=1 << 20, events_max=5)
for number in range(9):
    LOG.append(LOG.topic("t"), b"data\n\n", "own" if number == 6 else None, None, float(number))


def check(data: bytes) -> None:
    """Check one input: three lines, one for each parameter."""
    since, query, field = [*data.split(b"\n", 2), b"", b""][:3]
    target = b"/events?since=%b&lastEventId=%b" % (quote_from_bytes(since).encode(), quote_from_bytes(query).encode())
    parser = RequestParser(1 << 20)
    parser.feed(b"GET %b HTTP/1.1\r\nHost: a\r\nLast-Event-ID: %b\r\n\r\n" % (target, field))
    try:
        request = parser.head()
        assert request is not None or b"\r\n" in field
        route = ROUTER.route(request) if request else None
    except RequestError as error:
        assert b"\r" in field or b"\n" in field, error  # no other last id or `since` is malformed
        return
    if not isinstance(route, Subscribe):
        return
    if route.last_ids:
        place = LOG.find(route.last_ids, ("t",))
        assert place is None or 0 <= place < LOG.head
    if route.since_s is not None:
        assert route.since_s >= 0
        assert LOG.tail <= LOG.since(10.0 - route.since_s) <= LOG.head
        assert route.since_s == inf or route.since_s < inf
