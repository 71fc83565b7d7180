"""The log of a cluster in Kafka: partition 0 of a topic.

Theory of operation. The sequence of an entry is its offset plus one. Kafka does not tell which entry precedes an entry,
so the follower compares its last entry with the broker's whenever it begins to read, and librdkafka reports a truncated
partition. The epoch is in partition 0 of a second topic: each record replaces one known epoch by another, and a record
whose known epoch is not the current one has no effect. So the epoch is replaced once.

Owns the consumer and its thread. `relay.cluster.kafka_producer` publishes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.brokers.kafka_client import KafkaOptions, KafkaThread
from relay.cluster.broker import (
    READ_ENTRIES_MAX,
    BrokerReport,
    EntriesReplacedError,
    LogChangedError,
    LogEntry,
    LogPosition,
    Request,
    Result,
    is_next,
)
from relay.cluster.entry import FORM
from relay.cluster.epochs import Epochs, encode_record
from relay.cluster.kafka_producer import KafkaProducer
from relay.cluster.repeats import Repeats
from relay.config.broker_address import KafkaAddress
from relay.errors import BrokerError

EPOCHS = "-epochs"
"""The name of the topic of epochs is that of the log and this suffix."""

_SETTINGS = ("cleanup.policy", "message.timestamp.type", "min.insync.replicas", "retention.ms", "max.message.bytes")
"""The settings of the topic that `inspect` returns."""

_NOT_RETAINED = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class KafkaBroker:
    """The log of one cluster.

    Args:
        address: the servers and the topic.
        dedup_window_s: lifetime of dedup keys.
        dedup_max: maximum number of dedup keys.
        password: returns the password; called before each connection.
        tls: files for TLS.
        sasl: mechanism of SASL; see `KafkaOptions`.
    """

    def __init__(
        self,
        address: KafkaAddress,
        dedup_window_s: float,
        dedup_max: int,
        password: Callable[[], str],
        tls: TlsFiles,
        sasl: str,
    ) -> None:
        self._log = address.name
        self._epochs = address.name + EPOCHS
        self._options = KafkaOptions(address, password, tls, sasl)
        self._epoch = Epochs()
        self._epochs_stop = 0  # offset of the next record in the topic of epochs
        self._next: int | None = None  # offset of the next message that the consumer returns
        self._consumer: Consumer | None = None
        self._repeats = Repeats(dedup_window_s, dedup_max)
        self._thread = KafkaThread("relay-kafka-read", self._options)
        self._producer = KafkaProducer(address.name, self._options, self._repeats)

    # The follower

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""
        await self.close_follower()
        position = await self._thread.run(self._open, epoch)
        self._repeats.start()
        return position

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""

        def renew() -> LogPosition:
            self._append_epoch(known, epoch)
            return self._position()

        return await self._thread.run(renew)

    async def position(self) -> LogPosition:
        """Return epoch and head of the log; `read` checks the marks."""
        _, high = await self._thread.run(self._limits, self._log)
        return LogPosition(self._epoch.current, high + 1, b"")

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one."""
        # The last entry is read again to compare its mark.
        first = after - 1 if epoch and mark and self._next != after else after
        if self._next != first:
            self._repeats.begin(after)
        messages = await self._receive(first, min(count_max, READ_ENTRIES_MAX) + (after - first), wait_s)
        entries: list[LogEntry] = []
        keyed: list[tuple[int, str, str]] = []  # place of an entry, its dedup key and its own id
        for message in messages:
            self._check(message, after)
            if message.topic() == self._epochs:
                self._take_epoch(message)
                continue
            entry, dedup = _entry(message)
            place = len(entries)
            if entry.sequence != after + place + 1 and not is_next(_marked(entry), after, place, mark):
                continue
            entries.append(entry)
            if dedup is not None:
                keyed.append((place, *dedup))
        for place, key, id in keyed:
            entry = entries[place]
            if self._repeats.check(key, id or f"{self._epoch.current}-{entry.sequence}", entry.time_ms / 1000):
                entries[place] = entry._replace(repeats=True)
        if entries:
            entries[-1] = _marked(entries[-1])
        self._next = after + len(entries)
        self._repeats.advance(self._next)
        return entries

    async def _receive(self, first: int, count: int, wait_s: float) -> list[Message]:
        """Return the messages that have arrived, from the offset `first` on; wait for the first one in the thread.

        Messages that have arrived are collected here. The thread would have to wait for a busy event loop.
        """
        assert self._consumer is not None, "the follower is not connected"
        with self._options.errors():
            if self._next == first:
                await asyncio.sleep(0)  # Other tasks run between two reads.
                if messages := self._consumer.consume(count, timeout=0.0):
                    return messages
            message = await self._thread.run(self._wait, first, wait_s)
            if message is None:
                return []
            return [message, *(self._consumer.consume(count - 1, timeout=0.0) if count > 1 else ())]

    async def trim(self, before: int) -> None:
        """Do nothing: the topic's retention applies."""

    async def close_follower(self) -> None:
        """Close the follower's connection."""
        self._repeats.stop()
        await self._thread.run(self._close_consumer)

    # In the thread of the follower

    def _open(self, epoch: str) -> LogPosition:
        self._consumer = Consumer(
            {
                **self._options.build(),
                "group.id": "relay",  # required by librdkafka; nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 100,
                "allow.auto.create.topics": True,
            }
        )
        try:
            low, high = self._limits(self._epochs, create=True)
        except KafkaException:
            self._consumer.poll(0.0)  # The library reports the reason only here.
            raise
        self._epoch, self._epochs_stop = Epochs(), high
        for message in self._fetch_range(self._epochs, low, high):
            self._epoch.take(message.value() or b"")
        if not self._epoch.current:
            self._append_epoch("", epoch)
        return self._position()

    def _position(self) -> LogPosition:
        """Return the position in the log and the current epoch, with records that have arrived since the last call."""
        _, stop = self._limits(self._epochs)
        for message in self._fetch_range(self._epochs, self._epochs_stop, stop):
            self._epoch.take(message.value() or b"")
        self._epochs_stop = stop
        low, high = self._limits(self._log, create=True)
        now_ms = tail_ms = int(time.time() * 1000)
        if low < high:
            [oldest] = self._fetch_range(self._log, low, low + 1)
            tail_ms = oldest.timestamp()[1]
        return LogPosition(self._epoch.current, high + 1, b"", low + 1, tail_ms, now_ms)

    def _limits(self, topic: str, *, create: bool = False) -> tuple[int, int]:
        """Return the offsets of the oldest message and after the newest one."""
        assert self._consumer is not None, "the follower is not connected"
        if create:
            self._create(topic)
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=ANSWER_S)
        return low, high

    def _create(self, topic: str) -> None:
        """Create a topic if it is missing and the broker lets relay create it."""
        assert self._consumer is not None
        if self._consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].error is None:
            return
        admin = AdminClient(self._options.build())
        kept = {"retention.ms": "-1", "retention.bytes": "-1"} if topic == self._epochs else {}
        made = admin.create_topics([NewTopic(topic, num_partitions=1, config=kept)], request_timeout=ANSWER_S)
        for future in made.values():
            future.result(ANSWER_S)

    def _wait(self, first: int, wait_s: float) -> Message | None:
        """Return the next message, which has the offset `first`; None if it does not arrive in time."""
        assert self._consumer is not None, "the follower is not connected"
        if self._next != first:
            log, epochs = TopicPartition(self._log, 0, first), TopicPartition(self._epochs, 0, self._epochs_stop)
            self._consumer.assign([log, epochs])
            self._next = first
        return self._consumer.poll(wait_s)

    def _fetch_range(self, topic: str, start: int, stop: int) -> list[Message]:
        """Return the messages with the offsets from `start` to `stop`."""
        assert self._consumer is not None
        self._next = None
        messages: list[Message] = []
        if start >= stop:
            return messages
        self._consumer.assign([TopicPartition(topic, 0, start)])
        deadline_s = time.monotonic() + ANSWER_S
        while len(messages) < stop - start:
            message = self._consumer.poll(max(0.0, deadline_s - time.monotonic()))
            if message is None:
                raise BrokerError(f"no message of {topic} within {ANSWER_S:g} s")
            self._check(message, start)
            messages.append(message)
        return messages

    def _check(self, message: Message, after: int) -> None:
        error = message.error()
        if error is None:
            return
        if error.code() == KafkaError._LOG_TRUNCATION:
            raise EntriesReplacedError(f"the log was truncated before entry {after + 1}")
        if error.code() in _NOT_RETAINED:
            raise LogChangedError(f"entry {after + 1} is not retained any more")
        raise BrokerError(error.str())

    def _append_epoch(self, known: str, epoch: str) -> None:
        producer = Producer({**self._options.build(), "enable.idempotence": True})
        failures: list[KafkaError] = []
        producer.produce(
            self._epochs,
            encode_record(known, epoch),
            partition=0,
            on_delivery=lambda error, _: failures.append(error) if error is not None else None,
        )
        if producer.flush(ANSWER_S) or failures:
            raise BrokerError(f"cannot store the epoch: {failures[0].str() if failures else 'no answer'}")

    def _take_epoch(self, message: Message) -> None:
        self._epochs_stop = int(message.offset() or 0) + 1
        if self._epoch.take(message.value() or b""):
            raise LogChangedError(f"it has the epoch {self._epoch.current}")

    def _close_consumer(self) -> None:
        consumer, self._consumer, self._next = self._consumer, None, None
        if consumer is not None:
            consumer.close()

    # The publisher

    async def connect(self) -> None:
        """Connect the publisher."""
        await self._producer.connect()

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order.

        A request is not atomic if this process dies meanwhile, or if the broker rejects an event because of its size.
        """
        return await self._producer.publish(call, self._epoch.known(), requests)

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""
        return await self._producer.head()

    async def inspect(self) -> BrokerReport:
        """Return the number of brokers and the settings of the topic. Kafka does not tell its version."""
        return await self._thread.run(self._inspect)

    def _inspect(self) -> BrokerReport:
        admin = AdminClient(self._options.build())
        found = admin.list_topics(self._log, timeout=ANSWER_S)
        version, topic = f"Kafka (brokers: {len(found.brokers)})", found.topics[self._log]
        if topic.error is not None:
            return BrokerReport(version, {"topic": f"missing ({topic.error.str()}); relay creates it if permitted"})
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._log)
        [future] = admin.describe_configs([resource], request_timeout=ANSWER_S).values()
        settings = future.result(ANSWER_S)
        values = {name: str(settings[name].value) for name in _SETTINGS if name in settings}
        return BrokerReport(version, {"partitions": str(len(topic.partitions)), **values})

    async def close_publisher(self) -> None:
        """Keep the producer, which still sends the events that it has accepted."""

    async def close(self) -> None:
        """Close all connections and end the threads."""
        await self.close_follower()
        self._thread.close()
        await self._producer.close()


def _entry(message: Message) -> tuple[LogEntry, tuple[str, str] | None]:
    """Return the entry in a message, without its mark, and its dedup key with its own id, if it has a key."""
    form, dedup, id = FORM, None, ""
    headers: Any = message.headers() or ()  # a list of pairs, although the library's types allow a dictionary
    for name, value in headers:
        if not isinstance(value, bytes):
            continue
        if name == "relay":
            form = value
        elif name == "dedup":
            dedup = value.decode(errors="replace")
        elif name == "id":
            id = value.decode(errors="replace")
    entry = LogEntry(int(message.offset() or 0) + 1, message.timestamp()[1], form, message.value() or b"", b"")
    return entry, None if dedup is None else (dedup, id)


def _marked(entry: LogEntry) -> LogEntry:
    """Return an entry with its mark."""
    return entry._replace(mark=b"%d-%08x" % (entry.time_ms, crc32(entry.payload)))
