"""Nodes that die and return, and clients that move between them, for the tests of clusters under faults."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.rig.cable import Cable
from relay.event import Event
from tests.faults.resender import Resender
from tests.kafka_server import RealKafka
from tests.nats_server import NatsServer
from tests.redis_server import RedisServer
from tests.running import Relay, Stream, free_port

Server = RedisServer | NatsServer | RealKafka


class ClusterNode:
    """One relay process, which is restarted whenever it is killed. Its connections to the broker can be cut."""

    def __init__(self, folder: Path, name: str, broker: Server, *arguments: str) -> None:
        self.port = free_port()
        self.path = folder / f"{name}.sock"
        self.cable = broker.cables.pop() if isinstance(broker, RealKafka) else Cable(broker.port)
        self._arguments = (
            *("--cluster", broker.url.replace(str(broker.port), str(self.cable.port))),
            *("--listen", f"127.0.0.1:{self.port}"),
            *("--unix", str(self.path), "--retry-min", "1ms", "--retry-max", "2ms"),
            *arguments,
        )
        self.server = Relay(*self._arguments)

    def kill(self) -> None:
        """Kill the process, and start another."""
        self.server.stop(signal.SIGKILL)
        self.server = Relay(*self._arguments)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.server.pid, number)

    def stop(self) -> None:
        """Stop the process."""
        self.server.stop(signal.SIGKILL)
        self.cable.close()


class Mover(threading.Thread):
    """A subscriber that moves to another node with each connection.

    Args:
        nodes: the nodes; more may be added.
        draw: chooses the node and the time to move.
        is_last: returns whether an event is the last one, given also the number of received events.
    """

    def __init__(self, nodes: list[ClusterNode], draw: random.Random, is_last: Callable[[Event, int], bool]) -> None:
        super().__init__(daemon=True)
        self.seen: list[Event | None] = []  # None marks the start of a connection
        self.count = 0  # of received events
        self.failure: BaseException | None = None
        self.stopped = threading.Event()  # when set, no new connection is opened
        self._nodes = nodes
        self._draw = draw
        self._is_last = is_last
        self._last = ""
        self._over = False

    def run(self) -> None:
        try:
            while not self._over and not self.stopped.is_set():
                with contextlib.suppress(AssertionError, OSError):
                    self._connection()
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error

    def _connection(self) -> None:
        since = {"Last-Event-ID": self._last} if self._last else {}
        patience = self._draw.randrange(50, 1000)  # it moves after this many events
        with Stream(self._draw.choice(self._nodes).port, "topic=**&since=earliest", since) as stream:
            assert stream.head.startswith(b"HTTP/1.1 200 ")
            self.seen.append(None)
            while not self._over and patience:
                event = stream.next()
                self.seen.append(event)
                if event.id is not None:
                    self._last = event.id
                    self.count += 1
                    self._over = self._is_last(event, self.count)
                patience -= 1


def end(threads: Sequence[Resender | Mover], nodes: Sequence[ClusterNode], patience_s: float) -> None:
    """End threads and nodes. A thread that outlived its test would open descriptors while another test counts them."""
    for thread in threads:
        thread.stopped.set()
    for node in nodes:
        node.stop()
    for thread in threads:
        thread.join(patience_s)
        assert not thread.is_alive()
