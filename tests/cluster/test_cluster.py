"""The cluster's part of a node, over a broker in memory: last ids that only another node has, and readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from relay.auth.tokens import Auth
from relay.cluster import cluster as module
from relay.cluster import follower, publisher
from relay.cluster.broker_factory import make_broker
from relay.cluster.cluster import AHEAD_MAX, FINDS_MAX, Cluster
from relay.config.model import Config
from relay.errors import BrokerError, ConfigError
from relay.event import Event
from relay.front.front import Front
from relay.front.openings import Openings
from relay.telemetry.metrics import Metrics
from tests.cluster.memory_broker import MemoryBroker, MemoryLog
from tests.cluster.test_publisher import Observed
from tests.sim.conftest import use_native_engine
from tests.sim.world import World


class Member(World):
    """One node over a broker in memory."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(Config(cluster="redis://127.0.0.1"))
        self.hub.log.epoch = ""
        self.stop = asyncio.Event()
        self.cluster = Cluster(
            self.config, self.hub, self, Observed(), asyncio.get_running_loop(), lambda: self.now_s
        )
        self.found: list[Any] = []
        self.log = log

    def input_error(self, source: str, kind: str) -> None:
        """Ignore the error."""

    def find(self, id: str) -> Callable[[], None]:
        """Look a last id up; the result is added to `found`."""
        return self.cluster.find(("a",), (id,), self.found.append)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until a condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
async def member(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Member]:
    """Make a node at a log with one event."""
    use_native_engine(monkeypatch)
    for each in (follower, publisher):
        monkeypatch.setattr(each, "RECONNECT_MIN_S", 0.0)
        monkeypatch.setattr(each, "RECONNECT_MAX_S", 0.0)
    log = MemoryLog(epoch="0a1b2c3d")
    monkeypatch.setattr(module, "make_broker", lambda config: (MemoryBroker(log), "memory://"))
    log.append(b'{"topic":"a","data":"1"}', b"1")
    node = Member(log)
    yield node
    await node.cluster.close()
    node.engine._epoll.close()


@pytest.fixture
async def node(member: Member) -> Member:
    """Start the node."""
    await member.cluster.start(member.stop)
    return member


@pytest.fixture
async def openings(node: Member, monkeypatch: pytest.MonkeyPatch) -> Openings:
    """Return the part of a front that opens streams of the node directly."""
    metrics = Metrics(node.hub, CollectorRegistry(), lambda: 0.0)
    auth = Auth(node.config, frozenset(), wall=time.time)
    loop = asyncio.get_running_loop()
    front = Front(node.hub, node.config, metrics, lambda _: b"", b"", auth, loop, lambda: node.now_s)
    front.become_edge(front.publisher, node.cluster.find)
    monkeypatch.setattr(node.hub, "subscribe", lambda *_: None)  # the test has no sockets
    return Openings(front)


def opens(openings: Openings, last_id: str = "") -> bool:
    """Return whether a request is opened directly; otherwise a connection looks its last id up."""
    resume = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
    return openings.open(-1, "", f"GET /events?topic=a HTTP/1.1\r\nHost: a\r\n{resume}\r\n".encode())


async def test_only_streams_whose_last_id_is_known_open_directly(node: Member, openings: Openings) -> None:
    assert opens(openings)
    assert opens(openings, "0a1b2c3d-1")
    assert not opens(openings, "0a1b2c3d-2")
    node.log.append(b'{"topic":"a","data":"2"}', b"2")
    await node.until(lambda: node.hub.log.head == 3)
    assert opens(openings, "0a1b2c3d-2")


async def test_an_id_of_the_epoch_before_is_looked_up_after_the_new_log_is_complete(
    node: Member, openings: Openings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "READ_MAX", 1)
    for number in range(2, 30):
        node.log.append(b'{"topic":"a","data":"2"}', b"%d" % number)
    await node.until(lambda: node.hub.log.head == 30)
    node.hub.begin("ffffffff", 1, 30, 0.0, node.now_s)  # as for a new epoch, before its entries
    assert not opens(openings, "0a1b2c3d-1")
    node.find("0a1b2c3d-1")
    for _ in range(20):
        await asyncio.sleep(0)
    assert node.found == []
    node.log.epoch = "ffffffff"
    node.now_s += 2.0
    node.log.wake()
    await node.until(lambda: node.found == [None])
    assert node.hub.begun
    assert node.hub.log.head == 30


async def test_the_start_ends_with_the_history_and_the_publisher(node: Member) -> None:
    assert node.hub.ready
    assert node.hub.log.head == 2
    assert node.cluster.publisher.available


async def test_the_start_waits_for_the_publisher(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    open_now = asyncio.Event()

    async def connect(self: MemoryBroker) -> None:
        await open_now.wait()

    monkeypatch.setattr(MemoryBroker, "connect", connect)
    start = asyncio.create_task(member.cluster.start(member.stop))
    await member.until(lambda: member.hub.begun)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not start.done()
    open_now.set()
    await start
    assert member.cluster.publisher.available


async def test_the_start_ends_although_the_publisher_cannot_connect(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(self: MemoryBroker) -> None:
        raise BrokerError("login failed")

    monkeypatch.setattr(MemoryBroker, "connect", connect)
    await member.cluster.start(member.stop)
    assert member.hub.ready
    assert not member.cluster.publisher.available


async def test_a_default_id_that_is_ahead_waits_for_its_event(node: Member) -> None:
    node.log.silent = True
    node.log.append(b'{"topic":"a","data":"2"}', b"2")
    node.find("0a1b2c3d-2")
    for _ in range(20):
        await asyncio.sleep(0)
    assert node.found == []
    node.log.wake()
    await node.until(lambda: node.found == [2])


async def test_an_own_id_that_is_ahead_waits_for_its_event(node: Member) -> None:
    node.log.silent = True
    node.log.append(b'{"topic":"a","data":"2","id":"own"}', b"2")
    node.find("own")
    node.find("unknown")
    for _ in range(20):
        await asyncio.sleep(0)
    node.log.wake()
    await node.until(lambda: len(node.found) == 2)
    assert node.found == [2, None]


async def test_an_id_that_the_broker_does_not_have_is_unknown(node: Member) -> None:
    node.find("0a1b2c3d-7")
    node.find("ffffffff-1")
    await node.until(lambda: len(node.found) == 2)
    assert node.found == [None, None]


async def test_a_storm_of_unknown_ids_is_answered_in_linear_time(node: Member) -> None:
    """Comparing each of the clients with all others would take a minute."""
    began_s = time.process_time()
    for _ in range(FINDS_MAX):
        node.find("0a1b2c3d-7")
    await node.until(lambda: len(node.found) == FINDS_MAX)
    assert time.process_time() - began_s < 10.0


async def test_a_cancelled_client_receives_nothing(node: Member) -> None:
    node.find("0a1b2c3d-7")()
    node.find("0a1b2c3d-7")
    await node.until(lambda: len(node.found) == 1)


async def test_without_the_broker_an_id_of_the_epoch_is_trusted(node: Member) -> None:
    node.log.down = True
    node.log.wake()
    await node.until(lambda: not node.cluster.publisher.available)
    for id in ("0a1b2c3d-7", "0a1b2c3d-1", "ffffffff-1", "own", f"0a1b2c3d-{AHEAD_MAX + 10}", "0a1b2c3d-07"):
        node.find(id)
    assert node.found == [7, 1, None, None, None, None]


async def test_a_lookup_whose_answer_does_not_come_is_trusted(node: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.cluster.publisher, "head", lambda done: None)
    node.find("0a1b2c3d-7")
    await asyncio.sleep(0)
    node.cluster.tick(node.now_s)
    assert node.found == []
    node.now_s += 5.0
    node.cluster.tick(node.now_s)
    assert node.found == [7]


async def test_a_lookup_that_the_broker_fails_is_trusted(node: Member) -> None:
    node.find("0a1b2c3d-7")
    node.log.down = True
    await node.until(lambda: node.found == [7])


async def test_a_node_without_its_broker_becomes_unready_after_a_time(node: Member) -> None:
    node.log.down = True
    node.log.wake()
    await node.until(lambda: not node.cluster.follower.connected)
    node.now_s += 29.0
    node.cluster.tick(node.now_s)
    assert node.hub.ready
    assert node.cluster.stats().error == "the broker is down"
    node.now_s += 2.0
    node.cluster.tick(node.now_s)
    assert not node.hub.ready
    node.log.down = False
    await node.until(lambda: node.cluster.follower.connected)
    node.cluster.tick(node.now_s)
    assert node.hub.ready


async def test_a_drain_waits_for_the_broker_and_the_own_events(node: Member) -> None:
    receipt = node.cluster.publisher.publish_one(Event("2", topic="a"), node.now_s)
    await node.cluster.settle()
    assert receipt.id == "0a1b2c3d-2"
    assert node.hub.log.head == 3


def test_a_missing_password_file_is_an_error_at_the_start() -> None:
    config = Config(cluster="redis://127.0.0.1", cluster_password_file="/missing")
    with pytest.raises(ConfigError, match="cluster-password-file: cannot read /missing: No such file"):
        make_broker(config)
