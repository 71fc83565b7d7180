"""Rate limits, with one token bucket per name (the committed part of RFC 2697).

Owns the buckets. Never waits: it returns the time after which to try again.
"""

from __future__ import annotations

from collections import OrderedDict

BURST_S = 10
"""Default capacity of a bucket, in seconds of the rate."""
BUCKETS_MAX = 10_000
"""Maximum number of buckets. The least recently used one is evicted; a new bucket is full."""


class Rates:
    """The buckets of one limit.

    Args:
        per_s: tokens per second and name; 0 disables the limit.
        burst_s: capacity of a bucket, in seconds of the rate.
    """

    def __init__(self, per_s: float, burst_s: float = BURST_S) -> None:
        self._per_s = per_s
        self._burst_s = burst_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, count: float, now_s: float) -> float:
        """Take tokens from a bucket.

        Args:
            name: the name of the bucket.
            count: number of tokens. More than the capacity requires a full bucket, and leaves it negative.
            now_s: the time in seconds.

        Returns:
            0 if the tokens were taken; else the seconds until the bucket has enough, and nothing was taken.
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
