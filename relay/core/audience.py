"""Who listens to what: audiences, and the subscriptions that streams share.

Owns the way from a topic to the audiences that its events mark, and from a stream's terms to the indexes that it reads.
Never sends, never reads an entry, has no clock.

Theory of operation. All patterns that somebody follows are in one tree, and carry a generation that goes up when one
comes or goes. A topic remembers its audiences and the generation for which they were found. They are found anew when
the topic's next event is appended or evicted under another generation. So a pattern comes and goes without a look at
the topics, and an event of a topic costs one comparison while no pattern changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import islice

from relay.core.backfill import Wanted, backfill
from relay.core.log import Index, Log, Topic
from relay.core.policy import Rule
from relay.speedups import Members
from relay.topic import TermTree, check_topic, is_pattern

RESOLVED_MAX = 1000
"""Topics whose audiences one listing finds anew: about 2 ms."""


class Audience:
    """The streams that share one term."""

    __slots__ = ("due", "index", "members", "shared", "streams", "subscriptions", "term")

    def __init__(self, term: str, index: Index) -> None:
        self.term = term
        self.index = index
        self.members = Members()
        self.subscriptions = 0  # those that it is part of
        self.streams = 0  # open ones
        self.shared = 0  # those of them that are in other audiences too
        self.due = False  # something of its index waits for the flush


class Subscription:
    """What some streams have in common: their terms, and the rule for when they are slow."""

    __slots__ = ("audiences", "indexes", "rule", "streams", "terms", "waiting")

    def __init__(self, terms: tuple[str, ...], audiences: tuple[Audience, ...], rule: Rule) -> None:
        self.terms = terms
        self.audiences = audiences
        self.indexes = tuple(audience.index for audience in audiences)
        self.rule = rule
        self.streams = 0
        self.waiting = 0  # streams to come, for which its indexes are being completed

    def ordinal(self, cursor: int) -> int:
        """Count the events before `cursor`, from an arbitrary origin: only differences mean something."""
        if len(self.indexes) == 1:
            return self.indexes[0].ordinal(cursor)
        return sum(index.ordinal(cursor) for index in self.indexes)

    @property
    def evicted(self) -> int:
        """The last sequence of an event that may have been evicted; -1 where none was."""
        return max(index.evicted for index in self.indexes)

    def has(self, cursor: int) -> bool:
        """Say whether there is an event at `cursor` or behind it."""
        return any(index.first(cursor) is not None for index in self.indexes)


class Audiences:
    """All audiences and subscriptions of one log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._audiences: dict[str, Audience] = {}
        self._patterns: TermTree[Audience] = TermTree()
        self._subscriptions: dict[tuple[tuple[str, ...], Rule], Subscription] = {}
        log.resolve = self._resolve

    def indexes(self) -> list[Index]:
        """Return the indexes that subscriptions read."""
        return [audience.index for audience in self._audiences.values()]

    def of_topic(self, name: str) -> Sequence[Audience]:
        """Return the audiences that an event of this topic marks; none for a topic that the log does not know."""
        topic = self._log.topics.get(name)
        return () if topic is None else self._of(topic)

    def add_topic(self, name: str) -> Topic:
        """Make a topic known.

        Raises:
            EventError: the name is not one of a topic.
        """
        return self._log.topic(check_topic(name))

    def get(self, terms: tuple[str, ...], rule: Rule) -> Subscription:
        """Return the subscription of these checked and disjoint terms, made when it is new.

        It stays until its last stream leaves, or until `release` where no stream has entered.
        """
        subscription = self._subscriptions.get((terms, rule))
        if subscription is None:
            audiences = tuple(self._audience(term) for term in terms)
            for audience in audiences:
                audience.subscriptions += 1
            subscription = Subscription(terms, audiences, rule)
            self._subscriptions[terms, rule] = subscription
        return subscription

    def enter(self, subscription: Subscription) -> None:
        """Count one more stream of a subscription."""
        subscription.streams += 1
        shared = len(subscription.audiences) > 1
        for audience in subscription.audiences:
            audience.streams += 1
            audience.shared += shared

    def leave(self, subscription: Subscription) -> None:
        """Count one stream less; what nobody is subscribed to any more is dropped."""
        subscription.streams -= 1
        shared = len(subscription.audiences) > 1
        for audience in subscription.audiences:
            audience.streams -= 1
            audience.shared -= shared
        self.release(subscription)

    def release(self, subscription: Subscription) -> None:
        """Drop a subscription that no stream has or waits for, and its audiences that no other subscription is in."""
        if subscription.streams or subscription.waiting:
            return
        if not self._subscriptions.pop((subscription.terms, subscription.rule), None):
            return
        for audience in subscription.audiences:
            audience.subscriptions -= 1
            if not audience.subscriptions:
                self._drop(audience)

    def streams(self, term: str) -> int:
        """Return how many open streams a term has."""
        audience = self._audiences.get(term)
        return 0 if audience is None else audience.streams

    def members(self, term: str) -> Members | None:
        """Return the streams of a term; None where nobody is subscribed to it."""
        audience = self._audiences.get(term)
        return None if audience is None else audience.members

    def wanted(self, subscription: Subscription, cursor: int, *, evicted: bool) -> list[Wanted]:
        """Return what a subscription's indexes lack for a replay.

        Args:
            subscription: the stream's.
            cursor: where the replay begins.
            evicted: whether it matters which entries were evicted at or after the cursor.
        """
        cursor = max(cursor, self._log.tail)
        # A topic's own index has been complete since the topic was made.
        return [
            Wanted(audience.term, audience.index)
            for audience in subscription.audiences
            if is_pattern(audience.term)
            and (audience.index.since > cursor or (evicted and not audience.index.evicted_known))
        ]

    def complete(self, subscription: Subscription, cursor: int, *, evicted: bool) -> None:
        """Complete a subscription's indexes at once; the arguments are those of `wanted`."""
        for _ in backfill(self._log, self.wanted(subscription, cursor, evicted=evicted), cursor, evicted=evicted):
            pass

    def most_subscribed(self, count: int) -> list[tuple[Topic, int]]:
        """Return topics with their numbers of subscribers, most first; those without only fill up the rest.

        A stream whose terms are in two audiences of a topic would count twice; disjoint terms never are. The numbers
        are exact. But of topics without an event since a pattern came, at most `RESOLVED_MAX` are looked at anew, so
        that the call takes no longer after patterns changed; the others are chosen by their former audiences.
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
        """Find the audiences of a topic, and let its events go into their indexes."""
        found = list(dict.fromkeys(self._patterns.covering(topic.name))) if self._patterns else []
        topic.patterns = tuple(audience.index for audience in found)
        own = self._audiences.get(topic.name)
        if own is not None:
            found.append(own)
        topic.audiences = found
        topic.generation = self._log.generation

    def _audience(self, term: str) -> Audience:
        audience = self._audiences.get(term)
        if audience is not None:
            return audience
        if is_pattern(term):
            audience = Audience(term, self._log.new_index())
            self._patterns.add(term, audience)
            self._log.generation += 1
        else:
            topic = self._log.topic(term)
            topic.pinned = True
            audience = Audience(term, topic)
            topic.audiences = [*topic.audiences, audience]
        self._audiences[term] = audience
        return audience

    def _drop(self, audience: Audience) -> None:
        del self._audiences[audience.term]
        if is_pattern(audience.term):
            self._patterns.remove(audience.term, audience)
            self._log.generation += 1
            # Topics without another event still refer to it; what it lists must not stay for them.
            audience.index.begin(self._log.head, audience.index.evicted_s)
            audience.index.since = 0  # it lacks nothing, should a backfill of it be under way
        else:
            topic = self._log.topics[audience.term]
            topic.pinned = False
            topic.audiences = [each for each in topic.audiences if each is not audience]
            self._log.forget(topic)
