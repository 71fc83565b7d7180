"""Feeds of Redis and Valkey: a stream that a consumer group reads, and a channel of PUB/SUB.

Theory of operation. The consumer group stores the position: Redis remembers which entries it has delivered to which
consumer, until they are acknowledged with XACK. After each connection, relay first reads the entries that it has not
acknowledged, then new ones. From time to time it takes over entries that another consumer of the group, which may have
died, has not acknowledged. PUB/SUB has no position: messages that are sent while relay is not connected are lost.

Owns the commands. Never publishes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from relay.brokers.credentials import TlsFiles
from relay.brokers.redis_client import RedisClient, reason
from relay.config.broker_address import RedisAddress
from relay.errors import BrokerError
from relay.sources.feed import READ_MESSAGES_MAX, WAIT_S, FeedMessage

ABANDONED_S = 60.0
"""Time after which relay takes over entries that another consumer has not acknowledged; also the search's interval."""


class RedisStreamFeed:
    """A stream.

    Args:
        address: the server.
        password: returns the password; called before each connection.
        tls: files for TLS.
        stream: the key of the stream.
        group: the name of the consumer group; it is created if it is missing.
        consumer: the name of this consumer in the group.
        earliest: whether a new group begins with the oldest entry.
    """

    def __init__(
        self,
        address: RedisAddress,
        password: Callable[[], str],
        tls: TlsFiles,
        stream: str,
        group: str,
        consumer: str,
        *,
        earliest: bool,
    ) -> None:
        self.lost = 0
        self._address = address
        self._password = password
        self._tls = tls
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._start = "0" if earliest else "$"
        self._client: RedisClient | None = None
        self._repeating = True  # entries that were delivered before may be left
        self._searched_s = 0.0

    async def connect(self) -> None:
        """Connect, and create the group if it is missing."""
        await self.close()
        self._client = RedisClient(self._address, self._password, self._tls)
        try:
            await self._call("XGROUP", "CREATE", self._stream, self._group, self._start, "MKSTREAM")
        except BrokerError as error:
            if "BUSYGROUP" not in str(error):  # the group exists
                raise
        self._repeating, self._searched_s = True, time.monotonic()

    async def read(self) -> Sequence[FeedMessage]:
        """Return entries: those that are not acknowledged yet, then those of dead consumers, then new ones."""
        if self._repeating:
            messages = await self._read_group("0")
            self._repeating = bool(messages)
            if messages:
                return messages
        if time.monotonic() - self._searched_s > ABANDONED_S:
            messages = await self._take_over()
            if messages:
                return messages
        return await self._read_group(">")

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Acknowledge entries."""
        await self._call("XACK", self._stream, self._group, *(message.handle for message in messages))

    async def check(self) -> None:
        """Log in."""
        await _log_in(RedisClient(self._address, self._password, self._tls))

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _read_group(self, after: str) -> Sequence[FeedMessage]:
        """Read entries of this consumer after an id, or new entries (`>`)."""
        wait_s = WAIT_S if after == ">" else 0.0
        block = ("BLOCK", round(1000 * wait_s)) if wait_s else ()
        reply = await self._call(
            *("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", READ_MESSAGES_MAX, *block),
            *("STREAMS", self._stream, after),
            wait_s=wait_s,
        )
        return [self._message(*row) for row in reply[0][1]] if reply else ()

    async def _take_over(self) -> Sequence[FeedMessage]:
        """Take over entries of consumers that have not acknowledged them in time."""
        _, rows, *_ = await self._call(
            *("XAUTOCLAIM", self._stream, self._group, self._consumer, round(1000 * ABANDONED_S), "0-0"),
            *("COUNT", READ_MESSAGES_MAX),
        )
        if not rows:
            self._searched_s = time.monotonic()
        return [self._message(*row) for row in rows if row is not None]

    async def _call(self, *command: str | bytes | int, wait_s: float = 0.0) -> Any:
        assert self._client is not None, "not connected"
        return await self._client.call(*command, wait_s=wait_s)

    def _message(self, id: bytes, fields: list[bytes] | None) -> FeedMessage:
        """Return one entry. An entry that was removed from the stream has no fields."""
        texts = [field.decode(errors="surrogateescape") for field in fields or ()]
        position = f"{self._stream}/{id.decode()}"
        return FeedMessage(self._stream, None, dict(zip(texts[::2], texts[1::2], strict=True)), position, id)


class RedisChannelFeed:
    """A channel, or the channels that a pattern of Redis (`*`, `?`, `[…]`) matches.

    Args:
        address: the server.
        password: returns the password; called before each connection.
        tls: files for TLS.
        channel: the channel or the pattern.
    """

    def __init__(
        self, address: RedisAddress, password: Callable[[], str], tls: TlsFiles, channel: str
    ) -> None:
        self.lost = 0
        self._address = address
        self._password = password
        self._tls = tls
        self._channel = channel
        self._client: RedisClient | None = None
        self._pubsub: PubSub | None = None

    async def connect(self) -> None:
        """Connect and subscribe."""
        await self.close()
        self._client = RedisClient(self._address, self._password, self._tls)
        await self._client.call("PING")
        self._pubsub = self._client.pubsub()
        subscribe = self._pubsub.psubscribe if set(self._channel) & set("*?[") else self._pubsub.subscribe
        await self._guarded(subscribe(self._channel))

    async def read(self) -> Sequence[FeedMessage]:
        """Return messages."""
        messages: list[FeedMessage] = []
        while len(messages) < READ_MESSAGES_MAX:
            message = await self._next(0.0 if messages else WAIT_S)
            if message is None:
                break
            if message["type"] in ("message", "pmessage"):
                messages.append(FeedMessage(message["channel"].decode(errors="replace"), message["data"], {}))
        return messages

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Do nothing: PUB/SUB has no position."""

    async def check(self) -> None:
        """Log in."""
        await _log_in(RedisClient(self._address, self._password, self._tls))

    async def close(self) -> None:
        """Close the connections."""
        pubsub, self._pubsub = self._pubsub, None
        client, self._client = self._client, None
        if pubsub is not None:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
        if client is not None:
            await client.close()

    async def _next(self, wait_s: float) -> Any:
        assert self._pubsub is not None, "not connected"
        return await self._guarded(self._pubsub.get_message(timeout=wait_s))

    async def _guarded(self, call: Any) -> Any:
        """Await a call of redis-py, and turn its errors into BrokerError."""
        try:
            return await call
        except (RedisError, OSError) as error:
            raise BrokerError(reason(error)) from None


async def _log_in(client: RedisClient) -> None:
    """Connect and close the connection. relay creates a missing stream, so it need not exist."""
    try:
        await client.call("PING")
    finally:
        await client.close()
