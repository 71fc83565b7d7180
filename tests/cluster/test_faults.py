"""A cluster under load whose nodes and broker die and stall at random. All subscribers see all events.

One seed determines the faults. Subscribers move to another node with each connection and resume with their last id. The
feeder changes nodes too, and resends unacknowledged events. The broker keeps what it has acknowledged.
No gap, duplicate or wrong order is accepted. `make cluster-faults` runs more seeds, and Kafka.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.movers import ClusterNode, Mover, Server, end
from tests.cluster.nodes import epoch
from tests.faults.resender import Resender
from tests.kafka_server import RealKafka, need_kafka
from tests.nats_server import NatsServer
from tests.oracle import check_received
from tests.redis_server import RedisServer, need_redis
from tests.running import eventually

pytestmark = pytest.mark.slow

EVENTS = 4000
EVENTS_PER_S = 2000.0
FAULTS = 8
NODES_MAX = 4
SUBSCRIBERS = 6
STALL_S = 0.3
PATIENCE_S = 90.0
"""A Kafka that was killed needs about ten seconds to start, and its clients some more to find it."""

SEEDS = int(os.environ.get("CLUSTER_SEEDS", "1"))
BROKERS = ("redis", "nats", *(["kafka"] if "CLUSTER_SEEDS" in os.environ else []))
KINDS = (
    *("kill node", "stall node", "cut connections of node", "stall connections of node", "add node"),
    *("kill broker", "stall broker"),
)


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Run a broker that keeps each event that it has acknowledged when it is killed."""
    folder = tmp_path / "broker"
    folder.mkdir()
    server: Server
    if request.param == "redis":
        need_redis()
        server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    elif request.param == "nats":
        server = NatsServer(folder)
    else:
        need_kafka()
        server = RealKafka(folder, NODES_MAX)
    yield server
    server.close()


def cause(fault: str, node: ClusterNode, broker: Server, feeder: Resender) -> None:
    """Cause one fault. A stall ends before this returns."""
    if fault == "kill node":
        node.kill()
    elif fault == "stall node":
        node.signal(signal.SIGSTOP)
        feeder.over.wait(STALL_S)
        node.signal(signal.SIGCONT)
    elif fault == "cut connections of node":
        node.cable.cut()
    elif fault == "stall connections of node":
        node.cable.flowing.clear()
        feeder.over.wait(STALL_S)
        node.cable.flowing.set()
    elif fault == "kill broker":
        broker.kill()
        broker.start()
    else:
        broker.signal(signal.SIGSTOP)
        feeder.over.wait(STALL_S)
        broker.signal(signal.SIGCONT)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_deaths_stalls_and_cuts_of_nodes_broker_and_clients_lose_no_event(
    tmp_path: Path, broker: Server, seed: int
) -> None:
    draw = random.Random(seed)
    nodes = [ClusterNode(tmp_path, name, broker) for name in "ab"]
    faults = list[str]()
    feeder = Resender(nodes[0].path, EVENTS, nodes[1].path, rate=EVENTS_PER_S)
    movers = [
        Mover(nodes, random.Random(draw.random()), lambda _, count: count == EVENTS) for _ in range(SUBSCRIBERS)
    ]
    threads: list[Resender | Mover] = [feeder, *movers]
    try:
        for thread in threads:
            thread.start()
        while len(faults) < FAULTS:
            fault = draw.choice(KINDS)
            if fault == "add node":
                if len(nodes) == NODES_MAX:
                    continue
                nodes.append(ClusterNode(tmp_path, f"node {len(nodes)}", broker))
            else:
                cause(fault, draw.choice(nodes), broker, feeder)
            faults.append(fault)
            before = len(feeder.ids)
            more = min(draw.randrange(100, 400), EVENTS - before)
            eventually(lambda: len(feeder.ids) >= before + more, "events continue", PATIENCE_S)  # noqa: B023
        assert feeder.over.wait(PATIENCE_S), "all events are acknowledged"
        for mover in movers:
            mover.join(PATIENCE_S)
            assert mover.failure is None, mover.failure
            assert not mover.is_alive(), f"a stream hangs after {mover.count} of {EVENTS} events"
    finally:
        end(threads, nodes, PATIENCE_S)
    print(", ".join(faults))
    epochs = {epoch(id) for id in feeder.ids.values()}
    assert len(epochs) == 1, f"the broker has lost events: {epochs}"
    published = feeder.published()
    for mover in movers:
        check_received(published, mover.seen)
