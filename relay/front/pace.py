"""The pace of the front: it spreads large requests that arrive together over several turns of the event loop.

Serving one request is not interruptible, and a large request takes milliseconds. Between two turns, the loop writes to
the streams and serves small requests. So many large requests delay other work by one slice only.

Owns the queue of waiting steps. Never interprets a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SLICE_S = 0.002
"""Time per turn for large requests; the last request of a turn may exceed it."""


class Pace:
    """Limits the time for large requests in each turn.

    Args:
        next_turn: schedules a function for the next turn of the event loop.
        clock: returns the time in seconds.
    """

    def __init__(self, next_turn: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        self._next_turn = next_turn
        self._clock = clock
        self._spent_s = 0.0
        self._over = False
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, step: Callable[[], None]) -> None:
        """Run a step now, or in a later turn if the time of this turn is used up. The step must not raise."""
        if self._over:
            self._waiting.append(step)
        else:
            self._run(step)

    def _run(self, step: Callable[[], None]) -> None:
        began_s = self._clock()
        step()
        self._spent_s += self._clock() - began_s
        if self._spent_s > SLICE_S and not self._over:
            self._over = True
            self._next_turn(self._turn)

    def _turn(self) -> None:
        self._over, self._spent_s = False, 0.0
        while self._waiting and not self._over:
            self._run(self._waiting.popleft())
