"""A connection of the front: from the first byte of a request to its response or the hand-over of its descriptor.

Owns the life of a connection, publishing over HTTP and the small documents. Never parses (`relay.http.request`,
`relay.front.routes`), never chooses a policy, and never writes to a stream (`relay.core.hub`).

Theory of operation. A connection is in one phase:

    phase      event                                     next
    READING    a response is sent, keep-alive            READING
    READING    the response depends on another part      WAITING   a held topic; at an edge, the hub
    READING    a stream, with unsent responses           FLUSHING
    READING    a stream, with no unsent response         OVER      descriptor duplicated, transport aborted
    READING    the last response is sent                 LINGERING sending is shut down
    WAITING    the result arrives                        READING   continues as above
    FLUSHING   all responses are sent                    OVER      as above
    LINGERING  the client closes, or the time limit      OVER
    any        the connection is lost                    OVER

LINGERING reads and drops the remaining input. An immediate close would reset the connection, and the reset can
overtake the response (RFC 9112 section 9.6). The connection stops reading in WAITING, in FLUSHING, and while too many
responses are unsent.

A publish request that stays open (`relay.sources.upload`) goes from READING to WAITING and back with each batch of its
lines.

A long GET is a request for a stream of many topics. It waits for its turn (`relay.front.pace`) before it is parsed.
Meanwhile the connection reads nothing.

The module is longer than 400 lines because the phases of one connection are one state machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import typing
from collections.abc import Callable
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import Any

from msgspec.structs import replace

from relay.core.forms.framing import wrap
from relay.core.grant import ANYBODY, Grant
from relay.core.notice import come_back
from relay.core.stream import Subscribe
from relay.errors import RETRY_SOON, EventError, RelayError, RequestError
from relay.event import Event
from relay.front.deadlines import Waiting
from relay.front.front import Ask, Front, PackedConnection, guarded
from relay.front.publish import authorise, check_rate, open_upload, read_events
from relay.front.routes import Options, Poll, PublishBody, Resource, Route, SignalTopic, StreamHead, Ticket
from relay.front.signalling import send_signal
from relay.http.forwarded import client_address
from relay.http.request import PREFACE_HEAD, Http2PrefaceError, Request, RequestParser
from relay.http.response import JSON, Headers, json_body, respond, upload_head
from relay.limits import Limit
from relay.sources.requests import Cancel, Done
from relay.sources.topic_signals import SIGNAL_BYTES_MAX
from relay.sources.upload import Upload
from relay.sse import comment
from relay.telemetry import topics
from relay.telemetry.topics import TopicsPage, TopicsQuery

REQUESTS_A_TURN = 8
"""Requests of one connection that are served per turn of the event loop."""
WRITE_BUFFER_HIGH = 64 * 1024
"""Unsent bytes above which the connection serves no more requests. It resumes below a quarter of this."""

_LIMITS = {
    Waiting.HEAD: Limit.HEAD_TIMEOUT,
    Waiting.BODY: Limit.BODY_TIME,
    Waiting.LINE: Limit.LINE_TIMEOUT,
    Waiting.FLUSH: Limit.ANSWER_TIME,
}
"""The name of each time limit in the metrics."""
BecomeHttp2 = Callable[[asyncio.Transport, bytes], None]

_FOR_NOW = (429, 503)
_TEXT = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"), ("Cache-Control", "no-store"))


class Phase(Enum):
    """The phase of a connection; see the table at the top."""

    READING = 1
    WAITING = 2
    FLUSHING = 3
    LINGERING = 4
    OVER = 5


class FrontProtocol(asyncio.Protocol):
    """One connection of the front.

    Args:
        front: the state that all connections share.
        address: the address of the client; by default, the peer of the transport.
        become_http2: continues with HTTP/2, from a transport and the bytes received; None if that is not possible.
        received: input that was read before the connection existed.
        is_admin: whether the connection was accepted at `admin-listen`.
    """

    __slots__ = (
        "_become_http2",
        "_cancel",
        "_front",
        "_grant",
        "_in_turn",
        "_is_admin",
        "_parser",
        "_paused",
        "_peer",
        "_phase",
        "_request",
        "_route",
        "_transport",
        "_upload",
        "waiting",
    )

    def __init__(
        self,
        front: Front,
        address: str = "",
        become_http2: BecomeHttp2 | None = None,
        received: bytes = b"",
        *,
        is_admin: bool = False,
    ) -> None:
        self._front = front
        self._is_admin = is_admin
        self._become_http2 = become_http2
        self._parser = RequestParser(front.config.head_bytes_max)
        self._parser.feed(received)
        self._phase = Phase.READING
        self._paused = False
        self._in_turn = False
        self._request: Request | None = None
        self._route: Route | None = None
        self._grant: Grant = ANYBODY
        self._peer = address
        self._cancel: Cancel | None = None
        self._upload: Upload | None = None
        self._transport: asyncio.Transport
        self.waiting: Waiting | None = None

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request head."""
        self._transport = typing.cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        if not self._peer:
            self._peer = str(transport.get_extra_info("peername")[0])
        self._front.connections.add(self)
        self._front.deadlines.set(self, Waiting.HEAD)
        if self._parser.partial:
            self._paused = True  # uvloop reads as soon as this call returns, and a call to abort() here is not safe.
            self._front.loop.call_soon(self.resume_writing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds."""
        if self._upload is not None:
            lines = f"{self._upload.published} lines are published, {self._upload.rejected} are rejected"
            self._front.errors.report("unpublished", "lost the upload of %s: %s", self._address(), lines)
        self._end()
        self._front.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and serve the complete requests."""
        if self._phase in (Phase.LINGERING, Phase.OVER):
            return
        self._parser.feed(data)
        if self.waiting is Waiting.REST:
            self._front.deadlines.set(self, Waiting.HEAD)
        self._guarded(self._serve)

    def eof_received(self) -> bool:
        """Close the connection. All complete requests have been served, because it does not read before that."""
        if self._paused:
            return True  # The end is read again when the connection resumes.
        if self._phase is Phase.READING and self._parser.partial:
            self._guarded(lambda: self._refuse(RequestError(400, "the request is incomplete")))
        return False

    def pause_writing(self) -> None:
        """Stop serving requests until the client reads the responses."""
        self._paused = True
        if self._phase in (Phase.READING, Phase.FLUSHING):
            self._transport.pause_reading()
            self._front.deadlines.set(self, Waiting.FLUSH)

    def resume_writing(self) -> None:
        """Resume serving in a new turn, because this call happens within a write."""
        self._paused = False
        self._front.loop.call_soon(self._guarded, self._continue)

    def deadline_passed(self, waiting: Waiting) -> None:
        """Close the connection after a missed deadline; respond 408 if a request has begun."""
        if waiting in _LIMITS:
            self._front.metrics.limited(_LIMITS[waiting])
        begun = self._parser.partial
        if self._phase is Phase.READING and begun and waiting in (Waiting.HEAD, Waiting.BODY, Waiting.LINE):
            self._guarded(lambda: self._refuse(RequestError(408, f"timed out waiting for {waiting.value}")))
        elif waiting in (Waiting.FLUSH, Waiting.LINGER):
            self._transport.abort()
        else:
            self._transport.close()

    # Called by the front.

    def close_idle(self) -> None:
        """Close the connection if it is idle between two requests."""
        if self._phase is Phase.READING and self._request is None and not self._parser.partial:
            self._transport.close()

    def end_upload(self) -> None:
        """End the open publish request, if there is one. If a batch is being published, the upload ends after it."""
        if self._upload is None:
            return
        if self._upload.is_paced and self._cancel is not None:
            self._cancel()
            self._cancel, self._phase = None, Phase.READING
        if self._phase is Phase.READING:
            self._guarded(lambda: self._refuse(_leaving()))

    def abort(self) -> None:
        """Abort the connection."""
        self._end()
        self._transport.abort()

    def pack(self) -> tuple[int, PackedConnection] | None:
        """Return the descriptor and the state for another process; None unless the connection is idle."""
        transport = self._transport
        begun = self._phase is not Phase.READING or self._request is not None or not self._parser.intact
        if begun or self._paused or transport.is_closing() or transport.get_write_buffer_size():
            return None
        fd: int = transport.get_extra_info("socket").fileno()
        return fd, PackedConnection(self._peer, self._parser.unread, self._is_admin)

    def adopt(self, connection: PackedConnection) -> None:
        """Continue a connection from another process."""
        self._peer, self._is_admin = connection.peer, connection.is_admin
        if connection.unread:
            self.data_received(connection.unread)
        else:
            self._front.deadlines.set(self, Waiting.REST)

    def send(self, data: bytes, *, keep: bool) -> None:
        """Send the answer to a poll that was handed over before, on a connection that continues it."""
        self._guarded(lambda: self._answer(data, keep=keep))

    # The life of a request.

    def _guarded(self, step: Callable[[], None]) -> None:
        guarded(step, self.abort)

    def _take_turn(self) -> None:
        """Serve the long request in its turn. The deadline of its head still applies."""
        if self._phase is Phase.READING and not self._transport.is_closing():
            self._in_turn = True
            self._transport.resume_reading()
            self._serve()

    def _continue(self) -> None:
        """Resume serving after a pause."""
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
        """Serve the complete requests in order, for one turn."""
        for _ in range(REQUESTS_A_TURN):
            if self._phase is not Phase.READING or self._paused or self._transport.is_closing():
                return
            try:
                if not self._serve_one():
                    return
            except Http2PrefaceError as error:
                if self._become_http2 is None:
                    self._refuse(error)
                    return
                self._end()
                self._front.connections.discard(self)
                self._become_http2(self._transport, PREFACE_HEAD + self._parser.unread)
                return
            except RequestError as error:
                self._refuse(error)
        self._transport.pause_reading()
        self._front.loop.call_soon(self._guarded, self._continue)

    def _serve_one(self) -> bool:
        """Serve one request; return False if it is incomplete."""
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
                front.deadlines.set(self, Waiting.BODY if self._upload is None else Waiting.LINE)
        if self._upload is not None:
            return self._serve_upload(self._upload)
        route = self._route
        body = self._parser.body(self._body_bytes_max(route))
        if body is None:
            return False
        if isinstance(route, Subscribe):
            self._locate(route, self._hand_over)
        elif isinstance(route, Poll):
            self._locate(route.subscribe, partial(self._poll, route))
        elif isinstance(route, StreamHead):
            assert self._request is not None
            self._answer(front.dates.head(route.head), keep=False)
        elif isinstance(route, PublishBody):
            self._publish(route, body)
        elif isinstance(route, SignalTopic):
            self._signal(route.topic, body)
        elif isinstance(route, Options):
            self._respond(204, route.headers)
        elif isinstance(route, Ticket):
            assert self._request is not None
            ticket = front.auth.ticket(self._request)
            self._respond(200, *json_body({"ticket": ticket, "expires_in_s": front.config.ticket_s}))
        elif isinstance(route, TopicsQuery):
            self._list_topics(route)
        else:
            self._document(route)
        return True

    def _body_bytes_max(self, route: Route) -> int:
        if isinstance(route, PublishBody):
            return self._front.config.body_bytes_max
        return SIGNAL_BYTES_MAX if isinstance(route, SignalTopic) else 0

    def _admit(self, request: Request) -> Route:
        """Return the route of a request, after checking its head and its token. The body is not read yet.

        Raises:
            RequestError: the head is invalid, the token is missing or invalid, or the server is draining.
        """
        route = self._front.router.route(request)
        if isinstance(route, PublishBody | Subscribe | Poll) and self._front.hub.draining:
            raise RequestError(503, "the server is draining", RETRY_SOON)
        if isinstance(route, StreamHead):
            self._front.auth.subscriber(request).check_subscribe(route.terms)
        if isinstance(route, Subscribe):
            return self._front.admit(route, self._front.auth.subscriber(request))
        if isinstance(route, Poll):
            subscribe = self._front.admit(route.subscribe, self._front.auth.subscriber(request))
            return dataclasses.replace(route, subscribe=subscribe)
        if isinstance(route, SignalTopic):
            self._grant = self._front.auth.publisher(request, "a signal")
        if isinstance(route, PublishBody):
            self._grant = authorise(self._front, request, route)
            upload = open_upload(self._front, request, route, self._grant)
            length = request.body_length
            fits = upload is not None or length is None or length <= self._front.config.body_bytes_max
            if request.expects_continue and length != 0 and fits:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if upload is not None:
                self._open_upload(request, upload)
        if isinstance(route, Resource | TopicsQuery):
            self._front.check_admin(request, route, is_admin=self._is_admin)
        return route

    def _locate(self, subscribe: Subscribe, then: Callable[[Subscribe], None]) -> None:
        """Find the position of a stream or a poll. At an edge, the hub may have to look up the last id."""
        find = self._front.find
        if find is None or self._front.knows(subscribe):
            self._prepare(subscribe, then)
        else:
            self._await(
                lambda done: find(subscribe.terms, subscribe.last_ids, done),
                lambda sequence: self._prepare(replace(subscribe, after=sequence), then),
            )

    def _prepare(self, subscribe: Subscribe, then: Callable[[Subscribe], None]) -> None:
        """Continue when the hub has prepared the replay, which may require a search for the entries of a pattern."""
        front = self._front
        if subscribe.replays:
            self._await(
                lambda done: front.hub.prepare(subscribe, front.clock(), done), lambda _: then(subscribe)
            )
        else:
            then(subscribe)

    def _poll(self, route: Poll, subscribe: Subscribe) -> None:
        """Respond to a poll, or hand it over as a stream that waits for an event."""
        front, request = self._front, self._request
        assert request is not None
        answer = front.hub.answer(subscribe, route.events_max, front.clock(), newest=route.newest)
        if not answer.empty or not route.wait_s:
            if answer.empty and request.path == "/poll" and front.hub.ended.all(subscribe.terms):
                raise RequestError(204, "its topics have ended for good")  # as for a poll that would wait
            front.metrics.polls["history" if route.newest else "at-once"] += 1
            self._respond(200, JSON, answer.body)
            return
        # The engine drops further input. A proxy may use this connection for other clients, whose addresses differ.
        # The connection that continues a poll does not know whether it was accepted at `admin-listen`.
        is_own = self._address() == self._peer and not self._is_admin
        keep = request.keep_alive and not self._parser.unread and is_own
        waiting = replace(
            subscribe, wait_s=route.wait_s, after=answer.following - 1, events_max=route.events_max
        )
        waiting = front.router.waiting(request, waiting, keep=keep and request.version == "1.1")
        self._hand_over(replace(waiting, head=front.dates.head(waiting.head)))

    def _hand_over(self, subscribe: Subscribe) -> None:
        """Hand the descriptor over to the hub after all earlier responses are sent."""
        transport, front = self._transport, self._front
        if transport.get_write_buffer_size():
            self._phase = Phase.FLUSHING
            # This calls pause_writing at once, and resume_writing when the buffer is empty.
            transport.set_write_buffer_limits(0, 0)
            return
        try:
            fd = os.dup(transport.get_extra_info("socket").fileno())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise RequestError(503, "the server has no free descriptor", RETRY_SOON, limit=Limit.DESCRIPTORS) from None
        try:
            front.hub.subscribe(fd, subscribe, self._address(), front.clock())
        except (RequestError, OSError):
            os.close(fd)
            raise
        if isinstance(self._route, Poll):
            front.metrics.polls["waiting"] += 1
        else:
            front.metrics.opened["connection"] += 1
        self.abort()

    def _publish(self, route: PublishBody, body: bytes) -> None:
        """Publish the events of a body as soon as none of their topics is held."""
        assert self._request is not None
        front, subject = self._front, self._grant.subject
        try:
            events = read_events(front, self._request, route, self._grant, body)
        except EventError as error:
            self._refuse_event(error)
            return
        send: Callable[[list[Event], Done], Cancel] = front.publisher.publish
        if front.traces is not None:
            send = partial(front.traces.publish, self._request.headers, send)

        def publish(wait_s: float) -> None:
            check_rate(front, wait_s)
            self._await(lambda done: send(events, done), self._published)

        self._await(lambda done: front.take_rate(subject, len(events), done), publish)

    def _signal(self, topic: str, body: bytes) -> None:
        """Send a signal to the feeders of a topic, and respond without waiting for them."""
        assert self._request is not None
        send_signal(self._front, self._request, self._grant, topic, body)
        self._respond(202, *json_body({"topic": topic}))

    def _published(self, ids: list[str]) -> None:
        self._respond(200, *json_body({"ids": ids}))

    # An upload: a publish request whose lines are published as they arrive.

    def _open_upload(self, request: Request, upload: Upload) -> None:
        """Keep the upload, and send the head of the response if the upload answers each line."""
        front = self._front
        self._upload = upload
        front.metrics.uploads += 1
        if upload.answering:
            headers = (("Date", front.dates.now()), *front.router.cors(request))
            self._transport.write(upload_head(headers, chunked=request.version == "1.1"))
            upload.topics = front.signals.feeder(self._write_line)

    def _serve_upload(self, upload: Upload) -> bool:
        """Publish the next lines, or read more; return False if no more input has arrived."""
        request, route = self._request, self._route
        assert request is not None
        assert isinstance(route, PublishBody)
        if not self._front.takes_uploads:
            raise _leaving()
        if upload.fill():
            authorise(self._front, request, route)  # The token may have expired, or may be revoked.
            self._await(upload.publish, self._published_lines)
        elif upload.ended:
            self._end_upload(None)
        elif not upload.decoding:
            data, ended = self._parser.body_part()
            if not data and not ended:
                return False
            upload.receive(data, ended=ended)
        return True

    def _published_lines(self, _: None) -> None:
        self._send_answers()
        self._wait_for_more()

    def _send_answers(self, rest: bytes = b"") -> None:
        """Send the answers of the upload, and `rest`."""
        assert self._request is not None
        assert self._upload is not None
        answers = self._upload.take_answers() + rest
        if answers and not self._transport.is_closing():
            self._transport.write(wrap(answers) if self._is_chunked() else answers)

    def _write_line(self, line: bytes) -> bool:
        """Send a signal to the client of the upload, unless the client does not read."""
        if self._paused or self._transport.is_closing():
            return False
        self._transport.write(wrap(line) if self._is_chunked() else line)
        return True

    def _is_chunked(self) -> bool:
        return self._request is not None and self._request.version == "1.1"

    def _end_upload(self, error: RequestError | None) -> None:
        """Send the report of the upload; without answers to its lines, it is the whole response."""
        upload = self._upload
        assert upload is not None
        report = upload.report(error)
        if not upload.answering:
            headers = JSON if error is None else (*JSON, *error.headers)
            self._respond(200 if error is None else error.status, headers, report)
            return
        self._send_answers(report)
        self._answer(b"0\r\n\r\n" if self._is_chunked() else b"", keep=False)

    def _drop_upload(self, upload: Upload) -> None:
        if upload.topics is not None:
            upload.topics.close()
        self._upload = None
        self._front.metrics.uploads -= 1

    def _await(self, start: Callable[[Callable[[Any], None]], Cancel], then: Callable[[Any], None]) -> None:
        """Wait for the result of another part. The connection reads nothing meanwhile.

        Args:
            start: begins the operation, and returns a function that cancels it. The result may arrive within the call.
            then: receives the result. An error is sent to the client instead.
        """
        self._phase, self._cancel = Phase.WAITING, None
        pending = True

        def done(result: Any) -> None:
            nonlocal pending
            pending = False
            self._guarded(lambda: self._arrived(result, then))

        cancel = start(done)
        if pending and self._phase is Phase.WAITING:  # Otherwise the connection may wait for something else by now.
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
        """Respond with a document."""
        front = self._front
        if resource is Resource.PAGE:
            self._respond(200, front.page_headers, front.page)
        elif resource is Resource.HEALTH:
            self._respond(200, *json_body({"status": "ok"}))
        elif resource is Resource.READY:
            ready = front.ready and front.hub.ready
            leaving = not front.ready or front.hub.draining
            status = "ready" if ready else "draining" if leaving else "waiting for its log"
            self._respond(200 if ready else 503, *json_body({"status": status}))
        elif front.ask is not None:
            self._ask(front.ask, resource)
        elif resource is Resource.METRICS:
            self._respond(200, _TEXT, front.metrics.render())
        else:
            self._respond(200, JSON, front.stats(front.clock()))

    def _ask(self, ask: Ask, resource: Resource) -> None:
        """Respond with the statistics or metrics of all processes."""
        if resource is Resource.METRICS:
            self._await(lambda done: ask("metrics", None, done), lambda body: self._respond(200, _TEXT, body))
        else:
            self._await(lambda done: ask("stats", None, done), lambda body: self._respond(200, JSON, body))

    def _list_topics(self, query: TopicsQuery) -> None:
        """Respond with a page of topics, or with one topic."""
        front = self._front
        if front.ask is not None:
            ask = front.ask
            self._await(
                lambda done: ask("topics", query, done), lambda body: self._listed(query, topics.decode(body))
            )
        else:
            ahead_s = front.auth.wall() - front.clock()
            self._await(
                lambda done: topics.search(front.hub, query, ahead_s, front.loop, done),
                lambda page: self._listed(query, page),
            )

    def _listed(self, query: TopicsQuery, page: TopicsPage) -> None:
        if not query.topic:
            self._respond(200, JSON, topics.encode(page) + b"\n")
        elif page.topics:
            self._respond(200, JSON, topics.encode(page.topics[0]) + b"\n")
        else:
            raise RequestError(404, f"the topic {query.topic!r} has neither retained events nor streams")

    def _respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Respond to the current request; keep the connection open if both sides allow it."""
        request, front = self._request, self._front
        keep = request is not None and request.keep_alive and self._parser.intact and not front.hub.draining
        headers = (("Date", front.dates.now()), *headers, *front.router.cors(request))
        head_only = request is not None and request.method == "HEAD"
        self._answer(respond(status, headers, body, keep_alive=keep, head_only=head_only), keep=keep)

    def _refuse(self, error: RequestError) -> None:
        """Respond to a request with an error."""
        if error.limit:
            self._front.metrics.limited(error.limit)
        if error.status in (400, 401, 403, 408, 413, 414, 415, 417, 421, 429, 431, 501, 505):
            kind = "token" if error.status == 401 else "request"
            self._front.errors.report(kind, "rejected a request from %s: %s", self._address(), error.reason)
        if self._upload is not None:
            self._end_upload(error)
            return
        if error.status in _FOR_NOW and self._wants_retry_stream():
            self._send_retry_stream(error)
            return
        if error.status == HTTPStatus.NO_CONTENT:
            self._respond(error.status, error.headers)
            return
        headers, body = json_body({"error": error.reason})
        self._respond(error.status, (*headers, *error.headers), body)

    def _wants_retry_stream(self) -> bool:
        """Return whether the request is for an event stream and `refuse-streams` is `retry`."""
        request = self._request
        return (
            self._front.config.refuse_streams == "retry"
            and request is not None
            and request.method == "GET"
            and request.path.startswith("/events")
            and "text/event-stream" in request.headers.get("accept", "").lower()
        )

    def _send_retry_stream(self, error: RequestError) -> None:
        """Respond with a short stream that sets the reconnection time; EventSource does not retry after an error."""
        assert self._request is not None
        after_ms = 1000 * int(dict(error.headers).get("Retry-After", "0"))
        text = comment(error.reason) + come_back(after_ms + self._front.hub.draw_retry_ms())
        head, body = self._front.router.whole_stream(self._request, text)
        self._answer(self._front.dates.head(head) + body, keep=False)

    def _refuse_event(self, error: EventError) -> None:
        """Respond to a publish request with an invalid event."""
        self._front.errors.report("event", "rejected an event from %s: %s", self._address(), error)
        self._respond(error.status, *json_body({"error": str(error), "field": error.field}))

    def _answer(self, data: bytes, *, keep: bool) -> None:
        """Send a response, and wait for the next request or for the client to close."""
        self._request = self._route = None
        if self._upload is not None:
            self._drop_upload(self._upload)
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
        """Set the deadline of the next step."""
        if self._upload is not None:
            waiting = Waiting.LINE
        elif self._request is not None:
            waiting = Waiting.BODY
        else:
            waiting = Waiting.HEAD if self._parser.partial else Waiting.REST
        if self._paused:
            waiting = Waiting.FLUSH
        self._front.deadlines.set(self, waiting)

    def _address(self) -> str:
        """Return the address of the client, without the port."""
        forwarded = self._request.headers.get("x-forwarded-for") if self._request else None
        if not forwarded or not self._front.proxies:
            return self._peer
        return client_address(self._peer, forwarded, self._front.proxies)

    def _end(self) -> None:
        """Enter OVER, clear the deadline and cancel the pending operation."""
        self._phase = Phase.OVER
        if self._upload is not None:
            self._drop_upload(self._upload)
        self._front.deadlines.clear(self)
        if self._cancel is not None:
            self._cancel()
            self._cancel = None


def _leaving() -> RequestError:
    return RequestError(503, "the server is draining or is being replaced; connect again and send the rest", RETRY_SOON)
