"""Rates: how much each of many may do a second (a token bucket each, RFC 2697's committed part).

Owns the buckets. Never waits: it says no.
"""

from __future__ import annotations

from collections import OrderedDict

BURST_S = 10
"""A bucket holds so many seconds' worth, where nothing else is said."""
BUCKETS_MAX = 10_000
"""Buckets kept; the one that was not used for longest goes first, and is full again when it comes back."""


class Rates:
    """The buckets of one limit.

    Args:
        per_s: what each may do a second; 0 is no limit.
        burst_s: a bucket holds so many seconds' worth.
    """

    def __init__(self, per_s: float, burst_s: float = BURST_S) -> None:
        self._per_s = per_s
        self._burst_s = burst_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, count: float, now_s: float) -> float:
        """Take something from somebody's bucket.

        Args:
            name: whose.
            count: how much; what is more than a full bucket goes as a full one, and leaves a debt.
            now_s: the time.

        Returns:
            0 when it was there, and is taken; else after how many seconds it will be.
        """
        if not self._per_s:
            return 0.0
        full = self._per_s * self._burst_s
        left, at_s = self._buckets.pop(name, (full, now_s))
        left = min(full, left + (now_s - at_s) * self._per_s)
        missing = min(count, full) - left
        if missing <= 0:
            left -= count
        self._buckets[name] = (left, now_s)
        while len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return max(0.0, missing / self._per_s)
