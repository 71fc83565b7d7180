"""The rows of the log: one row for each entry, in parallel columns.

Theory of operation. With an object per entry, the garbage collector would traverse half a million objects. The row of
an entry is its sequence minus `base`. Retention drops the frame of an entry at once; the row is then dead. Dead rows at
the front are removed from the columns when they are an eighth of the rows. Other dead rows belong to entries that were
evicted before their turn. They are removed when they are half of the rows, one window at a time. From then on a column
of sequences exists, and the row of an entry is found by a binary search.

Owns the columns. Never decides which entries are evicted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, compress

from relay.core.index import Topic

WINDOW_ROWS = 1024
"""Number of rows from which one call removes the dead ones, in less than a millisecond."""

_DEAD_ROWS_MIN = 1024
_NO_TOPIC = Topic("", 0, -1)
"""Stands for the topic of a dead row, so that the row does not keep the topic in memory."""


class Rows:
    """The rows of one log.

    Args:
        base: sequence of the first row.
    """

    __slots__ = ("_place", "base", "frames", "holes", "ids", "keys", "sequences", "superseded", "times", "topics")

    def __init__(self, base: int) -> None:
        self.base = base
        self.frames: list[bytes | None] = []
        self.topics: list[Topic] = []
        self.ids: list[str | None] = []
        self.keys: list[str | None] = []
        self.times = array("d")
        self.superseded = bytearray()
        self.sequences: array[int] | None = None  # None while each sequence from `base` on has a row
        self.holes = 0  # dead rows behind the tail of the log
        self._place = 0  # where the next window begins

    def __len__(self) -> int:
        return len(self.frames)

    def row(self, sequence: int) -> int:
        """Return the row of an entry; if it has none, the row of the next entry."""
        return sequence - self.base if self.sequences is None else bisect_left(self.sequences, sequence)

    def sequence(self, row: int) -> int:
        """Return the sequence of a row."""
        return row + self.base if self.sequences is None else self.sequences[row]

    def has(self, sequence: int) -> bool:
        """Return whether an entry of the log, not before the tail, is retained."""
        row = self.row(sequence)
        return row < len(self.frames) and self.sequence(row) == sequence and self.frames[row] is not None

    def living(self, row: int) -> int:
        """Return the first row from `row` on that is not dead; the number of rows if there is none."""
        frames = self.frames
        while row < len(frames) and frames[row] is None:
            row += 1
        return row

    def current(self, sequences: Iterable[int]) -> array[int]:
        """Return those of some entries, not before the tail, that are retained and not superseded."""
        if self.sequences is None:
            base, flags = self.base, self.superseded
            return array("Q", [each for each in sequences if not flags[each - base]])
        return array("Q", [each for each in sequences if self.has(each) and not self.superseded[self.row(each)]])

    def newest_first(self, start: int, stop: int) -> Iterator[tuple[int, Topic, int]]:
        """Return sequence, topic and size of the retained entries in [start, stop), the newest first."""
        rows = slice(self.row(start), self.row(stop))
        frames, topics = self.frames[rows], self.topics[rows]
        sequences = range(start, stop) if self.sequences is None else self.sequences[rows]
        if not self.holes:
            sizes = map(len, reversed(frames))  # type: ignore[arg-type]
            return zip(reversed(sequences), reversed(topics), sizes, strict=True)
        found = zip(reversed(sequences), reversed(topics), reversed(frames), strict=True)
        return ((sequence, topic, len(frame)) for sequence, topic, frame in found if frame is not None)

    def after_entries(self, first: int, count: int) -> int:
        """Return the row after this number of retained entries from a row on."""
        if not self.holes:
            return min(first + count, len(self.frames))
        for row in range(first, len(self.frames)):
            count -= self.frames[row] is not None
            if not count:
                return row + 1
        return len(self.frames)

    def after_bytes(self, first: int, size: int) -> int:
        """Return the row after the entries from a row on that have at least this many bytes together."""
        row, count = first, 16
        while row < len(self.frames):
            part = self.frames[row : row + count]
            ends = list(accumulate(map(len, part) if not self.holes else (len(each or b"") for each in part)))  # type: ignore[arg-type]
            if ends[-1] >= size:
                return row + bisect_left(ends, size) + 1
            size -= ends[-1]
            row += len(ends)
            count *= 2
        return len(self.frames)

    def clear(self, row: int) -> None:
        """Make the row of an evicted entry a hole. The publisher's id stays, and with it the topic."""
        self.frames[row] = self.keys[row] = None
        self.superseded[row] = 1
        if self.ids[row] is None:
            self.topics[row] = _NO_TOPIC

    def remove_front(self, count: int) -> None:
        """Remove the first rows, which are dead, if they are an eighth of the rows."""
        if count <= _DEAD_ROWS_MIN or count * 8 <= len(self.frames):
            return
        self.base = self.sequence(count) if count < len(self.frames) else self.sequence(count - 1) + 1
        for column in (self.frames, self.topics, self.ids, self.keys, self.times, self.superseded):
            del column[:count]
        if self.sequences is not None:
            del self.sequences[:count]
        self._place = max(0, self._place - count)

    @property
    def full_of_holes(self) -> bool:
        """Whether holes are half of the rows, so that the caller has to remove some."""
        return self.holes > _DEAD_ROWS_MIN and self.holes * 2 > len(self.frames)

    def next_holes(self, first: int) -> list[int]:
        """Select the next window, not before the row `first`, for `remove_holes`; return its dead rows."""
        if not first <= self._place < len(self.frames):
            self._place = first
        return [row for row, frame in enumerate(self.frames[self._window], self._place) if frame is None]

    @property
    def _window(self) -> slice:
        return slice(self._place, self._place + WINDOW_ROWS)

    def remove_holes(self) -> None:
        """Remove the dead rows of the selected window."""
        sequences, window, before = self.list_sequences(), self._window, len(self.frames)
        alive = [frame is not None for frame in self.frames[window]]
        self.topics[window] = compress(self.topics[window], alive)
        self.ids[window] = compress(self.ids[window], alive)
        self.keys[window] = compress(self.keys[window], alive)
        self.times[window] = array("d", compress(self.times[window], alive))
        self.superseded[window] = bytes(compress(self.superseded[window], alive))
        sequences[window] = array("Q", compress(sequences[window], alive))
        self.frames[window] = compress(self.frames[window], alive)
        self.holes -= before - len(self.frames)
        self._place += sum(alive)

    def list_sequences(self) -> array[int]:
        """Return the column of sequences; begin it if it does not exist."""
        if self.sequences is None:
            self.sequences = array("Q", range(self.base, self.base + len(self.frames)))
        return self.sequences
