"""A network that delays, stalls and cuts: a TCP proxy whose faults are determined by its seed."""

from __future__ import annotations

import asyncio
import contextlib
import random

CUT_BYTES_MAX = 4000
DELAY_S_MAX = 0.02
STALL_SHARE = 0.2


class BadNetwork:
    """Forwards bytes from clients to one server, until the fault that ends each connection.

    Args:
        port: of the server.
        seed: determines, with the connection's number, the faults of each connection.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.port = 0
        self.cuts = self.stalls = 0
        self.kind = False  # no more faults
        self._target = port
        self._seed = seed
        self._count = 0
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._server: asyncio.Server

    async def __aenter__(self) -> BadNetwork:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = list(self._connections)
        for writers in self._connections.values():
            for writer in writers:
                writer.transport.abort()
        await asyncio.gather(*tasks)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        draw = random.Random(f"{self._seed}/{self._count}")
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = (writer, up_writer)
        upward = asyncio.create_task(self._pass_all(reader, up_writer))
        try:
            with contextlib.suppress(ConnectionError):
                await self._pass_some(up_reader, writer, draw, upward)
        finally:
            upward.cancel()
            for each in (writer, up_writer):
                each.transport.abort()
            await asyncio.gather(upward, return_exceptions=True)
            del self._connections[task]

    async def _pass_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()

    async def _pass_some(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        draw: random.Random,
        upward: asyncio.Task[None],
    ) -> None:
        left = draw.randrange(CUT_BYTES_MAX)
        while data := await reader.read(1 + draw.randrange(500)):
            await asyncio.sleep(draw.random() * DELAY_S_MAX)
            if not self.kind:
                data = data[:left]
                left -= len(data)
            writer.write(data)
            await writer.drain()
            if not left and not self.kind:
                break
        else:
            return
        if draw.random() < STALL_SHARE:
            self.stalls += 1
            await upward  # sends nothing until the client gives up
            return
        self.cuts += 1
