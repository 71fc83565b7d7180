"""Shared compression: the content of a compressed stream is that of an uncompressed twin, byte for byte.

Each pair of clients has one subscription, one in the form `sse` and one in `sse/gzip`. Both connect, stall, read and
are cut at the same moments, and their sockets accept all or nothing, so relay treats both alike. Streams join and
leave all the time, so that they join the shared compressor at random points. `relay.core.compression`,
`relay.core.forms.gzip`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from relay.config.model import Config
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.world import Client, World

ALL = 1 << 30
TERMS = (("a",), ("o.*",), ("a", "o.x"))
TOPICS = ("a", "o.x", "o.y")


@dataclass
class Pair:
    """A client without and one with compression."""

    plain: Client
    packed: Client

    def both(self) -> tuple[Client, Client]:
        """Return both clients."""
        return self.plain, self.packed


def config_of(draw: random.Random) -> Config:
    """Draw settings under which policies and key frames are frequent."""
    return Config(
        policy=draw.choice(["drop-oldest", "drop-newest", "conflate", "disconnect"]),
        history_events=draw.choice([0, 10, 1000]),
        event_bytes_max=200_000,
        lag_bytes=draw.choice([0, 1000, 100_000]),
        lag_events=draw.choice([0, 2, 20]),
        heartbeat_s=2.0,
        compress_contexts=draw.choice([0, 1, 2, 64]),
        compress_level=draw.choice([1, 6, 9]),
    )


def simulate(seed: int) -> World:
    """Run one simulation; compare each pair after each step in which both have read everything."""
    draw = random.Random(seed)
    world = World(config_of(draw))
    pairs = []
    for _ in range(draw.randint(2, 6)):
        terms, policy = draw.choice(TERMS), draw.choice([None, "drop-oldest", "conflate"])
        pairs.append(Pair(world.client(terms, policy, ALL, "sse"), world.client(terms, policy, ALL, "sse/gzip")))
    for _ in range(draw.choice([40, 200])):
        pair = draw.choice(pairs)
        match draw.choice(["publish", "publish", "step", "step", "read", "stall", "cut", "connect", "time"]):
            case "publish":
                for _ in range(draw.choice([1, 1, 5, 60])):
                    world.publish(draw.choice(TOPICS), draw.choice([0, 50, 500]), draw.choice([None, "k"]))
                if draw.random() < 0.05:
                    world.publish("a", 100_000)
            case "step":
                world.step()
            case "read":
                for client in pair.both():
                    if client.pipe is not None:
                        client.pipe.room = ALL
                    world.read(client, ALL)
            case "stall":
                while world.step():
                    pass
                for client in pair.both():
                    if client.pipe is not None:
                        client.pipe.room = 0
            case "cut":
                while world.step():
                    pass
                for client in pair.both():
                    world.read(client, ALL)
                    world.cut(client)
                world.step()
            case "connect":
                while world.step():
                    pass
                if pair.plain.pipe is None and pair.packed.pipe is None:
                    since_s = draw.choice([None, None, 2.0, float("inf")])
                    for client in pair.both():
                        world.connect(client, since_s)
            case "time":
                while world.step():
                    pass
                world.pass_time(draw.choice([0.01, 0.5, 3.0]))
    while world.step():
        pass
    for pair in pairs:
        for client in pair.both():
            if client.pipe is not None:
                client.pipe.room = ALL
            world.read(client, ALL)
    world.settle()
    for pair in pairs:
        assert pair.plain.last_id == pair.packed.last_id
        assert pair.plain.reader.content == pair.packed.reader.content
    return world


@pytest.mark.parametrize("first", BATCHES)
def test_a_compressed_stream_has_the_content_of_its_twin(first: int) -> None:
    run_batch(simulate, first)


@pytest.mark.slow
def test_the_simulations_share_compressors_and_lose_them() -> None:
    shared = unshared = contexts = 0
    for seed in range(60):
        world = simulate(seed)
        shared += world.engine.shared_flushes
        unshared += world.engine.unshared
        contexts += len(world.hub.compression)
    assert shared > 300
    assert unshared > 50
    assert contexts > 20
