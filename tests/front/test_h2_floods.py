"""The known attacks on servers of HTTP/2. Each ends at a bound, and leaves a server that serves its other clients.

Covers relay.front.h2_limits. `docs/architecture/http2.md` lists the attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder

from relay.front.h2_limits import FRAMES_BURST_S, FRAMES_PER_S
from relay.http.h2_frames import END_HEADERS, END_STREAM, PREFACE, FrameKind
from tests.h2_client import AUTHORIZED, Http2Client, frame
from tests.running import Relay, Stream, relay

BURST = FRAMES_PER_S * FRAMES_BURST_S
MEMORY_BYTES_MAX = 8_000_000
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/healthz")]
STREAM = [*GET[:3], (":path", "/events?topic=a")]
POST = [(":method", "POST"), *GET[1:3], (":path", "/publish?topic=a"), AUTHORIZED]


def limited(server: Relay, limit: str) -> int:
    """Return how often a limit was applied."""
    for line in server.request("GET", "/metrics")[2].decode().splitlines():
        if line.startswith("relay_limited_total{") and f'limit="{limit}"' in line:
            return int(float(line.rpartition(" ")[2]))
    return 0


@contextmanager
def attacked(*flags: str) -> Iterator[tuple[Relay, Http2Client]]:
    """Run a server and an attacker's connection. Check that another client is served, and that nothing is left."""
    with relay(*flags) as server, Stream(server.port, "topic=a") as other:
        server.publish("before", "a")
        assert other.next().data == "before"
        memory = server.memory_bytes()
        with Http2Client(server.port) as client:
            client.ask("GET", "/healthz")
            yield server, client
            server.publish("after", "a")
            assert other.next().data == "after"
            assert server.memory_bytes() - memory < MEMORY_BYTES_MAX
        assert not [record for record in server.log if record.get("level") == "ERROR"]


def headers(stream_id: int, fields: list[tuple[str, str]], *, ended: bool = True) -> bytes:
    """Return a HEADERS frame without any use of the dynamic table."""
    block = Encoder().encode([(name, value, True) for name, value in fields])
    return frame(FrameKind.HEADERS, END_HEADERS | (END_STREAM if ended else 0), stream_id, block)


def new_stream(client: Http2Client, fields: list[tuple[str, str]], *, ended: bool = True) -> int:
    """Open a stream behind the back of the client's library; return it."""
    stream_id = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream_id, fields, end_stream=ended)
    client.flush()
    return stream_id


def ping(stream: int, number: int) -> bytes:
    """9512."""
    return frame(FrameKind.PING, 0, 0, number.to_bytes(8, "big"))


def priority(stream: int, number: int) -> bytes:
    """9513: the whole tree of dependencies changes with each frame."""
    return frame(FrameKind.PRIORITY, 0, 1 + 2 * (number % 1000), (3 + 2 * (number % 999)).to_bytes(4, "big") + b"\xff")


def settings(stream: int, number: int) -> bytes:
    """9515."""
    return frame(FrameKind.SETTINGS, 0, 0, b"\0\x04" + (65535 + number % 2).to_bytes(4, "big"))


def empty_settings(stream: int, number: int) -> bytes:
    """9515, with the smallest frames."""
    return frame(FrameKind.SETTINGS, 0, 0)


def empty_data(stream: int, number: int) -> bytes:
    """9518."""
    return frame(FrameKind.DATA, 0, stream)


def unknown(stream: int, number: int) -> bytes:
    """Frames of a type that the server ignores."""
    return frame(0xF0, 0, 0)


def window_updates(stream: int, number: int) -> bytes:
    """9511: windows that open by one byte."""
    return frame(FrameKind.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")


@pytest.mark.parametrize("flood", [ping, priority, settings, empty_settings, empty_data, unknown, window_updates])
def test_a_flood_of_frames_without_progress_ends_the_connection(flood: Callable[[int, int], bytes]) -> None:
    with attacked() as (server, client):
        stream = new_stream(client, POST, ended=False)
        for start in range(0, 4 * BURST, 200):
            client.send(b"".join(flood(stream, number) for number in range(start, start + 200)))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert limited(server, "h2-frames") == 1


def test_a_few_such_frames_are_no_flood() -> None:
    with attacked() as (_, client):
        for number in range(BURST // 2):
            client.send(ping(0, number))
        client.until(lambda: len(client.pings) == BURST // 2, "the answers")
        assert client.ask("GET", "/healthz").status == 200


def test_a_client_that_opens_its_windows_in_small_steps_is_no_flood() -> None:
    """Two WINDOW_UPDATE frames for each KiB are many, and they are progress."""
    with attacked("--lag-bytes", "16MiB") as (server, client):
        client.acknowledge = False
        stream = client.subscribe("/events?topic=b")
        acknowledged = 0
        for number in range(150):
            server.publish("x" * 20_000, "b")
            while len(client.answers[stream].events) <= number:
                client.read()
                while len(client.answers[stream].body) - acknowledged >= 1024:
                    acknowledged += 1024
                    for each in (None, stream):
                        client.h2.increment_flow_control_window(1024, each)
                        client.flush()
        assert acknowledged > 2 * BURST * 1024
        assert limited(server, "h2-frames") == 0


@pytest.mark.parametrize("fields", [GET, STREAM])
def test_rapid_reset_ends_the_connection(fields: list[tuple[str, str]]) -> None:
    """CVE-2023-44487 and CVE-2019-9514: each request is cancelled in the same packet."""
    with attacked() as (server, client):
        cancel = int(ErrorCodes.CANCEL).to_bytes(4, "big")
        descriptors = server.open_descriptors()
        for start in range(101, 101 + 8 * BURST, 200):
            ids = range(start, start + 200, 2)
            client.send(b"".join(headers(n, fields) + frame(FrameKind.RST_STREAM, 0, n, cancel) for n in ids))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert limited(server, "h2-frames") == 1
        assert server.open_descriptors() <= descriptors + 5


def test_a_flood_of_resets_that_the_server_must_send_ends_the_connection() -> None:
    """CVE-2019-9514: each request is malformed, so the server answers RST_STREAM."""
    with attacked() as (server, client):
        malformed = [*GET, ("connection", "close")]
        for start in range(101, 101 + 8 * BURST, 200):
            client.send(b"".join(headers(number, malformed) for number in range(start, start + 200, 2)))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert limited(server, "h2-frames") == 1


def test_streams_beyond_the_limit_are_refused_and_a_flood_of_them_ends_the_connection() -> None:
    with attacked("--h2-streams-max", "10") as (server, client):
        for start in range(101, 101 + 8 * BURST, 200):
            client.send(b"".join(headers(number, STREAM) for number in range(start, start + 200, 2)))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert server.stats()["closes"].get("client", 0) <= 10


def test_a_window_of_one_byte_does_not_drag_the_response_out() -> None:
    """CVE-2019-9511: the client asks for a large document, one byte in each frame."""
    with attacked() as (server, client):
        client.send(frame(FrameKind.SETTINGS, 0, 0, b"\0\x04" + (1).to_bytes(4, "big")))
        stream = new_stream(client, [*GET[:3], (":path", "/")])
        for _ in range(4 * BURST):
            client.send(frame(FrameKind.WINDOW_UPDATE, 0, stream, b"\0\0\0\1"))
            if client.closed:
                break
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert len(client.answers[stream].frames) < 2 * BURST
        assert limited(server, "h2-frames") == 1


@pytest.mark.parametrize("name", ["", "a"])
def test_heads_without_an_end_are_bounded(name: str) -> None:
    """The CONTINUATION flood of 2024."""
    with attacked() as (server, client):
        block = Encoder().encode([(key, value, True) for key, value in GET])
        client.send(frame(FrameKind.HEADERS, END_STREAM, 101, block))
        field = Encoder().encode([(name, "x" * 100, True)]) * 20
        for _ in range(200):
            client.send(frame(FrameKind.CONTINUATION, 0, 101, field))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM
        assert limited(server, "head-bytes-max") == 1


def test_continuation_frames_without_content_are_bounded() -> None:
    with attacked() as (_, client):
        client.send(frame(FrameKind.HEADERS, END_STREAM, 101, b""))
        client.send(frame(FrameKind.CONTINUATION, 0, 101) * 10_000)
        assert client.until_closed() in (ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR)


def test_fields_without_a_name_are_bounded() -> None:
    """CVE-2019-9516: names and values of no bytes."""
    with attacked() as (_, client):
        block = Encoder().encode([(key, value, True) for key, value in GET])
        flags = END_STREAM | END_HEADERS
        client.send(frame(FrameKind.HEADERS, flags, 101, block + b"\x10\0\0" * 10))
        assert client.answer(101).reset == ErrorCodes.PROTOCOL_ERROR
        client.send(frame(FrameKind.HEADERS, flags, 103, block + b"\x10\0\0" * 4000))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_bomb_of_compressed_fields_is_bounded() -> None:
    """A field of 4 KB enters the dynamic table, and a thousand bytes refer to it a thousand times."""
    with attacked() as (_, client):
        encoder = Encoder()
        block = encoder.encode([*GET, ("a", "x" * 4000)])
        client.send(frame(FrameKind.HEADERS, END_STREAM | END_HEADERS, 101, block + b"\xbe" * 1000))
        assert client.until_closed() == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_head_just_over_the_limit_is_answered_431_and_the_connection_continues() -> None:
    with attacked("--head-bytes-max", "4KiB") as (_, client):
        long = "0123456789abcdefghijklmnopqrstuvwxyz" * 120  # 4320 bytes, of which Huffman's code leaves 3/4
        stream = new_stream(client, [*GET, ("a", long)])
        assert client.answer(stream).status == 431
        assert client.ask("GET", "/healthz").status == 200


def test_a_client_that_opens_its_windows_and_does_not_read_is_bounded() -> None:
    """CVE-2019-9517: the client asks for large documents, and closes the window of TCP."""
    with relay() as server, Stream(server.port, "topic=a") as other:
        memory = server.memory_bytes()
        with Http2Client(server.port, window=2**30, receive_buffer=4096) as client:
            client.h2.increment_flow_control_window(2**30)
            client.flush()
            for start in range(1, 400, 40):
                client.send(
                    b"".join(headers(number, [*GET[:3], (":path", "/")]) for number in range(start, start + 40, 2))
                )
            client.socket.settimeout(0.2)
            pings = 0
            while pings < 10 * BURST and not client.closed:
                try:
                    client.send(ping(0, pings) * 100)
                    pings += 100
                except TimeoutError:
                    break  # the server reads nothing more
            server.publish("after", "a")
            assert other.next().data == "after"
            assert server.memory_bytes() - memory < 2 * MEMORY_BYTES_MAX


def test_a_client_that_begins_and_does_not_continue_is_closed() -> None:
    with relay("--head-timeout", "300ms") as server:
        parts = (PREFACE[:20], PREFACE, PREFACE + frame(FrameKind.SETTINGS, 0, 0), PREFACE + b"\0\0\x40\1\4\0\0\0\1abc")
        for part in parts:
            with Http2Client(server.port, speak=False) as client:
                client.send(part)
                client.until_closed()
        assert limited(server, "head-timeout") >= 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\0\0\0\x09\0\0\0\0\1", ErrorCodes.PROTOCOL_ERROR),  # CONTINUATION first
        (b"\xff\xff\xff\0\0\0\0\0\1", ErrorCodes.FRAME_SIZE_ERROR),
        (frame(FrameKind.DATA, 0, 0, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameKind.HEADERS, 5, 2, b"\x82"), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameKind.HEADERS, 5, 101, b"\xff\xff\xff\xff"), ErrorCodes.COMPRESSION_ERROR),
        (frame(FrameKind.PUSH_PROMISE, 4, 101, b"\0\0\0\2\x82"), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameKind.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), ErrorCodes.FLOW_CONTROL_ERROR),
        (frame(FrameKind.SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"), ErrorCodes.FLOW_CONTROL_ERROR),
        (frame(FrameKind.PING, 0, 0, b"short"), ErrorCodes.FRAME_SIZE_ERROR),
    ],
)
def test_an_error_of_the_protocol_ends_the_connection_with_its_code(data: bytes, code: ErrorCodes) -> None:
    with attacked() as (_, client):
        client.send(data)
        found = client.until_closed()
        # The library has no code of its own for errors of compression.
        assert found == code or (code == ErrorCodes.COMPRESSION_ERROR and found == ErrorCodes.PROTOCOL_ERROR)
