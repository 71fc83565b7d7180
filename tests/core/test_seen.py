"""A dedup key is retained for its window; if there are too many keys, the newest are retained."""

from __future__ import annotations

from relay.config.model import Config
from relay.core.seen import EXPIRED_A_TICK, Seen
from relay.event import Event
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]


def test_a_key_is_known_within_its_window_and_new_after_it() -> None:
    seen = Seen(600.0, 10)
    seen.add("a", "e-1", 0.0)
    seen.add("b", "e-2", 100.0)
    assert seen.find("a", 600.0) == "e-1"
    assert seen.find("a", 600.5) is None
    assert seen.find("b", 600.5) == "e-2"
    assert (len(seen), seen.pushed_out) == (1, 0)


def test_a_key_can_be_reused_after_its_window() -> None:
    seen = Seen(10.0, 10)
    seen.add("a", "e-1", 0.0)
    assert seen.find("a", 11.0) is None
    seen.add("a", "e-2", 11.0)
    assert seen.find("a", 12.0) == "e-2"
    assert len(seen) == 1


def test_too_many_keys_evict_the_oldest_and_the_evictions_are_counted() -> None:
    seen = Seen(600.0, 3)
    for number in range(5):
        seen.add(str(number), f"e-{number}", 0.0)
    assert [seen.find(str(number), 0.0) for number in range(5)] == [None, None, "e-2", "e-3", "e-4"]
    assert (len(seen), seen.pushed_out) == (3, 2)


def test_each_tick_deletes_a_bounded_number_of_keys() -> None:
    seen = Seen(10.0, 100_000)
    for number in range(EXPIRED_A_TICK + 7):
        seen.add(str(number), f"e-{number}", 0.0)
    seen.expire(10.0)
    assert len(seen) == EXPIRED_A_TICK + 7, "the window has not ended"
    seen.expire(10.5)
    assert len(seen) == 7
    seen.expire(10.5)
    assert (len(seen), list(seen.keys()), seen.pushed_out) == (0, [], 0)


def test_an_expired_key_that_is_not_yet_deleted_is_new_and_stays() -> None:
    seen = Seen(10.0, 100)
    for number in range(20):
        seen.add(str(number), f"e-{number}", 0.0)
    assert seen.find("19", 11.0) is None
    seen.add("19", "again", 11.0)
    seen.expire(11.0)
    assert seen.find("19", 21.0) == "again"
    assert len(seen) == 1


def test_the_eviction_of_an_expired_key_is_not_counted() -> None:
    seen = Seen(10.0, 2)
    for number in range(4):
        seen.add(str(number), f"e-{number}", number * 6.0)
    assert (len(seen), seen.pushed_out) == (2, 0)


def test_the_tick_of_the_hub_deletes_keys_without_another_event() -> None:
    world = World(Config(dedup_window_s=1.0))
    world.hub.publish([Event(data="x", topic="a", dedup=str(number)) for number in range(100)], 0.0)
    world.hub.tick(0.5)
    assert len(world.hub.writer.seen) == 100
    world.hub.tick(1.5)
    assert len(world.hub.writer.seen) == 0
