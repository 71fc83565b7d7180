"""Marks of evicted entries, for topics that the log has forgotten.

Theory of operation. The index of a topic keeps a mark: sequence and time of the last evicted entry. When the log
forgets the topic, this table stores the mark until the topic is used again. Without it, a short-lived topic would
inherit the evictions of other topics and report false gaps. The table is bounded: marks that overflow it, oldest first,
are merged into one mark, which applies to all topics that the table does not contain.

Owns this table. Never accesses an entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

MARKS_MAX = 4096
"""Maximum number of forgotten topics with their own mark."""


class Mark(NamedTuple):
    """The last entry that may have been evicted: its sequence and its time."""

    sequence: int
    time_s: float


NOTHING = Mark(-1, -inf)
"""The mark of a topic without evicted entries."""


class Marks:
    """The marks of forgotten topics."""

    def __init__(self) -> None:
        self.rest = NOTHING  # the mark of every topic that is not in the table
        self._topics: dict[str, Mark] = {}

    def begin(self, rest: Mark) -> None:
        """Drop all marks; any topic may have evicted entries up to `rest`."""
        self.rest = rest
        self._topics.clear()

    def put(self, name: str, mark: Mark) -> None:
        """Store the mark of a topic that the log forgets."""
        topics = self._topics
        if mark != self.rest:
            topics[name] = mark
        while len(topics) > MARKS_MAX:
            self.rest = max(self.rest, topics.pop(next(iter(topics))))

    def take(self, name: str) -> Mark:
        """Remove and return the mark of a topic that is used again."""
        return self._topics.pop(name, self.rest)

    def items(self) -> Iterable[tuple[str, Mark]]:
        """Return the topics that have a mark of their own, oldest first."""
        return self._topics.items()

    def know(self, name: str, mark: Mark) -> None:
        """Store a mark of another log, even beyond the maximum, because its topic may be used again at once."""
        self._topics[name] = mark
