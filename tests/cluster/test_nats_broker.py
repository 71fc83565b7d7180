"""The log in JetStream, against a real server.

Covers `relay.cluster.epochs` and `relay.cluster.nats_pull`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from pathlib import Path

import nats
import pytest

from relay.cluster.broker import BrokerError, EntriesReplacedError, LogChangedError, LogEntry, NewEntry, Result
from relay.cluster.epochs import Epochs, encode_record
from relay.cluster.nats_broker import BATCH_MESSAGES_MAX, READ_ENTRIES_MAX, NatsBroker
from relay.cluster.nats_pull import BATCH_BYTES
from relay.config.broker_address import parse_nats
from relay.errors import RequestError
from tests.nats_server import NatsServer

EPOCH = "0a1b2c3d"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Run an empty server."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.close()


class NatsNode:
    """The broker as one node uses it."""

    def __init__(self, url: str) -> None:
        self.broker = NatsBroker(parse_nats(url), secrets.token_hex(4), 60.0, lambda: "", "", None)
        self._calls = count(1)

    async def start(self) -> NatsNode:
        """Connect."""
        await self.broker.open(EPOCH)
        await self.broker.connect()
        return self

    async def publish(self, *requests: Sequence[NewEntry]) -> list[Result]:
        """Make one call and return the results."""
        return (await self.broker.publish(next(self._calls), requests))[1]

    async def read(self, after: int = 0, mark: bytes = b"", epoch: str = "", count: int = 0) -> list[LogEntry]:
        """Read until `count` entries have arrived, or some entries if `count` is 0."""
        entries: list[LogEntry] = []
        deadline_s = time.monotonic() + 20.0
        while len(entries) < max(1, count):
            assert time.monotonic() < deadline_s, f"only {len(entries)} entries"
            last = entries[-1] if entries else None
            entries += await self.broker.read(
                last.sequence if last else after, READ_ENTRIES_MAX, epoch, last.mark if last else mark, 0.5
            )
        return entries


@pytest.fixture
async def nodes(server: NatsServer) -> AsyncIterator[list[NatsNode]]:
    """Connect two nodes."""
    nodes = [await NatsNode(server.url).start(), await NatsNode(server.url).start()]
    yield nodes
    for node in nodes:
        await node.broker.close()


def entry(payload: str = "x", topic: str = "a", **fields: object) -> NewEntry:
    """Return an event to publish."""
    return NewEntry(topic, payload.encode(), **{"id": None, "dedup": None, "ends": False, **fields})  # type: ignore[arg-type]


async def test_sequences_are_contiguous_across_nodes_and_calls(nodes: list[NatsNode]) -> None:
    first, second = nodes
    position = await second.broker.open("ffffffff")
    assert (position.epoch, position.head, position.tail) == (EPOCH, 1, 1)
    assert abs(position.time_ms / 1000 - time.time()) < 60
    assert await first.publish([entry("1")], [entry("2"), entry("3")]) == [1, 2, 3]
    assert await second.broker.publish(9, [[entry("4")]]) == (EPOCH, [4])
    for node in nodes:
        read = await node.read(count=4)
        assert [(each.sequence, each.payload, each.form) for each in read] == [
            (number, str(number).encode(), b"v1") for number in range(1, 5)
        ]
    assert await first.broker.head() == (await first.broker.position()).head == 5
    position = await first.broker.open("")
    assert (position.tail, position.tail_ms) == (1, read[0].time_ms)


async def test_a_call_that_is_repeated_appends_nothing(nodes: list[NatsNode]) -> None:
    node = nodes[0]
    call = [[entry("1"), entry("2")], [entry("3", dedup="k")], [entry("4")]]
    answer = await node.broker.publish(1, call)
    assert answer == (EPOCH, [1, 2, 3, 4])
    await node.broker.connect()
    await node.read(count=4)  # the follower sees its own events
    assert await node.broker.publish(1, call) == (EPOCH, [1, 2, f"{EPOCH}-3", 4])
    assert await node.broker.head() == 5


async def test_a_large_call_is_several_batches(nodes: list[NatsNode]) -> None:
    number = BATCH_MESSAGES_MAX + 5
    assert await nodes[0].publish([entry(str(place)) for place in range(number)]) == list(range(1, number + 1))
    read = await nodes[1].read(count=number)
    assert [each.payload for each in read] == [str(place).encode() for place in range(number)]


async def test_large_messages_that_wait_are_bounded(nodes: list[NatsNode]) -> None:
    first, second = nodes
    for _ in range(30):
        await first.publish([entry("x" * 900_000)])
    read = await second.broker.read(0, 1, "", b"", 5.0)
    pull = second.broker._consumer
    assert pull is not None
    async with asyncio.timeout(20):
        while pull._left > 0:  # the server ends the request at its limit of bytes
            await asyncio.sleep(0.01)
    assert sum(len(message.data) for message in pull._messages) < BATCH_BYTES
    while len(read) < 30:
        read = [*read, *await second.broker.read(len(read), 1, "", b"", 5.0)]
    assert [each.sequence for each in read] == list(range(1, 31))


async def test_a_dedup_key_gives_the_first_id(nodes: list[NatsNode]) -> None:
    first, second = nodes
    assert await first.publish([entry(dedup="a\nk")]) == [1]
    assert await second.publish([entry(dedup="a\nk")], [entry()]) == [f"{EPOCH}-1", 2]
    assert await first.publish([entry(dedup="a\nown", id="own"), entry(dedup="a\nown", id="own")]) == [3, "own"]


async def test_dedup_keys_that_a_header_cannot_contain_are_different(nodes: list[NatsNode]) -> None:
    keys = ["a\nk", "a k", "a\nk ", "a\r\nk", "a\nk\r\nNats-Rollup: all", "a\n\u20ac" + "\u20ac" * 255]
    assert await nodes[0].publish([entry(dedup=key) for key in keys]) == [1, 2, 3, 4, 5, 6]
    assert await nodes[1].publish([entry(dedup=key) for key in keys]) == [
        f"{EPOCH}-{number}" for number in range(1, 7)
    ]


async def test_an_event_that_exceeds_the_limit_of_the_stream_is_rejected_alone(server: NatsServer) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    await client.jetstream().add_stream(
        name="events", subjects=["events"], max_msg_size=1000, allow_atomic=True, duplicate_window=120.0
    )
    await client.close()
    node = await NatsNode(server.url).start()
    large = "x" * 2000
    results = await node.publish([entry("1")], [entry(large)], [entry(large, dedup="a\nk")], [entry("2")])
    assert [results[0], results[3]] == [1, 2]
    assert isinstance(results[1], RequestError)
    assert isinstance(results[2], RequestError)
    await node.broker.close()


async def test_an_event_that_is_too_large_is_rejected_alone(nodes: list[NatsNode]) -> None:
    results = await nodes[0].publish([entry("1")], [entry("x" * 2_000_000)], [entry("2")])
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], RequestError)


async def test_a_reader_compares_its_last_entry_when_it_begins(nodes: list[NatsNode]) -> None:
    node = nodes[0]
    await node.publish([entry("1"), entry("2"), entry("3")])
    first, second, third = await node.read(count=3)
    await node.broker.open("")
    assert await node.read(2, second.mark, EPOCH) == [third]
    await node.broker.open("")
    with pytest.raises(EntriesReplacedError, match="entry 2 is another one"):
        await node.read(2, first.mark, EPOCH)


async def test_the_epoch_is_renewed_once(nodes: list[NatsNode]) -> None:
    first, second = nodes
    assert (await first.broker.renew(EPOCH, "aaaaaaaa")).epoch == "aaaaaaaa"
    assert (await second.broker.renew(EPOCH, "bbbbbbbb")).epoch == "aaaaaaaa"
    assert (await first.broker.open("cccccccc")).epoch == "aaaaaaaa"
    await first.publish([entry()])
    with pytest.raises(LogChangedError, match="entry 1 has the epoch aaaaaaaa"):
        await second.read(0, b"", EPOCH)


async def test_entries_that_the_stream_has_removed_are_reported(server: NatsServer, nodes: list[NatsNode]) -> None:
    node = nodes[0]
    await node.publish([entry(str(number)) for number in range(10)])
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    await client.jetstream().purge_stream("events", keep=3)
    await client.close()
    position = await node.broker.open("")
    assert (position.tail, position.head) == (8, 11)
    with pytest.raises(LogChangedError, match="entry 3 is missing"):
        await node.read(2)


async def test_another_program_publishes_without_headers(server: NatsServer, nodes: list[NatsNode]) -> None:
    await nodes[0].publish([entry("1")])
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    await client.jetstream().publish("events", b'{"topic":"a"}')
    await client.jetstream().publish("events", b"two", headers={"relay": "v2"})
    await client.close()
    read = await nodes[1].read(count=3)
    assert [(each.form, each.payload) for each in read[1:]] == [(b"v1", b'{"topic":"a"}'), (b"v2", b"two")]


async def test_a_broker_that_is_gone_is_an_error(server: NatsServer, nodes: list[NatsNode]) -> None:
    server.kill()
    for call in (nodes[0].broker.position(), nodes[0].publish([entry()]), nodes[0].broker.head()):
        with pytest.raises(BrokerError):
            await call
    with pytest.raises(BrokerError):
        await nodes[0].broker.open("")


async def test_errors_contain_no_password(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "--user", "user", "--pass", "right")
    try:
        broker = NatsBroker(
            parse_nats(f"nats://user:a-secret@127.0.0.1:{server.port}/events"), "0" * 8, 60.0, lambda: "", "", None
        )
        with pytest.raises(BrokerError) as raised:
            await broker.open(EPOCH)
        assert "a-secret" not in str(raised.value)
        await broker.close()
        broker = NatsBroker(
            parse_nats(f"nats://user@127.0.0.1:{server.port}/events"), "0" * 8, 60.0, lambda: "right", "", None
        )
        assert (await broker.open(EPOCH)).epoch == EPOCH
        await broker.close()
    finally:
        server.close()


def test_records_replace_only_the_epoch_that_they_name() -> None:
    epochs = Epochs()
    assert epochs.take(encode_record("", "a"))
    assert not epochs.take(encode_record("", "b"))
    assert epochs.take(encode_record("a", "c"))
    assert not epochs.take(encode_record("a", "d"))
    assert epochs.current == "c"


@pytest.mark.parametrize(
    "record",
    [
        *(b"", b"[]", b"\xff", b"[" * 100_000, b'{"known":"c"}'),
        *(b'{"known":"c","epoch":""}', b'{"known":"c","epoch":"a\\nb"}'),
    ],
)
def test_a_malformed_record_has_no_effect(record: bytes) -> None:
    epochs = Epochs()
    assert not epochs.take(record)
    assert epochs.current == ""
    assert epochs.take(encode_record("", "c"))
    assert not epochs.take(record)
    assert epochs.current == "c"


async def test_a_malformed_first_record_does_not_prevent_a_start(server: NatsServer) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    await client.jetstream().add_stream(name="events-epochs", subjects=["events-epochs"])
    await client.jetstream().publish("events-epochs", b"not JSON")
    await client.close()
    node = await NatsNode(server.url).start()
    assert (await node.broker.position()).epoch == EPOCH
    await node.broker.close()
