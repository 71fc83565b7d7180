"""The index of one subscription term: the sequences of its entries and the running total of their bytes.

Reads from a cursor and the lag in events and bytes are binary searches. An ordinal counts the rows before a cursor and
all evicted rows. If the ordinal of a reader's cursor increases, the difference is the number of events after the cursor
that were evicted. A reader may therefore keep an ordinal. A row that is evicted before its turn leaves its bytes in the
running total, so the lag in bytes is an upper bound.

Owns the rows of one term and the state of one topic. Never holds a frame or decides which entries are evicted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import inf
from typing import Any

from relay.config.topic_retention import TopicLimits
from relay.core.newest import Current, Newest

SEGMENT_BYTES = 64 * 1024
"""Reads of one index end at multiples of this in its running total, so that streams with nearby cursors get the same
bytes."""

# Shared by all empty indexes and never changed: one client may follow a thousand topics without an event.
_NO_SEQUENCES = array("Q")
_NO_ENDS = array("q")


class Index:
    """The entries of one term in log order: sequences and running totals of bytes.

    Args:
        since: the index is complete from this sequence on.
        evicted: sequence of the last entry of this term that may have been evicted; -1 when none was.
        evicted_s: time of that entry.
        evicted_known: whether both are exact. The index of a new pattern knows only later evictions.

    `lost` is the sequence of the last evicted entry that was the newest of its topic and key; -1 if none is known.
    `early` is the number of entries that were evicted before their turn.
    """

    __slots__ = (
        "_base",
        "_dead",
        "_ends",
        "_newest",
        "_origin",
        "early",
        "evicted",
        "evicted_known",
        "evicted_s",
        "lost",
        "sequences",
        "since",
    )

    def __init__(self, since: int, evicted: int, evicted_s: float = -inf, *, evicted_known: bool = True) -> None:
        self.sequences = _NO_SEQUENCES
        self._ends = _NO_ENDS
        self._base = 0  # ordinal of sequences[0]; negative after a backfill
        self._origin = 0  # the running total before sequences[0]
        self._dead = 0  # rows at the front whose entries are evicted
        self._newest: Newest | None = None
        self.lost = -1
        self.early = 0
        self.since = since
        self.evicted = evicted
        self.evicted_s = evicted_s
        self.evicted_known = evicted_known

    def append(self, sequence: int, size: int) -> None:
        """Add the newest entry."""
        ends = self._ends
        if ends:
            ends.append(ends[-1] + size)
            self.sequences.append(sequence)
        else:
            self.sequences, self._ends = array("Q", (sequence,)), array("q", (self._origin + size,))

    def evict(self, stop: int, last: int, last_s: float) -> None:
        """Mark the rows before a sequence as dead.

        Args:
            stop: the sequence; not less than in earlier calls.
            last: sequence of the last entry of this term before it, or of an earlier one.
            last_s: time of that entry.
        """
        if last > self.evicted:
            self.evicted, self.evicted_s = last, last_s
        self._mark_dead(bisect_left(self.sequences, stop, lo=self._dead))

    def evict_early(self, sequence: int, time_s: float) -> None:
        """Mark a row as dead if it is the oldest; remove any other row."""
        self.early += 1
        if sequence > self.evicted:
            self.evicted, self.evicted_s = sequence, time_s
        if sequence < self.since:
            return
        if self.sequences[self._dead] == sequence:
            self._mark_dead(self._dead + 1)
            return
        row = bisect_left(self.sequences, sequence)
        del self.sequences[row], self._ends[row]
        self._base += 1

    def _mark_dead(self, dead: int) -> None:
        """Mark this number of rows at the front as dead; remove them when they are half of the rows."""
        self._dead = dead
        if (dead > 64 and dead * 2 > len(self.sequences)) or dead == len(self.sequences) > 0:
            self._trim()

    def _trim(self) -> None:
        """Remove the dead rows."""
        dead = self._dead
        if dead:
            self._origin = self._ends[dead - 1]
            self._base += dead
            del self.sequences[:dead], self._ends[:dead]
            self._dead = 0

    @property
    def retained(self) -> int:
        """Number of rows whose entries are retained."""
        return len(self.sequences) - self._dead

    @property
    def appended(self) -> int:
        """Number of rows that were ever appended, if no older entries were filled in."""
        return self._base + len(self.sequences)

    @property
    def oldest(self) -> int:
        """The sequence of the oldest retained entry; there must be one."""
        return self.sequences[self._dead]

    @property
    def origin(self) -> int:
        """The running total of bytes before the first row."""
        return self._origin

    def fill(self, sequences: array[int], ends: array[int], origin: int, since: int) -> None:
        """Insert older entries in front, so that the index is complete from `since`. Existing ordinals do not change.

        Args:
            sequences: sequences of the entries; the index takes over this array and `ends`.
            ends: running total after each entry; the last one equals `origin` of the index.
            origin: running total before the first entry.
            since: entries before this sequence are omitted.
        """
        self._trim()
        gone = bisect_left(sequences, since)
        self._origin = ends[gone - 1] if gone else origin
        del sequences[:gone], ends[:gone]
        self._base -= len(sequences)
        sequences.extend(self.sequences)
        ends.extend(self._ends)
        self.sequences, self._ends, self.since = sequences, ends, since
        self._newest = None

    def begin(self, sequence: int, evicted_s: float) -> None:
        """Drop all rows; the index is complete from `sequence` on."""
        self._origin = self._ends[-1] if self._ends else self._origin
        self._base += len(self.sequences)
        del self.sequences[:], self._ends[:]
        self._dead = 0
        self._newest, self.lost = None, -1
        self.since, self.evicted, self.evicted_s = sequence, sequence - 1, evicted_s
        self.evicted_known = True

    def ordinal(self, cursor: int) -> int:
        """Count the rows before `cursor` and all evicted rows, from an arbitrary origin."""
        return self._base + bisect_left(self.sequences, cursor, self._dead)

    def lag(self, cursor: int) -> tuple[int, int, int | None]:
        """Return the number of events and bytes from `cursor` on, and the first sequence."""
        row = bisect_left(self.sequences, cursor, self._dead)
        events = len(self.sequences) - row
        if not events:
            return 0, 0, None
        return events, self._ends[-1] - (self._ends[row - 1] if row else self._origin), self.sequences[row]

    def first(self, cursor: int) -> int | None:
        """Return the first sequence at or after `cursor`, or None."""
        row = bisect_left(self.sequences, cursor, self._dead)
        return self.sequences[row] if row < len(self.sequences) else None

    def last(self, cursor: int) -> int | None:
        """Return the last sequence before `cursor`, or None."""
        row = bisect_left(self.sequences, cursor, self._dead)
        return self.sequences[row - 1] if row > self._dead else None

    def last_rows(self, count: int) -> array[int]:
        """Return the sequences of the last retained entries, at most `count`."""
        return self.sequences[max(self._dead, len(self.sequences) - count) :]

    def part(self, cursor: int, until: int, count_max: int) -> tuple[array[int], int]:
        """Return at most `count_max` sequences in [cursor, until), and an upper bound of the bytes of their frames."""
        rows, ends = self.sequences, self._ends
        start = bisect_left(rows, cursor, self._dead)
        stop = bisect_left(rows, until, start)
        if stop - start > count_max:
            stop = start + count_max
        if start == stop:
            return _NO_SEQUENCES, 0
        return rows[start:stop], ends[stop - 1] - (ends[start - 1] if start else self._origin)

    def newest_part(
        self, current: Current, tail: int, cursor: int, until: int, count_max: int
    ) -> tuple[array[int], int]:
        """Return some entries in [cursor, until) that are the newest of their topic and key, and the cursor after them.

        The arguments are those of `relay.core.newest.Newest.read`.
        """
        if self._newest is None:
            self._newest = Newest()
        return self._newest.read(self.part, current, tail, cursor, until, count_max)

    def segment(self, cursor: int) -> int | None:
        """Return the number of the segment that holds the first entry at or after `cursor`; None if there is none."""
        row = bisect_left(self.sequences, cursor, self._dead)
        return None if row == len(self.sequences) else (self._ends[row] - 1) // SEGMENT_BYTES

    def rows(self, number: int, tail: int) -> tuple[array[int], bool]:
        """Return the sequences of a segment from `tail` on, and whether the segment is complete."""
        start = bisect_right(self._ends, number * SEGMENT_BYTES)
        stop = bisect_right(self._ends, (number + 1) * SEGMENT_BYTES)
        start = max(start, bisect_left(self.sequences, tail, self._dead))
        return self.sequences[start:stop], stop < len(self.sequences)


class Topic(Index):
    """One topic of the log, which is its own index.

    The log forgets a topic with its last entry, unless it is `pinned` because its index has readers. `patterns` has the
    indexes of the patterns that matched at `generation`. `audiences` has the matching audiences, which the log does
    not use. See `Log.resolve_with`. `limits` are those of `history-for`; `ages` belongs to `relay.core.expiry`.
    """

    __slots__ = ("ages", "audiences", "generation", "limits", "name", "newest", "patterns", "pinned")

    def __init__(
        self, name: str, since: int, evicted: int, evicted_s: float = -inf, limits: TopicLimits | None = None
    ) -> None:
        super().__init__(since, evicted, evicted_s)
        self.name = name
        self.limits = limits
        self.ages = False
        self.newest: dict[str | None, int] = {}
        self.pinned = False
        self.generation = -1
        self.patterns: Sequence[Index] = ()
        self.audiences: Sequence[Any] = ()

    def newest_part(
        self, current: Current, tail: int, cursor: int, until: int, count_max: int
    ) -> tuple[array[int], int]:
        """Return entries as `Index.newest_part` does; for a topic with few keys, all of them, and keep no list."""
        if len(self.newest) > count_max:
            return super().newest_part(current, tail, cursor, until, count_max)
        return array("Q", sorted(each for each in self.newest.values() if cursor <= each < until)), until
