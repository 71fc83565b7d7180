"""Random faults of a broker in memory: all nodes end with the broker's log, and each client's events are contiguous.

A client moves between nodes. It receives the events of one epoch in order and exactly once, unless a gap precedes.
After a change of the epoch, a gap precedes the first event. A failover may lose events, and renewals of the epoch. The
ids of the last epoch are then those of the broker's events, unless the broker has removed events that a node lacks.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from relay.cluster import follower as module
from relay.config.model import Config
from relay.core.stream import Subscribe
from relay.event import Event
from relay.ids import default_sequence
from tests.cluster.memory_broker import MemoryLog
from tests.cluster.test_follower import Following, publish
from tests.readers import Reader
from tests.sim.conftest import use_native_engine
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.world import HEAD, Pipe

ROOM = 1 << 20
STEPS = 60
TURNS = 30
"""Iterations of the event loop after each step, in which the followers work."""


class Wanderer:
    """A subscriber of topic a that moves between nodes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.gaps = 0
        self._last_id = ""
        self._gap = True  # a gap precedes the next event; the first event needs none
        self._expected = ("", 0)
        self._pipe: Pipe | None = None
        self._node: Following | None = None
        self._reader = Reader("sse")
        self._head_left = 0

    def connect(self, node: Following, fd: int) -> None:
        """Open a stream, unless the node does not have the last event yet (then it would wait)."""
        if self._pipe is not None or not node.hub.begun:
            return
        ids = (self._last_id,) if self._last_id else ()
        if ids and node.hub.find(("a",), ids) is None and default_sequence(ids, node.hub.log.epoch) is not None:
            return
        self._pipe, self._node, self._reader, self._head_left = Pipe(fd, ROOM), node, Reader("sse"), len(HEAD)
        node.engine.pipes[fd] = self._pipe
        request = Subscribe(("a",), ids, None if ids else 1e9, None, False, HEAD, "sse")
        node.hub.subscribe(fd, request, "127.0.0.1", node.now_s)

    def read(self) -> None:
        """Read everything that has arrived, and check it."""
        pipe, node = self._pipe, self._node
        if pipe is None or node is None:
            return
        while node.step():
            pass
        data, pipe.unread = bytes(pipe.unread), bytearray()
        head, data = data[: self._head_left], data[self._head_left :]
        self._head_left -= len(head)
        for event in self._reader.feed(data):
            self._check(event)
        self._last_id = self._reader.last_event_id or self._last_id
        if not pipe.server_open:
            self.cut()

    def cut(self) -> None:
        """Close the connection. Unread bytes are lost."""
        if self._pipe is not None and self._node is not None:
            self._pipe.client_open = False
            self._node.engine.report(self._pipe.fd, 1 | 0x2000)
        self._pipe = None

    def _check(self, event: Event) -> None:
        if event.event == "relay.gap":
            self._gap = True
            self.gaps += 1
            return
        epoch, _, digits = str(event.id).rpartition("-")
        place = (epoch, int(digits))
        assert self._gap or place == self._expected, f"{place} after {self._expected} without a gap"
        assert self._gap or event not in self.events[-1:], "repeated"
        self._gap, self._expected = False, (epoch, int(digits) + 1)
        self.events.append(event)


async def compare(nodes: list[Following], condition: Callable[[Following], bool]) -> None:
    """Let each node compare its log with the broker's until a condition holds for all of them."""
    for node in nodes:

        def holds(node: Following = node) -> bool:
            node.now_s += 0.1
            node.broker.log.wake()
            return condition(node)

        await node.until(holds)


async def simulate(seed: int) -> Counter[str]:
    """Run one simulation with all of its checks."""
    draw = random.Random(seed)
    log, seen, number, fd = MemoryLog(), Counter[str](), 0, 1000
    nodes = [Following(log, Config(history_events=draw.choice([20, 1000]))) for _ in range(draw.randint(1, 3))]
    clients = [Wanderer() for _ in range(3)]
    epochs = [""]
    try:
        for _ in range(STEPS):
            step = draw.choice(["publish"] * 6 + ["fork", "trim", "down", "up", "up", "empty", "renew", "time"])
            seen[step] += 1
            if step == "publish":
                for _ in range(draw.choice([1, 1, 3, 10])):
                    number += 1
                    publish(log, f"event {number}")
            elif step == "fork" and draw.random() < 0.5:
                log.fork(draw.randint(max(1, log.head - 5), log.head))
                if draw.random() < 0.3 and log.epoch:
                    log.epoch = draw.choice(epochs) or log.epoch  # the replica lacks the last renewals too
                log.wake()
            elif step == "trim" and draw.random() < 0.5:
                log.trim(draw.randint(max(1, log.head - 10), log.head))
            elif step == "empty" and draw.random() < 0.2:
                log.fork(1)
                log.entries.clear()
                log.epoch, log.mark = "", b""
                log.wake()
            elif step == "renew" and draw.random() < 0.3:
                log.epoch = f"{draw.getrandbits(32):08x}"
            elif step in ("down", "up"):
                log.down = step == "down"
                log.wake()
            if log.epoch and log.epoch != epochs[-1]:
                epochs.append(log.epoch)
            for node in nodes:
                node.now_s += draw.choice([0.0, 0.1, 2.0])
            for _ in range(draw.randint(0, TURNS)):
                await asyncio.sleep(0)
            for client in clients:
                fd += 1
                if draw.random() < 0.2:
                    client.cut()
                client.connect(draw.choice(nodes), fd)
                client.read()
        log.down = False
        await compare(nodes, lambda node: bool(log.epoch))
        publish(log, "the last")
        await compare(nodes, lambda node: node.follower._mark == log.mark and node.hub.log.epoch == log.epoch)
        for client in clients:
            for _ in range(4):  # a stream may end, and the client then resumes
                fd += 1
                client.connect(draw.choice(nodes), fd)
                client.read()
            assert client.events[-1].data == "the last"
            seen["gaps"] += client.gaps
        expected = [entry.payload for entry, _ in log.entries]
        for node in nodes:
            data = [f'{{"topic":"a","data":"{each}"}}'.encode() for each in node.data()]
            common = min(len(data), len(expected))  # the node or the broker may retain more
            assert data[-common:] == expected[-common:]
            seen["renewals"] += node.follower.renewals
            seen["lapped"] += node.follower.lapped
        if not seen["lapped"]:  # A node that is lapped cannot compare its last entry.
            kept = {f"{log.epoch}-{entry.sequence}": entry.payload for entry, _ in log.entries}
            for event in [event for client in clients for event in client.events]:
                payload = f'{{"topic":"a","data":"{event.data}"}}'.encode()
                assert kept.get(str(event.id), payload) == payload, f"{event.id} was used again"
    finally:
        for node in nodes:
            await node.stop()
    return seen


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    use_native_engine(monkeypatch)
    monkeypatch.setattr(module, "RECONNECT_MIN_S", 0.0)
    monkeypatch.setattr(module, "RECONNECT_MAX_S", 0.0)


@pytest.mark.parametrize("first", BATCHES)
def test_clients_that_move_receive_contiguous_events_or_a_gap(first: int) -> None:
    run_batch(lambda seed: asyncio.run(simulate(seed)), first)


@pytest.mark.slow
def test_the_simulations_reach_all_intended_faults() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        seen += asyncio.run(simulate(seed))
    assert seen.keys() >= {"fork", "trim", "down", "empty", "renew", "renewals", "lapped", "gaps"}, seen
