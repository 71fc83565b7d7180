"""The pulse: it schedules the hub's turns, ticks and heartbeats on the event loop.

Owns their timers. If one call fails, the loop logs the error and still makes the next call, because the other
streams must be served. Never decides the hub's work in a turn.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from relay.core.histogram_protocols import Observer
from relay.core.hub import Hub

TICK_S = 1.0
TICK_BEHIND_S = 0.25
"""Intervals between two checks of the time limits: without lagging streams, and with some."""

AFTER_FAILURE_S = 0.1
"""Pause after a failed turn, so that repeated failures do not use the whole core."""

HEARTBEATS_A_PERIOD = 4
"""A heartbeat comes at most a quarter of its period late."""


class Pulse:
    """Calls one hub.

    Args:
        hub: the hub to call.
        heartbeat_s: the period of the heartbeats; 0 for none.
        stall_s: observes the delay of each tick.
        loop: the event loop.
        tick: called after the hub's tick, with the hub's time.
    """

    def __init__(
        self,
        hub: Hub,
        heartbeat_s: float,
        stall_s: Observer,
        loop: AbstractEventLoop,
        tick: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._heartbeat_s = heartbeat_s / HEARTBEATS_A_PERIOD
        self._stall_s = stall_s
        self._loop = loop
        self._also = tick
        self._timers: dict[str, TimerHandle] = {}

    def start(self) -> None:
        """Start the ticks and heartbeats, and watch the engine's descriptor."""
        self._loop.add_reader(self._hub.engine.fileno(), lambda: self._hub.poll(time.monotonic()))
        self._tick(self._loop.time())
        if self._heartbeat_s:
            self._heartbeat()

    def stop(self) -> None:
        """Stop all calls of the hub."""
        self._loop.remove_reader(self._hub.engine.fileno())
        for timer in self._timers.values():
            timer.cancel()

    def turn(self) -> None:
        """Run one turn of the hub; if work is left, schedule the next turn after the loop's other work."""
        more = None
        try:
            more = self._hub.turn(time.monotonic())
        finally:
            if more is None:
                self._timers["turn"] = self._loop.call_later(AFTER_FAILURE_S, self.turn)
            elif more:
                self._loop.call_soon(self.turn)

    def _tick(self, due_s: float) -> None:
        interval_s = TICK_BEHIND_S if self._hub.catchup.busy else TICK_S
        self._timers["tick"] = self._loop.call_later(interval_s, self._tick, self._loop.time() + interval_s)
        self._stall_s.observe(max(0.0, self._loop.time() - due_s))
        now_s = time.monotonic()
        self._hub.tick(now_s)
        self._also(now_s)

    def _heartbeat(self) -> None:
        self._timers["heartbeat"] = self._loop.call_later(self._heartbeat_s, self._heartbeat)
        if self._hub.heartbeat(time.monotonic()):
            self._timers["heartbeat"].cancel()
            self._timers["heartbeat"] = self._loop.call_later(0, self._heartbeat)
