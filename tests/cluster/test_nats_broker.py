"""The log in JetStream, against a real server.

Covers `relay.cluster.epochs`, `relay.brokers.nats_client` and `relay.cluster.nats_pull`.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import nats
import pytest
from nats.js.api import StreamConfig

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.cluster.broker import Broker, EntriesReplacedError, LogChangedError, Result
from relay.cluster.broker_factory import make_broker
from relay.cluster.epochs import Epochs, encode_record
from relay.cluster.nats_broker import NatsBroker
from relay.cluster.nats_publisher import BATCH_MESSAGES_MAX
from relay.cluster.nats_pull import BATCH_BYTES
from relay.config.broker_address import parse_nats
from relay.config.model import Config
from relay.errors import BrokerError, RequestError
from tests.certificate import make_certificate
from tests.cluster.broker_node import EPOCH, BrokerNode, entry
from tests.nats_server import NatsServer, make_accounts


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Run an empty server."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.close()


NatsNode: TypeAlias = BrokerNode[NatsBroker]


def nats_node(url: str) -> NatsNode:
    """Return a node that is not connected yet."""
    return BrokerNode(NatsBroker(parse_nats(url), secrets.token_hex(4), 60.0, lambda: "", TlsFiles()))


@pytest.fixture
async def nodes(server: NatsServer) -> AsyncIterator[list[NatsNode]]:
    """Connect two nodes."""
    nodes = [await nats_node(server.url).start(), await nats_node(server.url).start()]
    yield nodes
    for node in nodes:
        await node.broker.close()


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


async def set_size_max(server: NatsServer, size: int, *, new: bool = False) -> None:
    """Limit the size of a message in the stream."""
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    stream = client.jetstream()
    config = StreamConfig(name="events", subjects=["events"], allow_atomic=True, duplicate_window=120.0)
    if not new:
        config = (await stream.stream_info("events")).config
    config.max_msg_size = size
    await (stream.add_stream if new else stream.update_stream)(config)
    await client.close()


def is_rejected(results: Sequence[Result], text: str) -> bool:
    """Return whether all events are rejected, with the same text."""
    return all(isinstance(result, RequestError) and str(result) == text for result in results)


async def test_a_request_with_an_event_above_the_limit_of_the_stream_is_rejected(server: NatsServer) -> None:
    await set_size_max(server, 2000, new=True)
    node = await nats_node(server.url).start()
    large = "x" * 2000
    results = await node.publish(
        [entry("1")], [entry("small"), entry(large), entry("small", dedup="a\nk")], [entry(large)], [entry("2")]
    )
    assert [results[0], results[5]] == [1, 2]
    assert is_rejected(results[1:4], "event 2 exceeds the limit of the stream (max_msg_size)")
    assert is_rejected(results[4:5], "the event exceeds the limit of the stream (max_msg_size)")
    await node.broker.close()


async def test_a_request_with_an_event_above_the_limit_of_the_server_is_rejected(nodes: list[NatsNode]) -> None:
    results = await nodes[0].publish([entry("1")], [entry("x" * 2_000_000), entry()], [entry("2")])
    assert [results[0], results[3]] == [1, 2]
    assert is_rejected(results[1:3], "event 1 exceeds the limit of the broker (max_payload)")


@pytest.mark.parametrize("dedup", [None, "a\nk"])
async def test_a_limit_that_is_lowered_is_read_again(
    server: NatsServer, nodes: list[NatsNode], dedup: str | None
) -> None:
    await set_size_max(server, 2000)
    call = [[entry("1")], [entry("x" * 3000, dedup=dedup)]]
    with pytest.raises(BrokerError, match="message size exceeds maximum allowed"):
        await nodes[0].broker.publish(1, call)
    if dedup is not None:  # The event before it is stored. The follower receives its sequence.
        await nodes[0].read(count=1)
    await nodes[0].broker.connect()
    _, results = await nodes[0].broker.publish(1, call)
    assert results[0] == 1
    assert is_rejected(results[1:], "the event exceeds the limit of the stream (max_msg_size)")


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


async def test_a_call_fails_at_once_when_the_connection_is_lost(server: NatsServer, nodes: list[NatsNode]) -> None:
    server.signal(signal.SIGSTOP)
    call = asyncio.ensure_future(nodes[0].publish([entry()]))
    await asyncio.sleep(0)
    server.kill()
    async with asyncio.timeout(ANSWER_S / 2):
        with pytest.raises(BrokerError, match="the connection is lost"):
            await call


async def test_a_call_fails_until_the_follower_has_read_the_epoch(server: NatsServer, nodes: list[NatsNode]) -> None:
    new = nats_node(server.url)
    await new.broker.connect()
    with pytest.raises(BrokerError, match="the follower has not read the epoch yet"):
        await new.publish([entry()])
    await new.broker.open("")
    assert await new.publish([entry()]) == [1]
    await new.broker.close()


def broker_of(config: Config) -> Broker:
    """Return the broker of the settings of a node."""
    return make_broker(config)[0]


async def test_the_password_of_the_address_or_of_the_file_is_used_and_not_shown(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "--user", "user", "--pass", "right")
    try:
        broker = broker_of(Config(cluster=f"nats://user:a-secret@127.0.0.1:{server.port}/events"))
        with pytest.raises(BrokerError) as raised:
            await broker.open(EPOCH)
        assert "a-secret" not in str(raised.value)
        await broker.close()
        file = tmp_path / "password"
        file.write_text("right\n")
        config = Config(cluster=f"nats://user@127.0.0.1:{server.port}/events", cluster_password_file=str(file))
        broker = broker_of(config)
        assert (await broker.open(EPOCH)).epoch == EPOCH
        await broker.close()
    finally:
        server.close()


async def test_a_node_logs_in_with_a_credentials_file(tmp_path: Path) -> None:
    settings, credentials = make_accounts(tmp_path)
    server = NatsServer(tmp_path / "nats", "--config", str(settings))
    try:
        url = f"nats://127.0.0.1:{server.port}/events"
        broker = broker_of(Config(cluster=url, cluster_password_file=str(credentials)))
        assert (await broker.open(EPOCH)).epoch == EPOCH
        await broker.connect()
        assert await broker.publish(1, [[entry()]]) == (EPOCH, [1])
        await broker.close()
        broker = broker_of(Config(cluster=url))
        with pytest.raises(BrokerError, match=r"(?i)authorization violation"):
            await broker.open(EPOCH)
        await broker.close()
    finally:
        server.close()


@pytest.mark.parametrize(
    "contents",
    [
        "a-secret",
        "-----BEGIN NATS USER JWT-----\na-secret\n",
        "-----BEGIN NATS USER JWT-----\na\n-----BEGIN USER NKEY SEED-----\na-secret\n-----END USER NKEY SEED-----\n",
        "-----BEGIN NATS USER JWT-----\na\n-----BEGIN USER NKEY SEED-----\na-secrét\n-----END USER NKEY SEED-----\n",
    ],
)
async def test_a_malformed_credentials_file_is_an_error_without_its_contents(
    server: NatsServer, tmp_path: Path, contents: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(contents)
    broker = broker_of(Config(cluster=server.url, cluster_password_file=str(file)))
    with pytest.raises(BrokerError, match="the password file has no valid credentials") as raised:
        await broker.open(EPOCH)
    assert "a-secr" not in str(raised.value)
    await broker.close()


async def test_a_broker_with_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls", "broker")
    other = make_certificate(tmp_path / "other", "other")
    files = ("--tlscert", str(certificate.cert), "--tlskey", str(certificate.key), "--tlscacert", str(certificate.cert))
    server = NatsServer(tmp_path / "nats", "--tlsverify", *files)
    try:
        config = Config(
            cluster=f"natss://127.0.0.1:{server.port}/events",
            cluster_tls_ca=str(certificate.cert),
            cluster_tls_cert=str(certificate.cert),
            cluster_tls_key=str(certificate.key),
        )
        broker = broker_of(config)
        assert (await broker.open(EPOCH)).epoch == EPOCH
        await broker.close()
        for wrong in (replace(config, cluster_tls_ca=str(other.cert)), replace(config, cluster_tls_cert="")):
            broker = broker_of(wrong)
            with pytest.raises(BrokerError):
                await broker.open(EPOCH)
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
    node = await nats_node(server.url).start()
    assert (await node.broker.position()).epoch == EPOCH
    await node.broker.close()
