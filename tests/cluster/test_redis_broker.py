"""The script in Redis and the commands around it, against a real server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from relay.brokers.credentials import TlsFiles
from relay.brokers.redis_client import RedisClient, RedisScript
from relay.cluster.broker import READ_ENTRIES_MAX, EntriesReplacedError, LogChangedError, LogEntry, NewEntry, Result
from relay.cluster.redis_broker import READ_BYTES, READ_ENTRIES_FIRST, RedisBroker
from relay.config.broker_address import parse_redis
from relay.errors import BrokerError, EndedError
from tests.cluster.broker_node import EPOCH, entry
from tests.redis_server import RedisServer, need_redis


class Node:
    """The broker as one node uses it."""

    def __init__(self, server: RedisServer, name: str = "test", url: str = "", password: str = "") -> None:
        self.broker = RedisBroker(
            parse_redis(url or server.url), name, secrets.token_hex(4), 60.0, lambda: password, TlsFiles()
        )
        self._calls = count(1)

    async def publish(self, *requests: Sequence[NewEntry]) -> list[Result | None]:
        """Make one call and return the results; None for an event whose topic has ended."""
        results = (await self.broker.publish(next(self._calls), requests))[1]
        return [None if isinstance(result, EndedError) else result for result in results]

    async def read(self, after: int = 0, mark: bytes = b"", epoch: str = "") -> Sequence[LogEntry]:
        """Read entries without waiting long."""
        return await self.broker.read(after, READ_ENTRIES_MAX, epoch, mark, 0.05)


@pytest.fixture
async def node(redis: RedisServer) -> AsyncIterator[Node]:
    """Connect a node whose epoch the log gets."""
    node = Node(redis)
    await node.broker.open(EPOCH)
    await node.broker.connect()
    yield node
    await node.broker.close_follower()
    await node.broker.close_publisher()


@pytest.fixture
async def other(redis: RedisServer, node: Node) -> AsyncIterator[Node]:
    """Connect another node."""
    other = Node(redis)
    await other.broker.open("ffffffff")
    await other.broker.connect()
    yield other
    await other.broker.close_follower()
    await other.broker.close_publisher()


async def test_the_first_node_determines_the_epoch(node: Node, other: Node) -> None:
    position = await other.broker.open("eeeeeeee")
    assert (position.epoch, position.head, position.tail, position.mark, position.ended) == (EPOCH, 1, 1, b"", [])
    assert await other.broker.publish(1, [[entry()]]) == (EPOCH, [1])


@pytest.mark.parametrize(
    ("operation", "window", "events", "reason"),
    [
        ("publish", "60000", ("", "a", "{}", "", "a"), "an event is FLAGS TOPIC PAYLOAD"),
        ("publish", "60000", ("", "a", "{}", "d", "a", "{}", "key"), "an event is FLAGS TOPIC PAYLOAD"),
        ("publish", "0", ("", "a", "{}", "d", "a", "{}", "key", ""), "WINDOW is a number of milliseconds"),
        ("publish", "1e3", ("d", "a", "{}", "key", ""), "WINDOW is a number of milliseconds"),
        ("Publish", "60000", ("", "a", "{}"), "the operation is open, renew or publish"),
    ],
)
async def test_wrong_arguments_of_another_program_change_nothing(
    redis: RedisServer, node: Node, operation: str, window: str, events: tuple[str, ...], reason: str
) -> None:
    client = RedisClient(parse_redis(redis.url), str, TlsFiles())
    keys = [f"{{test}}:{name}" for name in ("log", "state", "ended", "dedup:", "call:shop")]
    script = RedisScript("relay.cluster", "log.lua")
    with pytest.raises(BrokerError, match=reason):
        await client.run(script, keys, operation, EPOCH, "shop", "1", window, *events)
    await client.close()
    assert await node.publish([entry("1")]) == [1]
    assert [each.sequence for each in await node.read()] == [1]


async def test_sequences_are_contiguous_across_nodes_and_calls(node: Node, other: Node) -> None:
    assert await node.publish([entry("1")], [entry("2"), entry("3")]) == [1, 2, 3]
    assert await other.publish([entry("4")]) == [4]
    assert await node.publish([entry("5")]) == [5]
    read = await node.read()
    assert [(each.sequence, each.payload, each.form) for each in read] == [
        (number, str(number).encode(), b"v1") for number in range(1, 6)
    ]
    assert (await node.broker.position()).head == 6
    assert await node.broker.head() == 6


async def test_a_call_that_is_repeated_appends_nothing(node: Node) -> None:
    first = await node.broker.publish(1, [[entry("1"), entry("2")]])
    assert await node.broker.publish(1, [[entry("1"), entry("2")]]) == first
    assert await node.publish([entry("3")]) == [1, 2]  # call 1 again
    assert await node.publish([entry("3")]) == [3]


async def test_a_call_that_is_repeated_after_the_broker_lost_it_appends_again(redis: RedisServer, node: Node) -> None:
    await node.broker.publish(1, [[entry("1")]])
    redis.client.flushall()
    epoch, results = await node.broker.publish(1, [[entry("1")]])
    assert results == [1]
    assert epoch != EPOCH


async def test_a_dedup_key_gives_the_first_id(node: Node, other: Node) -> None:
    assert await node.publish([entry(dedup="a\nk")]) == [1]
    assert await other.publish([entry(dedup="a\nk")]) == [f"{EPOCH}-1"]
    assert await other.publish([entry(dedup="a\nown", id="own id"), entry(dedup="a\nown")]) == [2, "own id"]
    assert await node.publish([entry(dedup="b\nk")]) == [3]


async def test_a_dedup_key_expires(redis: RedisServer, node: Node) -> None:
    await node.publish([entry(dedup="a\nk")])
    [key] = [each for each in redis.client.scan_iter() if b"dedup" in each]
    assert 50_000 < redis.client.pttl(key) <= 60_000


async def test_an_ended_topic_accepts_no_event_at_any_node(node: Node, other: Node) -> None:
    assert await node.publish([entry(), entry(ends=True)]) == [1, 2]
    assert await other.publish([entry()], [entry(topic="b")]) == [None, 3]
    assert await other.publish([entry(topic="b"), entry()]) == [None, None]
    assert await other.publish([entry(topic="c", ends=True), entry(topic="c")]) == [None, None]
    assert await other.publish([entry(topic="c")]) == [4]
    assert (await other.broker.open("")).ended == ["a"]


async def test_the_end_of_a_topic_that_is_sent_again_gives_the_first_id(node: Node) -> None:
    assert await node.publish([entry(ends=True, dedup="a\nend")]) == [1]
    assert await node.publish([entry(ends=True, dedup="a\nend")]) == [f"{EPOCH}-1"]
    assert await node.publish([entry(dedup="a\nother")]) == [None]


async def test_an_entry_with_any_bytes_is_unchanged(node: Node) -> None:
    await node.publish([entry("\0\r\n\N{SNOWMAN}" * 100, topic="\N{SNOWMAN}")])
    [read] = await node.read()
    assert read.payload == ("\0\r\n\N{SNOWMAN}" * 100).encode()


async def test_a_read_is_limited(node: Node) -> None:
    await node.publish([entry(str(number)) for number in range(READ_ENTRIES_MAX + 1)])
    assert [len(await node.read()) for _ in range(7)] == [16, 32, 64, 128, 256, READ_ENTRIES_MAX, READ_ENTRIES_MAX]
    assert len(await node.broker.read(0, 2, "", b"", 0.05)) == 2
    await node.broker.open("")
    assert len(await node.read()) == READ_ENTRIES_FIRST


async def test_a_read_requests_fewer_entries_while_they_are_large(node: Node) -> None:
    for _ in range(20):
        await node.publish([entry("x" * 1_000_000)])
    await node.publish([entry()])
    assert [len(await node.read()) for _ in range(2)] == [READ_ENTRIES_FIRST, READ_BYTES // 1_000_000]
    assert [len(await node.read(20)) for _ in range(2)] == [1, 1]
    assert [len(await node.read()) for _ in range(2)] == [16, 4]


async def test_a_read_waits_for_the_next_entry(node: Node, other: Node) -> None:
    waiting = asyncio.create_task(node.broker.read(0, 10, EPOCH, b"", 10.0))
    await asyncio.sleep(0)
    await other.publish([entry("1")])
    assert [each.sequence for each in await waiting] == [1]


async def test_a_read_checks_that_each_entry_continues_the_log(node: Node) -> None:
    await node.publish([entry("1"), entry("2")])
    await node.publish([entry("3")])
    first, second, third = await node.read(0, b"", EPOCH)
    assert first.mark == second.mark
    assert await node.read(2, second.mark, EPOCH) == [third]
    assert await node.read(1, first.mark, EPOCH) == [second, third]
    for after, mark, epoch in ((2, b"123-00000000", EPOCH), (1, b"123-00000000", EPOCH), (2, second.mark, "eeeeeeee")):
        with pytest.raises(LogChangedError, match="does not continue the log"):
            await node.read(after, mark, epoch)


async def test_a_read_past_trimmed_entries_is_reported(redis: RedisServer, node: Node) -> None:
    await node.publish([entry(str(number)) for number in range(500)])
    await node.broker.trim(400)
    position = await node.broker.open("")
    assert 300 <= position.tail <= 400
    assert 0 < position.tail_ms <= position.time_ms
    with pytest.raises(LogChangedError, match="entry 11 is missing"):
        await node.read(10)
    redis.client.delete("{test}:log")
    position = await node.broker.open("")
    assert (position.epoch, position.head, position.tail) == (EPOCH, 501, 501)


async def test_the_epoch_is_renewed_once(node: Node, other: Node) -> None:
    first = await node.broker.renew(EPOCH, "aaaaaaaa")
    second = await other.broker.renew(EPOCH, "bbbbbbbb")
    assert first.epoch == second.epoch == "aaaaaaaa"
    await other.publish([entry()])
    with pytest.raises(LogChangedError):
        await node.read(0, b"", EPOCH)
    assert len(await node.read(0, b"", "aaaaaaaa")) == 1


async def test_an_empty_broker_gets_a_new_log(redis: RedisServer, node: Node) -> None:
    await node.publish([entry()])
    redis.client.flushall()
    with pytest.raises(LogChangedError, match="has no log"):
        await node.broker.position()
    position = await node.broker.open("cccccccc")
    assert (position.epoch, position.head, position.tail) == ("cccccccc", 1, 1)


async def test_entries_without_a_state_belong_to_no_log(redis: RedisServer, node: Node) -> None:
    await node.publish([entry("old")])
    redis.client.delete("{test}:state")
    assert (await node.broker.open("cccccccc")).head == 1
    assert await node.publish([entry("new")]) != []
    assert [each.payload for each in await node.read()] == [b"new"]


async def test_the_time_never_decreases(redis: RedisServer, node: Node) -> None:
    ahead_ms = 10**13  # a broker whose clock was ahead has failed over to this one
    await node.publish([entry("1")])
    redis.client.hset("{test}:state", "stamp", f"{ahead_ms}-00000000")
    await node.publish([entry("2")])
    assert [each.time_ms for each in await node.read(1)] == [ahead_ms]


async def test_calls_have_different_stamps_while_the_clock_is_behind(redis: RedisServer, node: Node) -> None:
    redis.client.hset("{test}:state", "stamp", f"{10**13}-00000000")
    await node.publish([entry("1")])
    await node.publish([entry("2")])
    first, second = await node.read()
    assert first.time_ms == second.time_ms == 10**13
    # A broker that has lost entry 2 and has another one instead.
    redis.client.hset("{test}:state", mapping={"head": "1", "stamp": first.mark})
    redis.client.xdel("{test}:log", "2-0")
    redis.client.execute_command("XSETID", "{test}:log", "1-0")
    await node.publish([entry("other 2")])
    await node.publish([entry("3")])
    with pytest.raises(EntriesReplacedError, match="entry 3 does not continue the log"):
        await node.read(2, second.mark, EPOCH)


async def test_an_entry_of_another_program_is_reported(redis: RedisServer, node: Node) -> None:
    await node.publish([entry()])
    redis.client.xadd("{test}:log", {"v1": "x"})
    with pytest.raises(BrokerError, match="another program added"):
        await node.broker.open("")
    with pytest.raises(BrokerError, match="equal or smaller"):
        await node.publish([entry()])
    assert redis.client.hget("{test}:state", "head") == b"1"


async def test_clusters_with_different_names_are_separate(redis: RedisServer, node: Node) -> None:
    await node.publish([entry()])
    second = Node(redis, "second")
    assert (await second.broker.open("dddddddd")).epoch == "dddddddd"
    await second.broker.close_follower()


async def test_a_full_broker_rejects_a_call_as_a_whole(redis: RedisServer, node: Node) -> None:
    redis.client.config_set("maxmemory", "1")
    with pytest.raises(BrokerError, match="maxmemory"):
        await node.publish([entry()])
    redis.client.config_set("maxmemory", "0")
    assert await node.broker.head() == 1


async def test_errors_contain_no_password(redis: RedisServer) -> None:
    redis.client.config_set("requirepass", "the-right-one")
    node = Node(redis, url=f"redis://:a-secret@127.0.0.1:{redis.port}/0")
    with pytest.raises(BrokerError) as raised:
        await node.broker.open(EPOCH)
    assert "a-secret" not in str(raised.value)
    await node.broker.close_follower()


async def test_errors_of_a_server_without_authentication_contain_no_password(tmp_path: Path) -> None:
    need_redis()
    server = RedisServer(tmp_path, "--rename-command", "AUTH", "")
    try:
        node = Node(server, url=f"redis://user:a-secret@127.0.0.1:{server.port}/0")
        with pytest.raises(BrokerError, match="unknown command") as raised:
            await node.broker.open(EPOCH)
        assert "a-secret" not in str(raised.value)
        await node.broker.close_follower()
    finally:
        server.close()


async def test_a_user_with_the_documented_rights_suffices(redis: RedisServer) -> None:
    rights = (
        "+@connection +ping +eval +evalsha +xread +xadd +xtrim +xrange +xrevrange +hget +hmget +hset +get +set +exists "
        "+del +pexpire +time +zadd +zcard +zscore +zrange +zremrangebyrank"
    )
    redis.client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~{test}:*", *rights.split())
    redis.client.config_set("requirepass", "admin")
    node = Node(redis, url=f"redis://relay@127.0.0.1:{redis.port}/0", password="secret")
    await node.broker.open(EPOCH)
    await node.broker.connect()
    assert await node.publish([entry(dedup="a\nk", ends=True)]) == [1]
    assert len(await node.read()) == 1
    assert (await node.broker.position()).head == await node.broker.head() == 2
    await node.broker.trim(1)
    assert (await node.broker.renew(EPOCH, "aaaaaaaa")).epoch == "aaaaaaaa"
    await node.broker.close_follower()
    await node.broker.close_publisher()


async def test_a_silent_broker_is_an_error(redis: RedisServer, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.brokers.redis_client.ANSWER_S", 0.1)
    redis.client.execute_command("CLIENT", "PAUSE", "2000", "ALL")
    with pytest.raises(BrokerError, match="no answer within"):
        await node.broker.position()
