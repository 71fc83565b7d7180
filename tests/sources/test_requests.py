"""`relay.sources.requests`: a request publishes all of its events or none, and calls back once, unless it cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from relay.core.hub import Hub
from relay.errors import EventError, RelayError, RequestError
from relay.event import Event
from relay.sources import requests
from relay.sources.requests import Publishing

EVENTS = [Event(data="a", topic="t"), Event(data="b", topic="u")]


class BatchHub:
    """Publishes batches; holds topics and confirmations on request."""

    def __init__(self) -> None:
        self.refusal = ""
        self.events: list[Event] = []
        self.holding: set[str] = set()
        self.confirming = True
        self.waiting: list[Callable[[], None]] = []

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        if any(event.topic == "bad" for event in events):
            raise EventError("topic", "is bad")
        self.events += events
        return [f"e-{number}" for number, _ in enumerate(events, 1)]

    def held(self, topic: str) -> bool:
        return topic in self.holding

    def on_release(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def confirm(self, callback: Callable[[], None]) -> None:
        if self.confirming:
            callback()
        else:
            self.waiting.append(callback)

    def release(self) -> None:
        self.holding.clear()
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class Site:
    """A publisher of batches, its hub, and the results of its requests."""

    def __init__(self) -> None:
        self.hub = BatchHub()
        self.results: asyncio.Queue[list[str] | RelayError] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._publishing = Publishing(cast(Hub, self.hub), 0.0, loop, lambda: 1.0)

    def publish(self, events: Sequence[Event] = EVENTS) -> requests.Cancel:
        return self._publishing.publish(events, self.results.put_nowait)

    async def result(self) -> list[str] | RelayError:
        async with asyncio.timeout(5):
            return await self.results.get()


async def test_events_are_published_immediately_if_no_topic_is_held() -> None:
    site = Site()
    site.publish()
    assert site.results.get_nowait() == ["e-1", "e-2"]
    assert site.hub.events == EVENTS


async def test_a_request_waits_until_none_of_its_topics_is_held() -> None:
    site = Site()
    site.hub.holding = {"u"}
    site.publish()
    assert site.hub.events == []
    site.hub.release()
    assert await site.result() == ["e-1", "e-2"]


async def test_the_ids_are_returned_after_the_confirmation() -> None:
    site = Site()
    site.hub.confirming = False
    site.publish()
    assert site.results.empty()
    site.hub.release()
    assert await site.result() == ["e-1", "e-2"]


@pytest.mark.parametrize("reason", ["held", "unconfirmed"])
async def test_a_request_that_waits_too_long_is_rejected_with_503(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "HOLD_GRACE_S", 0.01)
    site = Site()
    site.hub.holding = {"t"} if reason == "held" else set()
    site.hub.confirming = False
    site.publish()
    result = await site.result()
    assert isinstance(result, RequestError)
    assert result.status == 503
    site.hub.release()
    await asyncio.sleep(0)
    assert site.results.empty()
    assert bool(site.hub.events) is (reason == "unconfirmed")


async def test_a_hub_that_publishes_nothing_rejects_the_request() -> None:
    site = Site()
    site.hub.refusal = "the server is draining"
    site.publish()
    result = site.results.get_nowait()
    assert isinstance(result, RequestError)
    assert (result.status, result.reason) == (503, "the server is draining")


async def test_a_bad_event_rejects_the_whole_request() -> None:
    site = Site()
    site.publish([*EVENTS, Event(data="c", topic="bad")])
    assert isinstance(site.results.get_nowait(), EventError)
    assert site.hub.events == []


async def test_a_cancelled_request_publishes_nothing_and_calls_no_callback() -> None:
    site = Site()
    site.hub.holding = {"t"}
    cancel = site.publish()
    cancel()
    site.hub.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert site.hub.events == []
    assert site.results.empty()
