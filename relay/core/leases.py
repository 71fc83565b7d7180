"""Leases: the time limit and the grant of each stream.

Owns the end times of streams and the number of streams per subject. A stream without a time limit and without a
subject has no lease. Never closes a stream; the hub does.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable

from relay.core.close_reason import CloseReason
from relay.core.grant import Grant

COMPACT_MIN = 1024

MAX_AGE_SPREAD = 0.2
"""Each stream ends at a random time in the last fifth of `max-age`, so that clients do not reconnect all at once."""


class Leases:
    """The leases of the open streams."""

    def __init__(self) -> None:
        self.subjects: Counter[str] = Counter()
        self._held: dict[int, tuple[float, str, Grant]] = {}
        self._ends: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, handle: int, ends_s: float, reason: str, grant: Grant) -> None:
        """Add the lease of a stream.

        Args:
            handle: the stream.
            ends_s: time at which it must end, in the hub's time; `math.inf` for no limit.
            reason: the close reason to use then.
            grant: the grant under which it was opened.
        """
        if math.isinf(ends_s) and not grant.subject and not grant.id:
            return
        self._held[handle] = (ends_s, reason, grant)
        if grant.subject:
            self.subjects[grant.subject] += 1
        if not math.isinf(ends_s):
            heapq.heappush(self._ends, (ends_s, handle))

    def handles(self) -> list[int]:
        """Return the streams that have a lease."""
        return list(self._held)

    def pack(self, handle: int) -> tuple[float, str, Grant] | None:
        """Return the lease of a stream (end time, close reason, grant), or None."""
        return self._held.get(handle)

    def begin(
        self, handle: int, grant: Grant, ends_s: float, age_s_max: float, now_s: float, draw: Callable[[], float]
    ) -> None:
        """Add the lease of a new stream, which ends with its grant or at its maximum age.

        Args:
            handle: the stream.
            grant: the grant under which it was opened.
            ends_s: end of the grant, in the hub's time.
            age_s_max: maximum age; 0 for no limit.
            now_s: the time.
            draw: a random number in [0, 1).
        """
        reason = CloseReason.EXPIRED
        if age_s_max:
            of_age_s = now_s + age_s_max * (1 - MAX_AGE_SPREAD * draw())
            if of_age_s < ends_s:
                ends_s, reason = of_age_s, CloseReason.AGE
        self.add(handle, ends_s, reason, grant)

    def drop(self, handle: int) -> None:
        """Remove the lease of a closed stream."""
        lease = self._held.pop(handle, None)
        if lease is None:
            return
        subject = lease[2].subject
        if subject:
            self.subjects[subject] -= 1
            if not self.subjects[subject]:
                del self.subjects[subject]
        if len(self._ends) > COMPACT_MIN + 2 * len(self._held):
            self._ends = [each for each in self._ends if each[1] in self._held]
            heapq.heapify(self._ends)

    def ended(self, now_s: float, count_max: int) -> list[tuple[int, str]]:
        """Remove and return expired streams, at most `count_max`, each with its close reason."""
        over: list[tuple[int, str]] = []
        while self._ends and self._ends[0][0] <= now_s and len(over) < count_max:
            handle = heapq.heappop(self._ends)[1]
            if handle in self._held:
                over.append((handle, self._held[handle][1]))
        return over

    def invalid(self, valid: Callable[[Grant], bool]) -> list[int]:
        """Return the streams whose grant is no longer valid."""
        return [handle for handle, (_, _, grant) in self._held.items() if not valid(grant)]
