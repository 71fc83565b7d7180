"""The log of a cluster in Kafka: partition 0 of a topic.

Theory of operation. The sequence of an entry is its offset plus one. Kafka does not tell which entry precedes an entry,
so the follower compares its last entry with the broker's whenever it begins to read, and librdkafka reports a truncated
partition. The epoch is in partition 0 of a second topic: each record replaces one known epoch by another, and a record
whose known epoch is not the current one has no effect. So the epoch is replaced once.

librdkafka sends events again after a lost connection, and the broker recognizes them. The producer is therefore kept
over errors, and a call that is repeated waits for the same messages.

Owns the consumer, the producer, and one thread for each, because their calls block. Owns the dedup keys of the followed
entries. confluent-kafka is imported only here.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from zlib import crc32

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from relay.cluster.broker import (
    BrokerError,
    EntriesReplacedError,
    LogChangedError,
    LogEntry,
    LogPosition,
    NewEntry,
    Request,
    Result,
)
from relay.cluster.entry import FORM
from relay.config.broker_address import KafkaAddress
from relay.core.seen import Seen
from relay.errors import RequestError

ANSWER_S = 5.0
"""Time limit of an answer, in addition to the time that the call may wait."""

READ_ENTRIES_MAX = 512
"""Entries in one read; the node takes them in about 3 ms."""

MESSAGE_BYTES_MAX = 100_000_000
"""Largest message that the client library sends; the broker has a limit of its own."""

EPOCHS = "-epochs"
"""The name of the topic of epochs is that of the log and this suffix."""

_NOT_RETAINED = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)

T = TypeVar("T")


class _Call:
    """The events of one call that the producer has accepted."""

    def __init__(self, number: int, epoch: str) -> None:
        self.number = number
        self.epoch = epoch
        self.results: list[Result] = []
        self.dedup: list[tuple[str, int | str]] = []  # key, and place of its event in `results`
        self.left = 0  # messages without an answer
        self.failed: list[tuple[int, NewEntry]] = []  # messages to send again, with their places


class KafkaBroker:
    """The log of one cluster.

    Args:
        address: the servers and the topic.
        dedup_window_s: lifetime of dedup keys.
        dedup_max: maximum number of dedup keys.
        password: returns the password; called before each connection.
        options: options of librdkafka for TLS and SASL.
    """

    def __init__(
        self,
        address: KafkaAddress,
        dedup_window_s: float,
        dedup_max: int,
        password: Callable[[], str],
        options: dict[str, str],
    ) -> None:
        self._log = address.topic
        self._epochs = address.topic + EPOCHS
        self._address = address
        self._password = password
        self._options = options
        self._error = ""  # the last error that librdkafka reported
        self._epoch = ""
        self._epochs_stop = 0  # offset of the next record in the topic of epochs
        self._next: int | None = None  # offset of the next message that the consumer returns
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._watcher: Consumer | None = None  # asks for the head
        self._call = _Call(0, "")
        self._seen = Seen(dedup_window_s, dedup_max)
        self._reading = ThreadPoolExecutor(1, "relay-kafka-read")
        self._writing = ThreadPoolExecutor(1, "relay-kafka-write")

    # The follower

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""
        await self.close_follower()
        return await self._read_in_thread(self._open, epoch)

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""

        def renew() -> LogPosition:
            self._append_epoch(known, epoch)
            return self._position()

        return await self._read_in_thread(renew)

    async def position(self) -> LogPosition:
        """Return epoch and head of the log; `read` checks the marks."""
        _, high = await self._read_in_thread(self._limits, self._log)
        return LogPosition(self._epoch, high + 1, b"")

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one."""
        # The last entry is read again to compare its mark.
        first = after - 1 if epoch and mark and self._next != after else after
        count = min(count_max, READ_ENTRIES_MAX) + (after - first)
        messages = await self._read_in_thread(self._fetch, first, count, wait_s)
        entries: list[LogEntry] = []
        for message in messages:
            self._check(message, after)
            if message.topic() == self._epochs:
                self._take_epoch(message)
                continue
            entry, dedup = _entry(message)
            if entry.sequence == after and not entries:
                if entry.mark != mark:
                    raise EntriesReplacedError(f"entry {after} is another one")
                continue
            if entry.sequence != after + len(entries) + 1:
                raise LogChangedError(f"entry {after + len(entries) + 1} is missing")
            entries.append(entry)
            if dedup is not None:
                key, id = dedup
                self._seen.add(key, id or f"{self._epoch}-{entry.sequence}", time.monotonic())
        self._next = after + len(entries)
        return entries

    async def trim(self, before: int) -> None:
        """Do nothing: the topic's retention applies."""

    async def close_follower(self) -> None:
        """Close the follower's connection."""
        await self._read_in_thread(self._close_consumer)

    # In the thread of the follower

    def _open(self, epoch: str) -> LogPosition:
        self._consumer = Consumer(
            {
                **self._client_options(),
                "group.id": "relay",  # required by librdkafka; nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 100,
                "allow.auto.create.topics": True,
            }
        )
        low, high = self._limits(self._epochs, create=True)
        if low == high:
            self._append_epoch("", epoch)
            low, high = self._limits(self._epochs)
        self._epoch, self._epochs_stop = "", high
        for message in self._fetch_range(self._epochs, low, high):
            self._fold(message)
        return self._position()

    def _position(self) -> LogPosition:
        """Return the position in the log and the current epoch, with records that have arrived since the last call."""
        _, stop = self._limits(self._epochs)
        for message in self._fetch_range(self._epochs, self._epochs_stop, stop):
            self._fold(message)
        self._epochs_stop = stop
        low, high = self._limits(self._log, create=True)
        now_ms = tail_ms = int(time.time() * 1000)
        if low < high:
            [oldest] = self._fetch_range(self._log, low, low + 1)
            tail_ms = oldest.timestamp()[1]
        return LogPosition(self._epoch, high + 1, b"", low + 1, tail_ms, now_ms)

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
        admin = AdminClient(self._client_options())
        kept = {"retention.ms": "-1", "retention.bytes": "-1"} if topic == self._epochs else {}
        made = admin.create_topics([NewTopic(topic, num_partitions=1, config=kept)], request_timeout=ANSWER_S)
        for future in made.values():
            future.result(ANSWER_S)

    def _fetch(self, first: int, count: int, wait_s: float) -> list[Message]:
        consumer = self._consumer
        assert consumer is not None, "the follower is not connected"
        if self._next != first:
            consumer.assign([TopicPartition(self._log, 0, first), TopicPartition(self._epochs, 0, self._epochs_stop)])
            self._next = first
        message = consumer.poll(wait_s)
        if message is None:
            return []
        return [message, *(consumer.consume(count - 1, timeout=0.0) if count > 1 else ())]

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
        producer = Producer({**self._client_options(), "enable.idempotence": True})
        failures: list[KafkaError] = []
        producer.produce(
            self._epochs,
            json.dumps({"known": known, "epoch": epoch}).encode(),
            partition=0,
            on_delivery=lambda error, _: failures.append(error) if error is not None else None,
        )
        if producer.flush(ANSWER_S) or failures:
            raise BrokerError(f"cannot store the epoch: {failures[0].str() if failures else 'no answer'}")

    def _fold(self, message: Message) -> None:
        """Apply a record of the topic of epochs."""
        record = json.loads(message.value() or b"{}")
        if not self._epoch or record.get("known") == self._epoch:
            self._epoch = str(record.get("epoch"))

    def _take_epoch(self, message: Message) -> None:
        before, self._epochs_stop = self._epoch, int(message.offset() or 0) + 1
        self._fold(message)
        if self._epoch != before:
            raise LogChangedError(f"it has the epoch {self._epoch}")

    def _close_consumer(self) -> None:
        consumer, self._consumer, self._next = self._consumer, None, None
        if consumer is not None:
            consumer.close()

    # The publisher

    async def connect(self) -> None:
        """Connect the publisher."""
        await self._write_in_thread(self._connect)

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order. The events of a request are not atomic if this process dies."""
        if self._call.number != call:
            self._call = self._prepare(call, requests)
        current = self._call
        await self._write_in_thread(self._produce, current)
        for key, place in current.dedup:
            if isinstance(place, int):
                result = current.results[place]
                if isinstance(result, int):
                    self._seen.add(key, f"{current.epoch}-{result}", time.monotonic())
        return current.epoch, current.results

    def _prepare(self, number: int, requests: Sequence[Request]) -> _Call:
        """Find the events that are repeats; the others are to be sent."""
        call, now_s = _Call(number, self._epoch), time.monotonic()
        for entry in (entry for request in requests for entry in request):
            place = len(call.results)
            known = None if entry.dedup is None else self._seen.find(entry.dedup, now_s)
            call.results.append(known if known is not None else 0)
            if known is None:
                call.failed.append((place, entry))
                if entry.dedup is not None and entry.id is not None:
                    self._seen.add(entry.dedup, entry.id, now_s)
                elif entry.dedup is not None:
                    call.dedup.append((entry.dedup, place))
        return call

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""
        return await self._write_in_thread(self._head)

    async def close_publisher(self) -> None:
        """Keep the producer, which still sends the events that it has accepted."""

    async def close(self) -> None:
        """Close all connections and end the threads."""
        await self.close_follower()
        await self._write_in_thread(self._close_producer)
        self._reading.shutdown()
        self._writing.shutdown()

    # In the thread of the publisher

    def _connect(self) -> None:
        if self._producer is None:
            self._producer = Producer(
                {
                    **self._client_options(),
                    "enable.idempotence": True,
                    "delivery.timeout.ms": 0,
                    "linger.ms": 0,
                    "message.max.bytes": MESSAGE_BYTES_MAX,
                }
            )
            self._watcher = Consumer({**self._client_options(), "group.id": "relay"})
        self._producer.list_topics(self._log, timeout=ANSWER_S)

    def _produce(self, call: _Call) -> None:
        producer = self._producer
        assert producer is not None, "the publisher is not connected"
        waiting, call.failed = call.failed, []
        for place, entry in waiting:
            headers: list[tuple[str, str | bytes | None]] = [("relay", FORM)]
            if entry.dedup is not None:
                headers += [("dedup", entry.dedup.encode()), ("id", (entry.id or "").encode())]
            producer.produce(
                self._log,
                entry.payload,
                partition=0,
                headers=headers,
                on_delivery=functools.partial(_delivered, call, place, entry),
            )
            call.left += 1
            producer.poll(0)
        deadline_s = time.monotonic() + ANSWER_S
        while call.left:
            if time.monotonic() >= deadline_s:
                raise BrokerError(f"no answer within {ANSWER_S:g} s{self._why()}")
            producer.poll(0.1)
        if call.failed:
            raise BrokerError(f"the broker rejected events{self._why()}")

    def _close_producer(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
        self._watcher = self._producer = None  # the library closes a producer that nothing refers to

    def _head(self) -> int:
        assert self._watcher is not None, "the publisher is not connected"
        return int(self._watcher.get_watermark_offsets(TopicPartition(self._log, 0), timeout=ANSWER_S)[1]) + 1

    # Both

    def _client_options(self) -> dict[str, Any]:
        address = self._address
        options: dict[str, Any] = {
            "bootstrap.servers": ",".join(f"{host}:{port}" for host, port in address.hosts),
            "client.id": "relay",
            "log_level": 0,  # librdkafka writes to standard error; `_on_error` has the errors too
            "error_cb": self._on_error,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 5000,
            "security.protocol": ("SASL_" if address.user else "") + ("SSL" if address.tls else "PLAINTEXT"),
            **self._options,
        }
        if address.user:
            options |= {"sasl.username": address.user, "sasl.password": address.password or self._password()}
        else:
            options.pop("sasl.mechanism", None)
        return options

    def _on_error(self, error: KafkaError) -> None:
        self._error = error.str()

    def _why(self) -> str:
        return f": {self._error}" if self._error else ""

    async def _read_in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._in_thread(self._reading, function, *arguments)

    async def _write_in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._in_thread(self._writing, function, *arguments)

    async def _in_thread(self, thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
        except KafkaException as error:
            raise BrokerError(f"{_text(error)}{self._why()}") from None


def _delivered(call: _Call, place: int, entry: NewEntry, error: KafkaError | None, message: Message) -> None:
    """Record the answer to one message."""
    call.left -= 1
    if error is None:
        call.results[place] = int(message.offset() or 0) + 1
    elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        call.results[place] = RequestError(413, "the event exceeds the limit of the broker (message.max.bytes)")
    else:
        call.failed.append((place, entry))


def _text(error: KafkaException) -> str:
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(cause)


def _entry(message: Message) -> tuple[LogEntry, tuple[str, str] | None]:
    """Return the entry in a message, and its dedup key with its own id, if it has a key."""
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
    payload, time_ms = message.value() or b"", message.timestamp()[1]
    mark = b"%d-%08x" % (time_ms, crc32(payload))
    entry = LogEntry(int(message.offset() or 0) + 1, time_ms, form, payload, mark)
    return entry, None if dedup is None else (dedup, id)
