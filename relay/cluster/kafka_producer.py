"""The publisher's side of a log in Kafka.

Theory of operation. librdkafka sends events again after a lost connection, and the broker recognizes them. The producer
is therefore kept over errors, and a call that is repeated waits for the same messages.

The client library reports each message by a callback, for which it takes and releases the interpreter's lock. In
another thread, each callback would wait up to 5 ms for a busy event loop. So the event loop itself passes messages to
the library and collects the reports. This never blocks, because the library sends and receives in threads of its own.

Another node may have published an event with the same dedup key just before. So the answer for an event with a key
waits until the follower has read its entry; see `relay.cluster.repeats`.

Owns the producer, a thread for calls that block, and the call that is not answered.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from relay.brokers import ANSWER_S
from relay.brokers.kafka_client import KafkaOptions, KafkaThread
from relay.cluster.broker import NewEntry, Request, Result
from relay.cluster.publisher import CALL_EVENTS_MAX
from relay.cluster.repeats import Repeats
from relay.errors import BrokerError, RequestError

MESSAGE_BYTES_MAX = 100_000_000
"""Largest message that the client library sends. The broker has another limit."""

LINGER_MS = 1
"""Time for which the client library waits for the other events of a call, so that they are one request."""

POLL_S = 0.001
"""Interval at which the event loop collects the reports of the client library while a call is not answered."""


class _Call:
    """The events of one call that the producer has accepted."""

    def __init__(self, number: int, epoch: str) -> None:
        self.number = number
        self.epoch = epoch
        self.results: list[Result] = []
        self.keyed: list[tuple[int, NewEntry]] = []  # messages with a dedup key, with their places in `results`
        self.left = 0  # messages without an answer
        self.unsent: list[tuple[int, NewEntry]] = []  # messages to send, also again, with their places


class KafkaProducer:
    """Publishes to partition 0 of a topic.

    Args:
        topic: the topic.
        options: the options of the clients.
        repeats: the dedup keys of the followed entries.
    """

    def __init__(self, topic: str, options: KafkaOptions, repeats: Repeats) -> None:
        self._topic = topic
        self._options = options
        self._repeats = repeats
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
        with self._options.errors():
            await self._produce(call)
        if call.epoch == epoch:
            await self._drop_repeats(call)
        return call.epoch, call.results

    async def head(self) -> int:
        """Return the sequence of the next entry."""
        return await self._thread.run(self._head)

    async def close(self) -> None:
        """Close the clients and end the thread."""
        await self._thread.run(self._close)
        self._thread.close()

    def _prepare(self, number: int, epoch: str, requests: Sequence[Request]) -> _Call:
        """Find the events that are known to be repeats; the others are to be sent."""
        call, now_s = _Call(number, epoch), time.time()
        for place, entry in enumerate(entry for request in requests for entry in request):
            known = None if entry.dedup is None else self._repeats.known(entry.dedup, now_s)
            if known is not None:
                call.results.append(known)
                continue
            call.results.append(0)
            call.unsent.append((place, entry))
            if entry.dedup is not None:
                call.keyed.append((place, entry))
        return call

    async def _produce(self, call: _Call) -> None:
        """Send the messages of a call, and wait for their answers."""
        producer = self._producer
        assert producer is not None, "the publisher is not connected"
        deadline_s = time.monotonic() + ANSWER_S
        unsent, call.unsent, sent = call.unsent, [], 0
        try:
            while sent < len(unsent) or call.left:
                while sent < len(unsent) and self._send(producer, call, *unsent[sent]):
                    sent += 1
                if time.monotonic() >= deadline_s:
                    raise BrokerError(self._options.describe(f"no answer within {ANSWER_S:g} s"))
                await asyncio.sleep(POLL_S)
                producer.poll(0)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                await self._thread.run(self._discard, producer)
            raise
        finally:
            call.unsent += unsent[sent:]
        if call.unsent:
            raise BrokerError(self._options.describe("the broker rejected events"))

    def _send(self, producer: Producer, call: _Call, place: int, entry: NewEntry) -> bool:
        """Pass one event to the client library; return False if its queue is full."""
        headers: list[tuple[str, str | bytes | None]] | None = None
        if entry.dedup is not None:
            headers = [("dedup", entry.dedup.encode()), ("id", (entry.id or "").encode())]
        record = functools.partial(record_delivery, call, place, entry)
        try:
            producer.produce(self._topic, entry.payload, partition=0, headers=headers, on_delivery=record)
        except BufferError:
            return False
        call.left += 1
        return True

    async def _drop_repeats(self, call: _Call) -> None:
        """Replace the sequence of each repeat by the id of the first event with its key."""
        for place, entry in call.keyed:
            result = call.results[place]
            if isinstance(result, int):
                first = await self._repeats.first(str(entry.dedup), result)
                if first is not None and first != (entry.id or f"{call.epoch}-{result}"):
                    call.results[place] = first

    # In the thread

    def _connect(self) -> None:
        if self._producer is None:
            self._producer = Producer(
                {
                    **self._options.build(),
                    "enable.idempotence": True,
                    "delivery.timeout.ms": 0,
                    "linger.ms": LINGER_MS,
                    "batch.num.messages": CALL_EVENTS_MAX,  # a full call does not linger
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
