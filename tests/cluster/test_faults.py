"""A cluster under load whose nodes and broker die and stall at random. All subscribers see all events.

One seed determines the faults. Subscribers move to another node with each connection and resume with their last id. The
feeder changes nodes too, and resends unacknowledged events. The broker keeps what it has acknowledged.
No gap, duplicate or wrong order is accepted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.event import Event
from tests.cable import Cable
from tests.faults.resender import Resender
from tests.nats_server import NatsServer
from tests.oracle import Oracle
from tests.redis_server import RedisServer, need_redis
from tests.running import TIMEOUT_S, Relay, Stream, eventually, free_port

pytestmark = pytest.mark.slow

EVENTS = 4000
FAULTS = 8
SUBSCRIBERS = 6
STALL_S = 0.3
SEEDS = int(os.environ.get("CLUSTER_SEEDS", "1"))


class ClusterNode:
    """One relay process, which is restarted whenever it is killed. Its connections to the broker can be cut."""

    def __init__(self, folder: Path, name: str, broker: RedisServer | NatsServer) -> None:
        self.port = free_port()
        self.path = folder / f"{name}.sock"
        self.cable = Cable(broker.port)
        self._arguments = (
            *("--cluster", broker.url.replace(str(broker.port), str(self.cable.port))),
            *("--listen", f"127.0.0.1:{self.port}"),
            *("--unix", str(self.path), "--retry-min", "1ms", "--retry-max", "2ms"),
        )
        self.server = Relay(*self._arguments)

    def kill(self) -> None:
        """Kill the process, and start another."""
        self.server.stop(signal.SIGKILL)
        self.server = Relay(*self._arguments)

    def stop(self) -> None:
        """Stop the process."""
        self.server.stop(signal.SIGKILL)
        self.cable.close()


class Mover(threading.Thread):
    """A subscriber that moves to another node with each connection, until it has the last event."""

    def __init__(self, ports: list[int], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.seen: list[Event | None] = []  # None marks the start of a connection
        self.sequence = 0  # of the last received event
        self.failure: BaseException | None = None
        self.stopped = threading.Event()  # when set, no new connection is opened
        self._ports = ports
        self._draw = draw
        self._last = ""

    def run(self) -> None:
        try:
            while self.sequence < EVENTS and not self.stopped.is_set():
                with contextlib.suppress(AssertionError, OSError):
                    self._connection()
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error

    def _connection(self) -> None:
        since = {"Last-Event-ID": self._last} if self._last else {}
        patience = self._draw.randrange(50, 1000)  # it moves after this many events
        with Stream(self._draw.choice(self._ports), "topic=**&since=earliest", since) as stream:
            assert stream.head.startswith(b"HTTP/1.1 200 ")
            self.seen.append(None)
            while self.sequence < EVENTS and patience:
                event = stream.next()
                self.seen.append(event)
                if event.id is not None:
                    self._last, self.sequence = event.id, int(event.id.rpartition("-")[2])
                patience -= 1


@pytest.fixture(params=["redis", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer | NatsServer]:
    """Run a broker that keeps each event that it has acknowledged when it is killed."""
    folder = tmp_path / "broker"
    folder.mkdir()
    server: RedisServer | NatsServer
    if request.param == "redis":
        need_redis()
        server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    else:
        server = NatsServer(folder)
    yield server
    server.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_deaths_stalls_and_cuts_of_nodes_broker_and_clients_lose_no_event(
    tmp_path: Path, broker: RedisServer | NatsServer, seed: int
) -> None:
    draw = random.Random(seed)
    nodes = [ClusterNode(tmp_path, name, broker) for name in "ab"]
    faults = list[str]()
    feeder = Resender(nodes[0].path, EVENTS, nodes[1].path)
    movers = [Mover([node.port for node in nodes], random.Random(draw.random())) for _ in range(SUBSCRIBERS)]
    threads: list[Resender | Mover] = [feeder, *movers]
    try:
        for thread in threads:
            thread.start()
        while len(faults) < FAULTS:
            node = draw.choice(nodes)
            fault = draw.choice(("kill node", "stall node", "cut node", "kill broker", "stall broker"))
            faults.append(fault)
            if fault == "kill node":
                node.kill()
            elif fault == "stall node":
                os.kill(node.server.pid, signal.SIGSTOP)
                feeder.over.wait(STALL_S)
                os.kill(node.server.pid, signal.SIGCONT)
            elif fault == "cut node":
                node.cable.cut()
            elif fault == "kill broker":
                broker.kill()
                broker.start()
            else:
                broker.signal(signal.SIGSTOP)
                feeder.over.wait(STALL_S)
                broker.signal(signal.SIGCONT)
            before = max(mover.sequence for mover in movers)
            more = min(draw.randrange(100, 400), EVENTS - before)
            eventually(lambda: max(mover.sequence for mover in movers) >= before + more, "events continue")  # noqa: B023
        assert feeder.over.wait(TIMEOUT_S), "all events are acknowledged"
        for mover in movers:
            mover.join(TIMEOUT_S)
            assert mover.failure is None, mover.failure
            assert not mover.is_alive(), f"a stream hangs after event {mover.sequence} of {EVENTS}"
    finally:
        # A thread that outlives its test would open descriptors while another test counts them.
        for thread in threads:
            thread.stopped.set()
        for node in nodes:
            node.stop()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
    print(", ".join(faults))
    published = feeder.published()
    for mover in movers:
        oracle = Oracle(published, ("**",))
        oracle.connect(1)
        for event in mover.seen:
            if event is None:
                oracle.connect(None)
            else:
                oracle.receive(event)
        oracle.finish()
        assert oracle.gaps == 0
