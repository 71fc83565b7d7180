"""The origin behind Pushpin, which tells it to hold each request open on its topic: origin.py PORT."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import parse_qs, urlsplit


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    while head := await head_of(reader):
        topic = parse_qs(urlsplit(head.split(" ")[1]).query)["topic"][0]
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nGrip-Hold: stream\r\n"
            + f"Grip-Channel: {topic}\r\nContent-Length: 8\r\n\r\n: open\n\n".encode()
        )
        await writer.drain()
    writer.close()


async def head_of(reader: asyncio.StreamReader) -> str:
    """Return the head of the next request, which has no body; empty if the client has disconnected."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""


async def main() -> None:
    """Serve until ended."""
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096) as server:
        await server.serve_forever()


asyncio.run(main())
