"""The front's connections: from the first byte of a request to its answer or its descriptor's hand-over.

Owns a connection's life, publishing over HTTP and the small documents. Never parses (`relay.http.request`,
`relay.front.routes`), never decides a policy, and never writes to a stream; that is the hub's business.

Theory of operation. A connection is in one phase:

    phase      what happens                              next
    READING    an answer is sent, and more may come      READING
    READING    an answer has to come from elsewhere      WAITING   a held topic; the hub, at an edge
    READING    a stream, and an answer is unsent         FLUSHING
    READING    a stream, and all is sent                 OVER      descriptor duplicated, transport aborted
    READING    the last answer is sent                   LINGERING sending is shut down
    WAITING    it has come                               READING   then as from there
    FLUSHING   all is sent                               OVER      as above
    LINGERING  the client closes, or out of time         OVER
    any        the connection is lost                    OVER

LINGERING reads and drops what the client still sends: to close at once would reset the connection, and the
reset can overtake the answer (RFC 9112 section 9.6). In WAITING, in FLUSHING and while answers pile up
unread, nothing is read.

A long GET, which is one for a stream of many topics, may have to wait for its turn (`relay.front.pace`) before it is
parsed. Nothing more is read meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import typing
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from http import HTTPStatus
from typing import Any

from relay.core.grant import ANYBODY, Grant
from relay.core.notice import come_back
from relay.core.stream import Subscribe
from relay.errors import RETRY_SOON, EventError, RelayError, RequestError
from relay.event import Event
from relay.front.deadlines import Waiting
from relay.front.front import Ask, Front, PackedConnection
from relay.front.routes import Options, PublishBody, Resource, Route, StreamHead, Ticket
from relay.http.forwarded import client_address
from relay.http.request import Request, RequestParser
from relay.http.response import JSON, Headers, json_body, respond
from relay.limits import Limit
from relay.sources.body import parse_body
from relay.sources.requests import Cancel
from relay.sse import comment

REQUESTS_A_TURN = 8
"""Requests of one connection that are answered before others get their turn."""
WRITE_BUFFER_HIGH = 64 * 1024
"""Unsent answers above which a connection is not served on; below a quarter of it it is."""

_LIMITS = {Waiting.HEAD: Limit.HEAD_TIMEOUT, Waiting.BODY: Limit.BODY_TIME, Waiting.FLUSH: Limit.ANSWER_TIME}
"""Whose time is over, as metrics name it."""
_FOR_NOW = (429, 503)
_TEXT = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"), ("Cache-Control", "no-store"))

_logger = logging.getLogger("relay.protocol")


class Phase(Enum):
    """Where a connection is in its life."""

    READING = 1
    WAITING = 2
    FLUSHING = 3
    LINGERING = 4
    OVER = 5


class FrontProtocol(asyncio.Protocol):
    """One connection of the front.

    Args:
        front: what it shares with the others.
        address: the client's; the transport's peer where it is not given.
    """

    __slots__ = (
        "_cancel",
        "_front",
        "_grant",
        "_in_turn",
        "_parser",
        "_paused",
        "_peer",
        "_phase",
        "_request",
        "_route",
        "_transport",
        "waiting",
    )

    def __init__(self, front: Front, address: str = "") -> None:
        self._front = front
        self._parser = RequestParser(front.config.head_bytes_max)
        self._phase = Phase.READING
        self._paused = False
        self._in_turn = False
        self._request: Request | None = None
        self._route: Route | None = None
        self._grant: Grant = ANYBODY
        self._peer = address
        self._cancel: Cancel | None = None
        self._transport: asyncio.Transport
        self.waiting: Waiting | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request head."""
        self._transport = typing.cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        if not self._peer:
            self._peer = str(transport.get_extra_info("peername")[0])
        self._front.connections.add(self)
        self._front.deadlines.set(self, Waiting.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._end()
        self._front.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take what came in, and serve what is whole."""
        if self._phase in (Phase.LINGERING, Phase.OVER):
            return
        self._parser.feed(data)
        if self.waiting is Waiting.REST:
            self._front.deadlines.set(self, Waiting.HEAD)
        self._guarded(self._serve)

    def eof_received(self) -> bool:
        """Close: all that came whole has been answered, since nothing is read before that."""
        if self._phase is Phase.READING and self._parser.partial:
            self._guarded(lambda: self._refuse(RequestError(400, "the request is cut short")))
        return False

    def pause_writing(self) -> None:
        """Serve no more requests while the client does not read the answers."""
        self._paused = True
        if self._phase in (Phase.READING, Phase.FLUSHING):
            self._transport.pause_reading()
            self._front.deadlines.set(self, Waiting.FLUSH)

    def resume_writing(self) -> None:
        """Go on where the client's not reading stopped it; in a turn of its own, outside of the write."""
        self._paused = False
        self._front.loop.call_soon(self._guarded, self._continue)

    def deadline_passed(self, waiting: Waiting) -> None:
        """Close what took too long, with a 408 where a request has begun."""
        if waiting in _LIMITS:
            self._front.metrics.limited(_LIMITS[waiting])
        begun = self._parser.partial
        if self._phase is Phase.READING and begun and waiting in (Waiting.HEAD, Waiting.BODY):
            self._guarded(lambda: self._refuse(RequestError(408, f"waited too long for {waiting.value}")))
        elif waiting in (Waiting.FLUSH, Waiting.LINGER):
            self._transport.abort()
        else:
            self._transport.close()

    # What the front calls.

    def close_idle(self) -> None:
        """Close the connection if it rests between requests."""
        if self._phase is Phase.READING and self._request is None and not self._parser.partial:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._end()
        self._transport.abort()

    def pack(self) -> tuple[int, PackedConnection] | None:
        """Describe the connection for another process, with its descriptor; None where something is under way."""
        transport = self._transport
        begun = self._phase is not Phase.READING or self._request is not None or not self._parser.intact
        if begun or self._paused or transport.is_closing() or transport.get_write_buffer_size():
            return None
        fd: int = transport.get_extra_info("socket").fileno()
        return fd, PackedConnection(self._peer, self._parser.unread)

    def adopt(self, connection: PackedConnection) -> None:
        """Go on with a connection of another process."""
        self._peer = connection.peer
        if connection.unread:
            self.data_received(connection.unread)
        else:
            self._front.deadlines.set(self, Waiting.REST)

    # The life of a request.

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step as the outermost callback: whatever is wrong with it ends this connection alone."""
        try:
            step()
        except Exception:
            _logger.exception("a connection of the front failed")
            self.abort()

    def _take_turn(self) -> None:
        """Serve the long request for which this is the turn; the time limit of its head still runs."""
        if self._phase is Phase.READING and not self._transport.is_closing():
            self._in_turn = True
            self._transport.resume_reading()
            self._serve()

    def _continue(self) -> None:
        """Take up the work again after a pause."""
        if self._paused or self._transport.is_closing():
            return
        if self._phase is Phase.FLUSHING:
            self._phase = Phase.READING
            self._transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        if self._phase is Phase.READING:
            self._transport.resume_reading()
            self._wait_for_more()
            self._serve()

    def _serve(self) -> None:
        """Serve what is whole, in order, for one turn."""
        for _ in range(REQUESTS_A_TURN):
            if self._phase is not Phase.READING or self._paused or self._transport.is_closing():
                return
            try:
                if not self._serve_one():
                    return
            except RequestError as error:
                self._refuse(error)
        self._transport.pause_reading()
        self._front.loop.call_soon(self._guarded, self._continue)

    def _serve_one(self) -> bool:
        """Serve one request; false while it is not whole."""
        front = self._front
        if self._route is None:
            if self._parser.long_get and not self._in_turn:
                self._transport.pause_reading()
                front.pace.add(lambda: self._guarded(self._take_turn))
                return False
            self._in_turn = False
            request = self._request = self._parser.head()
            if request is None:
                return False
            self._route = self._admit(request)
            if request.body_length != 0:
                front.deadlines.set(self, Waiting.BODY)
        route = self._route
        body = self._parser.body(front.config.body_bytes_max if isinstance(route, PublishBody) else 0)
        if body is None:
            return False
        if isinstance(route, Subscribe):
            self._subscribe(route)
        elif isinstance(route, StreamHead):
            assert self._request is not None
            self._answer(front.dates.head(front.router.closing_head(self._request)), keep=False)
        elif isinstance(route, PublishBody):
            self._publish(route, body)
        elif isinstance(route, Options):
            self._respond(204, route.headers)
        elif isinstance(route, Ticket):
            assert self._request is not None
            ticket = front.auth.ticket(self._request)
            self._respond(200, *json_body({"ticket": ticket, "expires_in_s": front.config.ticket_s}))
        else:
            self._document(route)
        return True

    def _admit(self, request: Request) -> Route:
        """Judge a request by its head, before its body is read.

        Raises:
            RequestError: also for a body where none is taken, a missing token, and a drain.
        """
        route = self._front.router.route(request)
        if isinstance(route, PublishBody | Subscribe) and self._front.hub.draining:
            raise RequestError(503, "the server is draining", RETRY_SOON)
        if isinstance(route, Subscribe | StreamHead):
            grant = self._front.auth.subscriber(request)
            grant.check_subscribe(route.terms)
            if isinstance(route, Subscribe):
                head = self._front.dates.head(route.head)
                return replace(route, head=head, grant=grant, ends_s=self._front.until_s(grant))
        if isinstance(route, PublishBody):
            self._grant = self._front.auth.publisher(request)
            length = request.body_length
            if request.expects_continue and (length is None or 0 < length <= self._front.config.body_bytes_max):
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return route

    def _subscribe(self, subscribe: Subscribe) -> None:
        """Hand over, once it is known where to begin: the last id may be one that an edge has not got yet."""
        find, terms, ids = self._front.find, subscribe.terms, subscribe.last_ids
        if find is None or not ids or self._front.hub.find(terms, ids) is not None:
            self._prepare(subscribe)
        else:
            self._await(
                lambda done: find(terms, ids, done),
                lambda sequence: self._prepare(replace(subscribe, after=sequence)),
            )

    def _prepare(self, subscribe: Subscribe) -> None:
        """Hand over, once what the stream replays can be read: the entries of a pattern may have to be found first."""
        front = self._front
        if subscribe.last_ids or subscribe.since_s is not None:
            self._await(
                lambda done: front.hub.prepare(subscribe, front.clock(), done), lambda _: self._hand_over(subscribe)
            )
        else:
            self._hand_over(subscribe)

    def _hand_over(self, subscribe: Subscribe) -> None:
        """Give the connection's descriptor to the hub, once all earlier answers have left."""
        transport, front = self._transport, self._front
        if transport.get_write_buffer_size():
            self._phase = Phase.FLUSHING
            # Calls pause_writing at once, and resume_writing when all is sent.
            transport.set_write_buffer_limits(0, 0)
            return
        try:
            fd = os.dup(transport.get_extra_info("socket").fileno())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise RequestError(503, "the server is out of descriptors", RETRY_SOON, limit=Limit.DESCRIPTORS) from None
        try:
            front.hub.subscribe(fd, subscribe, self._address(), front.clock())
        except (RequestError, OSError):
            os.close(fd)
            raise
        self.abort()

    def _publish(self, route: PublishBody, body: bytes) -> None:
        """Publish a body, once its topics are free."""
        assert self._request is not None
        content_type = self._request.headers.get("content-type", "")
        try:
            events = parse_body(content_type, body, route.topic, event=route.event, id=route.id, key=route.key)
        except EventError as error:
            self._refuse_event(error)
            return
        events_max = self._front.config.batch_events_max
        if len(events) > events_max:
            raise RequestError(413, f"a request publishes at most {events_max} events", limit=Limit.BATCH_EVENTS_MAX)
        self._allow(events)
        self._await(lambda done: self._front.publisher.publish(events, done), self._published)

    def _allow(self, events: list[Event]) -> None:
        """Raise RequestError 403 for a topic that is not granted, 429 for more events than the rate allows."""
        front, grant = self._front, self._grant
        grant.check_publish({str(event.topic) for event in events})
        wait_s = front.rates.take(grant.subject, len(events), front.clock())
        if wait_s:
            headers = (("Retry-After", str(math.ceil(wait_s))),)
            reason = f"at most {front.config.publish_rate} events a second"
            raise RequestError(429, reason, headers, limit=Limit.PUBLISH_RATE)

    def _published(self, ids: list[str]) -> None:
        self._respond(200, *json_body({"ids": ids}))

    def _await(self, start: Callable[[Callable[[Any], None]], Cancel], then: Callable[[Any], None]) -> None:
        """Wait for what comes from elsewhere, maybe at once; nothing is read meanwhile.

        Args:
            start: asks for it, and gives what cancels that.
            then: takes it, unless it is an error, which is answered.
        """
        self._phase, self._cancel = Phase.WAITING, None
        cancel = start(lambda result: self._guarded(lambda: self._arrived(result, then)))
        if self._phase is Phase.WAITING:
            self._cancel = cancel
            self._transport.pause_reading()
            self._front.deadlines.clear(self)

    def _arrived(self, result: Any, then: Callable[[Any], None]) -> None:
        if self._phase is not Phase.WAITING:
            return
        waited, self._cancel = self._cancel is not None, None
        self._phase = Phase.READING
        if isinstance(result, EventError):
            self._refuse_event(result)
        elif isinstance(result, RequestError):
            self._refuse(result)
        elif isinstance(result, RelayError):
            raise result
        else:
            try:
                then(result)
            except RequestError as error:
                self._refuse(error)
        if waited:
            self._front.loop.call_soon(self._guarded, self._continue)

    def _document(self, resource: Resource) -> None:
        """Answer with a document."""
        front = self._front
        if resource is Resource.PAGE:
            self._respond(200, front.page_headers, front.page)
        elif resource is Resource.HEALTH:
            self._respond(200, *json_body({"status": "ok"}))
        elif resource is Resource.READY:
            ready = front.ready and front.hub.ready
            leaving = not front.ready or front.hub.draining
            status = "ready" if ready else "draining" if leaving else "waiting for its hub"
            self._respond(200 if ready else 503, *json_body({"status": status}))
        elif front.ask is not None:
            self._ask(front.ask, resource)
        elif resource is Resource.METRICS:
            self._respond(200, _TEXT, front.metrics.render())
        else:
            self._respond(200, JSON, front.stats(front.clock()))

    def _ask(self, ask: Ask, resource: Resource) -> None:
        """Answer for the whole, of which this process is a part."""
        if resource is Resource.METRICS:
            self._await(lambda done: ask("metrics", done), lambda body: self._respond(200, _TEXT, body))
        else:
            self._await(lambda done: ask("stats", done), lambda body: self._respond(200, JSON, body))

    def _respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer the current request; go on with the connection if both sides can."""
        request, front = self._request, self._front
        keep = request is not None and request.keep_alive and self._parser.intact and not front.hub.draining
        headers = (("Date", front.dates.now()), *headers, *front.router.cors(request))
        head_only = request is not None and request.method == "HEAD"
        self._answer(respond(status, headers, body, keep_alive=keep, head_only=head_only), keep=keep)

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that cannot be served."""
        if error.limit:
            self._front.metrics.limited(error.limit)
        if error.status in (400, 401, 403, 408, 413, 414, 415, 417, 421, 429, 431, 501, 505):
            kind = "token" if error.status == 401 else "request"
            self._front.errors.report(kind, "refused a request of %s: %s", self._address(), error.reason)
        if error.status in _FOR_NOW and self._asks_for_events():
            self._send_away(error)
            return
        if error.status == HTTPStatus.NO_CONTENT:
            self._respond(error.status, error.headers)
            return
        headers, body = json_body({"error": error.reason})
        self._respond(error.status, (*headers, *error.headers), body)

    def _asks_for_events(self) -> bool:
        """Whether the request is a browser's for a stream, and the settings want it told by a stream to come back."""
        request = self._request
        return (
            self._front.config.refuse_streams == "retry"
            and request is not None
            and request.method == "GET"
            and request.path.startswith("/events")
            and "text/event-stream" in request.headers.get("accept", "").lower()
        )

    def _send_away(self, error: RequestError) -> None:
        """Answer by a stream that says when to come back, and ends: an EventSource fails for good on a status."""
        assert self._request is not None
        after_ms = 1000 * int(dict(error.headers).get("Retry-After", "0"))
        head = self._front.dates.head(self._front.router.closing_head(self._request))
        text = comment(error.reason) + come_back(after_ms + self._front.hub.draw_retry_ms())
        self._answer(head + text, keep=False)

    def _refuse_event(self, error: EventError) -> None:
        """Answer a publish request whose events cannot be taken."""
        self._front.errors.report("event", "refused an event of %s: %s", self._address(), error)
        self._respond(error.status, *json_body({"error": str(error), "field": error.field}))

    def _answer(self, data: bytes, *, keep: bool) -> None:
        """Send an answer, and wait for the next request or for the client to close."""
        self._request = self._route = None
        if self._transport.is_closing():
            return
        self._transport.write(data)
        if keep:
            self._wait_for_more()
            return
        self._phase = Phase.LINGERING
        self._transport.write_eof()
        self._transport.resume_reading()
        unsent = self._transport.get_write_buffer_size()
        self._front.deadlines.set(self, Waiting.FLUSH if unsent else Waiting.LINGER)

    def _wait_for_more(self) -> None:
        """Set the time limit of what must come next."""
        if self._request is not None:
            waiting = Waiting.BODY
        else:
            waiting = Waiting.HEAD if self._parser.partial else Waiting.REST
        if self._paused:
            waiting = Waiting.FLUSH
        self._front.deadlines.set(self, waiting)

    def _address(self) -> str:
        """Give the client's address, without the port; as much of it as limits go by."""
        forwarded = self._request.headers.get("x-forwarded-for") if self._request else None
        if not forwarded or not self._front.proxies:
            return self._peer
        return client_address(self._peer, forwarded, self._front.proxies)

    def _end(self) -> None:
        """Give up what the connection holds."""
        self._phase = Phase.OVER
        self._front.deadlines.clear(self)
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
