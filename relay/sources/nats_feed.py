"""Feeds of NATS: a stream of JetStream that a durable consumer reads, and a subject of core NATS.

The durable consumer stores the position: relay acknowledges each message after its event is published. JetStream
delivers a message that is not acknowledged again after `ACKNOWLEDGE_S`. Core NATS has no position: messages that are
sent while relay is not connected are lost.

Owns the consumers. Never publishes.
"""

from __future__ import annotations

from collections.abc import Sequence

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import SlowConsumerError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from relay.brokers.nats_client import NatsConnector, close, errors
from relay.errors import BrokerError
from relay.sources.feed import LATER_MESSAGES_MAX, READ_MESSAGES_MAX, WAIT_S, FeedMessage

ACKNOWLEDGE_S = 5.0
"""Time after which JetStream delivers a message again that is not acknowledged. After a crash, relay receives the
messages again after this time. A longer hold causes repeats, which `dedup` drops."""


class NatsStreamFeed:
    """A stream of JetStream.

    Args:
        connector: connects to the servers.
        stream: the name of the stream.
        subject: the subjects to read; empty for all.
        group: the name of the durable consumer; it is created if it is missing.
        earliest: whether a new consumer begins with the oldest message.
    """

    def __init__(self, connector: NatsConnector, stream: str, subject: str, group: str, *, earliest: bool) -> None:
        self.lost = 0
        self._connector = connector
        self._stream = stream
        self._subject = subject
        self._group = group
        self._config = ConsumerConfig(
            ack_wait=ACKNOWLEDGE_S,
            deliver_policy=DeliverPolicy.ALL if earliest else DeliverPolicy.NEW,
            max_ack_pending=4 * READ_MESSAGES_MAX,
        )
        self._client: Client | None = None
        self._consumer: JetStreamContext.PullSubscription | None = None

    async def connect(self) -> None:
        """Connect, and create the durable consumer if it is missing."""
        await self.close()
        self._client = await self._connector.connect()
        async with errors():
            self._consumer = await self._client.jetstream().pull_subscribe(
                self._subject or ">", durable=self._group, stream=self._stream, config=self._config
            )

    async def read(self) -> Sequence[FeedMessage]:
        """Return messages."""
        assert self._consumer is not None, "not connected"
        async with errors():
            try:
                fetched = await self._consumer.fetch(READ_MESSAGES_MAX, timeout=WAIT_S)
            except nats.errors.TimeoutError:
                _check(self._client)
                return ()
        return [self._message(each) for each in fetched]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Acknowledge messages."""
        assert self._client is not None, "not connected"
        async with errors():
            for message in messages:
                await message.handle.ack()
            await self._client.flush()

    async def check(self) -> None:
        """Check that the server has the stream."""
        client = await self._connector.connect()
        try:
            async with errors():
                await client.jetstream().stream_info(self._stream)
        finally:
            await close(client)

    async def close(self) -> None:
        """Close the connection. The durable consumer remains."""
        client, self._client, self._consumer = self._client, None, None
        await close(client)

    def _message(self, received: Msg) -> FeedMessage:
        """Return one message. Its time distinguishes streams of the same name."""
        metadata = received.metadata
        position = f"{self._stream}/{metadata.sequence.stream}/{metadata.timestamp.timestamp()}"
        return FeedMessage(received.subject, received.data, dict(received.headers or {}), position, received)


class NatsSubjectFeed:
    """A subject of core NATS, or the subjects that a pattern of NATS (`*`, `>`) matches.

    Args:
        connector: connects to the servers.
        subject: the subject or the pattern.
        queue: the queue group, of which one member receives each message; empty to receive all.
    """

    def __init__(self, connector: NatsConnector, subject: str, queue: str) -> None:
        self.lost = 0
        self._connector = connector
        self._subject = subject
        self._queue = queue
        self._client: Client | None = None
        self._subscription: Subscription | None = None

    async def connect(self) -> None:
        """Connect and subscribe."""
        await self.close()
        self._client = await self._connector.connect(on_error=self._on_error)
        async with errors():
            self._subscription = await self._client.subscribe(
                self._subject, self._queue, pending_msgs_limit=LATER_MESSAGES_MAX
            )
            await self._client.flush()

    async def read(self) -> Sequence[FeedMessage]:
        """Return messages."""
        assert self._subscription is not None, "not connected"
        received: list[Msg] = []
        async with errors():
            try:
                received.append(await self._subscription.next_msg(WAIT_S))
                while len(received) < READ_MESSAGES_MAX and self._subscription.pending_msgs:
                    received.append(await self._subscription.next_msg(WAIT_S))
            except nats.errors.TimeoutError:
                _check(self._client)
        return [FeedMessage(each.subject, each.data, dict(each.headers or {})) for each in received]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Do nothing: core NATS has no position."""

    async def check(self) -> None:
        """Log in. Any subject is valid."""
        await close(await self._connector.connect())

    async def close(self) -> None:
        """Close the connection."""
        client, self._client, self._subscription = self._client, None, None
        await close(client)

    def _on_error(self, error: Exception) -> None:
        self.lost += isinstance(error, SlowConsumerError)  # one error for each message that was dropped


def _check(client: Client | None) -> None:
    """Check that the connection is open, because the library does not report a lost one to a call that waits."""
    if client is None or not client.is_connected:
        raise BrokerError("the connection is lost")
