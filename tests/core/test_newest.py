"""Streams that begin with the newest event of each topic and key: exact, in log order, and with bounded work.

Covers `relay.core.newest`.
"""

from __future__ import annotations

import random
from array import array

import pytest

from relay.config.model import Config
from relay.core.log import READ_ENTRIES_MAX, Log
from relay.core.newest import Newest
from tests.sim.conftest import native_engine
from tests.sim.world import Client, World

__all__ = ["native_engine"]

PATTERN_TOPICS = 10_000


def connected(world: World, *terms: str, room: int = 1 << 30) -> Client:
    """Connect a client with `since=last` and let it read until nothing changes."""
    client = world.client(terms, None, room, "sse")
    world.connect(client, newest=True)
    if room > 1 << 20:
        drain(world, client)
    return client


def drain(world: World, client: Client) -> None:
    """Let the server work and a client read until nothing changes."""
    while world.step() or (client.pipe is not None and client.pipe.unread):
        world.read(client, 1 << 30)


def test_a_stream_begins_with_the_newest_event_of_each_topic_in_log_order() -> None:
    world = World(Config())
    for topic in ("p.b", "p.a", "p.b", "q", "p.a", "p.c"):
        world.publish(topic, 10)
    client = connected(world, "p.*")
    assert (client.oracle.seen, client.oracle.gaps) == (3, 0)
    world.publish("p.a", 10)
    drain(world, client)
    assert client.oracle.seen == 4
    client.oracle.finish()


def test_an_event_with_a_key_replaces_only_events_with_the_same_key() -> None:
    world = World(Config())
    for key in ("eu", "us", None, "eu", None):
        world.publish("prices", 10, key)
    assert connected(world, "prices").oracle.seen == 3


def test_without_retained_events_the_stream_is_live_at_once() -> None:
    world = World(Config())
    client = connected(world, "a", "b.*")
    assert client.oracle.seen == 0
    assert not world.hub.catchup.streams
    world.publish("b.c", 10)
    drain(world, client)
    assert client.oracle.seen == 1


def test_events_published_during_the_replay_arrive_once_and_replace_older_ones() -> None:
    world = World(Config())
    for number in range(50):
        world.publish(f"p.{number}", 400)
    client = connected(world, "p.*", room=1000)
    world.step()
    for number in range(49, 10, -7):
        world.publish(f"p.{number}", 10)
    drain(world, client)
    world.settle()
    assert client.oracle.gaps == 0
    assert client.oracle.seen == 50, "6 events were superseded before their turn, and 6 are new"


def test_a_client_that_is_cut_off_during_the_replay_resumes_after_its_last_event() -> None:
    world = World(Config())
    for _ in range(3):
        for number in range(10):
            world.publish(f"p.{number}", 400)
    client = connected(world, "p.*", room=1000)
    world.read(client, 1000)
    seen = client.oracle.seen
    assert 0 < seen < 10
    world.cut(client)
    world.settle()
    assert (client.oracle.seen, client.oracle.gaps) == (10, 0)


@pytest.mark.parametrize(("repeat", "gaps"), [(True, 0), (False, 1)])
def test_only_an_evicted_event_that_was_the_newest_causes_a_gap(repeat: bool, gaps: int) -> None:
    """While a stream receives the newest events, the log evicts the event of `p.1`, with or without a later one."""
    world = World(Config(history_events=20))
    for number in range(20):
        world.publish(f"p.{number}", 400)
    client = connected(world, "p.*", room=500)
    world.step()
    for number in range(1, 6):
        world.publish(f"p.{number}" if repeat else "other", 10)
    world.settle()
    assert client.oracle.gaps == gaps


def test_an_expired_event_causes_a_gap_although_an_older_one_is_evicted_later() -> None:
    world = World(Config(history_events=5))
    world.publish("a", 10, "k1")
    world.publish("a", 800, "k2")
    world.publish("a", 10, "k3", ttl=1.0)
    client = connected(world, "a", room=400)
    world.pass_time(2.0)  # The stream is in the middle of the second event, and the third one expires.
    for _ in range(4):
        world.publish("b", 10)  # The last one evicts the first event of `a`.
    world.settle()
    assert (client.oracle.seen, client.oracle.gaps) == (2, 1)


def test_a_pattern_of_ten_thousand_topics_is_read_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Config())
    for number in range(3 * PATTERN_TOPICS):
        world.publish(f"p.{number % PATTERN_TOPICS}", 0)
    steps: list[int] = []
    real = Log.read_newest

    def counting(self: Log, *arguments: object) -> object:
        batch = real(self, *arguments)  # type: ignore[arg-type]
        steps.append(len(batch.sequences))
        return batch

    monkeypatch.setattr(Log, "read_newest", counting)
    for _ in range(2):
        client = connected(world, "p.*")
        assert (client.oracle.seen, client.oracle.gaps) == (PATTERN_TOPICS, 0)
        assert max(steps) <= READ_ENTRIES_MAX
        assert len(steps) <= 3 * PATTERN_TOPICS / READ_ENTRIES_MAX + 20
        steps.clear()


def test_a_topic_with_more_keys_than_one_read_examines_is_read_in_steps() -> None:
    world = World(Config())
    for number in range(3 * READ_ENTRIES_MAX):
        world.publish("a", 0, f"k{number % (2 * READ_ENTRIES_MAX)}")
    client = connected(world, "a")
    assert (client.oracle.seen, client.oracle.gaps) == (2 * READ_ENTRIES_MAX, 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_list_equals_a_search_of_all_entries(seed: int) -> None:
    """Entries are added, superseded and evicted between the reads of several cursors."""
    draw = random.Random(seed)
    newest, rows, gone, of_key, head, tail = Newest(), array("Q"), set[int](), dict[int, int](), 1, 1

    def part(cursor: int, until: int, count_max: int) -> tuple[array[int], int]:
        return array("Q", [row for row in rows if cursor <= row < until][:count_max]), 0

    def current(sequences: array[int]) -> array[int]:
        return array("Q", [row for row in sequences if row >= tail and row not in gone])

    for _ in range(40):
        for _ in range(draw.randrange(10)):
            if draw.random() < 0.7:
                key = draw.randrange(8)
                rows.append(head)
                gone.add(of_key.get(key, 0))
                of_key[key] = head
            head += 1
        if draw.random() < 0.2:
            tail = draw.randint(tail, head)
        if rows and draw.random() < 0.2:
            gone.add(draw.choice(rows))
        until, cursor, reads, found = draw.randint(tail, head), tail, 0, list[int]()
        while cursor < until:
            some, cursor = newest.read(part, current, tail, cursor, until, 3)
            assert len(some) <= 3
            found += some
            reads += 1
            assert reads <= 2 * len(rows) + 3
        assert found == [row for row in rows if tail <= row < until and row not in gone]
