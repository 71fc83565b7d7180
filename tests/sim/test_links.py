"""The promise over links: random stalls and pieces; edges are killed and lapped; clients change edges.

A subscriber sees every event of its topics, in order, exactly once, or receives a gap event for what it missed.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from relay.config.model import Config
from relay.core.forms.registry import POLL
from relay.event import Event
from tests.sim.linked import LinkedWorld
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.test_promise import POLICIES, TOPICS, config_of, draw_id, draw_terms, draw_ttl


def simulate(seed: int) -> tuple[LinkedWorld, Counter[str]]:
    """Run one simulation with all of its checks."""
    draw = random.Random(seed)
    world = LinkedWorld(config_of(draw), draw.randint(1, 3), slices=draw.random() < 0.5)
    seen: Counter[str] = Counter()
    pool = [draw_terms(draw) for _ in range(draw.choice([1, 2, 5]))]
    for _ in range(draw.randint(1, 5)):
        room, form = draw.choice([20, 60, 300, 5000, 1 << 20]), POLL if draw.random() < 0.15 else None
        world.client(draw.choice(pool), draw.choice(POLICIES), room, form)
    ids = 0
    for _ in range(draw.choice([50, 250])):
        client, edge = draw.choice(world.clients), draw.choice(world.edges)
        match draw.choice(
            ["publish"] * 3
            + ["publish at", "step", "step", "down", "down", "down", "up", "up", "link", "link"]
            + ["kill", "read", "read", "cut", "connect", "connect", "time"]
        ):
            case "publish":
                for _ in range(draw.choice([1, 1, 1, 10, 60])):
                    ids += 1
                    key = draw.choice([None, "k1", "k2"])
                    topic = draw.choice((*TOPICS, f"many.{draw.randrange(40)}"))
                    own = draw_id(draw, ids, topic)
                    world.root.publish(topic, draw.choice([0, 10, 100, 800]), key, own, draw_ttl(draw))
            case "publish at":
                ids += 1
                event = Event(data=f"at {ids}", topic=draw.choice(TOPICS))
                edge.uplink.publish([event], lambda result: seen.update([type(result).__name__]))
            case "step":
                edge.step()
            case "down":
                edge.deliver_down(draw.choice([1, 50, 500, 100_000]))
            case "up":
                edge.deliver_up(draw.choice([1, 50, 100_000]))
            case "link":
                if edge.downlink is None:
                    edge.link()
            case "kill":
                if draw.random() < 0.2:
                    seen["kill"] += 1
                    world.kill(edge)
            case "read":
                world.read(client, draw.choice([1, 7, 100, 10_000]))
            case "cut":
                world.cut(client)
            case "connect":
                if client.pipe is None:
                    since_s = draw.choice([None, None, 2.0, float("inf")])
                    world.connect(client, edge, since_s, newest=draw.random() < 0.3)
            case "time":
                world.pass_time(draw.choice([0.01, 0.5, 3.0, 20.0]))
    for each in world.edges:
        seen["lapped"] += each.hub.closes["lapped"]
        seen.update({f"resume {result}": count for result, count in each.hub.resumes.items()})
    world.settle()
    return world, seen


@pytest.mark.parametrize("first", BATCHES)
def test_every_subscriber_at_every_edge_receives_every_event_or_a_gap(first: int) -> None:
    run_batch(simulate, first)


@pytest.mark.slow
def test_the_simulations_reach_all_intended_faults() -> None:
    """The promise is tested under real faults: edges are lapped and killed, clients change edges."""
    seen: Counter[str] = Counter()
    events = 0
    for seed in range(100):
        world, what = simulate(seed)
        seen += what
        events += sum(client.oracle.seen for client in world.clients)
    assert events > 2000
    assert seen.keys() >= {"lapped", "kill", "list", "RequestError", "resume hit", "resume gap"}, seen


def test_an_edge_that_starts_again_counts_the_evicted_entries_of_its_hub() -> None:
    world = LinkedWorld(Config(history_events=5), 1)
    for _ in range(2):
        world.root.publish("again", 10, None, "own-1")
        for _ in range(8):
            world.root.publish("many", 10)
    world.root.publish("again", 10, None, "own-1")  # its older uses are evicted
    world.settle()
    log = world.edges[0].hub.log
    assert log.find(("own-1",), ("again",)) is None
    assert [log.topic(name).evicted for name in ("again", "many", "never")] == [10, 16, -1]  # the edge retains 3
