"""The log in Kafka, against the mock broker of librdkafka.

Covers `relay.brokers.kafka_client`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeAlias, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from relay.brokers.credentials import TlsFiles
from relay.cluster.broker import EntriesReplacedError, LogChangedError, LogEntry
from relay.cluster.kafka_broker import KafkaBroker
from relay.cluster.kafka_producer import _Call, record_delivery
from relay.config.broker_address import parse_kafka
from relay.errors import BrokerError, RequestError
from tests.cluster.broker_node import EPOCH, BrokerNode, entry
from tests.kafka_server import KafkaServer


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """Run a broker for all tests; each test has a topic of its own."""
    server = KafkaServer()
    yield server
    server.close()


KafkaNode: TypeAlias = BrokerNode[KafkaBroker]


def kafka_node(url: str) -> KafkaNode:
    """Return a node that is not connected yet."""
    return BrokerNode(KafkaBroker(parse_kafka(url), 60.0, 1000, lambda: "", TlsFiles(), "plain"))


topics = count(1)


@pytest.fixture
async def nodes(server: KafkaServer) -> AsyncIterator[list[KafkaNode]]:
    """Connect two nodes to a new topic."""
    url = f"kafka://{server.address}/topic{next(topics)}"
    nodes = [await kafka_node(url).start(), await kafka_node(url).start()]
    yield nodes
    for node in nodes:
        await node.broker.close()


async def test_sequences_are_the_offsets_at_every_node(nodes: list[KafkaNode]) -> None:
    first, second = nodes
    position = await second.broker.open("ffffffff")
    assert (position.epoch, position.head, position.tail) == (EPOCH, 1, 1)
    assert await first.publish([entry("1")], [entry("2"), entry("3")]) == [1, 2, 3]
    assert await second.broker.publish(9, [[entry("4")]]) == (EPOCH, [4])
    for node in nodes:
        read = await node.read(count=4)
        assert [(each.sequence, each.payload, each.form) for each in read] == [
            (number, str(number).encode(), b"v1") for number in range(1, 5)
        ]
    assert await first.broker.head() == (await first.broker.position()).head == 5
    assert (await first.broker.open("")).tail == 1


async def test_a_call_that_is_repeated_appends_nothing(nodes: list[KafkaNode]) -> None:
    node = nodes[0]
    answer = await node.broker.publish(1, [[entry("1"), entry("2")]])
    await node.broker.close_publisher()
    await node.broker.connect()
    assert await node.broker.publish(1, [[entry("1"), entry("2")]]) == answer == (EPOCH, [1, 2])
    assert await node.broker.head() == 3


@asynccontextmanager
async def following(*nodes: KafkaNode) -> AsyncIterator[list[list[LogEntry]]]:
    """Follow the log at some nodes; return the entries that each has read."""

    async def follow(node: KafkaNode, entries: list[LogEntry]) -> None:
        while True:
            entries += await node.broker.read(len(entries), 100, EPOCH, entries[-1].mark if entries else b"", 0.1)

    logs: list[list[LogEntry]] = [[] for _ in nodes]
    tasks = [asyncio.create_task(follow(*each)) for each in zip(nodes, logs, strict=True)]
    yield logs
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_dedup_key_gives_the_first_id_at_every_node(nodes: list[KafkaNode]) -> None:
    first, second = nodes
    async with following(*nodes) as logs:
        assert await first.publish([entry(dedup="k")]) == [1]
        assert await first.publish([entry(dedup="k")]) == [f"{EPOCH}-1"]
        assert await first.publish([entry(dedup="own", id="own id"), entry(dedup="own")]) == [2, "own id"]
        await until(lambda: len(logs[1]) == 3)
        assert await second.publish([entry(dedup="k")], [entry(dedup="own"), entry()]) == [f"{EPOCH}-1", "own id", 4]
        assert await second.publish([entry(dedup="new"), entry(dedup="new")]) == [5, f"{EPOCH}-5"]
        await until(lambda: [len(log) for log in logs] == [6, 6])
    for log in logs:
        assert [each.sequence for each in log if each.repeats] == [3, 6]


async def test_an_event_that_two_nodes_publish_at_once_is_dropped_once(
    server: KafkaServer, nodes: list[KafkaNode]
) -> None:
    # No node has followed the other's entry when it publishes its own.
    publishing = [asyncio.create_task(node.publish([entry("same", dedup="k")])) for node in nodes]
    head = 0
    while head != 3:
        head = await nodes[0].broker.head()
    url = f"kafka://{server.address}/{nodes[0].broker._log}"
    late = await kafka_node(url).start()
    async with following(*nodes, late) as logs:
        answers = await asyncio.gather(*publishing)
        assert sorted(map(str, (answer for [answer] in answers))) == [f"{EPOCH}-1", "1"]
        await until(lambda: all(len(log) == 2 for log in logs))
    for log in logs:
        assert [each.repeats for each in log] == [False, True]
    await late.broker.close()
    # A node that has begun again reads the same.
    await nodes[0].broker.open("")
    assert [each.repeats for each in await nodes[0].read(count=2)] == [False, True]


async def test_a_publisher_does_not_wait_for_a_follower_that_has_stopped(nodes: list[KafkaNode]) -> None:
    node = nodes[0]
    publishing = asyncio.create_task(node.broker.publish(1, [[entry(dedup="k")]]))
    while await node.broker.head() != 2:
        pass
    await node.broker.close_follower()
    with pytest.raises(BrokerError, match="the follower has lost its connection"):
        await publishing
    await node.broker.open("")
    async with following(node):
        assert await node.broker.publish(1, [[entry(dedup="k")]]) == (EPOCH, [1])
    assert await node.broker.head() == 2


async def test_a_reader_compares_its_last_entry_when_it_begins(nodes: list[KafkaNode]) -> None:
    node = nodes[0]
    await node.publish([entry("1"), entry("2"), entry("3")])
    _, second, third = [(await node.read(after, count=1))[0] for after in range(3)]
    await node.broker.open("")
    assert await node.read(2, second.mark, EPOCH) == [third]
    await node.broker.open("")
    with pytest.raises(EntriesReplacedError, match="entry 2 is another one"):
        await node.read(2, third.mark, EPOCH)


async def test_the_epoch_is_renewed_once(nodes: list[KafkaNode]) -> None:
    first, second = nodes
    waiting = asyncio.create_task(second.read(0, b"", EPOCH))
    assert (await first.broker.renew(EPOCH, "aaaaaaaa")).epoch == "aaaaaaaa"
    with pytest.raises(LogChangedError, match="it has the epoch aaaaaaaa"):
        await waiting
    assert (await second.broker.renew(EPOCH, "bbbbbbbb")).epoch == "aaaaaaaa"
    assert (await first.broker.open("cccccccc")).epoch == "aaaaaaaa"
    assert (await second.broker.position()).epoch == "aaaaaaaa"


async def test_another_program_publishes_without_headers(server: KafkaServer, nodes: list[KafkaNode]) -> None:
    node = nodes[0]
    await node.publish([entry("1")])
    topic = node.broker._log
    producer = Producer({"bootstrap.servers": server.address})
    producer.produce(topic, b'{"topic":"a"}', partition=0)
    producer.produce(topic, b"two", partition=0, headers=[("relay", b"v2")])
    assert producer.flush(10) == 0
    read = await node.read(count=3)
    assert [(each.form, each.payload) for each in read[1:]] == [(b"v1", b'{"topic":"a"}'), (b"v2", b"two")]
    assert await node.publish([entry("4")]) == [4]


async def test_entries_that_the_broker_has_removed_are_reported(nodes: list[KafkaNode]) -> None:
    node = nodes[0]
    for _ in range(8):  # the mock broker keeps 5 MB
        await node.publish([entry("x" * 900_000)])
    position = await node.broker.open("")
    assert 1 < position.tail < position.head == 9
    assert 0 < position.tail_ms <= position.time_ms
    with pytest.raises(LogChangedError):
        await node.read(0)
    await node.broker.open("")
    assert (await node.read(position.tail - 1))[0].sequence == position.tail


def test_a_message_that_is_too_large_is_rejected_alone() -> None:
    class Error:
        def code(self) -> int:
            return KafkaError.MSG_SIZE_TOO_LARGE

    call = _Call(1, EPOCH)
    call.results, call.left = [0], 1
    record_delivery(call, 0, entry(), cast(KafkaError, Error()), cast(Message, None))
    assert isinstance(call.results[0], RequestError)
    assert (call.left, call.unsent) == (0, [])


class Refusing:
    """A producer that refuses some messages of a call with an error, and accepts the others."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.sent: list[bytes] = []
        self._answers: list[Callable[[], None]] = []

    def produce(self, topic: str, payload: bytes, on_delivery: Callable[..., None], **_: object) -> None:
        """Accept a message, or raise the next error."""
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.sent.append(payload)
        self._answers.append(functools.partial(on_delivery, None, Stored(len(self.sent) - 1)))

    def poll(self, _: float) -> None:
        """Answer the accepted messages."""
        while self._answers:
            self._answers.pop(0)()

    def flush(self, _: float) -> int:
        """Answer the accepted messages; none is left."""
        self.poll(0)
        return 0


class Stored:
    """A message that the broker has."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        """Return its offset."""
        return self._offset


async def test_a_full_queue_of_the_client_library_loses_no_event(nodes: list[KafkaNode]) -> None:
    producer = Refusing(None, BufferError(), None, BufferError())
    nodes[0].broker._producer._producer = cast(Producer, producer)
    assert await nodes[0].publish([entry("1"), entry("2"), entry("3")]) == [1, 2, 3]
    assert producer.sent == [b"1", b"2", b"3"]


async def test_a_producer_that_failed_is_replaced_and_no_event_is_lost(nodes: list[KafkaNode]) -> None:
    broker = nodes[0].broker
    broker._producer._producer = cast(Producer, Refusing(None, KafkaException(KafkaError(KafkaError._FATAL))))
    call = [[entry("1"), entry("2"), entry("3")]]
    with pytest.raises(BrokerError):
        await broker.publish(1, call)
    await broker.connect()
    # The first event has the offset that the failed producer reported; the topic of this test has the others.
    assert await broker.publish(1, call) == (EPOCH, [1, 1, 2])


async def test_the_key_of_a_rejected_event_is_not_a_repeat(nodes: list[KafkaNode]) -> None:
    producer = nodes[0].broker._producer
    large = entry(dedup="k", id="own")

    class TooLarge(Refusing):
        def produce(self, topic: str, payload: bytes, on_delivery: Callable[..., None], **_: object) -> None:
            self._answers.append(functools.partial(on_delivery, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None))

    accepting, producer._producer = producer._producer, cast(Producer, TooLarge())
    [rejected] = await nodes[0].publish([large])
    assert isinstance(rejected, RequestError)
    producer._producer = accepting
    async with following(nodes[0]):
        assert await nodes[0].publish([large]) == [1]
        assert await nodes[0].publish([large]) == ["own"]
