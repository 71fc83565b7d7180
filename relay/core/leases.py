"""Leases: how long each stream may stay, and for whom it was opened.

Owns which streams end by the clock, and the count of each subject's streams. One that may stay for ever, for nobody
in particular, costs nothing here. Never ends a stream itself: the hub does.
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
"""Streams end at the last fifth of their greatest age, each at a time of its own, so that they come back one by one."""


class Leases:
    """The leases of the open streams."""

    def __init__(self) -> None:
        self.subjects: Counter[str] = Counter()
        self._held: dict[int, tuple[float, str, Grant]] = {}
        self._ends: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, handle: int, ends_s: float, reason: str, grant: Grant) -> None:
        """Note a stream.

        Args:
            handle: the stream.
            ends_s: when it has to end, in the hub's time; `math.inf` for never.
            reason: the close reason it then gets.
            grant: for whom it was opened.
        """
        if math.isinf(ends_s) and not grant.subject and not grant.id:
            return
        self._held[handle] = (ends_s, reason, grant)
        if grant.subject:
            self.subjects[grant.subject] += 1
        if not math.isinf(ends_s):
            heapq.heappush(self._ends, (ends_s, handle))

    def pack(self, handle: int) -> tuple[float, str, Grant] | None:
        """Return a stream's lease (when it ends, the close reason, and for whom it is), if it has one."""
        return self._held.get(handle)

    def begin(
        self, handle: int, grant: Grant, ends_s: float, age_s_max: float, now_s: float, draw: Callable[[], float]
    ) -> None:
        """Note a new stream: it ends with its grant, or of age.

        Args:
            handle: the stream.
            grant: for whom it was opened.
            ends_s: when the grant ends, in the hub's time.
            age_s_max: greatest age; 0 for any.
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
        """Forget a stream that is closed."""
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
        """Take the streams whose time is over, at most `count_max`, with the reason for each."""
        over: list[tuple[int, str]] = []
        while self._ends and self._ends[0][0] <= now_s and len(over) < count_max:
            handle = heapq.heappop(self._ends)[1]
            if handle in self._held:
                over.append((handle, self._held[handle][1]))
        return over

    def invalid(self, valid: Callable[[Grant], bool]) -> list[int]:
        """Return the streams whose grant is not valid any more."""
        return [handle for handle, (_, _, grant) in self._held.items() if not valid(grant)]
