"""A connection of the front: from the first byte of a request to its response or the hand-over of its descriptor.

Owns the phases of a connection: the order of its requests and responses, its deadlines, and its end. Never parses a
request (`relay.http.request`), never decides the response to a valid one (`relay.front.handlers`), and never writes to
a stream (`relay.core.hub`).

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

A publish request that stays open (`relay.front.upload_response`) goes from READING to WAITING and back with each batch
of its lines.

A long GET is a request for a stream of many topics. It waits for its turn (`relay.front.pace`) before it is parsed.
Meanwhile the connection reads nothing.

The module is longer than 400 lines because the phases of one connection are one state machine.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any

from relay.core.grant import ANYBODY, Grant
from relay.errors import EventError, RelayError, RequestError
from relay.front.deadlines import Waiting
from relay.front.front import Front, PackedConnection, guarded
from relay.front.handlers import admit, body_bytes_max, serve
from relay.front.publish import open_upload
from relay.front.refusals import report_refusal, retry_stream
from relay.front.routes import PublishBody, Route
from relay.front.upload_response import UploadResponse, uploads_end
from relay.http.forwarded import client_address
from relay.http.request import PREFACE_HEAD, Http2PrefaceError, Request, RequestParser
from relay.http.response import Headers, json_body, respond
from relay.limits import Limit
from relay.sources.requests import Cancel

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

    The handlers of requests use `front`, `parser`, `transport` and the methods from `can_write` on.
    """

    __slots__ = (
        "_become_http2",
        "_cancel",
        "_grant",
        "_in_turn",
        "_is_admin",
        "_paused",
        "_peer",
        "_phase",
        "_request",
        "_route",
        "_upload",
        "front",
        "parser",
        "transport",
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
        self.front = front
        self._is_admin = is_admin
        self._become_http2 = become_http2
        self.parser = RequestParser(front.config.head_bytes_max)
        self.parser.feed(received)
        self._phase = Phase.READING
        self._paused = False
        self._in_turn = False
        self._request: Request | None = None
        self._route: Route | None = None
        self._grant: Grant = ANYBODY
        self._peer = address
        self._cancel: Cancel | None = None
        self._upload: UploadResponse | None = None
        self.transport: asyncio.Transport
        self.waiting: Waiting | None = None

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request head."""
        self.transport = typing.cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        if not self._peer:
            self._peer = str(transport.get_extra_info("peername")[0])
        self.front.connections.add(self)
        self.front.deadlines.set(self, Waiting.HEAD)
        if self.parser.partial:
            self._paused = True  # uvloop reads as soon as this call returns, and a call to abort() here is not safe.
            self.front.loop.call_soon(self.resume_writing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds."""
        if self._upload is not None:
            self._upload.lost()
        self._end()
        self.front.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and serve the complete requests."""
        if self._phase in (Phase.LINGERING, Phase.OVER):
            return
        self.parser.feed(data)
        if self.waiting is Waiting.REST:
            self.front.deadlines.set(self, Waiting.HEAD)
        self._guarded(self._serve)

    def eof_received(self) -> bool:
        """Close the connection. All complete requests have been served, because it does not read before that."""
        if self._paused:
            return True  # The end is read again when the connection resumes.
        if self._phase is Phase.READING and self.parser.partial:
            self._guarded(lambda: self._refuse(RequestError(400, "the request is incomplete")))
        return False

    def pause_writing(self) -> None:
        """Stop serving requests until the client reads the responses."""
        self._paused = True
        if self._phase in (Phase.READING, Phase.FLUSHING):
            self.transport.pause_reading()
            self.front.deadlines.set(self, Waiting.FLUSH)

    def resume_writing(self) -> None:
        """Resume serving in a new turn, because this call happens within a write."""
        self._paused = False
        self.front.loop.call_soon(self._guarded, self._continue)

    def deadline_passed(self, waiting: Waiting) -> None:
        """Close the connection after a missed deadline; respond 408 if a request has begun."""
        if waiting in _LIMITS:
            self.front.metrics.limited(_LIMITS[waiting])
        begun = self.parser.partial
        if self._phase is Phase.READING and begun and waiting in (Waiting.HEAD, Waiting.BODY, Waiting.LINE):
            self._guarded(lambda: self._refuse(RequestError(408, f"timed out waiting for {waiting.value}")))
        elif waiting in (Waiting.FLUSH, Waiting.LINGER):
            self.transport.abort()
        else:
            self.transport.close()

    # Called by the front.

    def close_idle(self) -> None:
        """Close the connection if it is idle between two requests."""
        if self._phase is Phase.READING and self._request is None and not self.parser.partial:
            self.transport.close()

    def end_upload(self) -> None:
        """End the open publish request, if there is one. If a batch is being published, the upload ends after it."""
        if self._upload is None:
            return
        if self._upload.is_paced and self._cancel is not None:
            self._cancel()
            self._cancel, self._phase = None, Phase.READING
        if self._phase is Phase.READING:
            self._guarded(lambda: self._refuse(uploads_end()))

    def abort(self) -> None:
        """Abort the connection."""
        self._end()
        self.transport.abort()

    def pack(self) -> tuple[int, PackedConnection] | None:
        """Return the descriptor and the state for another process; None unless the connection is idle."""
        transport = self.transport
        begun = self._phase is not Phase.READING or self._request is not None or not self.parser.intact
        if begun or self._paused or transport.is_closing() or transport.get_write_buffer_size():
            return None
        fd: int = transport.get_extra_info("socket").fileno()
        return fd, PackedConnection(self._peer, self.parser.unread, self._is_admin)

    def adopt(self, connection: PackedConnection) -> None:
        """Continue a connection from another process."""
        self._peer, self._is_admin = connection.peer, connection.is_admin
        if connection.unread:
            self.data_received(connection.unread)
        else:
            self.front.deadlines.set(self, Waiting.REST)

    def send(self, data: bytes, *, keep: bool) -> None:
        """Send the answer to a poll that was handed over before, on a connection that continues it."""
        self._guarded(lambda: self.answer(data, keep=keep))

    # The life of a request.

    def _guarded(self, step: Callable[[], None]) -> None:
        guarded(step, self.abort)

    def _take_turn(self) -> None:
        """Serve the long request in its turn. The deadline of its head still applies."""
        if self._phase is Phase.READING and not self.transport.is_closing():
            self._in_turn = True
            self.transport.resume_reading()
            self._serve()

    def _continue(self) -> None:
        """Resume serving after a pause."""
        if self._paused or self.transport.is_closing():
            return
        if self._phase is Phase.FLUSHING:
            self._phase = Phase.READING
            self.transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        if self._phase is Phase.READING:
            self.transport.resume_reading()
            self.wait_for_more()
            self._serve()

    def _serve(self) -> None:
        """Serve the complete requests in order, for one turn."""
        for _ in range(REQUESTS_A_TURN):
            if self._phase is not Phase.READING or self._paused or self.transport.is_closing():
                return
            try:
                if not self._serve_one():
                    return
            except Http2PrefaceError as error:
                if self._become_http2 is None:
                    self._refuse(error)
                    return
                self._end()
                self.front.connections.discard(self)
                self._become_http2(self.transport, PREFACE_HEAD + self.parser.unread)
                return
            except RequestError as error:
                self._refuse(error)
        self.transport.pause_reading()
        self.front.loop.call_soon(self._guarded, self._continue)

    def _serve_one(self) -> bool:
        """Serve one request; return False if it is incomplete."""
        front = self.front
        if self._route is None:
            if self.parser.long_get and not self._in_turn:
                self.transport.pause_reading()
                front.pace.add(lambda: self._guarded(self._take_turn))
                return False
            self._in_turn = False
            request = self._request = self.parser.head()
            if request is None:
                return False
            self._begin(request)
        if self._upload is not None:
            return self._upload.serve()
        assert self._request is not None
        assert self._route is not None
        body = self.parser.body(body_bytes_max(front, self._route))
        if body is None:
            return False
        serve(self, self._request, self._route, self._grant, body)
        return True

    def _begin(self, request: Request) -> None:
        """Admit a request, and start to wait for its body."""
        front = self.front
        route, self._grant = admit(front, request, is_admin=self._is_admin)
        if isinstance(route, PublishBody):
            upload = open_upload(front, request, route, self._grant)
            length = request.body_length
            fits = upload is not None or length is None or length <= front.config.body_bytes_max
            if request.expects_continue and length != 0 and fits:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if upload is not None:
                self._upload = UploadResponse(self, upload, request, route)
        self._route = route
        if request.body_length != 0:
            front.deadlines.set(self, Waiting.BODY if self._upload is None else Waiting.LINE)

    # Called by the handlers.

    @property
    def can_write(self) -> bool:
        """Whether the client reads the responses."""
        return not self._paused and not self.transport.is_closing()

    def is_flushed(self) -> bool:
        """Return whether all responses are sent. If not, the current request is served again once they are."""
        if not self.transport.get_write_buffer_size():
            return True
        self._phase = Phase.FLUSHING
        # This calls pause_writing at once, and resume_writing when the buffer is empty.
        self.transport.set_write_buffer_limits(0, 0)
        return False

    def can_continue_after_poll(self) -> bool:
        """Return whether the connection may serve more requests after a stream that answers a poll."""
        # The engine drops further input. A proxy may use this connection for other clients, whose addresses differ.
        # The connection that continues a poll does not know whether it was accepted at `admin-listen`.
        return not self.parser.unread and self.address() == self._peer and not self._is_admin

    def wait_for(self, start: Callable[[Callable[[Any], None]], Cancel], then: Callable[[Any], None]) -> None:
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
            self.transport.pause_reading()
            self.front.deadlines.clear(self)

    def _arrived(self, result: Any, then: Callable[[Any], None]) -> None:
        if self._phase is not Phase.WAITING:
            return
        waited, self._cancel = self._cancel is not None, None
        self._phase = Phase.READING
        if isinstance(result, EventError):
            self.refuse_event(result)
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
            self.front.loop.call_soon(self._guarded, self._continue)

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Respond to the current request; keep the connection open if both sides allow it."""
        request, front = self._request, self.front
        keep = request is not None and request.keep_alive and self.parser.intact and not front.hub.draining
        headers = (("Date", front.dates.now()), *headers, *front.router.cors(request))
        head_only = request is not None and request.method == "HEAD"
        self.answer(respond(status, headers, body, keep_alive=keep, head_only=head_only), keep=keep)

    def _refuse(self, error: RequestError) -> None:
        """Respond to a request with an error."""
        report_refusal(self.front, error, self.address())
        if self._upload is not None:
            self._upload.end(error)
            return
        stream = retry_stream(self.front, self._request, error)
        if stream is not None:
            self.answer(stream, keep=False)
            return
        if error.status == HTTPStatus.NO_CONTENT:
            self.respond(error.status, error.headers)
            return
        headers, body = json_body({"error": error.reason})
        self.respond(error.status, (*headers, *error.headers), body)

    def refuse_event(self, error: EventError) -> None:
        """Respond to a publish request with an invalid event."""
        self.front.errors.report("event", "rejected an event from %s: %s", self.address(), error)
        self.respond(error.status, *json_body({"error": str(error), "field": error.field}))

    def answer(self, data: bytes, *, keep: bool) -> None:
        """Send a response, and wait for the next request or for the client to close."""
        self._request = self._route = None
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        if self.transport.is_closing():
            return
        self.transport.write(data)
        if keep:
            self.wait_for_more()
            return
        self._phase = Phase.LINGERING
        self.transport.write_eof()
        self.transport.resume_reading()
        unsent = self.transport.get_write_buffer_size()
        self.front.deadlines.set(self, Waiting.FLUSH if unsent else Waiting.LINGER)

    def wait_for_more(self) -> None:
        """Set the deadline of the next step."""
        if self._upload is not None:
            waiting = Waiting.LINE
        elif self._request is not None:
            waiting = Waiting.BODY
        else:
            waiting = Waiting.HEAD if self.parser.partial else Waiting.REST
        if self._paused:
            waiting = Waiting.FLUSH
        self.front.deadlines.set(self, waiting)

    def address(self) -> str:
        """Return the address of the client, without the port."""
        forwarded = self._request.headers.get("x-forwarded-for") if self._request else None
        if not forwarded or not self.front.proxies:
            return self._peer
        return client_address(self._peer, forwarded, self.front.proxies)

    def _end(self) -> None:
        """Enter OVER, clear the deadline and cancel the pending operation."""
        self._phase = Phase.OVER
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        self.front.deadlines.clear(self)
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
