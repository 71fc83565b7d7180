"""A client of HTTP/2 for tests: the library `h2` on a blocking socket, and frames as bytes for all that it refuses."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes

from relay.event import Event
from relay.http.h2_frames import HEAD_BYTES, FrameKind
from relay.sse import Decoder
from tests.running import TIMEOUT_S, TOKEN

AUTHORIZED = ("authorization", f"Bearer {TOKEN}")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream_id) + payload


@dataclass
class Answer:
    """The response on one stream, as far as it has arrived."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    informational: list[int] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    frames: list[int] = field(default_factory=list)  # bytes of each DATA frame
    ended: bool = False
    reset: ErrorCodes | int | None = None
    events: list[Event] = field(default_factory=list)  # if it is an event stream
    decoder: Decoder = field(default_factory=lambda: Decoder(1 << 24))

    def add(self, data: bytes) -> None:
        """Add a part of the body."""
        self.body += data
        self.frames.append(len(data))
        if self.headers.get("content-type") == "text/event-stream":
            self.events += self.decoder.feed(data)

    @property
    def over(self) -> bool:
        """Whether the stream has ended in either way."""
        return self.ended or self.reset is not None


class Http2Client:
    """One connection.

    Args:
        port: the port of the server.
        context: the TLS context; None without TLS.
        window: the initial window of each stream.
        acknowledge: whether the windows open again as data arrives.
        receive_buffer: SO_RCVBUF of the socket.
        speak: whether to send the preface and SETTINGS.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        window: int = 65535,
        acknowledge: bool = True,
        receive_buffer: int = 0,
        speak: bool = True,
    ) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="latin-1"))
        self.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.h2.local_settings.acknowledge()
        self.acknowledge = acknowledge
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.goaway: ErrorCodes | int | None = None
        self.last_stream_id: int | None = None
        self.pings: list[bytes] = []
        self.closed = False
        self._received = bytearray()
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(TIMEOUT_S)
        raw.connect(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = raw
        if context is not None:
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(raw, server_hostname="127.0.0.1")
            assert self.socket.selected_alpn_protocol() == "h2"
        if speak:
            self.h2.initiate_connection()
            self.flush()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def flush(self) -> None:
        """Send the queued frames."""
        self.send(self.h2.data_to_send())

    def send(self, data: bytes) -> None:
        """Send bytes; an error means that the server has closed."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, ssl.SSLError):
            self.closed = True

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        ended: bool = True,
    ) -> int:
        """Send a request whose body fits the windows; return its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *headers]
        self.h2.send_headers(stream_id, fields, end_stream=body is None and ended)
        if body is not None:
            self.send_body(stream_id, body, ended=ended)
        self.flush()
        return stream_id

    def send_body(self, stream_id: int, body: bytes, *, ended: bool = True) -> None:
        """Send a body, as the windows allow."""
        while body:
            size = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(body))
            if size <= 0:
                self.flush()
                self.read()
                continue
            self.h2.send_data(stream_id, body[:size])
            body = body[size:]
        if ended:
            self.h2.end_stream(stream_id)
        self.flush()

    def reset(self, stream_id: int) -> None:
        """Cancel a stream."""
        self.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        self.flush()

    def read(self) -> None:
        """Read once."""
        try:
            data = self.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.closed = True
            return
        self._received += data
        while len(self._received) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                break
            received = bytes(self._received[:end])
            del self._received[:end]
            if received[3] == FrameKind.GOAWAY:
                # After GOAWAY the library accepts nothing more, but the streams continue (RFC 9113 section 6.8).
                last_stream_id, code = struct.unpack(">II", received[9:17])
                self.goaway, self.last_stream_id = ErrorCodes(code), last_stream_id
            else:
                self._handle(received)
        self.flush()

    def _handle(self, received: bytes) -> None:
        stream_id = int.from_bytes(received[5:9], "big")
        if stream_id > self.h2.highest_outbound_stream_id:  # a test opened the stream with frames of its own
            if received[3] == FrameKind.RST_STREAM:
                self.answers[stream_id].reset = ErrorCodes(int.from_bytes(received[9:13], "big"))
            return
        for event in self.h2.receive_data(received):
            if isinstance(event, PingAckReceived):
                self.pings.append(bytes(event.ping_data))
            elif isinstance(event, InformationalResponseReceived):
                self.answers[event.stream_id].informational.append(int(event.headers[0][1]))
            elif isinstance(event, ResponseReceived):
                answer = self.answers[event.stream_id]
                answer.headers = {str(name): str(value) for name, value in event.headers}
                assert len(answer.headers) == len(event.headers), "a field comes twice"
                answer.status = int(answer.headers.pop(":status"))
            elif isinstance(event, DataReceived):
                self.answers[event.stream_id].add(event.data)
                if self.acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.answers[event.stream_id].ended = True
            elif isinstance(event, StreamReset):
                self.answers[event.stream_id].reset = event.error_code

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Read until a condition holds."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert not self.closed, f"closed before: {what}; GOAWAY {self.goaway!r}"
            assert time.monotonic() < deadline_s, f"not in time: {what}"
            self.read()

    def read_for(self, wait_s: float) -> None:
        """Read everything that arrives until nothing has arrived for a time."""
        self.socket.settimeout(wait_s)
        with contextlib.suppress(TimeoutError):
            while not self.closed:
                self.read()
        self.socket.settimeout(TIMEOUT_S)

    def answer(self, stream_id: int) -> Answer:
        """Read until a stream is over; return its response."""
        self.until(lambda: self.answers[stream_id].over, f"the response on stream {stream_id}")
        return self.answers[stream_id]

    def ask(self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None) -> Answer:
        """Send a request and return its response."""
        return self.answer(self.request(method, path, headers, body))

    def subscribe(self, path: str, headers: Sequence[tuple[str, str]] = ()) -> int:
        """Open a stream; return it when its head has arrived."""
        stream_id = self.request("GET", path, headers)
        self.until(lambda: self.answers[stream_id].status != 0, "the head of a stream")
        assert self.answers[stream_id].status == 200
        return stream_id

    def take(self, stream_id: int, count: int) -> list[Event]:
        """Read until a stream has received a number of events; return them."""
        self.until(lambda: len(self.answers[stream_id].events) >= count, f"{count} events")
        return self.answers[stream_id].events

    def until_closed(self) -> ErrorCodes | int | None:
        """Read until the server closes; return the code of its GOAWAY."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not self.closed:
            assert time.monotonic() < deadline_s, "the server does not close"
            self.read()
        return self.goaway

    def send_frame(self, kind: FrameKind, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> None:
        """Send a frame that the library would refuse to send."""
        self.send(frame(kind, flags, stream_id, payload))
