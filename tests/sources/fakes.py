"""Shared by the tests of the sources: a fake hub that records events, and a decorator that runs a test on uvloop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from relay.errors import EventError
from relay.event import Event


def value(data: object) -> object:
    """Return the data of an event as a value. The event keeps JSON data as text."""
    return msgspec.json.decode(data) if isinstance(data, msgspec.Raw) else data


class FakeHub:
    """Records every event except on the topics `bad` and `broken`. Holds topics on request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.holding: set[str] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    @property
    def data(self) -> list[Any]:
        return [value(event.data) for event in self.events]

    def publish_one(self, event: Event, now_s: float, *, foreign: bool = False) -> str:
        if event.topic == "bad":
            raise EventError("topic", "is bad")
        if event.topic == "broken":
            raise ZeroDivisionError
        self.events.append(event)
        self._changed.set()
        return f"e-{len(self.events)}"

    def held(self, topic: str) -> bool:
        if topic in self.holding:
            self._changed.set()
            return True
        return False

    def on_release(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def confirm(self, callback: Callable[[], None]) -> None:
        callback()

    def confirm_stored(self, callback: Callable[[], None]) -> None:
        callback()

    def release(self, topic: str) -> None:
        self.holding.discard(topic)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that publishing or asking for a hold can change."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_events(self, count: int) -> None:
        await self.until(lambda: len(self.events) >= count)


class FakeMetrics:
    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []

    def input_error(self, source: str, kind: str) -> None:
        self.errors.append((source, kind))


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on uvloop, as the server does, for at most ten seconds."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(10):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run
