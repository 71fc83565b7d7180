"""Entries that are evicted before their turn: by `ttl`, and by the limits of their topic.

Covers `relay.core.expiry` and `relay.core.rows`.
"""

from __future__ import annotations

import gc
import random
import time

import pytest

from relay.config.model import Config
from relay.config.topic_retention import TopicLimits, parse_history
from relay.core.expiry import HistoryRules
from relay.core.log import EVICTED_SHARE, EXPIRED_A_CALL, Log
from relay.core.policy import Limits, Policy, Rule
from relay.errors import EventError
from relay.event import Event
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]

TOPICS = 1_000_000


def make_log(*history_for: str, bytes_max: int = 1 << 30, events_max: int = 0) -> Log:
    """Make a log with these limits of topics."""
    rules = HistoryRules(map(parse_history, history_for))
    return Log("e", bytes_max=bytes_max, events_max=events_max, limits_of=rules.limits)


def put(log: Log, topic: str, now_s: float = 0.0, ttl_s: float | None = None, id: str | None = None) -> int:
    """Append an entry of ten bytes."""
    return log.append(log.topic(topic), b"x" * 10, id, None, now_s, ttl_s)


def retained(log: Log) -> list[int]:
    """Return the sequences of all retained entries."""
    return [sequence for sequence in range(log.tail, log.head) if log.has(sequence)]


def test_the_first_matching_pattern_gives_the_limits_of_a_topic() -> None:
    rules = HistoryRules(map(parse_history, ("a.b=events 2", "a.*=events 1", "**=age 1h")))
    assert rules.limits("a.b") == TopicLimits(2)
    assert rules.limits("a.c") == TopicLimits(1)
    assert rules.limits("c") == TopicLimits(0, 3600.0)
    assert HistoryRules(()).limits("a") is None


def test_each_topic_retains_its_newest_events() -> None:
    log = make_log("p.*=events 2")
    for topic in ("p.a", "q", "p.b", "p.a", "p.a", "q", "p.b", "p.b"):
        put(log, topic)
    assert retained(log) == [2, 4, 5, 6, 7, 8]
    assert (log.tail, len(log), log.bytes, log.expired) == (2, 6, 60, 2)
    assert [log.topics[topic].evicted for topic in ("p.a", "p.b", "q")] == [1, 3, -1]


def test_each_topic_evicts_its_events_by_age() -> None:
    log = make_log("p.*=age 5")
    for second in range(10):
        put(log, f"p.{second % 2}", second)
        put(log, "q", second)
    log.expire(20.0)
    assert [log.topic_of(sequence) for sequence in retained(log)] == ["q"] * 10
    assert set(log.topics) == {"q"}
    put(log, "p.0", 21.0)
    assert len(log.topics["p.0"].sequences) == 1
    log.expire(27.0)
    assert set(log.topics) == {"q"}


def test_an_event_is_evicted_after_its_ttl_in_any_order() -> None:
    log = make_log()
    put(log, "a", 0.0, 10.0)
    put(log, "a", 1.0)
    put(log, "a", 2.0, 1.0)
    log.expire(2.9)
    assert retained(log) == [1, 2, 3]
    log.expire(3.0)
    assert retained(log) == [1, 2]
    assert log.entry(1).ttl_s == 10.0
    log.expire(10.0)
    assert (retained(log), log.tail, log.topics["a"].evicted) == ([2], 2, 3)


def test_an_event_without_time_to_live_is_retained_until_the_next_one() -> None:
    log = make_log()
    put(log, "a", 0.0, 0.0)
    assert retained(log) == [1], "the flush has not sent it yet"
    put(log, "a", 0.0, 0.0)
    assert retained(log) == [2]


def test_entries_that_are_needed_are_evicted_later() -> None:
    log = make_log("p=events 1")
    log.keep_from(2)
    log.needed["link"] = 3
    for _ in range(4):
        put(log, "p")
    assert retained(log) == [2, 3, 4]
    log.keep_from(None)
    log.expire(0.0)
    assert retained(log) == [3, 4]
    del log.needed["link"]
    log.expire(0.0)
    assert retained(log) == [4]


def test_the_overall_limits_count_only_retained_entries() -> None:
    log = make_log("p=events 1", events_max=10)
    for number in range(1000):
        put(log, "audit" if number % 100 == 0 else "p")
    assert [log.topic_of(sequence) for sequence in retained(log)].count("audit") == 9
    assert len(log) == 10


def test_a_call_evicts_a_bounded_number_of_entries() -> None:
    log = make_log()
    for _ in range(3 * EXPIRED_A_CALL):
        put(log, "a", 0.0, 1.0)
    assert log.expire(2.0)
    assert len(log) == 2 * EXPIRED_A_CALL
    assert [log.expire(2.0) for _ in range(3)] == [True, True, False]
    assert len(log) == 0


@pytest.mark.parametrize("ttl", [-1, 1e12, float("nan"), float("inf")])
def test_an_impossible_ttl_is_rejected(ttl: float) -> None:
    with pytest.raises(EventError, match=r"^ttl: must be a number of seconds"):
        World(Config()).hub.publish_one(Event(data="x", topic="a", ttl=ttl), 0.0)


class Model:
    """The entries of a log that is searched in full."""

    def __init__(self, limits: dict[str, TopicLimits], bytes_max: int) -> None:
        self.limits = limits
        self.bytes_max = bytes_max
        self.entries: dict[int, tuple[str, float, float | None]] = {}

    def evict(self, now_s: float) -> None:
        """Apply all limits."""
        for topic, limits in self.limits.items():
            own = [sequence for sequence, entry in self.entries.items() if entry[0] == topic]
            gone = own[: -limits.events_max] if limits.events_max else []
            if limits.age_s_max:
                gone += [each for each in own if self.entries[each][1] + limits.age_s_max <= now_s]
            for sequence in set(gone):
                del self.entries[sequence]
        for sequence, (_, time_s, ttl_s) in list(self.entries.items()):
            if ttl_s is not None and time_s + ttl_s <= now_s:
                del self.entries[sequence]
        if 10 * len(self.entries) > self.bytes_max:
            while 10 * len(self.entries) > self.bytes_max - self.bytes_max // EVICTED_SHARE:
                del self.entries[next(iter(self.entries))]


@pytest.mark.parametrize("seed", range(20))
def test_the_log_equals_a_model_that_searches_all_entries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, indexes, ids and times agree with the model while holes appear and are removed."""
    monkeypatch.setattr("relay.core.rows._DEAD_ROWS_MIN", 4)
    monkeypatch.setattr("relay.core.rows.WINDOW_ROWS", 7)
    draw = random.Random(seed)
    history = ("b=events 2", "c=age 3", "d=events 4 age 2")
    bytes_max = draw.choice([300, 2000, 1 << 30])
    log, model, now_s = make_log(*history, bytes_max=bytes_max), Model({}, bytes_max), 0.0
    model.limits = dict(map(parse_history, history))
    for _ in range(600):
        now_s += draw.choice([0.0, 0.0, 0.1, 1.0])
        log.expire(now_s)
        model.evict(now_s)
        topic, ttl_s = draw.choice("aaabbcdd"), draw.choice([None] * 6 + [0.5, 2.0, 9.0])
        sequence = put(log, topic, now_s, ttl_s, f"own-{log.head}")
        model.entries[sequence] = topic, now_s, ttl_s
        model.evict(now_s)
        log.expire(now_s)
        assert retained(log) == list(model.entries)
    assert log.tail == next(iter(model.entries), log.head)
    assert (len(log), log.bytes) == (len(model.entries), 10 * len(model.entries))
    for name in "abcd":
        own = [sequence for sequence, entry in model.entries.items() if entry[0] == name]
        known = log.topics.get(name)
        assert (list(known.part(log.tail, log.head, 1 << 30)[0]) if known is not None else []) == own
        if known is not None:
            assert (known.retained, known.oldest) == (len(own), own[0])
    for sequence, (name, time_s, ttl_s) in model.entries.items():
        entry = log.entry(sequence)
        assert (entry.topic, entry.time_s, entry.ttl_s, entry.id) == (name, time_s, ttl_s, f"own-{sequence}")
        assert log.find((f"own-{sequence}",), (name,)) == sequence
        assert log.following(sequence) == sequence
        assert log.since(time_s) <= sequence
    assert list(log.current(range(1, log.head)))[-1:] == list(model.entries)[-1:]


@pytest.mark.slow
def test_a_million_topics_cost_nothing_after_their_events_and_streams_are_gone() -> None:
    """Topics come and go, each with an event and some with a stream. Time is linear, and memory returns."""
    world = World(Config())
    world.connect(world.client(("other.*",), None, 1 << 30, "sse"))
    audiences, form = world.hub.audiences, world.hub.forms["sse"]
    rule = Rule(Policy.DROP_OLDEST, Limits(), Limits(), 10.0)

    def run(first: int, count: int) -> float:
        began_s = time.process_time()
        for number in range(first, first + count):
            world.hub.publish_one(Event(data="x", topic=f"t.{number}", ttl=0.5), world.now_s)
            audiences.release(audiences.get((f"s.{number}",), rule, form))
            if number % 100 == 0:
                world.now_s += 0.01
                world.hub.turn(world.now_s)
        world.pass_time(1.0)
        while world.step():
            pass
        return time.process_time() - began_s

    run(0, 20_000)
    gc.collect()
    objects = len(gc.get_objects())
    took_s = run(20_000, TOPICS)
    gc.collect()
    assert len(gc.get_objects()) - objects < 1000
    assert len(world.hub.log.topics) == 0
    assert (len(world.hub.log), world.hub.log.bytes) == (0, 0)
    assert took_s < 60.0
