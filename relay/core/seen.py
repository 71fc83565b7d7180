"""Seen dedup keys: the keys of the last minutes, each with the id of its event.

Theory of operation. Keys are kept in order of arrival. Each lookup and each tick deletes a bounded number of expired
keys, oldest first, so that many keys that expire together cause no delay. An expired key that is not deleted yet is
treated as unknown.

Owns the window and the maximum number of keys. Never reads a clock. A key that the maximum removes early is counted,
because its event would be published again if it were resent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

EXPIRED_A_LOOKUP = 2
"""Maximum number of keys that one lookup deletes; more than it adds, so that expired keys cannot accumulate."""

EXPIRED_A_TICK = 5_000
"""Maximum number of keys that one tick deletes, in about 1.5 ms; a million keys take a few minutes."""


class Seen:
    """The dedup keys of the window.

    Args:
        window_s: lifetime of a key.
        keys_max: maximum number of keys; the oldest is removed first.
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
        """Return the id of the event with this key; None if the key is unknown."""
        self.expire(now_s, EXPIRED_A_LOOKUP)
        return self.look_up(key, now_s)

    def look_up(self, key: str, now_s: float) -> str | None:
        """Return the same as `find`, but delete no key, so that the time may be that of another clock."""
        known = self._known.get(key)
        return None if known is None or known[2] < now_s - self.window_s else known[1]

    def add(self, key: str, id: str, time_s: float) -> None:
        """Add a new key; `time_s` must not decrease."""
        self._known[key] = entry = (key, id, time_s)
        self._order.append(entry)
        if len(self._order) > self._keys_max:
            self.pushed_out += self._order[0][2] >= time_s - self.window_s
            self._delete_oldest()

    def keys(self) -> Iterator[tuple[str, str, float]]:
        """Yield the key, id and time of each key, oldest first."""
        return iter(self._order)

    def expire(self, now_s: float, count_max: int = EXPIRED_A_TICK) -> None:
        """Delete expired keys, at most `count_max`."""
        order, since_s = self._order, now_s - self.window_s
        while count_max and order and order[0][2] < since_s:
            self._delete_oldest()
            count_max -= 1

    def _delete_oldest(self) -> None:
        oldest = self._order.popleft()
        if self._known[oldest[0]] is oldest:  # otherwise the key was added again
            del self._known[oldest[0]]
