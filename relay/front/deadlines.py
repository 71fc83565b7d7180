"""Deadlines of many connections, with one timer for all of them.

Owns the deadline of each connection. Never decides how a connection reacts to a missed deadline.

Theory of operation. All limits of one kind have the same length, so a dict in order of insertion is also in order of
deadline. Setting and clearing a deadline are an insertion and a deletion. The timer reads only the first entries of
each dict, and does not run while all dicts are empty. (One timer per connection would cost more than all other
bookkeeping of its handshake, and almost none of these timers would fire.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Protocol

SWEEP_INTERVAL_MIN_S = 0.1
"""Shortest time between two sweeps, and so the longest delay of a deadline."""


class Waiting(Enum):
    """The next step that a connection must take before its deadline."""

    HEAD = "a request head"
    BODY = "a body"
    LINE = "a line"
    REST = "the next request"
    FLUSH = "answers to be read"
    LINGER = "the client to close"


class Guarded(Hashable, Protocol):
    """A connection with a deadline."""

    waiting: Waiting | None
    """Set only by `Deadlines`."""

    def deadline_passed(self, waiting: Waiting) -> None:
        """React to the missed deadline, which is already cleared."""


class Deadlines:
    """The deadlines of all connections.

    Args:
        loop: provides the clock and the timer.
        limits_s: the length of each kind of deadline, in seconds.
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
        """Return the number of connections with a deadline of this kind."""
        return len(self._queues[waiting])

    def oldest(self, waiting: Waiting) -> tuple[Guarded, float] | None:
        """Return the connection that has waited longest, and for how many seconds."""
        for connection, deadline in self._queues[waiting].items():
            return connection, self._loop.time() - deadline + self._limits_s[waiting]
        return None

    def set(self, connection: Guarded, waiting: Waiting) -> None:
        """Set the deadline of a connection; it replaces the current one."""
        if connection.waiting is not None:
            del self._queues[connection.waiting][connection]
        connection.waiting = waiting
        deadline = self._loop.time() + self._limits_s[waiting]
        self._queues[waiting][connection] = deadline
        if self._timer is None or deadline < self._timer_at:
            self._wake_at(deadline)

    def clear(self, connection: Guarded) -> None:
        """Clear the deadline of a connection, if it has one."""
        if connection.waiting is not None:
            del self._queues[connection.waiting][connection]
            connection.waiting = None

    def close(self) -> None:
        """Stop the timer and clear all deadlines."""
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
        """Notify the connections whose deadline has passed, and set the timer for the next one."""
        self._timer = None
        # uvloop's timers have a resolution of 1 ms, and may fire up to 1 ms early.
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
