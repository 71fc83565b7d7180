"""Back-off: the wait before the next attempt after each failure.

Owns the sequence of waits. Never sleeps and never reads a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
"""Limits of the pause before the next connection to a broker. It doubles, with jitter, so that nodes do not reconnect
together."""

half_jitter: Callable[[], float] = partial(random.uniform, 0.5, 1.0)
"""Jitter that shortens a wait by up to a half, so that many processes do not try again at the same moment."""


def no_jitter() -> float:
    """Return 1: each wait has its full length."""
    return 1.0


class Backoff:
    """Exponential back-off: the wait doubles with each failure, up to a limit, and is multiplied by the jitter.

    Args:
        first_s: the first wait, before jitter.
        max_s: the longest wait, before jitter.
        jitter: returns the factor of one wait, from 0 to 1; `random.random` is full jitter.
    """

    def __init__(self, first_s: float, max_s: float, jitter: Callable[[], float] = no_jitter) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._jitter = jitter
        self._failures = 0

    def reset(self) -> None:
        """Start again from the first wait, after an attempt that succeeded."""
        self._failures = 0

    def next_s(self) -> float:
        """Count one failure and return the wait before the next attempt, in seconds."""
        wait_s = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._jitter() * wait_s
