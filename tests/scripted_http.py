"""A small HTTP server that gives scripted answers, one connection at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

HOLD = "hold"
"""A part of a script that sends nothing and keeps the connection open until the client closes it."""

Part = bytes | str
"""A part of a script: bytes are sent; `HOLD` waits."""


def answer(
    status: int = 200, headers: str = "Content-Type: text/event-stream\r\n", body: bytes = b""
) -> bytes:
    """Build a response whose body ends when the connection closes."""
    return f"HTTP/1.1 {status} Reason\r\n{headers}Connection: close\r\n\r\n".encode() + body


@dataclass
class Scripted:
    """The server's address and the requests that it received."""

    url: str
    requests: list[str] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, place: int, name: str) -> str | None:
        """Return a header of the request with this index."""
        for line in self.requests[place].split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None

    def path(self, place: int) -> str:
        """Return the target of the request with this index."""
        return self.requests[place].split(" ")[1]


@contextlib.asynccontextmanager
async def scripted(*scripts: Sequence[Part]) -> AsyncIterator[Scripted]:
    """Serve one script per connection. Later connections receive 204, which stops a client's retries."""
    remaining = list(scripts)
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            seen.requests.append(head)
            for line in head.lower().split("\r\n"):
                if line.startswith("content-length:"):
                    seen.requests[-1] += (await reader.readexactly(int(line.partition(":")[2]))).decode()
            for part in remaining.pop(0) if remaining else (answer(204, ""),):
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                else:
                    await reader.read()
        seen.hung_up.set()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen = Scripted(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        yield seen
        if serving:
            await asyncio.wait([task for task in serving if task is not None], timeout=5)
