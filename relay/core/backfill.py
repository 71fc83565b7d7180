"""Backfill: completes the indexes of patterns for a replay, in slices.

The index of a new pattern lists only entries published after the pattern was added. A stream that resumes on the
pattern needs older entries too. One pass over the log adds them to all incomplete indexes.

Owns this pass. Never opens a stream; `relay.core.replays` runs the pass and calls back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress

from relay.core.evicted import Mark
from relay.core.index import Index, Topic
from relay.core.log import Log
from relay.topic import TermTree

STEP_TOPICS = 256
STEP_ROWS = 1024
"""Maximum number of topics or entries that one step examines, in a fraction of a millisecond."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A pattern, or several joined patterns, with an incomplete index."""

    term: str
    index: Index


def backfill(log: Log, wanted: Sequence[Wanted], cursor: int, *, evicted: bool) -> Iterator[None]:
    """Complete indexes from a cursor on with the retained entries; yield after each step.

    Entries may be appended and evicted between two steps.

    Args:
        log: the log.
        wanted: patterns that already have subscriptions.
        cursor: first sequence that the indexes must list.
        evicted: also find the last entries of the patterns that were evicted before the patterns were added.
    """
    if not wanted:
        return
    tree: TermTree[Wanted] = TermTree()
    for each in wanted:
        tree.add(each.term, each)
    if evicted:
        yield from _find_evicted(log, wanted, tree)
    found = {each: _Found(each.index) for each in wanted}
    of_topic: dict[Topic, tuple[_Found, ...]] = {}
    # The pass goes from the newest to the oldest entry, because the running total is known at the newest row.
    place = max(each.index.since for each in wanted)
    while place > max(cursor, log.tail):
        step = max(cursor, log.tail, place - STEP_ROWS)
        for sequence, topic, size in log.rows_reversed(step, place):
            into = of_topic.get(topic)
            if into is None:
                into = of_topic[topic] = tuple(found[each] for each in dict.fromkeys(tree.covering(topic.name)))
            for each_found in into:
                if sequence < each_found.since:
                    each_found.sequences.append(sequence)
                    each_found.ends.append(each_found.end)
                    each_found.end -= size
        place = step
        yield
    for each_found in found.values():
        each_found.sequences.reverse()
        yield
        each_found.ends.reverse()
        yield
        start = max(cursor, log.tail)
        if log.evicted_early:
            each_found.remove_evicted(log)
        if start < each_found.index.since == each_found.since:
            each_found.index.fill(each_found.sequences, each_found.ends, each_found.end, start)


class _Found:
    """The rows found for one index, newest first."""

    __slots__ = ("end", "ends", "index", "sequences", "since")

    def __init__(self, index: Index) -> None:
        self.index = index
        self.since = index.since
        self.end = index.origin
        self.sequences = array("Q")
        self.ends = array("q")

    def remove_evicted(self, log: Log) -> None:
        """Remove the rows of entries that were evicted after the pass found them."""
        alive = [log.has(sequence) for sequence in self.sequences]
        if not all(alive):
            self.sequences = array("Q", compress(self.sequences, alive))
            self.ends = array("q", compress(self.ends, alive))


def _find_evicted(log: Log, wanted: Sequence[Wanted], tree: TermTree[Wanted]) -> Iterator[None]:
    """Set each index to the newest mark of its matching topics, known and forgotten ones."""
    # The indexes record later evictions themselves.
    topics, forgotten = list(log.topics.values()), list(log.marks.items())
    found = dict.fromkeys(wanted, log.marks.rest)
    marks = chain(((topic.name, Mark(topic.evicted, topic.evicted_s)) for topic in topics), forgotten)
    for number, (name, mark) in enumerate(marks):
        for each in tree.covering(name):
            found[each] = max(found[each], mark)
        if number % STEP_TOPICS == STEP_TOPICS - 1:
            yield
    for each, mark in found.items():
        index = each.index
        index.evicted, index.evicted_s = max(mark, (index.evicted, index.evicted_s))
        index.evicted_known = True
