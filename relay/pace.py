"""The pace of the front: requests that arrive together are served over several turns of the event loop.

Each request is served whole, and one may take milliseconds. Between two turns the loop writes to the streams. So a
crowd of requests delays the streams by one slice, and not by all of its work.

Owns the steps that wait for their turn, in order. Never knows what a step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SLICE_S = 0.002
"""How long one turn serves requests; the last of them may exceed it."""


class Pace:
    """The front's share of each turn.

    Args:
        next_turn: has the loop call a function in its next turn.
        clock: the time in seconds.
    """

    def __init__(self, next_turn: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        self._next_turn = next_turn
        self._clock = clock
        self._spent_s = 0.0
        self._over = False
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def over(self) -> bool:
        """Whether the share of this turn is spent; further steps have to wait."""
        return self._over

    def run(self, step: Callable[[], None]) -> None:
        """Run a step, which must not raise, and count its time."""
        began_s = self._clock()
        step()
        self._spent_s += self._clock() - began_s
        if self._spent_s > SLICE_S and not self._over:
            self._over = True
            self._next_turn(self._turn)

    def wait(self, step: Callable[[], None]) -> None:
        """Run a step, which must not raise, in one of the next turns; called while the share of this one is spent."""
        self._waiting.append(step)

    def _turn(self) -> None:
        self._over, self._spent_s = False, 0.0
        while self._waiting and not self._over:
            self.run(self._waiting.popleft())
