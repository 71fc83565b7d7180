"""What was seen: the dedup keys of the last minutes, each with the id that its event was published under.

Owns the window and the bound on the number of keys; has no clock. A key that the bound pushes out before its time is
counted, since a resent event would then be published again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


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
        self._ids: dict[str, str] = {}
        self._order: deque[tuple[str, float]] = deque()

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, key: str, now_s: float) -> str | None:
        """Return the id that a key's event was published under; None for a new one."""
        self._expire(now_s)
        return self._ids.get(key)

    def add(self, key: str, id: str, time_s: float) -> None:
        """Take a new key in; times never go back."""
        self._ids[key] = id
        self._order.append((key, time_s))
        if len(self._order) > self._keys_max:
            self.pushed_out += 1
            del self._ids[self._order.popleft()[0]]

    def keys(self) -> Iterator[tuple[str, str, float]]:
        """Yield key, id and time of each, oldest first."""
        return ((key, self._ids[key], time_s) for key, time_s in self._order)

    def _expire(self, now_s: float) -> None:
        order, since_s = self._order, now_s - self.window_s
        while order and order[0][1] < since_s:
            del self._ids[order.popleft()[0]]
