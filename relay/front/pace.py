"""The pace of the front: large requests that arrive together are served over several turns of the event loop.

Each request is served whole, and a large one takes milliseconds. Between two turns the loop writes to the streams and
serves small requests. So a crowd of large requests delays others by one slice, and not by all of its work.

Owns the steps that wait for their turn, in order. Never knows what a step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SLICE_S = 0.002
"""How long one turn serves large requests; the last of them may exceed it."""


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

    def add(self, step: Callable[[], None]) -> None:
        """Run a step, which must not raise: now, or in a later turn where the share of this one is spent."""
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
