"""Deadlines: time limits of many connections, with one timer for all of them.

Owns which connection must have moved on by when. Never decides what happens to one that has not.

Theory of operation. All limits of one kind are equally long, so a dict in order of insertion is in order of
deadline too. Setting and clearing one is a dict's insertion and deletion; the one timer looks only at the
front of each dict, and does not run while they are empty. (A timer a connection would cost more than the rest
of its handshake's bookkeeping, and almost none of them would ever fire.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Protocol

SWEEP_INTERVAL_MIN_S = 0.1
"""Shortest time between two sweeps: how late a connection may be told."""


class Waiting(Enum):
    """What a connection is waited for."""

    HEAD = "a request head"
    BODY = "a body"
    REST = "the next request"
    FLUSH = "answers to be read"
    LINGER = "the client to close"


class Guarded(Hashable, Protocol):
    """A connection with a deadline."""

    waiting: Waiting | None
    """Set by `Deadlines` alone."""

    def deadline_passed(self, waiting: Waiting) -> None:
        """React to the deadline, which is cleared already."""


class Deadlines:
    """The deadlines of all connections.

    Args:
        loop: for its clock and the timer.
        limits_s: how long each kind may take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits_s: Mapping[Waiting, float]) -> None:
        self._loop = loop
        self._limits_s = dict(limits_s)
        self._queues: dict[Waiting, dict[Guarded, float]] = {waiting: {} for waiting in limits_s}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def count(self, waiting: Waiting) -> int:
        """Return how many connections are waited for so."""
        return len(self._queues[waiting])

    def oldest(self, waiting: Waiting) -> tuple[Guarded, float] | None:
        """Return the connection that is waited for longest, and for how many seconds."""
        for connection, deadline in self._queues[waiting].items():
            return connection, self._loop.time() - deadline + self._limits_s[waiting]
        return None

    def set(self, connection: Guarded, waiting: Waiting) -> None:
        """Give a connection a deadline, in place of the one it has."""
        if connection.waiting is not None:
            del self._queues[connection.waiting][connection]
        connection.waiting = waiting
        deadline = self._loop.time() + self._limits_s[waiting]
        self._queues[waiting][connection] = deadline
        if self._timer is None or deadline < self._timer_at:
            self._wake_at(deadline)

    def clear(self, connection: Guarded) -> None:
        """Take a connection's deadline away, if it has one."""
        if connection.waiting is not None:
            del self._queues[connection.waiting][connection]
            connection.waiting = None

    def close(self) -> None:
        """Stop the timer; no deadline passes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for queue in self._queues.values():
            for connection in queue:
                connection.waiting = None
            queue.clear()

    def _wake_at(self, time_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = time_s
        self._timer = self._loop.call_at(time_s, self._sweep)

    def _sweep(self) -> None:
        """Tell those whose deadline has passed, and sleep until the next."""
        self._timer = None
        # uvloop's timers count whole milliseconds, and may be early by a part of one.
        now_s = self._loop.time() + 0.001
        late: list[tuple[Guarded, Waiting]] = []
        for waiting, queue in self._queues.items():
            for connection, deadline in queue.items():
                if deadline > now_s:
                    break
                late.append((connection, waiting))
        for connection, _ in late:
            self.clear(connection)
        for connection, waiting in late:
            connection.deadline_passed(waiting)
        nearest = [next(iter(queue.values())) for queue in self._queues.values() if queue]
        if nearest:
            self._wake_at(max(min(nearest), self._loop.time() + SWEEP_INTERVAL_MIN_S))
