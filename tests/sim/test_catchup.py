"""Streams that catch up together receive the same bytes as streams that catch up one by one.

Each script runs in two worlds. In one of them, every stream is served alone.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from relay.core import index
from relay.core.catchup import Lagging
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.test_promise import TERMS, TOPICS, config_of
from tests.sim.world import World

SEGMENT_BYTES = 700
"""Size of the segments in these worlds, so that few events fill several."""


def simulate(seed: int) -> tuple[list[bytes], dict[str, int], dict[str, int], int]:
    """Run one script; return the bytes of each client, the actions, the closes and the shared writes."""
    draw = random.Random(seed)
    config = config_of(draw)
    if draw.random() < 0.7:  # Most limits are small, and streams above a limit are served alone.
        lag_bytes, lag_events = draw.choice([0, 5000]), draw.choice([0, 20])
        config = replace(config, lag_bytes=lag_bytes, lag_events=lag_events, lag_soft_events=0)
    world = World(config)
    policies = draw.choice([(None,), (None, "drop-oldest", "drop-newest", "conflate", "disconnect", "block")])
    terms = draw.choice([TERMS[0], TERMS[1], TERMS[2], TERMS[4]])
    form = draw.choice(world.forms)
    for _ in range(draw.randint(2, 8)):
        world.client(terms, draw.choice(policies), draw.choice([60, 300, 900, 5000, 1 << 20]), form)
    received = [b""] * len(world.clients)

    def read(place: int, count: int) -> None:
        if (pipe := world.clients[place].pipe) is not None:
            received[place] += bytes(pipe.unread[:count])
        world.read(world.clients[place], count)

    for _ in range(draw.choice([30, 150])):
        place = draw.randrange(len(world.clients))
        match draw.choice(["publish", "publish", "publish", "step", "step", "read", "read", "read", "connect", "time"]):
            case "publish":
                for _ in range(draw.choice([1, 3, 10])):
                    world.publish(draw.choice(TOPICS), draw.choice([0, 10, 100, 800]), draw.choice([None, "k1", "k2"]))
            case "step":
                world.step()
            case "read":
                count = draw.choice([7, 100, 1000, 10_000])
                for each in range(len(world.clients)) if draw.random() < 0.5 else [place]:
                    read(each, count)
            case "connect":
                if world.clients[place].pipe is None:
                    world.connect(world.clients[place], draw.choice([None, 2.0, float("inf")]))
            case "time":
                world.pass_time(draw.choice([0.01, 0.5, 3.0]))
    for _ in range(200):
        while world.step():
            pass
        for each in range(len(world.clients)):
            read(each, 1 << 20)
    return received, dict(world.hub.catchup.actions), dict(world.hub.closes), world.engine.writes_together


@pytest.mark.parametrize("first", BATCHES)
def test_streams_served_together_receive_the_bytes_of_streams_served_alone(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SEGMENT_BYTES", SEGMENT_BYTES)
    together = 0

    def compare(seed: int) -> None:
        nonlocal together
        shared = simulate(seed)
        with monkeypatch.context() as alone:
            alone.setattr(Lagging, "alone", True)
            separate = simulate(seed)
        assert shared[:3] == separate[:3]
        assert not separate[3]
        together += shared[3]

    run_batch(compare, first)
    assert together > 0, "no streams were served together"
