"""Redis fails over to replicas that lack its newest entries, and trims its log while nodes stall. Clients are notified.

One seed determines the faults. A client receives contiguous events, unless a gap precedes: a gap with the reason
`history` states the missed ids exactly. At the end, all clients have the broker's last event, and their events of the
last epoch are those in the broker.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.event import Event
from tests.cluster.movers import ClusterNode, Mover, end
from tests.cluster.nodes import detach, epoch, publish
from tests.cluster.test_faults import SEEDS
from tests.faults.resender import Resender
from tests.redis_server import RedisServer, need_redis
from tests.running import TIMEOUT_S, eventually

pytestmark = pytest.mark.slow

EVENTS = 5000
EVENTS_PER_S = 2000.0
FAULTS = 6
SUBSCRIBERS = 6
HISTORY = ("--history-events", "300")
STALL_S = 0.4
"""More events are published in this time than the nodes retain."""

KINDS = ("fail over", "fail over without the newest entries", "stall node", "kill node")
LAST = "the last event"


class Pair:
    """A primary and its replica, which takes over when the primary dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.primary = self._server()
        self.replica = self._follow()

    def _server(self, *arguments: str) -> RedisServer:
        self._count += 1
        folder = self._folder / f"redis {self._count}"
        folder.mkdir()
        return RedisServer(folder, *arguments)

    def _follow(self) -> RedisServer:
        server = self._server("--replicaof", "127.0.0.1", str(self.primary.port))
        eventually(lambda: server.client.info("replication")["master_link_status"] == "up", "the replica is linked")
        return server

    def fail_over(self, nodes: list[ClusterNode]) -> None:
        """Kill the primary, let the replica take over, and give it a replica."""
        self.primary.kill()
        self.replica.client.replicaof("NO", "ONE")
        self.primary = self.replica
        for node in nodes:
            node.cable.target = self.primary.port
            node.cable.cut()
        self.replica = self._follow()

    def close(self) -> None:
        """End both servers."""
        self.primary.close()
        self.replica.close()


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Pair]:
    """Run a primary and its replica."""
    need_redis()
    with contextlib.closing(Pair(tmp_path)) as pair:
        yield pair


def check(seen: list[Event | None]) -> int:
    """Check that each event follows the one before, or a gap. Return the number of gaps."""
    gap: dict[str, str] | None = {"reason": "start"}
    last, sequence, gaps = "", 0, 0
    for event in seen:
        if event is None:
            continue
        if event.event == "relay.gap":
            gap, gaps = json.loads(event.data), gaps + 1
            continue
        place = int(str(event.id).rpartition("-")[2])
        if gap is None:
            assert event.id == f"{last}-{sequence + 1}", f"{event.id} follows {last}-{sequence} without a gap"
        elif gap["reason"] == "history":
            assert (gap["from"], gap["to"]) == (f"{last}-{sequence + 1}", f"{last}-{place - 1}"), (gap, event.id)
            assert epoch(str(event.id)) == last
        last, sequence, gap = epoch(str(event.id)), place, None
    return gaps


@pytest.mark.parametrize("seed", range(max(1, SEEDS // 2)))
def test_clients_are_notified_of_each_event_that_a_failover_or_the_trimming_took(
    tmp_path: Path, brokers: Pair, seed: int
) -> None:
    draw = random.Random(seed)
    nodes = [ClusterNode(tmp_path, name, brokers.primary, *HISTORY) for name in "ab"]
    feeder = Resender(nodes[0].path, EVENTS, nodes[1].path, rate=EVENTS_PER_S)
    movers = [
        Mover(nodes, random.Random(draw.random()), lambda event, _: event.data == LAST) for _ in range(SUBSCRIBERS)
    ]
    threads: list[Resender | Mover] = [feeder, *movers]
    faults = list[str]()
    try:
        for thread in threads:
            thread.start()

        def proceed() -> None:
            before = len(feeder.ids)
            more = min(draw.randrange(200, 600), EVENTS - before)
            eventually(lambda: len(feeder.ids) >= before + more, "events continue")

        proceed()
        while len(faults) < FAULTS:
            faults.append(draw.choice(KINDS))
            node = draw.choice(nodes)
            if faults[-1] == "kill node":
                node.kill()
            elif faults[-1] == "stall node":
                node.signal(signal.SIGSTOP)
                feeder.over.wait(STALL_S)
                node.signal(signal.SIGCONT)
            else:
                if faults[-1] != "fail over":
                    detach(brokers.primary)
                    proceed()
                brokers.fail_over(nodes)
            proceed()
        assert feeder.over.wait(TIMEOUT_S), "all events are acknowledged"
        publish(nodes[0].server, LAST)
        for mover in movers:
            mover.join(TIMEOUT_S)
            assert mover.failure is None, mover.failure
            assert not mover.is_alive(), f"a stream hangs after {mover.count} events"
        # A node that reconnects last may have received an entry that the broker lost; it then renews the epoch.
        eventually(lambda: all(each.server.stats()["cluster"]["connected"] for each in nodes), "all nodes follow")
        last_epoch = brokers.primary.client.hget("{relay}:state", "epoch").decode()
        entries = brokers.primary.client.xrange("{relay}:log")
    finally:
        end(threads, nodes, TIMEOUT_S)
    kept = {
        f"{last_epoch}-{place.decode().removesuffix('-0')}": json.loads(fields[b"v1"])["data"]
        for place, fields in entries
    }
    gaps = 0
    for mover in movers:
        gaps += check(mover.seen)
        events = [event for event in mover.seen if event is not None and event.event != "relay.gap"]
        assert events[-1].data == LAST
        for event in events:
            assert kept.get(str(event.id), event.data) == event.data
    print(f"{gaps} gaps: {', '.join(faults)}")
