"""The newest entries of one index: those that no later entry of the same topic and key supersedes.

Theory of operation. A stream that begins with `since=last` reads only these entries. `Newest` lists them, and with them
the entries that were superseded after they were listed. A read examines a bounded number of rows of the index. It also
removes the superseded entries from the part of the list that it returns. So a stream costs as much as there are topics
and keys, plus the entries that were published since the previous such stream.

Owns this list. Never changes the index, and never reads a frame.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

Part: TypeAlias = "Callable[[int, int, int], tuple[array[int], int]]"
"""Returns sequences of an index, and their size, from (cursor, until, maximum count); see `Index.part`."""

Current: TypeAlias = "Callable[[array[int]], array[int]]"
"""Returns those of some entries that are retained and not superseded; see `relay.core.log.Log.current`."""


class Newest:
    """The list of one index."""

    __slots__ = ("_sequences", "_until")

    def __init__(self) -> None:
        self._sequences = array("Q")
        self._until = 0  # the entries before this sequence are listed

    def read(
        self, part_of: Part, current: Current, tail: int, cursor: int, until: int, count_max: int
    ) -> tuple[array[int], int]:
        """Return some of the newest entries in [cursor, until), and the cursor after them.

        Args:
            part_of: reads the index, always the same one.
            current: selects the newest entries.
            tail: the tail of the log.
            cursor: first sequence to read; not below the tail.
            until: sequence to stop before; at most the head of the log.
            count_max: maximum number of entries to examine.
        """
        rows = self._sequences
        del rows[: bisect_left(rows, tail)]
        if self._until < until:
            more, _ = part_of(max(self._until, tail), until, count_max)
            rows.extend(current(more))
            self._until = more[-1] + 1 if len(more) == count_max else until
        start = bisect_left(rows, cursor)
        stop = min(bisect_left(rows, until, lo=start), start + count_max)
        part = rows[start:stop]
        after = part[-1] + 1 if len(part) == count_max else min(until, self._until)
        kept = current(part)
        if len(kept) < len(part):
            rows[start:stop] = kept
        return kept, max(cursor, after)
