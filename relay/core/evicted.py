"""Marks of evicted entries: up to which entry a topic may have lost some, for topics that the log has forgotten.

Theory of operation. A topic's index keeps its own mark: sequence and time of the last evicted entry. When the log
forgets the topic, the mark goes into a table, and comes back from it when the topic is used again. So a short-lived
topic does not inherit the evictions of others, which would report gaps that are none. The table is bounded. The marks
that overflow it, oldest first, are merged into one, from which all topics start that the table does not name.

Owns this table. Never knows an entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

MARKS_MAX = 4096
"""Forgotten topics with a mark of their own."""


class Mark(NamedTuple):
    """The last entry that may have been evicted: its sequence and its time."""

    sequence: int
    time_s: float


NOTHING = Mark(-1, -inf)
"""The mark where nothing has been evicted."""


class Marks:
    """The marks of forgotten topics."""

    def __init__(self) -> None:
        self.rest = NOTHING  # of every topic that has no mark of its own
        self._topics: dict[str, Mark] = {}

    def begin(self, rest: Mark) -> None:
        """Drop all marks; any topic may have lost what comes up to `rest`."""
        self.rest = rest
        self._topics.clear()

    def put(self, name: str, mark: Mark) -> None:
        """Keep the mark of a topic that is being forgotten."""
        topics = self._topics
        if mark != self.rest:
            topics[name] = mark
        while len(topics) > MARKS_MAX:
            self.rest = max(self.rest, topics.pop(next(iter(topics))))

    def take(self, name: str) -> Mark:
        """Return the mark of a topic that is being used again, which keeps it from now on."""
        return self._topics.pop(name, self.rest)

    def items(self) -> Iterable[tuple[str, Mark]]:
        """Return the topics that have a mark of their own, oldest first."""
        return self._topics.items()

    def know(self, name: str, mark: Mark) -> None:
        """Keep a mark that another log knows, even beyond the bound: its topic may be used again at once."""
        self._topics[name] = mark
