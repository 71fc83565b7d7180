"""What was seen: the dedup keys of the last minutes, each with the id that its event was published under.

Theory of operation. Keys are kept in the order in which they came. Those whose window has ended are deleted oldest
first, a bounded number at each lookup and at each tick, so that many of them that end together delay nobody. A key that
is still to be deleted is not known any more, and may come again.

Owns the window and the bound on the number of keys; has no clock. A key that the bound pushes out before its time is
counted, since a resent event would then be published again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

EXPIRED_A_LOOKUP = 2
"""Keys that one lookup deletes: more than it adds, so that they leave faster than they come."""

EXPIRED_A_TICK = 5_000
"""Keys that one tick deletes, in about 1.5 ms; a million leave in a few minutes."""


class Seen:
    """The dedup keys of the window.

    Args:
        window_s: how long a key is known.
        keys_max: how many are known at most, the newest.
    """

    def __init__(self, window_s: float, keys_max: int) -> None:
        self.window_s = window_s
        self.hits = 0
        self.pushed_out = 0
        self._keys_max = keys_max
        self._known: dict[str, tuple[str, str, float]] = {}
        self._order: deque[tuple[str, str, float]] = deque()  # key, id, time

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str, now_s: float) -> str | None:
        """Return the id that a key's event was published under; None for a new one."""
        self.expire(now_s, EXPIRED_A_LOOKUP)
        known = self._known.get(key)
        return None if known is None or known[2] < now_s - self.window_s else known[1]

    def add(self, key: str, id: str, time_s: float) -> None:
        """Take a new key in; times never go back."""
        self._known[key] = entry = (key, id, time_s)
        self._order.append(entry)
        if len(self._order) > self._keys_max:
            self.pushed_out += self._order[0][2] >= time_s - self.window_s
            self._delete_oldest()

    def keys(self) -> Iterator[tuple[str, str, float]]:
        """Yield key, id and time of each, oldest first."""
        return iter(self._order)

    def expire(self, now_s: float, count_max: int = EXPIRED_A_TICK) -> None:
        """Delete keys whose window has ended, at most so many."""
        order, since_s = self._order, now_s - self.window_s
        while count_max and order and order[0][2] < since_s:
            self._delete_oldest()
            count_max -= 1

    def _delete_oldest(self) -> None:
        oldest = self._order.popleft()
        if self._known[oldest[0]] is oldest:  # else the key has come again
            del self._known[oldest[0]]
