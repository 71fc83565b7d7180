"""A front over real sockets on uvloop, with a fake hub, and clients that speak raw HTTP to it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import uvloop

from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.core.hub import Hub
from relay.core.polls import PollResult
from relay.core.stream import Subscribe
from relay.errors import EventError
from relay.event import Event
from relay.front.connection import FrontProtocol
from relay.front.front import Front
from relay.telemetry.metrics import Metrics

TOKEN = "sesame"
PAGE = b"<script>1</script>"
LONG_PAGE = bytes(4_000_000)
BUFFER_BYTES = 4096  # of each socket; a small size makes answers queue up soon


class FakeHub:
    """Accepts descriptors and events."""

    def __init__(self) -> None:
        self.preparing: list[Callable[[None], None]] = []
        self.slow_to_prepare = False
        self.known = True
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
        return 0 if self.known else None

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

    def can_replay(self, request: Subscribe, now_s: float) -> bool:
        return not self.slow_to_prepare

    def answer(self, request: Subscribe, events_max: int, now_s: float, *, newest: bool = False) -> PollResult:
        return PollResult(b'{"events":[],"next":"e-0"}', True, 1)

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
        self.opened = {"direct": 0, "connection": 0}
        self.uploads = 0
        self.upload_lines = {"published": 0, "rejected": 0}
        self.polls = {"waiting": 0, "at-once": 0, "history": 0}
        self.signals = {"delivered": 0, "dropped": 0}
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
        assert len(headers) == len(lines) - 3, "a repeated header"
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
        """Send a request on its own connection and read the response."""
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
    """Run an async test on uvloop, as the server does. A test with the parameter `site` receives its own front."""
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
