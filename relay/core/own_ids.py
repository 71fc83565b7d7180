"""The publishers' own ids: finds the entry of a last id among the topics of one subscription.

Theory of operation. A publisher may reuse an id in another topic or in the same topic. An id is therefore looked up
only among the topics of the subscription, and stands for its oldest retained use, so that no later event is skipped.
Once the oldest use in a topic is evicted, the id is ambiguous, and its later uses in that topic are not found either.
For this, the table remembers evicted pairs of topic and id in two generations. When the younger generation is full, the
older one is dropped.

Most ids are used once. Such an id costs one row in a dictionary. Ids that several topics share have a row for each.

Owns the tables of retained uses and of evicted pairs. Never accesses an entry, only its sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from relay.topic import TermTree, is_pattern

EVICTED_PAIRS_MAX = 65_536
EVICTED_CHARACTERS_MAX = 4 * 1024 * 1024
"""Limits of one generation of evicted pairs; each needs at most 15 MB."""

SHARING_TOPICS_MAX = 64
"""Maximum number of topics with the same id; a stream with a pattern cannot resume from an id of more topics."""


class OwnIds:
    """The own ids of one log.

    Args:
        topic_of: returns the topic of a retained sequence.
    """

    def __init__(self, topic_of: Callable[[int], str]) -> None:
        self._topic_of = topic_of
        self._one: dict[str, int] = {}  # id → its oldest use, if one topic uses it
        self._many: dict[str, dict[str, int]] = {}  # id → topic → oldest use, if several topics use it
        self._evicted: dict[str, set[str] | str] = {}  # id → topics that have evicted it
        self._evicted_before: dict[str, set[str] | str] = {}
        self._pairs = self._characters = 0  # of `_evicted`

    def __len__(self) -> int:
        return len(self._one) + sum(map(len, self._many.values()))

    def begin(self) -> None:
        """Clear all tables."""
        for each in (self._one, self._many, self._evicted, self._evicted_before):
            each.clear()
        self._pairs = self._characters = 0

    def add(self, id: str, topic: str, sequence: int) -> None:
        """Add the newest entry, unless its topic has evicted an entry of this id."""
        if (id in self._evicted or id in self._evicted_before) and self._has_evicted(id, (topic,)):
            self.evict(id, topic)  # renews the pair, because this use may outlive the remembered one
            return
        uses = self._many.get(id) if self._many else None
        if uses is not None:
            uses.setdefault(topic, sequence)
            return
        older = self._one.setdefault(id, sequence)
        if older != sequence and (other := self._topic_of(older)) != topic:
            del self._one[id]
            self._many[id] = {other: older, topic: sequence}

    def evict(self, id: str, topic: str) -> None:
        """Record that a topic evicted an event of this id, here or in another log with the same entries."""
        one = self._one.get(id)
        if one is not None:
            if self._topic_of(one) == topic:
                del self._one[id]
        elif self._many and (uses := self._many.get(id)) is not None:
            uses.pop(topic, None)
            if not uses:
                del self._many[id]
        topics = self._evicted.get(id)
        if topics == topic or (isinstance(topics, set) and topic in topics):
            return
        if topics is None:
            self._evicted[id] = topic
            self._characters += len(id)
        elif isinstance(topics, set):
            topics.add(topic)
        else:
            self._evicted[id] = {topics, topic}
        self._pairs += 1
        self._characters += len(topic)
        if self._pairs > EVICTED_PAIRS_MAX or self._characters > EVICTED_CHARACTERS_MAX:
            self._evicted_before, self._evicted = self._evicted, {}
            self._pairs = self._characters = 0

    def evicted(self) -> Iterator[tuple[str, str]]:
        """Return a snapshot of the evicted pairs of id and topic, older pairs first."""
        return _pairs(self._evicted_before.copy(), self._evicted.copy())

    def find(self, ids: Iterable[str], terms: tuple[str, ...]) -> int | None:
        """Return the sequence of the last event that a client with this last id received.

        Args:
            ids: the readings of one last id.
            terms: disjoint terms of the subscription.

        Returns:
            None if no topic of the subscription retains the id, if one of them has evicted it, or if two readings
            identify different events.
        """
        found: set[int] = set()
        for id in ids:
            uses = self._many.get(id)
            if uses is None:
                one = self._one.get(id)
                uses = {} if one is None else {self._topic_of(one): one}
            wanted = _among(uses, terms)
            if wanted is None or self._has_evicted(id, terms):
                return None
            if wanted:
                found.add(min(uses[topic] for topic in wanted))
        return found.pop() if len(found) == 1 else None

    def _has_evicted(self, id: str, terms: tuple[str, ...]) -> bool:
        for memory in (self._evicted, self._evicted_before):
            topics = memory.get(id)
            if topics is not None and _among(topics if isinstance(topics, set) else (topics,), terms) != []:
                return True
        return False


def _pairs(*memories: Mapping[str, set[str] | str]) -> Iterator[tuple[str, str]]:
    for memory in memories:
        for id, topics in memory.items():
            for topic in tuple(topics) if isinstance(topics, set) else (topics,):
                yield id, topic


def _among(topics: Collection[str], terms: tuple[str, ...]) -> list[str] | None:
    """Return the topics that the terms match; None if a pattern would be compared with too many topics."""
    found = [term for term in terms if term in topics]
    patterns: TermTree[str] = TermTree()
    for term in terms if topics else ():
        if is_pattern(term):
            patterns.add(term, term)
    if not patterns:
        return found
    if len(topics) > SHARING_TOPICS_MAX:
        return None
    return found + [topic for topic in topics if patterns.covering(topic)]
