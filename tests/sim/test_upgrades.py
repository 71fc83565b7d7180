"""The promise over upgrades: at random moments another process, perhaps with other settings, takes over or fails.

A subscriber sees every event of its topics, in order, exactly once, or receives a gap event with the exact number.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from relay.config.model import Config
from relay.core.forms.registry import POLL
from tests.sim.seeds import BATCHES, run_batch
from tests.sim.test_promise import POLICIES, TERMS, TOPICS, config_of, draw_ttl
from tests.sim.upgraded import UpgradedWorld

SILENT = ("silent", "silent.deep", "orders.silent")
"""Topics that have subscribers and no events."""

MORE_TERMS = ((SILENT[0],), SILENT, ("silent.*", "orders.silent"), ("*", "silent.*"), ("*.*", "orders.**", "a"))


def settings_of(draw: random.Random, config: Config) -> Config:
    """Draw the settings of the new process: often the same, otherwise another retention."""
    if draw.random() < 0.5:
        return config
    events = draw.choice([0, 10, 1000])
    return replace(config, history_bytes=draw.choice([2_000, 20_000, 1_000_000]), history_events=events)


def simulate(seed: int) -> UpgradedWorld:
    """Run one simulation with all of its checks."""
    draw = random.Random(seed)
    world = UpgradedWorld(config_of(draw))
    world.slices = draw.random() < 0.5
    for _ in range(draw.randint(1, 8)):
        terms = draw.choice((*TERMS, *MORE_TERMS))
        room, form = draw.choice([1, 60, 300, 5000, 1 << 20]), POLL if draw.random() < 0.15 else None
        world.client(terms, draw.choice(POLICIES), room, form)
    ids = 0
    for _ in range(draw.choice([30, 200])):
        client = draw.choice(world.clients)
        match draw.choice(
            ["publish"] * 3
            + ["step", "step", "read", "read", "cut", "connect", "connect", "time"]
            + ["send", "send", "upgrade", "fail"]
        ):
            case "publish":
                for _ in range(draw.choice([1, 1, 1, 10, 60])):
                    ids += 1
                    own = f"own-{ids}" if draw.random() < 0.2 else None
                    topic = draw.choice((*TOPICS, f"many.{draw.randrange(40)}"))
                    key = draw.choice([None, "k1", "k2"])
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
            case "send":
                world.send_some()
            case "upgrade":
                world.finish(settings_of(draw, world.config))
            case "fail":
                world.fail()
    world.settle()
    return world


@pytest.mark.parametrize("first", BATCHES)
def test_every_subscriber_receives_every_event_or_a_gap(first: int) -> None:
    run_batch(simulate, first)


def test_a_gap_covers_all_events_that_the_old_process_evicted() -> None:
    config = Config()
    world = UpgradedWorld(config)
    client = world.client(("p.*",), None, 400, "sse")
    world.publish("p.a", 800)
    world.publish("p.b", 10, ttl=1.0)
    world.connect(client, newest=True)
    for number in range(3):
        world.publish(f"p.{number}", 10, ttl=1.0)
        world.publish("p.c", 10)
    world.step()
    world.pass_time(2.0)
    world.finish(config)
    world.settle()
    assert (client.oracle.seen, client.oracle.gaps) == (4, 1)


def test_an_event_that_a_gap_has_reported_is_not_sent_if_its_later_event_expires() -> None:
    config = Config(policy="conflate", lag_events=2)
    world = UpgradedWorld(config)
    client = world.client(("a",), None, 400, "sse")
    world.connect(client)
    world.read(client, 1 << 20)
    world.step()
    world.publish("a", 1000, "big")
    world.publish("a", 10, "k")
    world.publish("a", 800, "other")
    world.publish("a", 10, "k", ttl=1.0)
    world.step()
    [state] = world.hub.catchup.streams.values()
    while not state.told:
        world.read(client, 100)
        world.step()
    world.pass_time(2.0)
    world.finish(config)
    world.settle()
    assert client.oracle.gaps == 2


def test_a_poll_reports_an_event_that_the_old_process_evicted() -> None:
    config = Config()
    world = UpgradedWorld(config)
    client = world.client(("p.*",), None, 1, POLL)
    world.connect(client)
    world.publish("p.a", 10, ttl=1.0)
    world.step()  # The poll cannot be answered yet, because its head is not sent.
    world.pass_time(2.0)
    world.finish(config)
    world.pass_time(1.0)
    world.settle()
    assert (client.oracle.seen, client.oracle.gaps) == (0, 1)


@pytest.mark.slow
def test_the_simulations_reach_all_intended_faults() -> None:
    """The promise is tested under real faults: upgrades succeed and fail, and streams miss events."""
    upgrades = failures = gaps = seen = 0
    for seed in range(100):
        world = simulate(seed)
        upgrades += world.upgrades
        failures += world.failures
        gaps += sum(client.oracle.gaps for client in world.clients)
        seen += sum(client.oracle.seen for client in world.clients)
    assert upgrades > 300
    assert failures > 300
    assert gaps > 100
    assert seen > 2000
