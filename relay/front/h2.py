"""HTTP/2 in the process: one connection, and a pump for each of its streams.

Owns the frames of a connection, its limits and its close. Never serves a request: each stream is an ordinary HTTP/1.1
connection of the front behind a socket pair (`relay.front.h2_stream`).

Theory of operation. The library `h2` keeps the state of the protocol. It receives one frame at a time, so that each
frame is counted before it is processed. All frames of one turn of the loop are sent in one write.

    client ── TCP or TLS ── connection ══ stream 1 ══ pair of sockets ── the front, later the engine
                                       ══ stream 3 ══ pair of sockets ── the front, later the engine

Three bounds protect the process. The connection reads nothing while its client does not read. A request over the limit
of concurrent streams is refused. A budget bounds the frames that make no progress (`relay.front.h2_limits`).

The server closes a connection in two steps. It sends GOAWAY and refuses new streams. It closes the connection when the
last stream has ended.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import typing
from collections.abc import Callable

import h11
from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from relay.front.deadlines import Waiting
from relay.front.front import Front, guarded
from relay.front.h2_limits import Http2Limits, begin
from relay.front.h2_stream import Http2Stream
from relay.http.h2_exchange import Exchange, MalformedError
from relay.http.h2_frames import Frame, FrameError, FrameKind, FrameReader
from relay.limits import Limit

STREAMS_A_TURN = 8
"""Requests of one connection that are opened per turn of the event loop, as on a connection of HTTP/1.1."""
WRITE_BUFFER_HIGH = 64 * 1024
"""Unsent bytes above which the connection reads and sends nothing more. It resumes below a quarter of this."""

_logger = logging.getLogger("relay.http2")


class Http2Connection(asyncio.Protocol):
    """One connection of HTTP/2.

    Args:
        front: the state that all connections share.
        address: the address of the client.
        has_room: returns whether there are descriptors for one more stream.
        is_admin: whether the connection was accepted at `admin-listen`.
    """

    def __init__(
        self, front: Front, address: str, has_room: Callable[[], bool], *, is_admin: bool = False
    ) -> None:
        self.front = front
        self.address = address
        self.is_admin = is_admin
        self._has_room = has_room
        self._reader = FrameReader()
        self._h2 = begin(front.config)
        self._streams: dict[int, Http2Stream] = {}
        self.blocked: dict[int, Http2Stream] = {}
        self._transport: asyncio.Transport
        self._limits = Http2Limits(front.config.head_bytes_max)
        self._opened = 0
        self._congested = False
        self._flushing = False
        self._queued_bytes = 0
        self._leaving = False
        self._over = False
        self.waiting: Waiting | None = None

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the server's settings, and wait for a request."""
        self._transport = typing.cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_HIGH, WRITE_BUFFER_HIGH // 4)
        self.front.http2.add(self)
        self.front.deadlines.set(self, Waiting.HEAD)
        self._flush()
        if not self.front.takes_http2:
            self.leave()

    def data_received(self, data: bytes) -> None:
        """Handle the complete frames."""
        if not self._over:
            self._reader.feed(data)
            self.guarded(self._serve)

    def eof_received(self) -> bool:
        """Close the connection, because a client that cannot open windows receives nothing more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds."""
        self._end()
        self.front.http2.discard(self)
        # The library's object has methods of its own in a dict. Without this, only the garbage collector could free it.
        vars(self._h2).clear()

    def pause_writing(self) -> None:
        """Read nothing, from the client or from the front, until the client reads."""
        self._congested = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue in a new turn, because this call may happen within a write."""
        self._congested = False
        self.front.loop.call_soon(self.guarded, self._continue)

    def deadline_passed(self, waiting: Waiting) -> None:
        """Close a connection that has no request, or abort one that the client does not close."""
        if waiting in (Waiting.LINGER, Waiting.FLUSH):
            self.abort()
            return
        if waiting is Waiting.HEAD:
            self.front.metrics.limited(Limit.HEAD_TIMEOUT)
        self.guarded(lambda: self._close(ErrorCodes.NO_ERROR))

    # Called by the front.

    def close_idle(self) -> None:
        """Close the connection if it has no streams."""
        if not self._streams and not self._over:
            self.guarded(lambda: self._close(ErrorCodes.NO_ERROR))

    def leave(self) -> None:
        """Refuse new streams, and close when the last stream has ended."""
        if not self._leaving and not self._over:
            self._leaving = True
            self._send_goaway(ErrorCodes.NO_ERROR)
            self.close_idle()

    def cut(self) -> None:
        """Reset all streams and close. Clients reconnect and resume."""
        for stream in list(self._streams.values()):
            self.reset(stream, ErrorCodes.CANCEL)
        self.close_idle()

    def abort(self) -> None:
        """Abort the connection."""
        self._end()
        self._transport.abort()

    # Frames from the client.

    def guarded(self, step: Callable[[], None]) -> None:
        """Run a step as the outermost callback, unless the connection is over."""
        if not self._over:
            guarded(step, self.abort)

    def _serve(self) -> None:
        """Handle the complete frames, for one turn."""
        self._opened = 0
        try:
            while self._opened < STREAMS_A_TURN and not self._over:
                frame = self._reader.next()
                if frame is None:
                    return
                self._receive(frame)
        except FrameError as error:
            self._fail(error.code, str(error))
            return
        except ProtocolError as error:
            self._flush()  # the library has queued GOAWAY
            self._fail(ErrorCodes(error.error_code), str(error), announced=True)
            return
        finally:
            self._flush_soon()
        if not self._over:
            self._transport.pause_reading()
            self.front.loop.call_soon(self.guarded, self._continue)

    def _continue(self) -> None:
        """Resume after a pause."""
        if not self._congested:
            self._transport.resume_reading()
            self._send_blocked()
            self._serve()

    def _receive(self, frame: Frame) -> None:
        """Count one frame, and pass it to the library."""
        if not self._accepts(frame):
            return
        if frame.kind == FrameKind.GOAWAY and not frame.stream_id:
            # The library would not end the open streams after GOAWAY. RFC 9113 section 6.8 lets them continue.
            self.leave()
            return
        for event in self._h2.receive_data(frame.data):
            self._handle(event)

    def _accepts(self, frame: Frame) -> bool:
        """Return whether a frame is within the limits. If not, close the connection."""
        limit = self._limits.exceeded(frame, self.front.clock())
        if limit is not None:
            self.front.metrics.limited(limit)
            self._fail(ErrorCodes.ENHANCE_YOUR_CALM, f"it exceeded {limit}")
        return limit is None

    def _reject(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream that was not opened. The budget of frames without progress bounds such streams."""
        self._h2.reset_stream(stream_id, code)
        if self._limits.spend(self.front.clock()):
            self.front.metrics.limited(Limit.H2_FRAMES)
            self._fail(ErrorCodes.ENHANCE_YOUR_CALM, "too many requests were rejected")

    def _handle(self, event: events.Event) -> None:
        if self._over:
            return
        if isinstance(event, events.RequestReceived):
            self._open(event)
        elif isinstance(event, events.DataReceived):
            self._receive_body(event)
        elif isinstance(event, events.StreamEnded):
            if stream := self._streams.get(event.stream_id):
                self._translated(stream, stream.end_request)
        elif isinstance(event, events.StreamReset):
            if stream := self._streams.get(event.stream_id):
                self.forget(stream)
        elif isinstance(event, events.WindowUpdated) and event.stream_id:
            if stream := self.blocked.get(event.stream_id):
                stream.send()
        elif isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            self._send_blocked()

    def _open(self, event: events.RequestReceived) -> None:
        """Open a stream, if the limits allow it."""
        stream_id = event.stream_id
        ended = event.stream_ended is not None
        try:
            exchange = Exchange([(bytes(name), bytes(value)) for name, value in event.headers], ended=ended)
        except MalformedError as error:
            self.front.errors.report("request", "rejected a request from %s: %s", self.address, error)
            self._reject(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        is_full = len(self._streams) >= self.front.config.h2_streams_max
        if is_full:
            self.front.metrics.limited(Limit.H2_STREAMS_MAX)
        if is_full or self._leaving:
            self._reject(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        if not self._has_room():
            self.front.metrics.limited(Limit.DESCRIPTORS)
            self._refuse(stream_id, ended=ended)
            return
        self._opened += 1
        self.front.deadlines.clear(self)
        stream = self._streams[stream_id] = Http2Stream(self, stream_id, exchange, ended=ended)
        self.front.http2_streams += 1
        stream.start()

    def _refuse(self, stream_id: int, *, ended: bool) -> None:
        """Respond 503 to a request that the front cannot receive."""
        self._h2.send_headers(stream_id, [(":status", "503"), ("retry-after", "1")], end_stream=True)
        if not ended:
            self._h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)

    def _receive_body(self, event: events.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            return
        self._translated(stream, lambda: stream.receive(event.data or b"", event.flow_controlled_length or 0))

    def _translated(self, stream: Http2Stream, step: Callable[[], None]) -> None:
        """Process a part of a request; reset the stream if the request is malformed."""
        try:
            step()
        except MalformedError:
            self.reset(stream, ErrorCodes.PROTOCOL_ERROR)

    # Called by the streams.

    def failed(self, stream: Http2Stream, error: OSError) -> None:
        """Respond 503 to a stream that has not reached the front."""
        if stream.over or self._over:
            return
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self.front.metrics.limited(Limit.DESCRIPTORS)
        else:
            _logger.error("failed to open a stream from %s: %s", self.address, error.strerror)
        self._refuse(stream.stream_id, ended=True)
        self.forget(stream)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Open the client's windows by the number of bytes that the front has received."""
        if not self._over:
            self._h2.acknowledge_received_data(count, stream_id)
            self._flush_soon()

    def room(self, stream_id: int) -> int:
        """Return how many bytes of a body may be sent now."""
        if self._congested:
            return 0
        return max(0, min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size))

    def send_head(self, stream_id: int, head: h11.Response | h11.InformationalResponse, *, ends: bool) -> None:
        """Send the head of a response. The library drops the fields of HTTP/1.1 connections."""
        fields = [(b":status", b"%d" % head.status_code), *head.headers]
        self._h2.send_headers(stream_id, fields, end_stream=ends)
        self._flush_soon()

    def send_body(self, stream_id: int, data: bytes, *, ends: bool, cut: bool = False) -> None:
        """Send a part of a body.

        Args:
            stream_id: the stream.
            data: at most `room` bytes.
            ends: whether the body is complete.
            cut: whether a window or the largest frame has truncated the part.
        """
        self._h2.send_data(stream_id, data, end_stream=ends)
        self._queued_bytes += len(data)
        self._limits.sent(len(data), cut=cut)
        self._flush_soon()

    def reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        """End a stream with RST_STREAM."""
        if not stream.over and not self._over:
            self._h2.reset_stream(stream.stream_id, code)
            self.forget(stream)
            self._flush_soon()

    def forget(self, stream: Http2Stream) -> None:
        """Close a stream whose response is complete, or that is reset."""
        stream.close()
        self.blocked.pop(stream.stream_id, None)
        del self._streams[stream.stream_id]
        self.front.http2_streams -= 1
        if not self._streams and not self._over:
            if self._leaving:
                self._close(ErrorCodes.NO_ERROR)
            else:
                self.front.deadlines.set(self, Waiting.REST)

    def _send_blocked(self) -> None:
        """Let the blocked streams send, beginning with the one that has waited longest."""
        for stream in list(self.blocked.values()):
            if self._congested or not self._h2.outbound_flow_control_window:
                return
            stream.send()

    # Frames to the client.

    def _flush_soon(self) -> None:
        if self._queued_bytes >= WRITE_BUFFER_HIGH:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self.front.loop.call_soon(self.guarded, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._queued_bytes = 0
        if not self._transport.is_closing() and (data := self._h2.data_to_send()):
            self._transport.write(data)

    def _send_goaway(self, code: ErrorCodes) -> None:
        """Send GOAWAY without the library, which would send no frame after it."""
        self._flush()
        if not self._transport.is_closing():
            frame = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=code)
            self._transport.write(frame.serialize())

    def _fail(self, code: ErrorCodes, reason: str, *, announced: bool = False) -> None:
        """Close the connection after an error of the client."""
        self.front.errors.report("request", "closed an HTTP/2 connection from %s: %s", self.address, reason)
        self._close(code, announced=announced)

    def _close(self, code: ErrorCodes, *, announced: bool = False) -> None:
        """Send GOAWAY and close, after the queued frames are sent."""
        if self._over:
            return
        if announced or (self._leaving and code == ErrorCodes.NO_ERROR):
            self._flush()
        else:
            self._send_goaway(code)
        self._end()
        self._transport.resume_reading()  # This drops further input. Unread input would turn the close into a reset.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
        is_sent = not self._transport.get_write_buffer_size()
        self.front.deadlines.set(self, Waiting.LINGER if is_sent else Waiting.FLUSH)

    def _end(self) -> None:
        """Clear the deadline and close the streams."""
        self._over = True
        self.front.deadlines.clear(self)
        for stream in list(self._streams.values()):
            self.forget(stream)
