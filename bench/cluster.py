"""`make bench-cluster`: compare one node without a broker with one and two nodes at Redis, Kafka and JetStream.

All runs use the same feeder and the same events. At a broker, most of the history is published before the measurements.
Each run measures the events per second from one feeder into all nodes, the CPU time per event of each process, and the
latency from the feeder to a stream of the last node. With a broker, it also measures the start of a node with a full
history, and with two nodes the time from each fault to the next event. `--peers` compares two nodes of relay,
Centrifugo and nchan at one Redis instead.

Owns these runs. Prints one line of JSON per run. With `--save`, `bench.cluster_report` writes the results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.brokers import BROKERS, BenchBroker
from bench.cluster_peers import compare
from bench.cluster_report import save
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, MeasureError, cpu_s

SIZE = 150
"""Bytes of data of an event."""

BLOCK_EVENTS = 500
LATENCY_EVENTS = 3000
LATENCY_RATE = 1000
STALL_S = 3.0
WAIT_S = 300.0
KEEP_ALL = ("--history-bytes", "2GiB", "--history-events", "0")
QUICK = ("--retry-min", "1ms", "--retry-max", "2ms")


class Subscriber(threading.Thread):
    """Reads one stream, reconnects with its last id, and queues the arrival time and the data of each event."""

    def __init__(self, ports: list[int], topic: str) -> None:
        super().__init__(daemon=True)
        self.arrivals: queue.Queue[tuple[float, str]] = queue.Queue()
        self.opened = threading.Event()
        self.closed = False
        self.gaps = 0
        self._ports = ports
        self._topic = topic
        self._last_id = ""
        self.start()

    def run(self) -> None:
        """Read until `closed`; after a lost connection, use the next port."""
        while not self.closed:
            with contextlib.suppress(OSError):
                self._read(self._ports[0])
            self._ports.append(self._ports.pop(0))
            time.sleep(0.002)

    def _read(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            resume = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
            request = f"GET /events?topic={self._topic} HTTP/1.0\r\nHost: localhost\r\n{resume}\r\n"
            connection.sendall(request.encode())
            connection.settimeout(WAIT_S)
            gap = False
            for line in connection.makefile("rb"):
                if line == b"\n":
                    gap = False
                elif line == b"event: relay.gap\n":
                    gap = True
                    self.gaps += 1
                elif line.startswith(b"id: "):
                    self._last_id = line[4:].strip().decode()
                    self.opened.set()
                elif line.startswith(b"data: ") and not gap:
                    self.arrivals.put((time.monotonic(), line[6:].strip().decode()))


def main() -> int:
    """Measure, and print one line of JSON per run."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=main.__doc__)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=list(BROKERS), help="only these brokers")
    parser.add_argument("--events", type=int, default=200_000, help="events from the feeder (200000)")
    parser.add_argument("--history", type=int, default=1_000_000, help="retained events at a node's start (1000000)")
    parser.add_argument("--peers", action="store_true", help="compare relay with Centrifugo and nchan at one Redis")
    parser.add_argument("--save", action="store_true", help="write the results to a file and to README.md")
    options = parser.parse_args()
    runs = []
    for run in compare(options.events) if options.peers else measure_all(options):
        print(json.dumps(run), flush=True)
        runs.append(run)
    if options.save:
        save(runs, " ".join(sys.argv[1:]), peers=options.peers)
    return 0


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each run."""
    yield {"broker": "", "nodes": 1, **measure(None, 1, options)}
    for name in options.brokers:
        for nodes in (1, 2):
            with contextlib.closing(BROKERS[name]()) as broker:
                yield {"broker": name, "nodes": nodes, **measure(broker, nodes, options)}


def measure(broker: BenchBroker | None, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one run."""
    extra = (*KEEP_ALL, *QUICK, *(("--cluster", broker.url) if broker else ()))
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(MeasuredServer(TARGETS["relay"], extra=extra)) for _ in range(count)]
        if broker is not None:
            # The virtual machine of Kafka compiles the broker's code during the first hundreds of thousands of events.
            fill(nodes, options.history - options.events - LATENCY_EVENTS)
        figures = throughput(nodes, broker, options.events)
        figures |= latency(nodes, broker)
        if broker is not None:
            fill(nodes, options.history)
            began_s = time.monotonic()
            new = stack.enter_context(MeasuredServer(TARGETS["relay"], extra=extra))
            figures["start_s"] = round(time.monotonic() - began_s, 2)
            figures["start_events"] = new.stats()["log"]["events"]
            if count > 1:
                figures |= faults(nodes, broker)
    return figures


class CpuMeter:
    """Measures the CPU time per event of each node and of the broker, from its creation on."""

    def __init__(self, nodes: list[MeasuredServer], broker: BenchBroker | None) -> None:
        pids = dict(zip(("publisher", "follower"), (node.pid for node in nodes), strict=False))
        self._pids = pids | ({"broker": broker.process.pid} if broker else {})
        self._before_s = {name: cpu_s(pid) for name, pid in self._pids.items()}

    def per_event_us(self, events: int) -> dict[str, float]:
        """Return the CPU time per event of each process, in µs."""
        return {
            name: round((cpu_s(pid) - self._before_s[name]) / events * 1e6, 2) for name, pid in self._pids.items()
        }


def throughput(nodes: list[MeasuredServer], broker: BenchBroker | None, events: int) -> dict[str, Any]:
    """Feed the first node at full speed until all nodes have the events."""
    meter = CpuMeter(nodes, broker)
    began_s = time.monotonic()
    feed(nodes, events)
    took_s = time.monotonic() - began_s
    return {"events_per_s": round(events / took_s), "cpu_us_per_event": meter.per_event_us(events)}


def feed(nodes: list[MeasuredServer], events: int) -> None:
    """Publish events at the first node, and wait until all nodes have them."""
    heads = [node.stats()["log"]["head"] + events for node in nodes]
    line = json.dumps({"topic": "bench", "data": "x" * SIZE}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as feeder:
        feeder.settimeout(WAIT_S)
        feeder.connect(str(nodes[0].unix))
        for _ in range(0, events, BLOCK_EVENTS):
            feeder.sendall(line * BLOCK_EVENTS)
        wait_for(lambda: all(n.stats()["log"]["head"] >= head for n, head in zip(nodes, heads, strict=True)))


def fill(nodes: list[MeasuredServer], events: int) -> None:
    """Publish until the history has this number of events."""
    missing = events - nodes[0].stats()["log"]["events"]
    if missing > 0:
        feed(nodes, -(-missing // BLOCK_EVENTS) * BLOCK_EVENTS)


def latency(nodes: list[MeasuredServer], broker: BenchBroker | None) -> dict[str, Any]:
    """Publish at the first node at a fixed rate, and measure until a stream of the last node has each event."""
    subscriber = Subscriber([nodes[-1].port], "latency")
    taken = []
    with socket.socket(socket.AF_UNIX) as feeder:
        feeder.connect(str(nodes[0].unix))
        subscriber.opened.wait(WAIT_S)
        meter = CpuMeter(nodes, broker)
        began_s = time.monotonic()
        for number in range(LATENCY_EVENTS):
            time.sleep(max(0.0, began_s + number / LATENCY_RATE - time.monotonic()))
            event = {"topic": "latency", "data": f"{time.monotonic()!r} {'x' * SIZE}"}
            feeder.sendall(json.dumps(event).encode() + b"\n")
        for _ in range(LATENCY_EVENTS):
            arrived_s, text = subscriber.arrivals.get(timeout=WAIT_S)
            taken.append(1000 * (arrived_s - float(text.partition(" ")[0])))
    subscriber.closed = True
    cuts = statistics.quantiles(taken, n=100)
    return {
        "latency_ms": {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(taken), 2)},
        "cpu_us_per_event_at_1000_per_s": meter.per_event_us(LATENCY_EVENTS),
    }


def faults(nodes: list[MeasuredServer], broker: BenchBroker) -> dict[str, Any]:
    """Measure the time from each fault, or from its end, to the next event that a subscriber receives.

    A third node, whose connections to the broker are cut and stalled, has a subscriber of its own.

    A gap means that the broker has lost events that it had acknowledged. A Redis that writes its file once per second
    may do so if the disk is busy when it is killed.
    """
    extra = (*KEEP_ALL, *QUICK, "--cluster", broker.cable_url)
    subscriber = Subscriber([nodes[1].port, nodes[0].port], "faults")
    subscriber.opened.wait(WAIT_S)
    times: dict[str, float] = {}
    with Ticker(str(nodes[0].unix)):
        with MeasuredServer(TARGETS["relay"], extra=extra) as third:
            at_third = Subscriber([third.port], "faults")
            at_third.arrivals.get(timeout=WAIT_S)
            broker.cable.cut()
            times["connections of a node to the broker cut"] = until_event(at_third)
            broker.cable.flowing.clear()
            time.sleep(STALL_S)
            broker.cable.flowing.set()
            times[f"connections of a node stalled for {STALL_S:g} s, after the end"] = until_event(at_third)
            at_third.closed = True
        subscriber.arrivals.get(timeout=WAIT_S)
        broker.restart()
        times["broker killed, after its restart"] = until_event(subscriber)
        with stalled(broker.process.pid):
            time.sleep(STALL_S)
        times[f"broker stalled for {STALL_S:g} s, after its end"] = until_event(subscriber)
        with stalled(nodes[1].pid):
            time.sleep(STALL_S)
        times[f"node stalled for {STALL_S:g} s, after its end"] = until_event(subscriber)
        os.killpg(nodes[1].pid, signal.SIGKILL)
        times["node killed, its client at the other node"] = until_event(subscriber)
    subscriber.closed = True
    return {"recovery_s": times, "gaps": subscriber.gaps + at_third.gaps}


@contextlib.contextmanager
def stalled(pid: int) -> Iterator[None]:
    """Stop a process until the end of the context."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Ticker(threading.Thread):
    """Publishes an event every 5 ms through a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._stopped = threading.Event()

    def run(self) -> None:
        """Publish until the end of the context."""
        with socket.socket(socket.AF_UNIX) as feeder:
            feeder.connect(self._path)
            while not self._stopped.wait(0.005):
                feeder.sendall(b'{"topic":"faults","data":"%r"}\n' % time.monotonic())

    def __enter__(self) -> Ticker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()


def until_event(subscriber: Subscriber) -> float:
    """Return the seconds until an event arrives that was published after this call."""
    began_s = time.monotonic()
    while True:
        arrived_s, text = subscriber.arrivals.get(timeout=WAIT_S)
        if float(text) >= began_s:
            return round(arrived_s - began_s, 3)


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() >= deadline_s:
            raise MeasureError(f"not within {WAIT_S} s")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
