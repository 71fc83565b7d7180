"""Compare two nodes of relay, Centrifugo and nchan at one Redis each: the same events, streams and publisher program.

One publisher feeds the first node. Both nodes have the same number of streams, which check every event. All servers
retain the events in Redis. The publisher sends one event per HTTP request, at most 32 of them unanswered. relay is
measured once more with the publisher at its Unix socket.

Owns these runs, and the variants of the peers with a Redis. Peers that are not installed are skipped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from bench.brokers import BenchRedis
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, cpu_s
from loadtest.rig.publisher import HttpEntrance, PublisherProgram
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.rig.targets import Place, Target

SERVERS = ("relay", "centrifugo", "nchan")
TOKEN = "a-token-of-the-benchmark"
RELAY_HTTP = HttpEntrance(
    target="/publish?topic=default",
    headers=(f"Authorization: Bearer {TOKEN}", "Content-Type: application/json"),
    body='{"data":{data}}',
    depth=32,
)
STREAMS = 100
"""Streams of each node."""

LATENCY_RATE = 1000.0
LATENCY_S = 5.0
PUBLISH_S = 120.0
SETTLE_S = 30.0
"""Time for events that are under way when the publisher has ended."""


def compare(events: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each installed server.

    Args:
        events: published at full speed.
    """
    variants = [(name, False) for name in SERVERS if name in TARGETS]
    for name, socket in [("relay", True), *variants]:
        with contextlib.closing(BenchRedis()) as redis:
            target = with_redis(TARGETS[name], redis)
            title = "relay, Unix socket" if socket else target.title or name
            yield {"server": title, "version": target.version, **measure(target, redis, events, socket=socket)}


def with_redis(target: Target, redis: BenchRedis) -> Target:
    """Return a target whose nodes share this Redis."""

    def command(place: Place, extra: tuple[str, ...]) -> list[str]:
        relay = ["--cluster", redis.url, "--publish-token", TOKEN]
        return [*target.command(place, extra), *(relay if target.name == "relay" else [str(redis.port)])]

    return replace(target, command=command)


def measure(target: Target, redis: BenchRedis, events: int, *, socket: bool) -> dict[str, Any]:
    """Return the figures of two nodes: at full speed, then at a fixed rate.

    Args:
        target: the server.
        redis: its broker.
        events: published at full speed.
        socket: whether the publisher uses relay's Unix socket.
    """
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(MeasuredServer(target)) for _ in range(2)]
        swarms = [stack.enter_context(_swarm(node)) for node in nodes]
        for swarm in swarms:
            swarm.ready()
        before = [*(node.cpu_s() for node in nodes), cpu_s(redis.process.pid)]
        began_s = time.monotonic()
        with _publisher(nodes[0], 0, events, 1, socket=socket) as publisher:
            published = publisher.done()
        reports = [swarm.wait_for(published.last, SETTLE_S) for swarm in swarms]
        took_s = time.monotonic() - began_s
        after = [*(node.cpu_s() for node in nodes), cpu_s(redis.process.pid)]
        used = [(end - begin) / published.sent * 1e6 for begin, end in zip(before, after, strict=True)]
        figures: dict[str, Any] = {
            "events": published.sent,
            "events_per_s": round(published.sent / took_s),
            "cpu_us_per_event": dict(
                zip(("publisher", "follower", "broker"), (round(each, 2) for each in used), strict=True)
            ),
            "missed": [_missed(report, published.last) for report in reports],
            "faults": [report.faults for report in reports],
        }
        swarms[1].reset()
        count = round(LATENCY_RATE * LATENCY_S)
        with _publisher(nodes[0], LATENCY_RATE, count, published.last + 1, socket=socket) as publisher:
            last = publisher.done().last
        report = swarms[1].wait_for(last, SETTLE_S)
        figures["latency_ms"] = {"p50": report.p50_ms, "p99": report.p99_ms, "max": report.max_ms}
    return figures


def _publisher(node: MeasuredServer, rate: float, count: int, first: int, *, socket: bool) -> PublisherProgram:
    if node.target.name == "relay" and not socket:
        entrance = msgspec.structs.replace(RELAY_HTTP, port=node.port)
        return PublisherProgram(entrance, rate=rate, count=count, first=first, seconds=PUBLISH_S)
    return node.publisher(rate=rate, count=count, first=first, seconds=PUBLISH_S)


def _swarm(node: MeasuredServer) -> Swarm:
    path = node.target.path.replace("{topic}", "default")
    return Swarm(node.port, STREAMS, path=path, seconds=SETTLE_S * 10, concurrency=min(STREAMS, 256))


def _missed(report: SwarmReport, last: int) -> float:
    """Return the share of the events that did not reach the streams."""
    return round(1 - report.deliveries / (last * STREAMS), 6)
