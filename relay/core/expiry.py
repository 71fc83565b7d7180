"""Expiry: the entries that the log evicts before its overall limits require it.

An entry is evicted early if its `ttl` has passed, or if its topic exceeds a limit of `history-for`.

Theory of operation. A heap orders the entries with a `ttl` by the time at which they expire. A topic with a limit of
age has one item in this heap, for its oldest entry, because its entries reach that age in order. A topic with more
entries than its limit waits in a queue. Items whose entry was evicted for another reason are skipped, or removed when
they are the majority.

Owns the heap, the queue and the `ttl` of each entry. Never evicts an entry itself; `relay.core.log` does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush, heapreplace

from relay.config.topic_retention import TopicLimits
from relay.core.index import Topic
from relay.topic import TermTree

_STALE_MIN = 1024


class HistoryRules:
    """Chooses the limits of a topic: those of the first pattern that matches.

    Args:
        rules: patterns with their limits, as `relay.config.topic_retention.parse_history` returns them.
    """

    def __init__(self, rules: Iterable[tuple[str, TopicLimits]]) -> None:
        self._limits: list[TopicLimits] = []
        self._patterns: TermTree[int] = TermTree()
        for place, (pattern, limits) in enumerate(rules):
            self._limits.append(limits)
            self._patterns.add(pattern, place)

    def limits(self, topic: str) -> TopicLimits | None:
        """Return the limits of a topic; None if no pattern matches."""
        found = self._patterns.covering(topic) if self._limits else None
        return self._limits[min(found)] if found else None


class Expiry:
    """The entries of one log that are evicted early.

    Args:
        topics: the topics of the log.
        time_s: returns the time of a retained entry.
    """

    def __init__(self, topics: Mapping[str, Topic], time_s: Callable[[int], float]) -> None:
        self.ttls: dict[int, float] = {}  # sequence of a retained entry → its `ttl`
        self._topics = topics
        self._time_s = time_s
        # The heap and the queue; if both are empty, no entry has to be evicted early, now or later.
        # The third member of an item orders the item of an entry before the item of its topic.
        self.due: list[tuple[float, int, bool, Topic | None]] = []
        self.over: OrderedDict[Topic, None] = OrderedDict()

    def begin(self) -> None:
        """Forget all entries, because the log drops them."""
        for *_, topic in self.due:
            if topic is not None:
                topic.ages = False
        self.ttls.clear()
        self.due.clear()
        self.over.clear()

    def add(self, topic: Topic, sequence: int, now_s: float, ttl_s: float | None) -> None:
        """Add the newest entry.

        Args:
            topic: its topic.
            sequence: its sequence.
            now_s: its time.
            ttl_s: its `ttl`; None if it has none.
        """
        limits = topic.limits
        if limits is not None:
            if 0 < limits.events_max < topic.retained:
                self.over[topic] = None
            if limits.age_s_max and not topic.ages:
                topic.ages = True
                heappush(self.due, (now_s + limits.age_s_max, sequence, True, topic))
        if ttl_s is not None:
            self.ttls[sequence] = ttl_s
            heappush(self.due, (now_s + ttl_s, sequence, False, None))
        if len(self.due) > 2 * (len(self.ttls) + len(self._topics)) + _STALE_MIN:
            self._remove_stale()

    def forget(self, sequences: Iterable[int]) -> None:
        """Remove the `ttl` of evicted entries."""
        for sequence in sequences:
            self.ttls.pop(sequence, None)

    def next(self, now_s: float, stop: int) -> int | None:
        """Return an entry to evict; None if there is none.

        Args:
            now_s: the time.
            stop: entries from this sequence on must be retained for now.
        """
        while self.over:
            topic = next(iter(self.over))
            if topic.limits is not None and topic.retained > topic.limits.events_max:
                if topic.oldest < stop:
                    return topic.oldest
                break
            del self.over[topic]
        due = self.due
        while due and due[0][0] <= now_s:
            _, sequence, _, of_topic = due[0]
            if of_topic is not None:
                if not of_topic.retained or of_topic.limits is None:
                    of_topic.ages = False
                    heappop(due)
                    continue
                sequence = of_topic.oldest
                due_s = self._time_s(sequence) + of_topic.limits.age_s_max
                if due_s > now_s:
                    heapreplace(due, (due_s, sequence, True, of_topic))
                    continue
            elif sequence not in self.ttls:
                heappop(due)
                continue
            return sequence if sequence < stop else None
        return None

    def _remove_stale(self) -> None:
        kept = []
        for item in self.due:
            _, sequence, _, topic = item
            if topic.retained if topic is not None else sequence in self.ttls:
                kept.append(item)
            elif topic is not None:
                topic.ages = False
        heapify(kept)
        self.due = kept
