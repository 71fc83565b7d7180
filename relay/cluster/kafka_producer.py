"""The publisher's side of a log in Kafka.

Theory of operation. librdkafka sends events again after a lost connection, and the broker recognizes them. The producer
is therefore kept over errors, and a call that is repeated waits for the same messages.

Owns the producer, its thread, and the call that is not answered.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from relay.brokers import ANSWER_S
from relay.brokers.kafka_client import KafkaOptions, KafkaThread
from relay.cluster.broker import NewEntry, Request, Result
from relay.cluster.entry import FORM
from relay.core.seen import Seen
from relay.errors import BrokerError, RequestError

MESSAGE_BYTES_MAX = 100_000_000
"""Largest message that the client library sends. The broker has another limit."""


class _Call:
    """The events of one call that the producer has accepted."""

    def __init__(self, number: int, epoch: str) -> None:
        self.number = number
        self.epoch = epoch
        self.results: list[Result] = []
        self.dedup: list[tuple[str, int, str]] = []  # key, place of its event in `results`, and own id of the event
        self.repeats: list[tuple[int, int, str]] = []  # place of an event; place and own id of the first with its key
        self.left = 0  # messages without an answer
        self.unsent: list[tuple[int, NewEntry]] = []  # messages to send, also again, with their places


class KafkaProducer:
    """Publishes to partition 0 of a topic.

    Args:
        topic: the topic.
        options: the options of the clients.
        seen: the dedup keys of the followed entries.
    """

    def __init__(self, topic: str, options: KafkaOptions, seen: Seen) -> None:
        self._topic = topic
        self._options = options
        self._seen = seen
        self._thread = KafkaThread("relay-kafka-write", options)
        self._producer: Producer | None = None
        self._watcher: Consumer | None = None  # asks for the head
        self._call = _Call(0, "")

    async def connect(self) -> None:
        """Connect, or check the connection."""
        await self._thread.run(self._connect)

    async def publish(self, number: int, epoch: str, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order; see `relay.cluster.broker.Broker.publish`."""
        if self._call.number != number:
            self._call = self._prepare(number, epoch, requests)
        call = self._call
        await self._thread.run(self._produce, call)
        for key, place, id in call.dedup:
            result = call.results[place]
            if isinstance(result, int):
                self._seen.add(key, id or f"{call.epoch}-{result}", time.monotonic())
        for place, first, id in call.repeats:
            result = call.results[first]
            call.results[place] = id or f"{call.epoch}-{result}" if isinstance(result, int) else result
        return call.epoch, call.results

    async def head(self) -> int:
        """Return the sequence of the next entry."""
        return await self._thread.run(self._head)

    async def close(self) -> None:
        """Close the clients and end the thread."""
        await self._thread.run(self._close)
        self._thread.close()

    def _prepare(self, number: int, epoch: str, requests: Sequence[Request]) -> _Call:
        """Find the events that are repeats; the others are to be sent."""
        call, now_s = _Call(number, epoch), time.monotonic()
        firsts: dict[str, tuple[int, str]] = {}
        for place, entry in enumerate(entry for request in requests for entry in request):
            key = entry.dedup
            known = None if key is None else self._seen.find(key, now_s)
            call.results.append(0 if known is None else known)
            if known is not None:
                continue
            if key is not None and key in firsts:
                call.repeats.append((place, *firsts[key]))
                continue
            call.unsent.append((place, entry))
            if key is not None:
                firsts[key] = place, entry.id or ""
                call.dedup.append((key, place, entry.id or ""))
        return call

    # In the thread

    def _connect(self) -> None:
        if self._producer is None:
            self._producer = Producer(
                {
                    **self._options.build(),
                    "enable.idempotence": True,
                    "delivery.timeout.ms": 0,
                    "linger.ms": 0,
                    "message.max.bytes": MESSAGE_BYTES_MAX,
                }
            )
        if self._watcher is None:
            self._watcher = Consumer({**self._options.build(), "group.id": "relay"})
        try:
            self._producer.list_topics(self._topic, timeout=ANSWER_S)
        except KafkaException:
            self._producer.poll(0.0)  # The library reports the reason only here.
            raise

    def _produce(self, call: _Call) -> None:
        producer = self._producer
        assert producer is not None, "the publisher is not connected"
        deadline_s = time.monotonic() + ANSWER_S
        unsent, call.unsent, sent = call.unsent, [], 0
        try:
            for place, entry in unsent:
                self._send(producer, call, place, entry, deadline_s)
                sent += 1
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                self._discard(producer)
            raise
        finally:
            call.unsent += unsent[sent:]
        while call.left:
            if time.monotonic() >= deadline_s:
                raise BrokerError(self._options.describe(f"no answer within {ANSWER_S:g} s"))
            producer.poll(0.1)
        if call.unsent:
            raise BrokerError(self._options.describe("the broker rejected events"))

    def _send(self, producer: Producer, call: _Call, place: int, entry: NewEntry, deadline_s: float) -> None:
        """Pass one event to the client library; wait while its queue is full."""
        headers: list[tuple[str, str | bytes | None]] = [("relay", FORM)]
        if entry.dedup is not None:
            headers += [("dedup", entry.dedup.encode()), ("id", (entry.id or "").encode())]
        record = functools.partial(record_delivery, call, place, entry)
        while True:
            try:
                producer.produce(self._topic, entry.payload, partition=0, headers=headers, on_delivery=record)
            except BufferError:
                if time.monotonic() >= deadline_s:
                    raise BrokerError(self._options.describe(f"no answer within {ANSWER_S:g} s")) from None
                producer.poll(0.1)
                continue
            call.left += 1
            producer.poll(0)
            return

    def _discard(self, producer: Producer) -> None:
        """Replace a producer that rejects all events after a fatal error, once it has answered its last messages.

        The next producer sends the events without an answer again, so the broker may get them twice.
        """
        if not producer.flush(ANSWER_S):
            self._producer = None

    def _head(self) -> int:
        assert self._watcher is not None, "the publisher is not connected"
        return int(self._watcher.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=ANSWER_S)[1]) + 1

    def _close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
        self._watcher = self._producer = None  # the library closes a producer that nothing refers to


def record_delivery(call: _Call, place: int, entry: NewEntry, error: KafkaError | None, message: Message) -> None:
    """Record the answer to one message of a call."""
    call.left -= 1
    if error is None:
        call.results[place] = int(message.offset() or 0) + 1
    elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        call.results[place] = RequestError(413, "the event exceeds the limit of the broker (message.max.bytes)")
    else:
        call.unsent.append((place, entry))
