"""The promise under random publishes, stalls at any byte, cuts, resumes and policies, on a virtual clock.

A subscriber sees every event of its topics, in order, exactly once, or receives a gap event for what it missed.
"""

from __future__ import annotations

import random

import pytest

from relay.config.model import Config
from relay.core.forms.registry import POLL
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.world import World

TOPICS = ("a", "b", "orders.eu", "orders.us", "orders.eu.new")
TERMS = (
    ("a",),
    ("a", "b"),
    ("orders.*",),
    ("orders.**", "a"),
    ("**",),
    ("orders.eu", "orders.*", "b"),
    ("orders.*", "*.eu"),
    ("orders.us", *(f"many.{number}" for number in range(40))),
)
HISTORY_FOR = ((), (), ("orders.*=events 1", "a=age 2"), ("a=events 3 age 1", "many.*=events 1", "**=age 10"))
POLICIES = (None, "drop-oldest", "drop-newest", "conflate", "disconnect", "block")


def draw_terms(draw: random.Random) -> tuple[str, ...]:
    """Draw the terms of a subscription."""
    if draw.random() < 0.5:
        return draw.choice(TERMS)
    terms = (*TOPICS, "silent", "*", "**", "orders.*", "*.eu", "orders.**", "many.*")
    return tuple(draw.sample(terms, draw.randint(1, 4)))


def draw_id(draw: random.Random, number: int, topic: str) -> str | None:
    """Draw an event's id: relay's default, a unique one, or one that its topic or others also use."""
    return draw.choice(
        [None] * 12 + [f"own-{number}", f"own-{topic}-{draw.randrange(9)}", f"own-again-{draw.randrange(9)}"]
    )


def draw_ttl(draw: random.Random) -> float | None:
    """Draw the `ttl` of an event, mostly none."""
    return draw.choice([None] * 8 + [0.0, 0.2, 4.0])


def config_of(draw: random.Random) -> Config:
    """Draw settings under which every policy and every kind of retention acts often."""
    return Config(
        policy=draw.choice(["drop-oldest", "drop-newest", "conflate", "disconnect", "block"]),
        history_bytes=draw.choice([2_000, 20_000, 1_000_000]),
        history_events=draw.choice([0, 10, 1000]),
        history_age_s=draw.choice([0.0, 5.0]),
        history_for=draw.choice(HISTORY_FOR),
        event_bytes_max=1000,
        lag_bytes=draw.choice([0, 300, 1000]),
        lag_events=draw.choice([0, 2, 20]),
        lag_s=draw.choice([0.0, 0.0, 3.0]),
        lag_soft_events=draw.choice([0, 0, 2]),
        lag_soft_for_s=1.0,
        heartbeat_s=2.0,
        heartbeat_as=draw.choice(["comment", "padded", "event"]),
    )


def simulate(seed: int) -> World:
    """Run one simulation with all of its checks."""
    draw = random.Random(seed)
    world = World(config_of(draw))
    world.slices = draw.random() < 0.5
    pool = [draw_terms(draw) for _ in range(draw.choice([1, 2, 6]))]
    form = draw.choice([None, None, "sse/gzip", "ndjson/gzip"])  # of all clients, so that they share compressors
    for _ in range(draw.randint(1, 6)):
        room, own_form = draw.choice([1, 60, 300, 5000, 1 << 20]), POLL if draw.random() < 0.15 else form
        world.client(draw.choice(pool), draw.choice(POLICIES), room, own_form)
    ids = 0
    for _ in range(draw.choice([30, 200])):
        client = draw.choice(world.clients)
        match draw.choice(["publish", "publish", "publish", "step", "step", "read", "read", "cut", "connect", "time"]):
            case "publish":
                for _ in range(draw.choice([1, 1, 1, 10, 60])):
                    ids += 1
                    key = draw.choice([None, "k1", "k2"])
                    topic = draw.choice((*TOPICS, f"many.{draw.randrange(40)}"))
                    own = draw_id(draw, ids, topic)
                    world.publish(topic, draw.choice([0, 10, 100, 800]), key, own, draw_ttl(draw))
            case "step":
                world.step()
            case "read":
                world.read(client, draw.choice([1, 7, 100, 10_000]))
            case "cut":
                world.cut(client)
            case "connect":
                if client.pipe is None and client.cancel is None:
                    world.step()
                    since_s = draw.choice([None, None, 2.0, float("inf")])
                    world.prepare(client, since_s, newest=draw.random() < 0.3)
            case "time":
                world.pass_time(draw.choice([0.01, 0.5, 3.0, 20.0]))
    world.settle()
    return world


@pytest.mark.parametrize("first", BATCHES)
def test_every_subscriber_receives_every_event_or_a_gap(first: int) -> None:
    run_batch(simulate, first)


@pytest.mark.slow
def test_the_simulations_reach_all_intended_faults() -> None:
    """The promise is tested under real faults: gaps, policies and resumes all happen."""
    gaps = seen = shared = omitted = polls = 0
    actions: set[str] = set()
    resumes: set[str] = set()
    for seed in range(100):
        world = simulate(seed)
        gaps += sum(client.oracle.gaps for client in world.clients)
        seen += sum(client.oracle.seen for client in world.clients)
        omitted += sum(client.oracle.omitted for client in world.clients)
        shared += world.engine.shared_flushes
        polls += world.polls
        actions |= set(map(str, world.hub.catchup.actions))
        resumes |= set(world.hub.resumes)
    assert gaps > 100
    assert seen > 5000
    assert shared > 100
    assert omitted > 300
    assert polls > 100
    assert actions == {"drop-oldest", "drop-newest", "conflate", "disconnect", "block"}
    assert resumes == {"hit", "gap", "missed"}
