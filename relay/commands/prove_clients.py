"""The clients of `relay demo --prove`: a process that holds thousands of streams, and checks each of their events.

Each client follows its topics over HTTP/1.0, reconnects after the time that the server sends, and resumes with
`Last-Event-ID`. `relay demo --prove` writes commands to standard input, one line of JSON each. This process writes
lines of JSON to standard output: its state several times per second, and at the end the result.

Owns the connections of the clients. Never publishes and never starts a server (`relay.commands.prove`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
import uvloop

from relay.commands.prove_record import Command, Crowd, CrowdState, Record, total
from relay.sse import Decoder

CONNECTING_MAX = 128
"""Connections that are opened at the same time. More would only wait in the backlog of the server."""
OPEN_TIMEOUT_S = 30.0
RETRY_S = 0.5
"""Longest random wait before a new attempt, if the server has not sent a time yet."""
STATE_S = 0.1
"""Time between two reports of the state."""
SETTLE_S = 10.0
"""Longest time without progress at the end before missing events are considered missed."""
EVENT_BYTES_MAX = 64 * 1024
HEAD_BYTES_MAX = 16 * 1024
LINE_BYTES_MAX = 64 * 1024 * 1024
"""Longest line of standard input: the topics of a million clients."""


class _Client:
    """One client, over all of its connections.

    Args:
        clients: all clients.
        topics: the topics to follow.
    """

    def __init__(self, clients: _Clients, topics: Sequence[str]) -> None:
        self.clients = clients
        self.record = Record(topics)
        self.query = "&".join(f"topic={topic}" for topic in topics)
        self.last_event_id = ""
        self.retry_s = 0.0
        self.connection: _Connection | None = None

    async def open(self) -> None:
        """Connect until the server sends a stream."""
        while not await self._connect():
            await asyncio.sleep(self.retry_s or random.uniform(0, RETRY_S))  # noqa: S311

    async def _connect(self) -> bool:
        """Return whether the server has sent a stream."""
        async with self.clients.connecting:
            connection = _Connection(self)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    loop = asyncio.get_running_loop()
                    await loop.create_connection(lambda: connection, *self.clients.address)
                    await connection.settled.wait()
            if not connection.was_open:
                connection.give_up()
            return connection.was_open


class _Connection(asyncio.Protocol):
    """One connection of a client.

    Args:
        client: the client.
    """

    def __init__(self, client: _Client) -> None:
        self.was_open = False
        self.settled = asyncio.Event()
        """Set when the server has sent a stream, or the connection is lost."""
        self._client = client
        self._head = b""
        self._decoder = Decoder(EVENT_BYTES_MAX, client.last_event_id)
        self._is_cut = False
        self._is_given_up = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Request the stream."""
        if self._is_given_up:
            cast("asyncio.Transport", transport).abort()
            return
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are of another class.
        client = self._client
        resume = f"Last-Event-ID: {client.last_event_id}\r\n" if client.last_event_id else ""
        # The body of HTTP/1.0 has no chunks. The decoder never returns an event that was cut off.
        head = f"GET /events?{client.query} HTTP/1.0\r\nHost: {client.clients.address[0]}\r\n{resume}\r\n"
        self._transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        """Check the events of the stream."""
        if self._is_given_up:
            return
        client = self._client
        if not self.was_open:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found and len(self._head) < HEAD_BYTES_MAX:
                return
            if not found or head.split(b" ", 2)[1] != b"200":
                self.give_up()
                return
            self.was_open = True
            client.connection = self
            client.clients.count_open(is_resumed=bool(client.last_event_id))
            self.settled.set()
        for event in self._decoder.feed(data):
            client.record.take(event)
        client.last_event_id = self._decoder.last_event_id
        if self._decoder.retry_ms is not None:
            client.retry_s = self._decoder.retry_ms / 1000

    def connection_lost(self, _: Exception | None) -> None:
        """Reconnect after the server's reconnection time."""
        self._transport = None
        self.settled.set()
        if not self.was_open:
            return
        self._client.connection = None
        self._client.clients.count_lost(self._client, is_cut=self._is_cut)

    def give_up(self) -> None:
        """Close a connection that has no stream. Another one of the client replaces it."""
        self._is_given_up = True
        if self._transport is not None:
            self._transport.abort()

    def do(self, command: str) -> None:
        """Cut the connection, stop reading, or read again."""
        assert self._transport is not None
        if command == "cut":
            self._is_cut = True
            self._transport.abort()
        elif command == "stall":
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class _Clients:
    """All clients.

    Args:
        crowd: the address of the server, and the topics of each client.
    """

    def __init__(self, crowd: Crowd) -> None:
        self.address = crowd.host, crowd.port
        self._state = CrowdState()
        self._ended = False
        self.connecting = asyncio.Semaphore(CONNECTING_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._groups = {name: [_Client(self, topics) for topics in group] for name, group in crowd.clients.items()}

    def start(self, client: _Client, wait_s: float = 0.0) -> None:
        """Open the stream of a client after a wait."""

        async def run() -> None:
            await asyncio.sleep(wait_s)
            await client.open()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count_open(self, *, is_resumed: bool) -> None:
        """Count a stream that was opened."""
        self._state.open += 1
        self._state.resumed += is_resumed

    def count_lost(self, client: _Client, *, is_cut: bool) -> None:
        """Count a stream that ended, and open another."""
        self._state.open -= 1
        self._state.lost += not is_cut
        if not self._ended:
            self.start(client, client.retry_s)

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Open all streams, and execute commands until `end`."""
        for group in self._groups.values():
            for client in group:
                self.start(client)
        reporting = asyncio.create_task(self._report())
        while line := await commands.readline():
            command = msgspec.json.decode(line, type=Command)
            if command.do == "end":
                await self._settle(command.published)
                reporting.cancel()
                self._state.groups = {
                    name: total(client.record.sums(command.published) for client in group)
                    for name, group in self._groups.items()
                }
                self._print()
                break
            for client in self._groups[command.group]:
                if client.connection is not None:
                    client.connection.do(command.do)
        self._ended = True

    async def _settle(self, published: Mapping[str, int]) -> None:
        """Wait until each client has received the last events, or until no more events arrive."""
        loop = asyncio.get_running_loop()
        waiting = [client.record for group in self._groups.values() for client in group]
        since_s, before = loop.time(), len(waiting)
        while waiting and loop.time() < since_s + SETTLE_S:
            await asyncio.sleep(STATE_S)
            waiting = [record for record in waiting if not record.is_complete(published)]
            if len(waiting) < before:
                since_s, before = loop.time(), len(waiting)

    async def _report(self) -> None:
        while True:
            self._print()
            await asyncio.sleep(STATE_S)

    def _print(self) -> None:
        print(msgspec.json.encode(self._state).decode(), flush=True)


async def _run() -> None:
    """Run the clients. The first line of standard input describes them."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await _Clients(msgspec.json.decode(await commands.readline(), type=Crowd)).run(commands)


if __name__ == "__main__":
    uvloop.run(_run())
