"""One stream of HTTP/2: a request, and the inner end of its socket pair to the front.

Owns the bytes of one stream in transit. Never writes a frame: `relay.front.h2` does.

Theory of operation. The other end of the pair is an ordinary connection of the front (HTTP/1.1), and later a stream of
the engine. The body of the response waits here while the flow-control windows are closed or the client does not read.
Meanwhile this end reads nothing, and the pair fills, so the engine handles the stream like any other slow stream. The
body of the request waits in the transport of this end. When the transport has room, the connection acknowledges the
bytes, which opens the client's window.
"""

from __future__ import annotations

import asyncio
import select
import typing
from functools import partial
from typing import TYPE_CHECKING

import h11
from h2.errors import ErrorCodes

from relay.front.connection import FrontProtocol
from relay.front.deadlines import Waiting
from relay.front.pair import connect_pair
from relay.http.h2_exchange import Exchange, MalformedError
from relay.limits import Limit

if TYPE_CHECKING:
    from relay.front.h2 import Http2Connection

READ_BYTES = 16 * 1024
"""Maximum bytes of one read: the payload of a frame. At most one read waits in a stream."""

_scratch = bytearray(READ_BYTES)  # All streams read into it, because each read is consumed at once.


class Http2Stream(asyncio.BufferedProtocol):
    """One stream of a connection.

    Args:
        connection: the connection.
        stream_id: the id of the stream.
        exchange: the request, translated.
        ended: whether the request has no body.
    """

    __slots__ = (
        "_body",
        "_complete",
        "_connection",
        "_exchange",
        "_has_length",
        "_head",
        "_request_ended",
        "_request_unsent",
        "_task",
        "_transport",
        "_unacknowledged",
        "_write_paused",
        "over",
        "stream_id",
        "waiting",
    )

    def __init__(self, connection: Http2Connection, stream_id: int, exchange: Exchange, *, ended: bool) -> None:
        self._connection = connection
        self._exchange = exchange
        self._request_unsent = bytearray(exchange.request)
        self._request_ended = ended
        self._unacknowledged = 0
        self._write_paused = True
        self._head: h11.Response | None = None
        self._has_length = False
        self._body = bytearray()
        self._complete = False
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self.stream_id = stream_id
        self.over = False
        self.waiting: Waiting | None = None

    def start(self) -> None:
        """Connect to the front in a later turn, so that a request that is cancelled at once needs no pair."""
        self._task = self._connection.front.loop.create_task(self._open())

    async def _open(self) -> None:
        front = self._connection.front
        if self.over:
            return
        become = partial(FrontProtocol, front, self._connection.address, is_admin=self._connection.is_admin)
        try:
            await connect_pair(front.loop, front.config.client_buffer, lambda: self, become)
        except OSError as error:
            self._connection.failed(self, error)

    # The request, from the connection.

    def receive(self, data: bytes, flow_bytes: int) -> None:
        """Forward a part of the request's body.

        Args:
            data: the part.
            flow_bytes: bytes to acknowledge for the part, including padding.
        """
        self._unacknowledged += flow_bytes
        self._request_unsent += self._exchange.body(data)
        self._write()

    def end_request(self) -> None:
        """End the request."""
        if not self._request_ended:
            self._request_ended = True
            self._request_unsent += self._exchange.end()
            self._write()

    def _write(self) -> None:
        if self._transport is not None and not self._write_paused and not self._transport.is_closing():
            self._transport.write(bytes(self._request_unsent))
            self._request_unsent.clear()
            if not self._write_paused:  # this write has not paused it
                self._acknowledge()

    def _acknowledge(self) -> None:
        if self._unacknowledged:
            self._connection.acknowledge(self.stream_id, self._unacknowledged)
            self._unacknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = typing.cast(asyncio.Transport, transport)
        if self.over:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(READ_BYTES, READ_BYTES // 4)
        self._write_paused = False
        self._write()

    def pause_writing(self) -> None:
        """Acknowledge nothing more, so that the client's window closes."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Continue in a new turn, because this call may happen within a write."""
        self._write_paused = False
        self._connection.front.loop.call_soon(self._connection.guarded, self._write)

    # The response, from the front.

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the buffer for the next read."""
        return _scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Forward a part of the response."""
        self._connection.guarded(lambda: self._respond(bytes(_scratch[:nbytes])))

    def eof_received(self) -> bool:
        """End the response. The transport closes when the stream is over."""
        self._connection.guarded(lambda: self._respond(b""))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Reset the stream if its response is incomplete."""
        self._connection.guarded(lambda: self._respond(b""))

    def _respond(self, data: bytes) -> None:
        if self.over or self._complete:
            return
        try:
            events = self._exchange.receive(data)
        except MalformedError:
            # The front has aborted the response, for example that of a slow stream.
            self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)
            return
        for event in events:
            if isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.Response):
                self._head = event
                self._has_length = any(name == b"content-length" for name, _ in event.headers)
            elif isinstance(event, h11.InformationalResponse):
                self._connection.send_head(self.stream_id, event, ends=False)
            else:
                self._complete = True
        if not data and not self._complete:
            self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)
            return
        self.send()

    def send(self) -> None:
        """Send as much of the response as the client accepts, and read more when all of it is sent."""
        if self.over:
            return
        if self._head is not None:
            ends = self._complete and not self._body
            self._connection.send_head(self.stream_id, self._head, ends=ends)
            self._head = None
            if ends:
                self._finish()
                return
        while self._body:
            room = self._connection.room(self.stream_id)
            if not room:
                self._wait()
                return
            self._connection.front.deadlines.clear(self)
            part = bytes(self._body[:room])
            del self._body[:room]
            ends = self._complete and not self._body
            self._connection.send_body(self.stream_id, part, ends=ends, cut=bool(self._body))
            if ends:
                self._finish()
                return
        if self._complete:
            self._connection.send_body(self.stream_id, b"", ends=True)
            self._finish()
        elif self._transport is not None and not self._transport.is_closing():
            self._connection.blocked.pop(self.stream_id, None)
            self._transport.resume_reading()

    def _wait(self) -> None:
        """Read nothing until the client accepts more."""
        self._connection.blocked.pop(self.stream_id, None)
        self._connection.blocked[self.stream_id] = self  # after the other streams
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        if self.waiting is None:
            self._connection.front.deadlines.set(self, Waiting.FLUSH)

    def deadline_passed(self, waiting: Waiting) -> None:
        """Reset the stream if its response is complete, has a length or is abandoned; an open event stream may wait."""
        if not (self._complete or self._has_length or self._is_abandoned()):
            self._connection.front.deadlines.set(self, waiting)
            return
        self._connection.front.metrics.limited(Limit.ANSWER_TIME)
        self._connection.guarded(lambda: self._connection.reset(self, ErrorCodes.CANCEL))

    def _is_abandoned(self) -> bool:
        """Return whether the engine has closed its end. The transport does not detect this while it reads nothing."""
        if self._transport is None or self._transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _finish(self) -> None:
        if not self._request_ended:
            # RFC 9113 section 8.1: the server needs no more of the request.
            self._connection.reset(self, ErrorCodes.NO_ERROR)
        else:
            self._connection.forget(self)

    def close(self) -> None:
        """Release everything that the stream holds."""
        self.over = True
        self._connection.front.deadlines.clear(self)
        self._acknowledge()
        if self._transport is not None:
            self._transport.abort()
