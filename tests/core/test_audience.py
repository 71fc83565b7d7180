"""Audiences: topics and patterns in either order, streams that open and close, and the cost."""

from __future__ import annotations

import pytest

from relay.core import backfill as backfill_module
from relay.core.audience import Audience, Audiences, Subscription
from relay.core.forms.registry import all_forms
from relay.core.log import Log
from relay.core.policy import Limits, Policy, Rule
from relay.errors import EventError
from relay.topic import TermTree, disjoint

RULE = Rule(Policy.DROP_OLDEST, Limits(), Limits(), 10.0)
OTHER = Rule(Policy.CONFLATE, Limits(), Limits(), 10.0)


class World:
    """A log and its audiences, wired as the hub wires them."""

    def __init__(self, events_max: int = 0) -> None:
        self.log = Log("e", bytes_max=1 << 30, events_max=events_max)
        self.audiences = Audiences(self.log)
        self.forms = all_forms()

    def publish(self, topic: str) -> list[str]:
        """Append an event; return the terms whose audiences it marks."""
        known = self.log.topics.get(topic) or self.audiences.add_topic(topic)
        self.log.append(known, b"x", None, None, 0.0)
        return [audience.term for audience in known.audiences]

    def enter(self, *terms: str, rule: Rule = RULE, form: str = "sse") -> Subscription:
        """Open a stream."""
        subscription = self.audiences.get(terms, rule, self.forms[form])
        self.audiences.enter(subscription)
        return subscription

    def marked(self, topic: str) -> list[str]:
        """Return the terms whose audiences an event of this topic would mark."""
        return sorted(audience.term for audience in self.audiences.of_topic(topic))

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (streams, streams that are also in other audiences) of every audience."""
        audiences = [each for term in self.audiences._audiences for each in self.audiences.of_term(term)]
        return {each.term: (each.streams, each.shared) for each in audiences}

    def is_empty(self) -> bool:
        """Return whether nothing is left of any stream."""
        inner = self.audiences
        return not (inner._audiences or inner._patterns or inner._subscriptions)


def sequences(audience: Audience) -> list[int]:
    """Return the sequences in the index of an audience."""
    return list(audience.index.sequences)


def test_an_unknown_topic_has_no_audiences() -> None:
    assert list(World().audiences.of_topic("a")) == []


@pytest.mark.parametrize("topic", ["", "a..b", "a.*", "**", "\n", "x" * 257, "\ud800"])
def test_an_invalid_topic_name_is_rejected_and_leaves_nothing(topic: str) -> None:
    world = World()
    with pytest.raises(EventError):
        world.audiences.add_topic(topic)
    assert world.log.topics == {}


@pytest.mark.parametrize("topic_first", [True, False])
@pytest.mark.parametrize(
    ("term", "topic", "match"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("o.*", "o.x", True),
        ("o.*", "o.x.y", False),
        ("o.*", "o", False),
        ("o.**", "o.x.y", True),
        ("o.**", "o", False),
        ("**", "o.x.y", True),
        ("*", "a", True),
        ("*", "a.b", False),
        ("*.x", "o.x", True),
    ],
)
def test_topics_and_terms_match_in_either_order_of_creation(
    term: str, topic: str, match: bool, topic_first: bool
) -> None:
    world = World()
    if topic_first:
        world.publish(topic)
    [audience] = world.enter(term).audiences
    before = world.log.head
    assert world.publish(topic) == ([term] if match else [])
    assert (before in sequences(audience)) is match


def test_an_event_marks_each_of_its_audiences_once() -> None:
    world = World()
    for terms in (("o.x",), ("o.*",), ("o.x", "o.**"), ("p",), ("o.x",)):
        world.enter(*terms)
    world.publish("o.x")
    assert world.marked("o.x") == ["o.*", "o.**", "o.x"]
    world.enter("**")
    world.enter("*.x")
    assert world.marked("o.x") == ["**", "*.x", "o.*", "o.**", "o.x"]


def test_equal_terms_and_rules_share_a_subscription_and_equal_terms_an_audience() -> None:
    world = World()
    one, two = world.enter("a", "b"), world.enter("a", "b")
    assert one is two
    other_order, other_rule = world.enter("b", "a"), world.enter("a", "b", rule=OTHER)
    assert len({id(one), id(other_order), id(other_rule)}) == 3
    assert one.audiences == other_rule.audiences == other_order.audiences[::-1]
    assert world.counts() == {"a": (4, 4), "b": (4, 4)}


def test_only_streams_in_several_audiences_are_shared() -> None:
    world = World()
    alone, both = world.enter("a"), world.enter("a", "b")
    assert world.counts() == {"a": (2, 1), "b": (1, 1)}
    world.audiences.leave(alone)
    assert world.counts() == {"a": (1, 1), "b": (1, 1)}
    world.audiences.leave(both)
    assert world.is_empty()


def test_the_last_stream_removes_its_audiences_and_unused_topics() -> None:
    world = World()
    world.publish("kept")
    subscriptions = [world.enter("kept", "unused", "k.*"), world.enter("kept", "unused", "k.*"), world.enter("unused")]
    world.publish("k.x")
    assert world.marked("k.x") == ["k.*"]
    for subscription in subscriptions[:2]:
        world.audiences.leave(subscription)
    assert set(world.counts()) == {"unused"}
    assert set(world.log.topics) == {"kept", "k.x", "unused"}
    world.audiences.leave(subscriptions[2])
    assert world.is_empty()
    assert set(world.log.topics) == {"kept", "k.x"}
    assert world.publish("k.x") == world.publish("kept") == []
    assert [topic.patterns for topic in world.log.topics.values()] == [(), ()]


def test_a_term_that_returns_has_a_new_audience() -> None:
    world = World()
    for term in ("a", "a.*"):
        first = world.enter(term)
        world.publish("a.b" if "*" in term else "a")
        world.audiences.leave(first)
        second = world.enter(term)
        assert second is not first
        assert second.audiences[0] is not first.audiences[0]
        assert world.publish("a.b" if "*" in term else "a") == [term]


def test_a_subscription_that_was_never_entered_is_dropped_by_release() -> None:
    world = World()
    subscription = world.audiences.get(("a", "b.*"), RULE, world.forms["sse"])
    world.audiences.release(subscription)
    assert world.is_empty()
    assert world.log.topics == {}


def test_a_release_keeps_everything_with_a_stream() -> None:
    world = World()
    subscription = world.enter("a")
    world.audiences.release(subscription)
    assert world.counts() == {"a": (1, 0)}
    world.audiences.release(world.audiences.get(("a", "b"), RULE, world.forms["sse"]))
    assert world.counts() == {"a": (1, 0)}
    assert world.publish("a") == ["a"]


def test_a_release_keeps_the_audiences_of_a_subscription_that_is_not_entered_yet() -> None:
    world = World()
    form = world.forms["sse"]
    one, two = world.audiences.get(("a",), RULE, form), world.audiences.get(("a", "b"), RULE, form)
    world.audiences.release(one)
    world.audiences.enter(two)
    assert world.publish("a") == ["a"]
    world.audiences.leave(two)
    assert world.is_empty()


def test_a_deleted_topic_matches_its_patterns_when_it_returns() -> None:
    world = World(events_max=2)
    [audience] = world.enter("o.*").audiences
    for topic in ("o.x", "o.y", "o.z", "o.x"):
        assert world.publish(topic) == ["o.*"]
    assert set(world.log.topics) == {"o.z", "o.x"}
    assert audience.index.lag(world.log.tail) == (2, 2, 3)
    assert audience.index.evicted == 2


def test_only_a_topic_without_a_reader_is_deleted() -> None:
    world = World(events_max=1)
    subscription = world.enter("a")
    world.publish("a")
    world.publish("b")
    assert set(world.log.topics) == {"a", "b"}
    assert world.publish("a") == ["a"]
    world.publish("b")
    world.audiences.leave(subscription)
    assert set(world.log.topics) == {"b"}


def test_completing_adds_earlier_retained_entries_to_a_pattern() -> None:
    world = World(events_max=5)
    for topic in ("o.x", "p", "o.y", "o.x", "p", "o.y", "o.x"):
        world.publish(topic)
    subscription = world.enter("o.*", "p")
    assert sequences(subscription.audiences[0]) == []
    world.audiences.complete(subscription, 1, evicted=False)
    assert sequences(subscription.audiences[0]) == [3, 4, 6, 7]
    world.publish("o.x")
    assert [index.lag(world.log.tail)[0] for index in subscription.indexes] == [4, 1]
    world.audiences.complete(subscription, 1, evicted=False)
    assert sequences(subscription.audiences[0])[-4:] == [4, 6, 7, 8]


def test_completing_from_the_head_adds_nothing() -> None:
    world = World()
    world.publish("o.x")
    subscription = world.enter("o.*")
    world.audiences.complete(subscription, world.log.head, evicted=False)
    assert sequences(subscription.audiences[0]) == []


def test_ordinals_of_a_subscription_count_the_events_of_all_its_terms() -> None:
    world = World()
    subscription = world.enter("a", "b")
    for topic in "abcab":
        world.publish(topic)
    assert [subscription.ordinal(cursor) - subscription.ordinal(1) for cursor in range(1, 7)] == [0, 1, 2, 2, 3, 4]


def test_ordinals_count_an_event_that_two_patterns_match_once() -> None:
    """Ordinals give the number of events that a subscriber missed."""
    world = World()
    subscription = world.enter(*disjoint(("o.*", "*.x")))
    world.publish("o.x")
    assert subscription.ordinal(2) - subscription.ordinal(1) == 1


def test_topics_are_listed_with_their_subscribers() -> None:
    world = World()
    world.publish("quiet")
    for terms in (("a",), ("a", "b"), ("*",)):
        world.enter(*terms)
    assert {topic.name: count for topic, count in world.audiences.most_subscribed(10)} == {"quiet": 1, "a": 3, "b": 2}


# Cost


def test_a_pattern_is_added_and_removed_without_a_scan_of_all_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for number in range(100_000):
        world.publish(f"user.{number % 50}.{number}")
    looked = count_looks(monkeypatch)
    streams = [world.enter(f"user.{number}.*") for number in range(5)] + [world.enter("**"), world.enter("user.**")]
    assert looked == []
    assert sorted(world.publish("user.1.1")) == ["**", "user.**", "user.1.*"]
    for subscription in streams[:-1]:
        world.audiences.leave(subscription)
    assert looked == ["user.1.1"]
    assert world.publish("user.1.1") == ["user.**"]
    assert looked == ["user.1.1"] * 2
    world.audiences.complete(streams[-1], 1, evicted=True)
    assert streams[-1].indexes[0].lag(1)[0] == 100_002
    world.audiences.leave(streams[-1])
    assert world.is_empty()


def test_the_entries_of_a_dropped_pattern_are_released_without_another_event() -> None:
    world = World()
    subscription = world.enter("o.*")
    for _ in range(1000):
        world.publish("o.x")
    world.audiences.leave(subscription)
    assert len(subscription.indexes[0].sequences) == 0
    for _ in range(10):
        assert world.publish("o.x") == []
    assert len(subscription.indexes[0].sequences) == 0
    assert world.log.topics["o.x"].patterns == ()


def test_topics_with_one_event_leave_nothing() -> None:
    world = World(events_max=10)
    subscription = world.enter("user.*")
    for number in range(20_000):
        world.publish(f"user.{number}")
    assert len(world.log.topics) == 10
    assert len(subscription.indexes[0].sequences) < 200


def test_the_patterns_of_a_topic_are_cached_until_a_pattern_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(events_max=5)
    for term in ("o.*", "o.**", "p.*"):
        world.enter(term)
    looked = count_looks(monkeypatch)
    for _ in range(10):
        world.publish("o.x")
    for _ in range(10):
        world.audiences.leave(world.enter("a.topic"))
    world.publish("o.x")
    assert looked == ["o.x"]


def test_a_thousand_terms_of_one_subscription_all_match_and_are_all_removed() -> None:
    world = World()
    terms = tuple(f"t.{number}" for number in range(1000))
    subscription = world.enter(*terms)
    assert all(world.publish(term) == [term] for term in terms)
    assert subscription.ordinal(world.log.head) - subscription.ordinal(1) == 1000
    batch = world.log.merge(subscription.indexes, 1, world.log.head, 1 << 20)
    assert batch is not None
    assert batch.sequences == list(range(1, 1001))
    world.audiences.leave(subscription)
    assert world.is_empty()


def test_new_topics_are_complete_without_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream can request a thousand topics since the earliest event, while a hundred thousand topics exist."""
    world = World()
    for number in range(1000):
        world.publish(f"t.{number}")
    looked = count_looks(monkeypatch)
    subscription = world.enter(*(f"new.{number}" for number in range(100)))
    assert world.audiences.wanted(subscription, 1, evicted=True) == []
    world.audiences.complete(subscription, 1, evicted=True)
    assert looked == []


def test_a_new_pattern_counts_earlier_evicted_entries_of_its_topics() -> None:
    world = World(events_max=2)
    for topic in ("o.x", "p", "o.x", "p", "o.x"):
        world.publish(topic)
    [audience] = world.enter("o.*").audiences
    assert not audience.index.evicted_known
    world.audiences.complete(world.audiences.get(("o.*",), RULE, world.forms["sse"]), world.log.tail, evicted=True)
    assert (audience.index.evicted_known, audience.index.evicted) == (True, 3)
    world.publish("p")
    world.publish("p")
    assert audience.index.evicted == 5


def test_an_index_is_completed_in_steps_while_entries_are_added_and_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "STEP_ROWS", 3)
    monkeypatch.setattr(backfill_module, "STEP_TOPICS", 1)
    world = World(events_max=20)
    for number in range(40):
        world.publish(("o.x", "p", "o.y")[number % 3])
    subscription = world.enter("o.*", "p")
    wanted = world.audiences.wanted(subscription, 1, evicted=True)
    for step, _ in enumerate(backfill_module.backfill(world.log, wanted, 1, evicted=True)):
        world.publish(("o.x", "p")[step % 2])
    [index, _] = subscription.indexes
    retained = [world.log.entry(sequence) for sequence in range(world.log.tail, world.log.head)]
    expected = [entry.sequence for entry in retained if entry.topic.startswith("o.")]
    assert list(index.part(world.log.tail, world.log.head, 100)[0]) == expected
    assert index.lag(world.log.tail)[:2] == (len(expected), len(expected))


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each topic for which patterns are looked up."""
    looked: list[str] = []
    covering = TermTree.covering

    def counted(tree: TermTree[Audience], term: str) -> list[Audience]:
        looked.append(term)
        return covering(tree, term)

    monkeypatch.setattr(TermTree, "covering", counted)
    return looked
