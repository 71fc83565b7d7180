"""The feed of Kafka: the partitions of a topic that a consumer group reads.

The group stores the position: relay commits the offsets after the events are published. Several relays of one group
divide the partitions among themselves.

Owns the consumer. Never publishes. librdkafka blocks, so all calls run in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.brokers.kafka_client import KafkaOptions, KafkaThread
from relay.config.broker_address import KafkaAddress
from relay.errors import BrokerError
from relay.sources.feed import READ_MESSAGES_MAX, WAIT_S, FeedMessage

READ_BYTES = 4 * 1024 * 1024
"""Size after which a read takes no more messages."""

SESSION_MS = 10_000
"""Time after which Kafka removes a relay that has died from the group. Another relay receives its partitions then."""

CHECK_S = 5.0
"""Time without messages after which relay checks that the broker answers. librdkafka does not report its absence."""


class KafkaFeed:
    """One topic.

    Args:
        address: the servers and the topic.
        password: returns the password; called before each connection.
        tls: files for TLS.
        sasl: mechanism of SASL; see `KafkaOptions`.
        group: the consumer group.
        start: `earliest` or `latest`: the beginning of a group without a stored position.
    """

    def __init__(
        self,
        address: KafkaAddress,
        password: Callable[[], str],
        tls: TlsFiles,
        sasl: str,
        group: str,
        start: str,
    ) -> None:
        self.lost = 0
        self._topic = address.name
        self._options = KafkaOptions(address, password, tls, sasl)
        self._group = {"group.id": group, "auto.offset.reset": start}
        self._thread: KafkaThread | None = None
        self._consumer: Consumer | None = None
        self._answered_s = 0.0

    async def connect(self) -> None:
        """Connect and join the group."""
        await self.close()
        self._thread = KafkaThread("relay-kafka-source", self._options)
        await self._thread.run(self._open)

    async def read(self) -> Sequence[FeedMessage]:
        """Return messages."""
        assert self._thread is not None, "not connected"
        return [_message(each) for each in await self._thread.run(self._poll)]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Commit the offsets after the messages."""
        assert self._thread is not None, "not connected"
        next_offsets: dict[int, int] = {}
        for message in messages:
            partition, offset = message.handle
            next_offsets[partition] = max(offset + 1, next_offsets.get(partition, 0))
        await self._thread.run(self._commit, next_offsets)

    async def check(self) -> None:
        """Check that the broker has the topic. The consumer does not join the group."""
        self._thread = KafkaThread("relay-kafka-source", self._options)
        try:
            await self._thread.run(self._create)
        finally:
            await self.close()

    async def close(self) -> None:
        """Leave the group and close the connection."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                await thread.run(self._close)
            finally:
                thread.close()

    # In the thread

    def _open(self) -> None:
        self._create()
        assert self._consumer is not None, "not connected"
        self._consumer.subscribe([self._topic])

    def _create(self) -> None:
        self._consumer = Consumer(
            {
                **self._options.build(),
                **self._group,
                "enable.auto.commit": False,
                "session.timeout.ms": SESSION_MS,
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": 16 * 1024,
            }
        )
        self._check()

    def _check(self) -> None:
        """Check that the broker answers and has the topic."""
        assert self._consumer is not None, "not connected"
        topic = self._consumer.list_topics(self._topic, timeout=ANSWER_S).topics[self._topic]
        if topic.error is not None:
            raise BrokerError(f"topic {self._topic}: {topic.error.str()}")
        self._answered_s = time.monotonic()

    def _poll(self) -> list[KafkaMessage]:
        assert self._consumer is not None, "not connected"
        messages: list[KafkaMessage] = []
        size = 0
        while len(messages) < READ_MESSAGES_MAX and size < READ_BYTES:
            message = self._consumer.poll(0.0 if messages else WAIT_S)
            if message is None:
                break
            error = message.error()
            if error is not None:
                raise BrokerError(error.str())
            messages.append(message)
            size += len(message.value() or b"")
        if messages:
            self._answered_s = time.monotonic()
        elif time.monotonic() - self._answered_s > CHECK_S:
            self._check()
        return messages

    def _commit(self, next_offsets: dict[int, int]) -> None:
        assert self._consumer is not None, "not connected"
        places = [TopicPartition(self._topic, partition, offset) for partition, offset in next_offsets.items()]
        for place in self._consumer.commit(offsets=places, asynchronous=False) or ():
            if place.error is not None:
                raise BrokerError(f"cannot store the position: {place.error.str()}")

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()


def _message(record: KafkaMessage) -> FeedMessage:
    """Return one message. Its headers and its key are its fields; its time distinguishes topics of the same name."""
    headers = record.headers() or ()
    fields = {name: _text(value) for name, value in dict(headers).items() if value is not None}
    if record.key() is not None:
        fields["key"] = _text(record.key())
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    position = f"{topic}/{partition}/{offset}/{record.timestamp()[1]}"
    return FeedMessage(str(topic), record.value() or b"", fields, position, (partition, offset))


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
