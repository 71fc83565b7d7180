"""Deadlines: one timer notifies each connection in time and in order, and stops when no deadline is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from relay.front.deadlines import SWEEP_INTERVAL_MIN_S, Deadlines, Waiting


class Loop:
    """The clock and the timers of an event loop, advanced by the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], Any]) -> Timer:
        timer = Timer(self, when, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Advance the clock, and run the timers that expire."""
        self.now_s += seconds
        for timer in [timer for timer in self.timers if timer.when <= self.now_s]:
            self.timers.remove(timer)
            timer.callback()


class Timer:
    """A timer handle."""

    def __init__(self, loop: Loop, when: float, callback: Callable[[], Any]) -> None:
        self.loop, self.when, self.callback = loop, when, callback

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)


class Connection:
    """A connection that records its notifications."""

    def __init__(self) -> None:
        self.waiting: Waiting | None = None
        self.notified: list[Waiting] = []

    def deadline_passed(self, waiting: Waiting) -> None:
        assert self.waiting is None
        self.notified.append(waiting)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def deadlines(loop: Loop) -> Deadlines:
    return Deadlines(cast(asyncio.AbstractEventLoop, loop), {Waiting.HEAD: 10.0, Waiting.REST: 60.0})


def test_a_deadline_passes_once(loop: Loop, deadlines: Deadlines) -> None:
    connection = Connection()
    deadlines.set(connection, Waiting.HEAD)
    loop.advance(9.9)
    assert connection.notified == []
    loop.advance(0.1)
    assert connection.notified == [Waiting.HEAD]
    loop.advance(1000.0)
    assert connection.notified == [Waiting.HEAD]
    assert not loop.timers


def test_a_cleared_deadline_does_not_pass_and_the_timer_stops(loop: Loop, deadlines: Deadlines) -> None:
    connection = Connection()
    deadlines.set(connection, Waiting.HEAD)
    deadlines.clear(connection)
    deadlines.clear(connection)
    assert len(deadlines) == 0
    loop.advance(10.0)
    assert connection.notified == []
    assert not loop.timers


def test_a_new_deadline_replaces_the_old_one(loop: Loop, deadlines: Deadlines) -> None:
    connection = Connection()
    deadlines.set(connection, Waiting.REST)
    loop.advance(5.0)
    deadlines.set(connection, Waiting.HEAD)
    assert len(deadlines) == 1
    loop.advance(10.0)
    assert connection.notified == [Waiting.HEAD]


def test_many_connections_share_one_timer_and_each_is_called_in_time(loop: Loop, deadlines: Deadlines) -> None:
    connections = [Connection() for _ in range(50)]
    for connection in connections:
        deadlines.set(connection, Waiting.HEAD)
        loop.advance(0.01)
        assert len(loop.timers) == 1
    for connection in connections[::2]:
        deadlines.clear(connection)
    while loop.timers:
        loop.advance(max(0.0, loop.timers[0].when - loop.now_s))
    assert all(connection.notified == [] for connection in connections[::2])
    assert all(connection.notified == [Waiting.HEAD] for connection in connections[1::2])
    assert loop.now_s <= 100.0 + 0.5 + 10.0 + SWEEP_INTERVAL_MIN_S


def test_a_callback_can_set_the_deadline_of_another_connection(loop: Loop, deadlines: Deadlines) -> None:
    class Setting(Connection):
        def deadline_passed(self, waiting: Waiting) -> None:
            super().deadline_passed(waiting)
            deadlines.set(self, Waiting.REST)
            deadlines.clear(other)

    setting, other = Setting(), Connection()
    deadlines.set(setting, Waiting.HEAD)
    deadlines.set(other, Waiting.HEAD)
    loop.advance(10.0)
    assert setting.notified == other.notified == [Waiting.HEAD]
    assert setting.waiting is Waiting.REST


def test_closing_clears_all_deadlines(loop: Loop, deadlines: Deadlines) -> None:
    connection = Connection()
    deadlines.set(connection, Waiting.HEAD)
    deadlines.close()
    assert not loop.timers
    assert connection.waiting is None
    deadlines.clear(connection)
