"""Simulate the reconnections after the nodes of one zone have failed, on a virtual clock.

Each client that has lost its node waits for its reconnection time and connects to a random node. A node opens one
stream after another, with the CPU time that deliveries leave. While its listen backlog is full, the kernel drops
connections, and the client's kernel sends them again after 1, 2, 4 … seconds. A full node refuses a stream; the client
then waits again, longer each time.

Owns the events of the simulation. Never measures anything.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

CONNECT_AGAIN_S = 1.0
"""Time until the kernel of the client sends a connection request again; it doubles (RFC 6298 section 2)."""

CONNECT_REPEATS = 4
"""Repeated requests of one connection; then the client starts again."""

BACKOFF_DOUBLINGS = 3
LEAST_SHARE = 0.05
"""Share of the cores that opens streams even if deliveries need all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """The conditions after a zone has failed.

    Args:
        nodes: nodes that are left.
        streams: streams of each of them at the beginning.
        lost: streams that lost their node, in total.
        streams_max: most streams of a node.
        cores: cores of a node.
        stream_cores: cores that deliver to one stream.
        open_s: CPU time that opens a stream.
        backlog: connections that a node's listeners hold before relay accepts them.
        retry_s: least and greatest reconnection time of a client.
    """

    nodes: int
    streams: int
    lost: int
    streams_max: int
    cores: float
    stream_cores: float
    open_s: float
    backlog: int
    retry_s: tuple[float, float]

    def openings_per_s(self, streams: float) -> float:
        """Return the streams that a node opens per second while it has this number of streams."""
        return max(self.cores - streams * self.stream_cores, LEAST_SHARE * self.cores) / self.open_s


@dataclass(slots=True)
class StormResult:
    """The result of a storm.

    Args:
        half_s: time until half of the lost streams were open again.
        all_s: time until all were open again.
        dropped: connection requests that a full backlog dropped.
        refused: streams that a full node refused.
        streams_most: most streams of a node at the end.
    """

    half_s: float = 0.0
    all_s: float = 0.0
    dropped: int = 0
    refused: int = 0
    streams_most: int = 0


class _Step(Enum):
    CONNECT = auto()
    OPEN = auto()


@dataclass(slots=True)
class _LostStream:
    refusals: int = 0
    repeats: int = 0
    node: _Survivor | None = None


@dataclass(slots=True)
class _Survivor:
    streams: int
    backlog: deque[_LostStream] = field(default_factory=deque)


def expect(storm: Storm) -> StormResult:
    """Return the result that the capacity model expects: clients arrive evenly, and a node never waits for one."""
    least_s, most_s = storm.retry_s
    each = storm.lost / storm.nodes
    half_s = each / 2 / storm.openings_per_s(storm.streams + each / 4)
    all_s = each / storm.openings_per_s(storm.streams + each / 2)
    return StormResult(
        half_s=least_s + max((most_s - least_s) / 2, half_s),
        all_s=max(most_s, least_s + all_s),
        streams_most=round(storm.streams + each),
    )


def simulate(storm: Storm, seed: int) -> StormResult:
    """Simulate one storm until all lost streams are open again."""
    draw = random.Random(seed)
    result = StormResult()
    nodes = [_Survivor(storm.streams) for _ in range(storm.nodes)]
    clients = [_LostStream() for _ in range(storm.lost)]
    # The number makes entries of one time comparable.
    steps = [(draw.uniform(*storm.retry_s), number, _Step.CONNECT, client) for number, client in enumerate(clients)]
    heapq.heapify(steps)
    number, opened = len(steps), 0
    while opened < storm.lost:
        now_s, _, step, client = heapq.heappop(steps)
        number += 1
        node = client.node = client.node or draw.choice(nodes)
        if step is _Step.CONNECT:
            if len(node.backlog) >= storm.backlog:
                result.dropped += 1
                heapq.heappush(steps, (now_s + _wait_again_s(storm, client, draw), number, _Step.CONNECT, client))
                continue
            client.repeats = 0
            node.backlog.append(client)
            if len(node.backlog) > 1:
                continue  # the node opens another stream before
        else:
            node.backlog.popleft()
            if node.streams < storm.streams_max:
                node.streams += 1
                opened += 1
                if opened == (storm.lost + 1) // 2:
                    result.half_s = now_s
                result.all_s = now_s
            else:
                result.refused += 1
                client.node = None
                factor = 2 ** min(client.refusals, BACKOFF_DOUBLINGS)
                client.refusals += 1
                wait_s = factor * draw.uniform(*storm.retry_s)
                heapq.heappush(steps, (now_s + wait_s, number, _Step.CONNECT, client))
                number += 1
        if node.backlog:
            done_s = now_s + 1 / storm.openings_per_s(node.streams)
            heapq.heappush(steps, (done_s, number, _Step.OPEN, node.backlog[0]))
    result.streams_most = max(node.streams for node in nodes)
    return result


def _wait_again_s(storm: Storm, client: _LostStream, draw: random.Random) -> float:
    """Return the time until a client whose connection request was dropped connects again."""
    client.repeats += 1
    if client.repeats <= CONNECT_REPEATS:
        return float(CONNECT_AGAIN_S * 2 ** (client.repeats - 1))
    client.repeats, client.node = 0, None
    return draw.uniform(*storm.retry_s)
