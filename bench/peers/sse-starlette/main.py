"""A server of sse-starlette on uvicorn with a queue for each client: main.py PORT SOCKET (of JSON lines)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

PORT, SOCKET = int(sys.argv[1]), sys.argv[2]
clients: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def feed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand each line's data to every client of its topic."""
    async for line in reader:
        event = json.loads(line)
        data = json.dumps(event["data"], separators=(",", ":"))
        for queue in clients[event.get("topic", "default")]:
            queue.put_nowait(data)
    writer.close()


async def events(request: Request) -> EventSourceResponse:
    """Answer with a topic's stream."""
    topic = request.query_params["topic"]
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def stream() -> AsyncIterator[dict[str, str]]:
        clients[topic].add(queue)
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            clients[topic].discard(queue)

    return EventSourceResponse(stream())


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Take lines for as long as the application runs."""
    async with await asyncio.start_unix_server(feed, SOCKET):
        yield


app = Starlette(routes=[Route("/events", events)], lifespan=lifespan)
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", backlog=4096)
