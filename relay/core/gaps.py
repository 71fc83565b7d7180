"""The number of gaps that streams received, and of the events that they missed.

Owns these counts. Never encodes a gap (`relay.core.notice`), and never decides when to send one.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class GapReason(StrEnum):
    """Why a stream missed events. A gap of an upstream or a broker is an event of its topic, and is not counted."""

    SLOW = "slow"
    """Its policy skipped events, or they were evicted before it received them."""

    CONFLATED = "conflated"
    """Later events of the same key superseded them."""

    HISTORY = "history"
    """It resumed, and they are no longer retained."""

    UNKNOWN = "unknown"
    """It resumed with an id that the log does not know."""


class Gaps:
    """Counts the gaps of one hub."""

    def __init__(self) -> None:
        self.sent: Counter[GapReason] = Counter()
        self.missed: Counter[GapReason] = Counter()

    def count(self, reason: GapReason, missed: int | None = None) -> None:
        """Count a gap.

        Args:
            reason: the reason in the gap.
            missed: the number of missed events in the gap; None if it is unknown.
        """
        self.sent[reason] += 1
        self.missed[reason] += missed or 0
