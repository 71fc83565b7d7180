"""The front's connections over real sockets on uvloop, with a fake hub."""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import itertools
import json
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
import uvloop

from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.core.hub import Hub
from relay.core.stream import Subscribe
from relay.errors import EventError, RequestError
from relay.event import Event
from relay.front import front as front_module
from relay.front.connection import REQUESTS_A_TURN, WRITE_BUFFER_HIGH, FrontProtocol
from relay.front.deadlines import Waiting
from relay.front.front import Front
from relay.front.pace import Pace
from relay.telemetry.metrics import Metrics
from tests.sources.fakes import value

TOKEN = "sesame"
PAGE = b"<script>1</script>"
LONG_PAGE = bytes(4_000_000)
BUFFER_BYTES = 4096  # of each socket, so that answers pile up soon


class FakeHub:
    """Takes descriptors and events."""

    def __init__(self) -> None:
        self.preparing: list[Callable[[None], None]] = []
        self.slow_to_prepare = False
        self.draining = False
        self.refuse: Exception | None = None
        self.streams: list[tuple[socket.socket, Subscribe, str]] = []
        self.events: list[Event] = []
        self.holding = False
        self.refusal = ""
        self.unconfirmed: list[Callable[[], None]] | None = None  # a list: acknowledgements wait
        self.releases: list[Callable[[], None]] = []

    @property
    def ready(self) -> bool:
        return not self.draining

    def find(self, terms: tuple[str, ...], ids: Sequence[str]) -> int | None:
        return 0

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        for event in events:
            if event.id == "bad":
                raise EventError("id", "is bad")
        self.events += events
        return [f"e-{len(self.events) - len(events) + place}" for place in range(len(events))]

    def prepare(self, request: Subscribe, now_s: float, done: Callable[[None], None]) -> Callable[[], None]:
        self.preparing.append(done)
        if not self.slow_to_prepare:
            done(None)
        return lambda: self.preparing.remove(done)

    def held(self, topic: str) -> bool:
        return self.holding and topic == "held"

    def on_release(self, callback: Callable[[], None]) -> None:
        self.releases.append(callback)

    def confirm(self, callback: Callable[[], None]) -> None:
        if self.unconfirmed is None:
            callback()
        else:
            self.unconfirmed.append(callback)

    def release(self, *, holding: bool = False) -> None:
        """End a hold; with `holding`, another one continues."""
        self.holding = holding
        callbacks, self.releases = self.releases, []
        for callback in callbacks:
            callback()

    def subscribe(self, fd: int, request: Subscribe, address: str, now_s: float) -> None:
        if self.refuse is not None:
            raise self.refuse
        stream = socket.socket(fileno=fd)
        stream.send(request.head + b"data: first\n\n")
        self.streams.append((stream, request, address))

    def draw_retry_ms(self) -> int:
        return 1234

    def stats(self, now_s: float) -> bytes:
        return json.dumps({"streams": len(self.streams), "now_s": now_s}).encode()


class FakeMetrics:
    """Counts rejected input."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.limits: list[str] = []
        self.broken = False

    def limited(self, limit: str) -> None:
        self.limits.append(limit)

    def input_error(self, source: str, kind: str) -> None:
        self.errors.append((source, kind))

    def render(self) -> bytes:
        if self.broken:
            raise ValueError("no metrics")
        return b"relay_streams 0\n"


@dataclass
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Client:
    """One connection to the front."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> Reply:
        """Read a response's head."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:-2])
        # RFC 9110 section 6.6.1: every answer has Date, except those with a 1xx status.
        assert ("Date" in headers) == (not lines[0].startswith("HTTP/1.1 1")), lines
        assert len(headers) == len(lines) - 3, "a header comes twice"
        return Reply(int(lines[0].split()[1]), headers)

    async def reply(self, *, bodyless: bool = False) -> Reply:
        """Read a response."""
        reply = await self.head()
        if not bodyless and "Content-Length" in reply.headers:
            reply.body = await self.reader.readexactly(int(reply.headers["Content-Length"]))
        return reply

    async def ask(self, data: bytes, *, bodyless: bool = False) -> Reply:
        """Send a request and read the response."""
        self.send(data)
        return await self.reply(bodyless=bodyless)

    async def rest(self) -> bytes:
        """Read until the server closes."""
        return await self.reader.read()

    def pause(self) -> None:
        """Stop reading."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read again."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Cut the connection with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Site:
    """A front that listens, its fakes, and its clients."""

    front: Front
    hub: FakeHub
    metrics: FakeMetrics
    address: tuple[str, int]
    lost: asyncio.Queue[FrontProtocol] = field(default_factory=asyncio.Queue)
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        end.setblocking(False)
        await self.front.loop.sock_connect(end, self.address)
        client = Client(*await asyncio.open_connection(sock=end, limit=2**16))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes, *, bodyless: bool = False) -> Reply:
        """Ask on a connection of its own."""
        return await (await self.client()).ask(data, bodyless=bodyless)


@asynccontextmanager
async def serve(page: bytes = PAGE, **settings: Any) -> AsyncIterator[Site]:
    """Run a front, and close everything that it opened afterwards."""
    loop = asyncio.get_running_loop()
    hub, metrics = FakeHub(), FakeMetrics()
    config = Config(**settings)
    auth = Auth(config, frozenset({TOKEN}), wall=lambda: 1e9)
    front = Front(cast(Hub, hub), config, cast(Metrics, metrics), hub.stats, page, auth, loop, clock=lambda: 7.0)
    lost: asyncio.Queue[FrontProtocol] = asyncio.Queue()

    class Watched(FrontProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.put_nowait(self)

    server = await loop.create_server(lambda: Watched(front), "127.0.0.1", 0)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        server.sockets[0].setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    site = Site(front, hub, metrics, server.sockets[0].getsockname(), lost)
    try:
        async with asyncio.timeout(10):
            yield site
    finally:
        for client in site.clients:
            client.writer.close()
        front.abort()
        server.close()
        while front.connections:
            await lost.get()
        await server.wait_closed()
        for stream, _, _ in hub.streams:
            stream.close()
    assert len(front.deadlines) == 0


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on uvloop, as the server does; one that asks for `site` gets a front of its own."""
    signature = inspect.signature(test)
    wants_site = "site" in signature.parameters
    kept = [parameter for name, parameter in signature.parameters.items() if name != "site"]

    async def bounded(arguments: dict[str, Any]) -> None:
        if not wants_site:
            await test(**arguments)
            return
        async with serve(cors_origin=("https://a.example",)) as site:
            await test(site, **arguments)

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        uvloop.run(bounded(arguments))

    run.__signature__ = signature.replace(parameters=kept, return_annotation=None)  # type: ignore[attr-defined]
    return run


def get(target: str = "/healthz", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/{version}", "Host: a", *lines, "", "")).encode()


def post(
    body: bytes,
    target: str = "/publish",
    content_type: str = "application/json",
    token: str = TOKEN,
    *lines: str,
) -> bytes:
    fields = (
        f"Authorization: Bearer {token}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    )
    return get(target, *fields, *lines, method="POST") + body


# Streams


@on_uvloop
async def test_a_stream_s_descriptor_goes_to_the_hub_and_the_connection_lives_on(site: Site) -> None:
    client = await site.client()
    client.send(get("/events?topic=a"))
    await site.lost.get()
    assert not site.front.connections
    reply = await client.head()
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
    assert await client.reader.readexactly(13) == b"data: first\n\n"
    ((stream, subscribe, address),) = site.hub.streams
    assert (subscribe.terms, address) == (("a",), "127.0.0.1")
    stream.send(b"data: second\n\n")
    assert await client.reader.readexactly(14) == b"data: second\n\n"
    stream.close()
    assert await client.rest() == b""


@on_uvloop
async def test_what_follows_the_request_for_a_stream_is_not_served(site: Site) -> None:
    client = await site.client()
    client.send(get("/events") + get() + b"\0\0 nonsense")
    await client.head()
    await site.lost.get()
    site.hub.streams[0][0].close()
    assert await client.rest() == b"data: first\n\n"
    assert site.metrics.errors == []


@on_uvloop
async def test_answers_before_a_stream_come_first(site: Site) -> None:
    client = await site.client()
    client.send(get() + get("/nothing") + get("/events"))
    assert [(await client.reply()).status for _ in range(3)] == [200, 404, 200]
    assert await client.reader.readexactly(13) == b"data: first\n\n"


@pytest.mark.parametrize("page", [LONG_PAGE, bytes(WRITE_BUFFER_HIGH * 3 // 4)], ids=["long", "short"])
@on_uvloop
async def test_a_stream_waits_until_the_answers_before_it_have_left(page: bytes) -> None:
    async with serve(page) as site:
        client = await site.client()
        client.pause()
        client.send(get("/") + get("/events"))
        assert (await site.ask(get())).status == 200  # By now the first have come in, too.
        assert not site.hub.streams
        client.resume()
        assert (await client.reply()).body == page
        assert (await client.head()).headers["Content-Type"] == "text/event-stream"
        assert len(site.hub.streams) == 1
        assert await client.reader.readexactly(13) == b"data: first\n\n"


@on_uvloop
async def test_the_hub_may_refuse_a_stream_and_the_connection_goes_on(site: Site) -> None:
    client = await site.client()
    await client.ask(get())
    before = len(os.listdir("/proc/self/fd"))
    site.hub.refuse = RequestError(429, "too many", (("Retry-After", "5"),))
    reply = await client.ask(get("/events", "Origin: https://a.example"))
    assert (reply.status, reply.json, reply.headers["Retry-After"]) == (429, {"error": "too many"}, "5")
    assert reply.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert reply.headers["Access-Control-Allow-Credentials"] == "true"
    assert reply.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert len(os.listdir("/proc/self/fd")) == before
    site.hub.refuse = None
    assert (await client.ask(get("/events"))).status == 200


@pytest.mark.parametrize("page", [LONG_PAGE, bytes(WRITE_BUFFER_HIGH * 3 // 4)], ids=["long", "short"])
@on_uvloop
async def test_a_refused_stream_behind_a_long_answer_is_answered_too(page: bytes) -> None:
    async with serve(page) as site:
        site.hub.refuse = RequestError(503, "full")
        client = await site.client()
        client.send(get("/") + get("/events") + get())
        assert [(await client.reply()).status for _ in range(3)] == [200, 503, 200]
        assert (await client.ask(get())).status == 200


@on_uvloop
async def test_without_a_descriptor_to_spare_a_stream_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(fd: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", no_more)
    reply = await site.ask(get("/events"))
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) > 0


@on_uvloop
async def test_a_failing_hand_over_ends_that_connection_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.hub.refuse = OSError(errno.EINVAL, "odd")
    client = await site.client()
    client.send(get("/events"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.head()
    assert "failed to serve a connection" in caplog.text
    assert (await site.ask(get())).status == 200


@on_uvloop
async def test_a_head_request_for_a_stream_gets_its_head_and_a_close(site: Site) -> None:
    client = await site.client()
    reply = await client.ask(get("/events", method="HEAD"))
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert "Content-Length" not in reply.headers
    assert await client.rest() == b""
    assert not site.hub.streams


@on_uvloop
async def test_http_1_0_gets_a_stream_as_well(site: Site) -> None:
    client = await site.client()
    client.send(b"GET /events HTTP/1.0\r\n\r\n")
    assert (await client.head()).status == 200
    assert len(site.hub.streams) == 1


# Ordinary requests


@on_uvloop
async def test_the_documents_are_served_on_one_connection(site: Site) -> None:
    client = await site.client()
    page = await client.ask(get("/"))
    assert (page.body, page.headers["Content-Type"]) == (PAGE, "text/html; charset=utf-8")
    assert "sha256-" in page.headers["Content-Security-Policy"]
    assert (await client.ask(get("/healthz"))).json == {"status": "ok"}
    assert (await client.ask(get("/readyz"))).json == {"status": "ready"}
    assert (await client.ask(get("/metrics"))).body == b"relay_streams 0\n"
    assert (await client.ask(get("/stats"))).json == {"streams": 0, "now_s": 7.0}
    assert (await client.ask(get("/", method="HEAD"), bodyless=True)).headers["Content-Length"] == str(len(PAGE))
    assert (await client.ask(get("/nothing"))).json == {"error": "no such path"}
    wrong = await client.ask(get("/events", method="DELETE"))
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await client.ask(get("/publish", method="OPTIONS"))).status == 204
    assert len(site.front.connections) == 1


@on_uvloop
async def test_a_preflight_is_answered_with_each_header_once(site: Site) -> None:
    ask = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
    reply = await site.ask(get("/publish", *ask, method="OPTIONS"))
    assert reply.status == 204
    assert reply.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert reply.headers["Vary"] == "Origin"


@on_uvloop
async def test_requests_that_arrive_together_are_answered_in_order(site: Site) -> None:
    client = await site.client()
    count = REQUESTS_A_TURN * 3 + 1
    client.send(b"".join(get(f"/{number}" if number % 2 else "/stats") for number in range(count)))
    assert [(await client.reply()).status for _ in range(count)] == [200, 404] * (count // 2) + [200] * (count % 2)


@on_uvloop
async def test_a_request_may_come_byte_by_byte(site: Site) -> None:
    client = await site.client()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(b'{"data": 1}'):
        client.send(bytes((byte,)))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.reply()).json == {"ids": ["e-0"]}


@pytest.mark.parametrize(
    "data", [get(version="1.0"), get("/healthz", "Connection: close"), get("/x", "Connection: close")]
)
@on_uvloop
async def test_a_connection_that_does_not_go_on_is_closed(site: Site, data: bytes) -> None:
    client = await site.client()
    client.send(data + get())
    assert (await client.reply()).headers["Connection"] == "close"
    assert await client.rest() == b""
    client.writer.close()
    await site.lost.get()


@on_uvloop
async def test_http_1_0_goes_on_if_it_asks(site: Site) -> None:
    client = await site.client()
    for _ in range(2):
        assert (await client.ask(get("/healthz", "Connection: keep-alive", version="1.0"))).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (get(method="BREW"), 501),
        (b"GET /" + b"a" * 20_000, 414),
        (get("/", "X: " + "a" * 20_000), 431),
        (get("/", "Content-Length: 1"), 413),
        (get("/events", "Transfer-Encoding: chunked") + b"1\r\n", 413),
    ],
)
@on_uvloop
async def test_what_cannot_be_read_is_answered_counted_and_closed(site: Site, data: bytes, status: int) -> None:
    client = await site.client()
    reply = await client.ask(data)
    assert (reply.status, reply.headers["Connection"]) == (status, "close")
    assert await client.rest() == b""
    assert site.metrics.errors == [("http", "request")]


@on_uvloop
async def test_a_client_that_shuts_down_sending_gets_its_answers(site: Site) -> None:
    client = await site.client()
    client.send(get() + get("/x"))
    client.writer.write_eof()
    assert [(await client.reply()).status for _ in range(2)] == [200, 404]
    assert await client.rest() == b""


@pytest.mark.parametrize("data", [get()[:-1], post(b"{}")[:-1]])
@on_uvloop
async def test_a_request_that_is_cut_short_is_refused(site: Site, data: bytes) -> None:
    client = await site.client()
    client.send(data)
    client.writer.write_eof()
    assert (await client.reply()).status == 400
    assert await client.rest() == b""
    assert site.hub.events == []


@on_uvloop
async def test_an_error_inside_ends_one_connection_and_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.metrics.broken = True
    client = await site.client()
    client.send(get("/metrics"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.head()
    assert "no metrics" in caplog.text
    assert (await site.ask(get())).status == 200


@on_uvloop
async def test_connections_that_are_cut_leave_nothing_behind(site: Site) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"", b"GET", get(), post(b"{}")[:-1], get("/events"), get("/events") + get()):
        for _ in range(10):
            client = await site.client()
            client.send(data)
            await client.writer.drain()
            client.reset()
            await client.writer.wait_closed()
            await site.lost.get()
    for stream, _, _ in site.hub.streams:
        stream.close()
    assert not site.front.connections
    assert len(site.front.deadlines) == 0
    assert len(os.listdir("/proc/self/fd")) == before


# Time limits


@on_uvloop
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serve(head_timeout_s=0.05) as site:
        assert await (await site.client()).rest() == b""


@pytest.mark.parametrize("data", [b"G", get()[:-1], post(b"{}")[:-1]])
@on_uvloop
async def test_a_request_that_takes_too_long_is_refused(data: bytes) -> None:
    async with serve(head_timeout_s=0.05, body_bytes_max=100) as site:
        client = await site.client()
        assert (await client.ask(data)).status == 408
        assert await client.rest() == b""


@on_uvloop
async def test_a_byte_now_and_then_does_not_extend_the_time() -> None:
    async with serve(head_timeout_s=0.05) as site:
        client = await site.client()
        client.send(b"GET / HTTP/1.1\r\nX: ")
        while not client.reader.at_eof():
            client.send(b"x")
            try:
                await asyncio.wait_for(client.reader.read(1000), 0.01)
            except TimeoutError:
                continue
        assert client.reader.at_eof()


@on_uvloop
async def test_a_connection_that_rests_too_long_is_closed_without_a_word() -> None:
    async with serve(keepalive_timeout_s=0.05) as site:
        client = await site.client()
        assert (await client.ask(get())).status == 200
        assert await client.rest() == b""


@on_uvloop
async def test_the_next_request_s_first_byte_begins_the_head_s_time() -> None:
    async with serve(keepalive_timeout_s=30, head_timeout_s=0.05) as site:
        client = await site.client()
        assert (await client.ask(get())).status == 200
        assert (await client.ask(b"G")).status == 408


@pytest.mark.parametrize("data", [get("/") * 100, get("/") + get("/events"), get("/", "Connection: close")])
@on_uvloop
async def test_a_client_that_does_not_read_its_answers_is_cut(data: bytes) -> None:
    async with serve(bytes(WRITE_BUFFER_HIGH * 3 // 4), head_timeout_s=0.05) as site:
        client = await site.client()
        client.pause()
        client.send(data)
        await site.lost.get()
        assert not site.front.connections
        assert not site.hub.streams


@on_uvloop
async def test_a_body_may_take_longer_than_a_head() -> None:
    async with serve(head_timeout_s=0.05) as site:
        client, data = await site.client(), post(b"{}")
        client.send(data[:-1])
        assert await (await site.client()).rest() == b""  # The other has used up the time of a head.
        assert (await client.ask(data[-1:])).status == 200


@on_uvloop
async def test_a_client_that_does_not_close_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "LINGER_S", 0.05)
    async with serve() as site:
        client = await site.client()
        assert (await client.ask(get(version="1.0"))).status == 200
        await site.lost.get()


# Publishing


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b'{"data": {"a": 1}}', "application/json", [{"a": 1}]),
        (b'[{"data": 1}, {"data": 2}]', "application/json", [1, 2]),
        (b'{"data": 1}\n{"data": 2}\n', "application/x-ndjson", [1, 2]),
        (b"some text", "text/plain", ["some text"]),
        (b"[]", "application/json", []),
    ],
)
@on_uvloop
async def test_events_are_published_and_their_ids_answered(
    site: Site, body: bytes, content_type: str, data: list[object]
) -> None:
    reply = await site.ask(post(body, "/publish?topic=t", content_type))
    assert (reply.status, reply.json) == (200, {"ids": [f"e-{place}" for place in range(len(data))]})
    assert [value(event.data) for event in site.hub.events] == data
    assert {event.topic for event in site.hub.events} <= {"t"}


@on_uvloop
async def test_chunks_are_published(site: Site) -> None:
    head = get("/publish", f"Authorization: bearer {TOKEN}", "Content-Type: text/plain",
               "Transfer-Encoding: chunked", method="POST")  # fmt: skip
    client = await site.client()
    assert (await client.ask(head + b"3\r\nabc\r\n0\r\n\r\n")).status == 200
    assert (await client.ask(get())).status == 200
    assert site.hub.events[0].data == "abc"


@pytest.mark.parametrize(
    "line", ["X: y", "Authorization: Bearer wrong", "Authorization: Basic sesame", "Authorization: Bearer"]
)
@on_uvloop
async def test_publishing_needs_the_token(site: Site, line: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reply = await site.ask(
        get("/publish?token=sesame", line, "Content-Type: text/plain", "Content-Length: 1", method="POST") + b"x"
    )
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert site.hub.events == []
    assert site.metrics.errors == [("http", "token")]
    assert "wrong" not in caplog.text
    assert TOKEN not in caplog.text


@on_uvloop
async def test_a_refusal_reaches_a_client_that_is_still_sending(site: Site) -> None:
    client = await site.client()
    client.send(post(b"x" * 5_000_000, token="wrong"))
    assert (await client.reply()).status == 401
    assert await client.rest() == b""


@on_uvloop
async def test_a_body_over_the_limit_is_refused_before_it_comes(site: Site) -> None:
    length = site.front.config.body_bytes_max + 1
    fields = (f"Authorization: Bearer {TOKEN}", f"Content-Length: {length}", "Expect: 100-continue")
    reply = await site.ask(get("/publish", *fields, method="POST"))
    assert reply.status == 413


@on_uvloop
async def test_who_expects_a_continue_gets_one_if_the_body_is_welcome(site: Site) -> None:
    data = post(b"{}", "/publish", "application/json", TOKEN, "Expect: 100-continue")
    client = await site.client()
    assert (await client.ask(data[:-2])).status == 100
    assert (await client.ask(data[-2:])).status == 200
    assert (await site.ask(data.replace(TOKEN.encode(), b"wrong")[:-2])).status == 401


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field_name"),
    [
        (b"{", "application/json", 400, "event"),
        (b'[{"data": 1}, {"data": 1, "id": "bad"}]', "application/json", 400, "id"),
        (b'{"data": 1}\n{"retry": "x"}', "application/x-ndjson", 400, "retry"),
        (b"a=b", "application/x-www-form-urlencoded", 415, None),
    ],
)
@on_uvloop
async def test_bad_events_are_refused_whole_and_the_connection_goes_on(
    site: Site, body: bytes, content_type: str, status: int, field_name: str | None
) -> None:
    client = await site.client()
    reply = await client.ask(post(body, content_type=content_type))
    assert (reply.status, reply.json.get("field")) == (status, field_name)
    assert site.hub.events == []
    assert len(site.metrics.errors) == 1
    assert (await client.ask(get())).status == 200


@on_uvloop
async def test_a_publisher_waits_while_its_topic_is_held(site: Site) -> None:
    site.hub.holding = True
    client = await site.client()
    client.send(post(b'{"data": 1, "topic": "held"}') + get())
    assert (await site.ask(post(b'{"data": 2}'))).status == 200  # By now the first has come in, too.
    assert [value(event.data) for event in site.hub.events] == [2]
    site.hub.release(holding=True)
    assert [value(event.data) for event in site.hub.events] == [2]
    site.hub.release()
    assert (await client.reply()).json == {"ids": ["e-1"]}
    assert (await client.reply()).status == 200
    assert (await client.ask(get())).status == 200
    assert [value(event.data) for event in site.hub.events] == [2, 1]


@on_uvloop
async def test_a_publisher_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.sources.requests.HOLD_GRACE_S", 0.05)
    async with serve(block_timeout_s=0) as site:
        site.hub.holding = True
        client = await site.client()
        reply = await client.ask(post(b'{"data": 1, "topic": "held"}') + get())
        assert reply.status == 503
        assert int(reply.headers["Retry-After"]) > 0
        assert (await client.reply()).status == 200
        site.hub.release()
        assert site.hub.events == []


@on_uvloop
async def test_a_publisher_that_was_cut_is_forgotten(site: Site) -> None:
    site.hub.holding = True
    client = await site.client()
    client.send(post(b'{"data": 1, "topic": "held"}'))
    assert (await site.ask(get())).status == 200
    site.front.abort()
    await site.lost.get()
    site.hub.release()
    assert site.hub.events == []


# Draining


@on_uvloop
async def test_a_draining_server_says_so_and_takes_nothing_new(site: Site) -> None:
    resting = await site.client()
    assert (await resting.ask(get())).status == 200
    site.hub.draining = True
    site.front.ready = False
    for data in (get("/events"), post(b"{}"), get("/readyz")):
        client = await site.client()
        reply = await client.ask(data)
        assert (reply.status, reply.headers["Connection"]) == (503, "close")
    assert (await site.ask(get("/healthz"))).status == 200
    assert site.hub.events == []
    site.front.close_idle()
    assert await resting.rest() == b""


def large(*lines: str) -> bytes:
    """Make a large request that waits for its turn and is rejected."""
    return get("/none?" + "&".join(["topic=a"] * 400), *lines)


@on_uvloop
async def test_large_requests_beyond_a_turns_share_are_served_in_later_turns(site: Site) -> None:
    """Each request takes longer than its turn's share. Requests on one connection keep their order."""
    ticks = itertools.count()
    site.front.pace = Pace(site.front.loop.call_soon, lambda: float(next(ticks)))
    clients = [await site.client() for _ in range(10)]
    for client in clients:
        client.writer.write(get("/healthz") + large() + get("/healthz") + large("Connection: close"))
    for client in clients:
        answered = await client.reader.read()
        assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"200", b"404", b"200", b"404"]


@on_uvloop
async def test_small_requests_are_served_while_large_ones_wait_for_their_turn(site: Site) -> None:
    turns: list[Callable[[], None]] = []
    ticks = itertools.count()
    site.front.pace = Pace(turns.append, lambda: float(next(ticks)))
    first, second = await site.client(), await site.client()
    assert (await first.ask(large())).status == 404
    second.writer.write(large())
    assert (await site.ask(get("/healthz"))).status == 200
    [turn] = turns
    turn()
    assert (await second.reply()).status == 404


@on_uvloop
async def test_a_stream_is_handed_over_once_what_it_replays_is_ready(site: Site) -> None:
    site.hub.slow_to_prepare = True
    client = await site.client()
    client.writer.write(get("/events?topic=o.*&since=earliest"))
    while not site.hub.preparing:
        await asyncio.sleep(0)
    assert site.hub.streams == []
    site.hub.preparing[0](None)
    assert len(site.hub.streams) == 1


@on_uvloop
async def test_a_client_that_leaves_before_its_replay_is_ready_cancels_it(site: Site) -> None:
    site.hub.slow_to_prepare = True
    client = await site.client()
    client.writer.write(get("/events?topic=o.*&since=earliest"))
    while not site.hub.preparing:
        await asyncio.sleep(0)
    [connection] = site.front.connections
    connection.abort()
    assert site.hub.preparing == []
    assert site.hub.streams == []


@on_uvloop
async def test_a_long_request_that_comes_in_pieces_waits_for_its_turn_and_has_one_time_limit(site: Site) -> None:
    deadlines: list[Waiting] = []
    real = site.front.deadlines.set

    def noted(connection: Any, waiting: Waiting) -> None:
        deadlines.append(waiting)
        real(connection, waiting)

    site.front.deadlines.set = noted  # type: ignore[method-assign]
    client = await site.client()
    request = large("Connection: close")
    for start in range(0, len(request), 500):
        client.writer.write(request[start : start + 500])
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.reply()).status == 404
    assert deadlines.count(Waiting.HEAD) == 1
