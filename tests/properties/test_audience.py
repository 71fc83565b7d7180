"""Audiences equal a plain list of streams and events: the audiences that an event marks, and the entries of indexes.

Streams, events, evictions and deletions occur in any order. An event marks exactly the audiences whose terms match its
topic. An index lists exactly the retained entries of its term, from the point where it is complete.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.core.audience import Audiences, Subscription
from relay.core.forms.form import Form
from relay.core.forms.registry import all_forms
from relay.core.log import Log
from relay.core.policy import Limits, Policy, Rule
from relay.topic import JOINT, disjoint
from tests.oracle import matches

FORMS = list(all_forms().values())[:2]
RULE = Rule(Policy.DROP_OLDEST, Limits(), Limits(), 10.0)
LEVELS = ("a", "b")
TOPICS = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=3).map(".".join)
TERMS = TOPICS | st.lists(st.sampled_from((*LEVELS, "*")), max_size=2).flatmap(
    lambda levels: st.sampled_from(("*", "**", "a")).map(lambda last: ".".join((*levels, last)))
)


def covers(term: str, topic: str) -> bool:
    """Return whether a term, or one of several joined patterns, matches a topic."""
    return any(matches(each, topic) for each in term.split(JOINT))


class AudienceMachine(RuleBasedStateMachine):
    """One log with its audiences, and lists of the streams and of all published entries."""

    @initialize(events_max=st.sampled_from([1, 3, 10, 1000]))
    def start(self, events_max: int) -> None:
        self.log = Log("e", bytes_max=1 << 30, events_max=events_max)
        self.audiences = Audiences(self.log)
        self.streams: list[Subscription] = []
        self.published: list[str] = []
        self.complete_from: dict[int, int] = {}  # by the id of an index, which exists as long as one of its streams

    @rule(topic=TOPICS, times=st.integers(1, 4))
    def publish(self, topic: str, times: int) -> None:
        for _ in range(times):
            known = self.log.topics.get(topic) or self.audiences.add_topic(topic)
            self.log.append(known, b"x", None, None, float(len(self.published)))
            self.published.append(topic)
            wanted = {(each.term, each.form.name) for stream in self.streams for each in stream.audiences}
            marked = sorted((each.term, each.form.name) for each in known.audiences)
            assert marked == sorted((term, form) for term, form in wanted if covers(term, topic))

    @rule(terms=st.lists(TERMS, min_size=1, max_size=4, unique=True), form=st.sampled_from(FORMS))
    def subscribe(self, terms: list[str], form: Form) -> None:
        subscription = self.audiences.get(disjoint(tuple(terms)), RULE, form)
        self.audiences.enter(subscription)
        self.streams.append(subscription)
        for index in subscription.indexes:
            self.complete_from.setdefault(id(index), min(index.since, self.log.head))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), back=st.integers(0, 12), evicted=st.booleans())
    def replay(self, data: st.DataObject, back: int, evicted: bool) -> None:
        subscription = data.draw(st.sampled_from(self.streams))
        cursor = max(1, self.log.head - back)
        self.audiences.complete(subscription, cursor, evicted=evicted)
        for audience in subscription.audiences:
            key = id(audience.index)
            self.complete_from[key] = min(self.complete_from[key], cursor)
            if evicted:
                gone = [s for s in range(1, self.log.tail) if covers(audience.term, self.published[s - 1])]
                assert audience.index.evicted_known
                assert not gone or audience.index.evicted >= gone[-1]

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        subscription = data.draw(st.sampled_from(self.streams))
        self.streams.remove(subscription)
        self.audiences.leave(subscription)
        live = {id(index) for each in self.streams for index in each.indexes}
        self.complete_from = {key: since for key, since in self.complete_from.items() if key in live}

    @rule(topic=TOPICS)
    def look_up(self, topic: str) -> None:
        wanted = {(each.term, each.form.name) for stream in self.streams for each in stream.audiences}
        found = sorted((each.term, each.form.name) for each in self.audiences.of_topic(topic))
        known = topic in self.log.topics
        assert found == (sorted((term, form) for term, form in wanted if covers(term, topic)) if known else [])

    @rule()
    def count(self) -> None:
        listed = self.audiences.most_subscribed(1000)
        assert {topic.name for topic, _ in listed} == self.log.topics.keys()
        for topic, streams in listed:
            assert streams == sum(covers(a.term, topic.name) for each in self.streams for a in each.audiences)

    @invariant()
    def indexes_list_the_retained_entries_of_their_terms(self) -> None:
        for subscription in self.streams:
            for audience in subscription.audiences:
                start = max(self.log.tail, self.complete_from[id(audience.index)])
                wanted = [s for s in range(start, self.log.head) if covers(audience.term, self.published[s - 1])]
                assert list(audience.index.part(start, self.log.head, 1 << 20)[0]) == wanted

    @invariant()
    def without_streams_nothing_is_left(self) -> None:
        if not self.streams:
            assert not self.audiences.indexes()
            assert not self.audiences._patterns
        names = set(self.published[self.log.tail - 1 :])
        assert self.log.topics.keys() == names.union(
            audience.term for each in self.streams for audience in each.audiences if "*" not in audience.term
        )


TestAudience = AudienceMachine.TestCase
TestAudience.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
