"""Who listens to what: audiences, and the subscriptions that streams share.

Owns the way from a topic to the audiences that its events mark, and from a stream's terms to the indexes that it reads.
Which patterns match a topic is worked out once for each topic. Never sends, never reads an entry, has no clock.
"""

from __future__ import annotations

import heapq
from itertools import islice

from relay.log import Index, Log, Topic
from relay.policy import Rule
from relay.speedups import Members
from relay.topic import check_topic, is_pattern, matcher


class Audience:
    """The streams that share one term."""

    __slots__ = ("due", "index", "match", "members", "shared", "streams", "subscriptions", "term")

    def __init__(self, term: str, index: Index) -> None:
        self.term = term
        self.index = index
        self.match = matcher(term)
        self.members = Members()
        self.subscriptions = 0  # those that it is part of
        self.streams = 0  # open ones
        self.shared = 0  # those of them that are in other audiences too
        self.due = False  # something of its index waits for the flush


class Subscription:
    """What some streams have in common: their terms, and the rule for when they are slow."""

    __slots__ = ("audiences", "indexes", "rule", "streams", "terms")

    def __init__(self, terms: tuple[str, ...], audiences: tuple[Audience, ...], rule: Rule) -> None:
        self.terms = terms
        self.audiences = audiences
        self.indexes = tuple(audience.index for audience in audiences)
        self.rule = rule
        self.streams = 0

    def ordinal(self, cursor: int) -> int:
        """Count the events before `cursor`, from an arbitrary origin: only differences mean something."""
        if len(self.indexes) == 1:
            return self.indexes[0].ordinal(cursor)
        return sum(index.ordinal(cursor) for index in self.indexes)

    def has(self, cursor: int) -> bool:
        """Say whether there is an event at `cursor` or behind it."""
        return any(index.first(cursor) is not None for index in self.indexes)


class Audiences:
    """All audiences and subscriptions of one log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._audiences: dict[str, Audience] = {}
        self._patterns: dict[str, Audience] = {}
        self._by_topic: dict[str, list[Audience]] = {}
        self._subscriptions: dict[tuple[tuple[str, ...], Rule], Subscription] = {}

    def indexes(self) -> list[Index]:
        """Return the indexes that subscriptions read."""
        return [audience.index for audience in self._audiences.values()]

    def of_topic(self, name: str) -> list[Audience] | None:
        """Return the audiences that an event of this topic marks; None for a topic that is not known yet."""
        return self._by_topic.get(name)

    def add_topic(self, name: str) -> list[Audience]:
        """Make a topic known.

        Raises:
            EventError: the name is not one of a topic.
        """
        topic = self._log.topic(check_topic(name))
        found = [audience for audience in self._patterns.values() if audience.match(name)]
        for audience in found:
            self._log.attach(audience.index, (topic,))
        self._by_topic[name] = found
        return found

    def forget_topic(self, name: str) -> None:
        """Drop what is known of a topic that the log has forgotten."""
        self._by_topic.pop(name, None)

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
        """Drop a subscription that has no stream, and its audiences that no other subscription is in."""
        if subscription.streams or not self._subscriptions.pop((subscription.terms, subscription.rule), None):
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

    def complete(self, subscription: Subscription, cursor: int) -> None:
        """Make the indexes of a subscription complete from `cursor` on, as far as its entries are retained."""
        for audience in subscription.audiences:
            # A topic's own index has been complete since the topic was made.
            if audience.term in self._patterns and audience.index.since > max(cursor, self._log.tail):
                self._log.fill(audience.index, self._topics(audience))

    def most_subscribed(self, count: int) -> list[tuple[Topic, int]]:
        """Return topics with their numbers of subscribers, most first; those without only fill up the rest.

        A stream whose terms are in two audiences of a topic would count twice; disjoint terms never are.
        """
        numbers = {
            name: sum(audience.streams for audience in audiences)
            for name, audiences in self._by_topic.items()
            if audiences
        }
        names = heapq.nsmallest(count, numbers, key=lambda name: (-numbers[name], name))
        if len(names) < count:
            rest = (name for name, audiences in self._by_topic.items() if not audiences)
            names += islice(rest, count - len(names))
        return [(self._log.topics[name], numbers.get(name, 0)) for name in names]

    def _topics(self, audience: Audience) -> list[Topic]:
        match = audience.match
        return [topic for name, topic in self._log.topics.items() if match(name)]

    def _audience(self, term: str) -> Audience:
        audience = self._audiences.get(term)
        if audience is not None:
            return audience
        if is_pattern(term):
            audience = self._patterns[term] = Audience(term, self._log.new_index(matcher(term)))
            topics = self._topics(audience)
            self._log.attach(audience.index, topics)
        else:
            if term not in self._by_topic:
                self.add_topic(term)
            topics = [self._log.topics[term]]
            topics[0].pinned = True
            audience = Audience(term, topics[0].index)
        for topic in topics:
            self._by_topic[topic.name].append(audience)
        self._audiences[term] = audience
        return audience

    def _drop(self, audience: Audience) -> None:
        del self._audiences[audience.term]
        if self._patterns.pop(audience.term, None) is not None:
            topics = self._topics(audience)
            self._log.detach(audience.index, topics)
        else:
            topics = [self._log.topics[audience.term]]
            topics[0].pinned = False
        for topic in topics:
            self._by_topic[topic.name].remove(audience)
            self._log.forget(topic)
