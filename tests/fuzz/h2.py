"""HTTP/2: any frames are served or rejected, the same at every split, and the answers are frames of HTTP/2."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from relay.config.model import Config
from relay.front import h2
from relay.front.front import Front
from relay.front.h2_stream import Http2Stream
from relay.http.h2_frames import HEAD_BYTES, PAYLOAD_BYTES_MAX, PREFACE
from tests.fuzz.pieces import cut

# HEADERS of GET and POST with END_HEADERS on streams 1 and 3, DATA, and the control frames.
WORDS = (
    b"\0\0\0\4\0\0\0\0\0",
    b"\0\0\6\4\0\0\0\0\0\0\4\0\0\0\1",
    b"\0\0\x0d\1\5\0\0\0\1\x82\x86\x04\x07/events\x41\x01a",
    b"\0\0\x0b\1\4\0\0\0\3\x83\x86\x04\x05/push\x41\x01a"[:20],
    b"\0\0\1\0\1\0\0\0\3x",
    b"\0\0\4\3\0\0\0\0\1\0\0\0\x08",
    b"\0\0\x08\6\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"\0\0\4\x08\0\0\0\0\1\0\0\0\1",
    b"\0\0\5\2\0\0\0\0\1\0\0\0\0\1",
    b"\0\0\x08\7\0\0\0\0\0\0\0\0\1\0\0\0\0",
    b"\0\0\0\x09\4\0\0\0\1",
    b"\x40\1a\1b",
    b"\x5c\0015",
    b"\xff",
    b"\x3f\xe1\x1f",
)
RESPONSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
STEPS_MAX = 10_000


class FakeTransport:
    """Stores the written bytes."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def write_eof(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def nothing(self, *_: object) -> None:
        """Stand in for the methods that need no effect."""

    set_write_buffer_limits = pause_reading = resume_reading = nothing


class FakeLoop:
    """Runs callbacks in order. A stream that opens receives a part of a response at once, and never a pair."""

    def __init__(self) -> None:
        self.callbacks: deque[Callable[[], None]] = deque()
        self.requests: list[bytes] = []

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.callbacks.append(lambda: callback(*arguments))

    def create_task(self, opening: Coroutine[Any, Any, None]) -> None:
        stream = cast(Http2Stream, cast(Any, opening).cr_frame.f_locals["self"])
        opening.close()
        self.requests.append(bytes(stream._request_unsent))
        stream._respond(RESPONSE)

    def run(self) -> None:
        """Run the callbacks until none is left."""
        for _ in range(STEPS_MAX):
            if not self.callbacks:
                return
            self.callbacks.popleft()()
        raise AssertionError("the connection does not rest")


def outcome(pieces: list[bytes]) -> tuple[bytes, list[bytes], bool]:
    """Return the bytes written, the requests, and whether the connection is closed."""
    loop, transport = FakeLoop(), FakeTransport()
    ignore = SimpleNamespace(
        set=lambda *_: None, clear=lambda *_: None, limited=lambda *_: None, report=lambda *_: None
    )
    front = SimpleNamespace(
        loop=loop, deadlines=ignore, metrics=ignore, errors=ignore, clock=lambda: 0.0,
        config=Config(head_bytes_max=1024, h2_streams_max=4), http2=set(), http2_streams=0, takes_http2=True,
    )  # fmt: skip
    connection = h2.Http2Connection(cast(Front, front), "192.0.2.1", lambda: True)
    connection.connection_made(cast(asyncio.Transport, transport))
    for piece in (PREFACE, *pieces):
        connection.data_received(piece)
        loop.run()
    closed = transport.closed
    connection.connection_lost(None)
    loop.run()
    assert not front.http2
    assert front.http2_streams == 0
    return bytes(transport.written), loop.requests, closed


def frames(data: bytes) -> list[bytes]:
    """Split bytes into frames."""
    found = []
    while data:
        end = HEAD_BYTES + int.from_bytes(data[:3], "big")
        assert len(data) >= end
        assert end <= HEAD_BYTES + PAYLOAD_BYTES_MAX
        found.append(data[:end])
        data = data[end:]
    return found


def fail(*arguments: object) -> None:
    """Stand in for the report of an unexpected error: the fuzzer must see it."""
    raise


cast(Any, h2._logger).exception = fail


def check(data: bytes) -> None:
    """Check one input."""
    pieces = cut(data)
    written, requests, closed = outcome(pieces)
    assert (written, requests, closed) == outcome([b"".join(pieces)])
    assert frames(written)
    for request in requests:
        assert request.endswith(b"\r\n\r\n") or b"\r\n\r\n" in request
        assert b" HTTP/1.1\r\n" in request.partition(b"\n")[0] + b"\n"
