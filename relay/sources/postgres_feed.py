"""Feeds of PostgreSQL: a table as an outbox, and a channel of LISTEN.

Theory of operation. A transaction of an application inserts a row into the outbox together with its other changes.
relay publishes the rows in the order of their ids, then deletes them. Rows that a crash leaves are published again. If
several relays read one table, one of them has the lock; when its connection ends, another one takes the lock. LISTEN
has no position: notifications that are sent while relay is not connected are lost.

Owns the queries. Never publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import orjson

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.config.source_address import ServerAddress
from relay.errors import BrokerError
from relay.sources.feed import LATER_MESSAGES_MAX, READ_MESSAGES_MAX, WAIT_S, FeedMessage


class PostgresConnector:
    """Connects to one database.

    Args:
        server: the server and the database.
        password: returns the password; called before each connection.
        tls: files for TLS. Without `tls` in the address, the server decides.
    """

    def __init__(
        self, server: ServerAddress, password: Callable[[], str], tls: TlsFiles
    ) -> None:
        self._server = server
        self._password = password
        self._tls = tls

    async def connect(self) -> Any:
        """Return a new connection.

        Raises:
            BrokerError: the server cannot be reached, or rejects the login.
        """
        [(host, port)] = self._server.hosts
        async with _errors():
            return await asyncpg.connect(
                host=host,
                port=port,
                database=self._server.database,
                user=self._server.user or None,
                password=self._server.password or self._password() or None,
                ssl=self._tls.context() if self._server.tls else None,
                timeout=ANSWER_S,
                command_timeout=ANSWER_S,
                server_settings={"application_name": "relay"},
            )


class PostgresTableFeed:
    """A table with the column `id` and further columns, each of which becomes a field.

    Args:
        connector: connects to the database.
        table: the name of the table, such as `outbox` or `app.outbox`.
        channel: a channel that is notified of new rows; empty to look for rows each second.
    """

    def __init__(self, connector: PostgresConnector, table: str, channel: str) -> None:
        self.lost = 0
        self._connector = connector
        self._table = table
        self._quoted = ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
        self._channel = channel
        self._select = (
            "SELECT id, xmin::text AS transaction, "  # noqa: S608 (the name is quoted)
            "(SELECT json_object_agg(key, value) FROM json_each_text(row_to_json(r))) AS columns "
            f"FROM {self._quoted} AS r ORDER BY id LIMIT {READ_MESSAGES_MAX}"
        )
        self._connection: Any = None
        self._locked = False
        self._notified = asyncio.Event()

    async def connect(self) -> None:
        """Connect, and listen for new rows."""
        await self.close()
        self._connection = await self._connector.connect()
        self._locked = False
        async with _errors():
            if self._channel:
                await self._connection.add_listener(self._channel, lambda *_: self._notified.set())
            await self._connection.execute(f"SELECT id FROM {self._quoted} LIMIT 0")  # noqa: S608

    async def read(self) -> Sequence[FeedMessage]:
        """Return rows."""
        self._notified.clear()
        rows = await self._rows() if await self._lock() else ()
        if not rows:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await self._notified.wait()
        return [self._message(row) for row in rows]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Delete rows."""
        ids = [message.handle for message in messages]
        async with _errors():
            await self._connection.execute(f"DELETE FROM {self._quoted} WHERE id = ANY($1)", ids)  # noqa: S608

    async def check(self) -> None:
        """Connect and close the connection: `connect` changes nothing."""
        try:
            await self.connect()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        await _close(connection)

    async def _lock(self) -> bool:
        """Take the lock of the table, unless another relay has it. The lock ends with the connection."""
        if not self._locked:
            async with _errors():
                self._locked = await self._connection.fetchval(
                    "SELECT pg_try_advisory_lock(hashtext('relay'), hashtext($1))", self._quoted
                )
        return self._locked

    async def _rows(self) -> Sequence[Any]:
        async with _errors():
            rows: Sequence[Any] = await self._connection.fetch(self._select)
        return rows

    def _message(self, row: Any) -> FeedMessage:
        """Return one row. Its columns are its fields, except those that are NULL."""
        columns: dict[str, str | None] = orjson.loads(row["columns"])
        fields = {name: text for name, text in columns.items() if text is not None}
        # The transaction of the row distinguishes rows with the same id after the ids begin again.
        position = f"{self._table}/{row['id']}/{row['transaction']}"
        return FeedMessage(self._table, None, fields, position, row["id"])


class PostgresChannelFeed:
    """A channel of LISTEN.

    Args:
        connector: connects to the database.
        channel: the name of the channel.
    """

    def __init__(self, connector: PostgresConnector, channel: str) -> None:
        self.lost = 0
        self._connector = connector
        self._channel = channel
        self._connection: Any = None
        self._received: asyncio.Queue[str] = asyncio.Queue()

    async def connect(self) -> None:
        """Connect and listen."""
        await self.close()
        self._received = asyncio.Queue()
        self._connection = await self._connector.connect()
        async with _errors():
            await self._connection.add_listener(self._channel, self._take)

    async def read(self) -> Sequence[FeedMessage]:
        """Return notifications."""
        if self._received.empty():
            try:
                async with asyncio.timeout(WAIT_S):
                    received = [await self._received.get()]
            except TimeoutError:
                async with _errors():
                    await self._connection.execute("SELECT")  # fails if the connection is lost
                return ()
        else:
            received = []
        while len(received) < READ_MESSAGES_MAX and not self._received.empty():
            received.append(self._received.get_nowait())
        return [FeedMessage(self._channel, each.encode(), {}) for each in received]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Do nothing: LISTEN has no position."""

    async def check(self) -> None:
        """Connect and close the connection: `connect` changes nothing."""
        try:
            await self.connect()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        await _close(connection)

    def _take(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        if self._received.qsize() >= LATER_MESSAGES_MAX:
            self.lost += 1
        else:
            self._received.put_nowait(payload)


async def _close(connection: Any) -> None:
    """Close a connection, also a broken one."""
    if connection is not None:
        try:
            async with _errors():
                await connection.close(timeout=ANSWER_S)
        except BrokerError:
            connection.terminate()


@contextlib.asynccontextmanager
async def _errors() -> AsyncIterator[None]:
    """Turn the library's errors into BrokerError."""
    try:
        yield
    except TimeoutError:
        raise BrokerError(f"no answer within {ANSWER_S:g} s") from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise BrokerError(f"{type(error).__name__}: {text}") from None
