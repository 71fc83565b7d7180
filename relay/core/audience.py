"""Audiences and subscriptions: map topics to streams.

An audience is keyed by its term and its form. The audiences of one term share its index.

Owns the map from a topic to the audiences that its events mark, and from the terms of a stream to its indexes.
Never sends, reads an entry or reads a clock.

Theory of operation. One tree holds all subscribed patterns. Its generation increases when a pattern is added or
removed. A topic stores its audiences and their generation. When the next event of the topic is appended or evicted
under another generation, its audiences are looked up again. Adding or removing a pattern therefore examines no topics,
and an event costs one comparison while no pattern changes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from relay.core.backfill import Wanted, backfill
from relay.core.forms.form import Form
from relay.core.forms.gzip import Compressor
from relay.core.index import Index, Topic
from relay.core.log import Log
from relay.core.policy import Limits, Policy, Rule
from relay.speedups import Members
from relay.topic import TermTree, check_topic, is_pattern

RESOLVED_MAX = 1000
"""Maximum number of topics whose audiences one listing looks up again, in about 2 ms."""


class Audience:
    """The streams that share one term and one form."""

    __slots__ = ("compressor", "due", "form", "index", "members", "shared", "streams", "subscriptions", "term")

    def __init__(self, term: str, form: Form, index: Index) -> None:
        self.term = term
        self.form = form
        self.index = index
        self.members = Members()
        self.subscriptions = 0  # number of subscriptions with this term
        self.streams = 0  # number of open streams
        self.shared = 0  # number of streams that are in other audiences too
        self.due = False  # new entries wait for the flush
        self.compressor: Compressor | None = None


class Subscription:
    """The terms, the rule and the form that some streams share."""

    __slots__ = ("audiences", "form", "indexes", "joins", "patterns", "rule", "streams", "terms", "timed", "waiting")

    def __init__(self, terms: tuple[str, ...], audiences: tuple[Audience, ...], rule: Rule, form: Form) -> None:
        self.terms = terms
        self.audiences = audiences
        self.indexes = tuple(audience.index for audience in audiences)
        self.patterns = tuple(audience for audience in audiences if is_pattern(audience.term))
        self.rule = rule
        self.form = form
        # Streams that receive the events of one audience only can share a compressor.
        self.joins = form.compressed and len(audiences) == 1
        # The policy acts at some time even if nothing is written to a stream.
        self.timed = rule.policy is Policy.DISCONNECT or rule.soft != Limits()
        self.streams = 0
        self.waiting = 0  # replays that wait for the indexes

    def ordinal(self, cursor: int) -> int:
        """Count the events before `cursor` from an arbitrary origin; only differences are meaningful."""
        if len(self.indexes) == 1:
            return self.indexes[0].ordinal(cursor)
        return sum(index.ordinal(cursor) for index in self.indexes)

    @property
    def evicted(self) -> int:
        """The last sequence of an event that may have been evicted; -1 if none was."""
        if len(self.indexes) == 1:
            return self.indexes[0].evicted
        return max(index.evicted for index in self.indexes)

    def has(self, cursor: int) -> bool:
        """Return whether there is an event at or after `cursor`."""
        return any(index.first(cursor) is not None for index in self.indexes)


class Audiences:
    """All audiences and subscriptions of one log."""

    def __init__(self, log: Log) -> None:
        self.forms: Counter[str] = Counter()  # number of open streams by the name of their form
        self._log = log
        self._audiences: dict[str, dict[Form, Audience]] = {}
        self._patterns: TermTree[Audience] = TermTree()
        self._subscriptions: dict[tuple[tuple[str, ...], Rule, Form], Subscription] = {}
        log.resolve_with(self._resolve)

    def indexes(self) -> list[Index]:
        """Return the indexes of all audiences."""
        return [next(iter(by_form.values())).index for by_form in self._audiences.values()]

    def of_topic(self, name: str) -> Sequence[Audience]:
        """Return the audiences that an event of this topic marks; none if the log does not know the topic."""
        topic = self._log.topics.get(name)
        return () if topic is None else self._of(topic)

    def add_topic(self, name: str) -> Topic:
        """Add a topic to the log.

        Raises:
            EventError: the name is not a valid topic.
        """
        return self._log.topic(check_topic(name))

    def get(self, terms: tuple[str, ...], rule: Rule, form: Form) -> Subscription:
        """Return the subscription of these checked and disjoint terms in a form; create it if missing.

        It exists until its last stream leaves, or until `release` if no stream entered.
        """
        subscription = self._subscriptions.get((terms, rule, form))
        if subscription is None:
            audiences = tuple(self._audience(term, form) for term in terms)
            for audience in audiences:
                audience.subscriptions += 1
            subscription = Subscription(terms, audiences, rule, form)
            self._subscriptions[terms, rule, form] = subscription
        return subscription

    def enter(self, subscription: Subscription) -> None:
        """Add one stream to the counts of a subscription."""
        subscription.streams += 1
        self.forms[subscription.form.name] += 1
        shared = len(subscription.audiences) > 1
        for audience in subscription.audiences:
            audience.streams += 1
            audience.shared += shared

    def leave(self, subscription: Subscription) -> None:
        """Remove one stream from the counts of a subscription; drop the subscription with its last stream."""
        subscription.streams -= 1
        self.forms[subscription.form.name] -= 1
        shared = len(subscription.audiences) > 1
        for audience in subscription.audiences:
            audience.streams -= 1
            audience.shared -= shared
        self.release(subscription)

    def release(self, subscription: Subscription) -> None:
        """Drop a subscription without streams and waiting replays, and its audiences without other subscriptions."""
        if subscription.streams or subscription.waiting:
            return
        if not self._subscriptions.pop((subscription.terms, subscription.rule, subscription.form), None):
            return
        for audience in subscription.audiences:
            audience.subscriptions -= 1
            if not audience.subscriptions:
                self._drop(audience)

    def streams(self, term: str) -> int:
        """Return the number of open streams of a term."""
        return sum(audience.streams for audience in self.of_term(term))

    def of_term(self, term: str) -> Iterable[Audience]:
        """Return the audiences of a term, one per form."""
        return self._audiences.get(term, {}).values()

    def wanted(self, subscription: Subscription, cursor: int, *, evicted: bool) -> list[Wanted]:
        """Return the incomplete indexes of a subscription for a replay.

        Args:
            subscription: the subscription of the stream.
            cursor: first sequence of the replay.
            evicted: whether evictions at or after the cursor matter.
        """
        cursor = max(cursor, self._log.tail)
        # A topic's own index is always complete.
        return [
            Wanted(audience.term, audience.index)
            for audience in subscription.patterns
            if audience.index.since > cursor or (evicted and not audience.index.evicted_known)
        ]

    def complete(self, subscription: Subscription, cursor: int, *, evicted: bool) -> None:
        """Complete a subscription's indexes at once; the arguments are those of `wanted`."""
        if not subscription.patterns:
            return
        wanted = self.wanted(subscription, cursor, evicted=evicted)
        if wanted:
            for _ in backfill(self._log, wanted, cursor, evicted=evicted):
                pass

    def most_subscribed(self, count: int) -> list[tuple[Topic, int]]:
        """Return topics with their numbers of subscribers, most subscribers first; other topics fill the rest.

        No stream counts twice, because its terms are disjoint. The numbers are exact, but the choice of topics may not
        be: of the topics without an event since patterns changed, one call looks up at most `RESOLVED_MAX` again, to
        bound its duration. It ranks the others by their former audiences.
        """
        log = self._log
        stale = (topic for topic in log.topics.values() if topic.generation != log.generation)
        for topic in list(islice(stale, RESOLVED_MAX)):
            self._resolve(topic)
        numbers = {}
        for name, topic in log.topics.items():
            if topic.audiences:
                numbers[name] = sum(audience.streams for audience in topic.audiences)
        names = heapq.nsmallest(count, numbers, key=lambda name: (-numbers[name], name))
        if len(names) < count:
            names += islice((name for name in log.topics if name not in numbers), count - len(names))
        return [(log.topics[name], sum(audience.streams for audience in self.of_topic(name))) for name in names]

    def _of(self, topic: Topic) -> Sequence[Audience]:
        if topic.generation != self._log.generation:
            self._resolve(topic)
        return topic.audiences

    def _resolve(self, topic: Topic) -> None:
        """Find the audiences of a topic, and attach their indexes to the topic."""
        found = list(dict.fromkeys(self._patterns.covering(topic.name))) if self._patterns else []
        topic.patterns = tuple(dict.fromkeys(audience.index for audience in found))
        found += self.of_term(topic.name)
        topic.audiences = found
        topic.generation = self._log.generation

    def _audience(self, term: str, form: Form) -> Audience:
        by_form = self._audiences.setdefault(term, {})
        audience = by_form.get(form)
        if audience is not None:
            return audience
        if is_pattern(term):
            index = next(iter(by_form.values())).index if by_form else self._log.new_index()
            audience = Audience(term, form, index)
            self._patterns.add(term, audience)
            self._log.generation += 1
        else:
            topic = self._log.topic(term)
            topic.pinned = True
            audience = Audience(term, form, topic)
            topic.audiences = [*topic.audiences, audience]
        by_form[form] = audience
        return audience

    def _drop(self, audience: Audience) -> None:
        term, index = audience.term, audience.index
        by_form = self._audiences[term]
        del by_form[audience.form]
        if not by_form:
            del self._audiences[term]
        if is_pattern(term):
            self._patterns.remove(term, audience)
            self._log.generation += 1
            if not by_form:
                # Topics without a later event still refer to the index, so it must not keep its rows.
                index.begin(self._log.head, index.evicted_s)
                index.since = 0  # A backfill that is under way has nothing to add.
        else:
            topic = self._log.topics[term]
            topic.audiences = [each for each in topic.audiences if each is not audience]
            if not by_form:
                topic.pinned = False
                self._log.forget(topic)
