"""`relay.client.delivery`: over HTTP, events are published in batches, and a rejected event fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from relay.client import Publisher
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event

Handler = Callable[[list[dict[str, Any]]], httpx.Response]


class FakeServer:
    """Answers publish requests, and records their events.

    Args:
        handler: the answer to the events of a request; the request that opens a publisher has none.
    """

    def __init__(self, handler: Handler) -> None:
        self.batches: list[list[Any]] = []
        self.keys: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self._handler = handler
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        events = msgspec.json.decode(request.content)
        if events:
            await self.open.wait()
            self.batches.append([event.get("data") for event in events])
            self.keys += [event["dedup"] for event in events]
        return self._handler(events)

    def publisher(self, **options: Any) -> Publisher:
        """Return a publisher to this server."""
        return Publisher("http://relay.example", client=self.client, **options)


def accepted(events: list[dict[str, Any]]) -> httpx.Response:
    return httpx.Response(200, json={"ids": [f"e-{event['data']}" for event in events]})


def refused(status: int, **fields: str) -> httpx.Response:
    return httpx.Response(status, json={"error": "is wrong", **fields})


async def test_events_that_are_sent_during_a_request_go_together_into_the_next() -> None:
    server = FakeServer(accepted)
    server.open.clear()
    async with server.publisher() as publisher:
        sent = [await publisher.send(Event(data=0))]
        await asyncio.sleep(0)  # The delivery takes the event.
        sent += [await publisher.send(Event(data=number)) for number in range(1, 500)]
        server.open.set()
        await publisher.flush()
        assert [future.result() for future in sent] == [f"e-{number}" for number in range(500)]
    assert len(server.batches) <= 3
    assert [data for batch in server.batches for data in batch] == list(range(500))
    assert len(set(server.keys)) == 500


async def test_the_number_of_unacknowledged_events_is_limited() -> None:
    server = FakeServer(accepted)
    server.open.clear()
    async with server.publisher(in_flight_max=3) as publisher:
        for number in range(3):
            await publisher.send(Event(data=number))
        fourth = asyncio.create_task(publisher.publish(Event(data=3)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not fourth.done()
        server.open.set()
        assert await fourth == "e-3"


@pytest.mark.parametrize(
    ("status", "fields", "kind"),
    [(400, {"field": "topic"}, EventError), (403, {}, RequestError), (413, {}, RequestError)],
)
async def test_a_rejected_event_fails_alone(status: int, fields: dict[str, str], kind: type[RelayError]) -> None:
    def answer(events: list[dict[str, Any]]) -> httpx.Response:
        return refused(status, **fields) if 7 in [event["data"] for event in events] else accepted(events)

    server = FakeServer(answer)
    async with server.publisher() as publisher:
        sent = [await publisher.send(Event(data=number)) for number in range(20)]
        await publisher.flush()
    errors = {number: future.exception() for number, future in enumerate(sent) if future.exception()}
    assert list(errors) == [7]
    assert type(errors[7]) is kind
    published = [future.result() for number, future in enumerate(sent) if number != 7]
    assert published == [f"e-{number}" for number in range(20) if number != 7]


async def test_a_request_that_is_too_large_makes_all_later_requests_smaller() -> None:
    server = FakeServer(lambda events: refused(413) if len(events) > 4 else accepted(events))
    async with server.publisher() as publisher:
        for first in (0, 16):
            for number in range(first, first + 16):
                await publisher.send(Event(data=number))
            await publisher.flush()
    sizes = list(map(len, server.batches))
    assert sizes[-4:] == [4, 4, 4, 4]
    assert sum(size for size in sizes if size <= 4) == 32


async def test_a_busy_server_receives_the_same_events_again(caplog: pytest.LogCaptureFixture) -> None:
    answers = [
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429, headers={"Retry-After": "0"}),
    ]
    server = FakeServer(lambda events: answers.pop() if events and answers else accepted(events))
    async with server.publisher() as publisher:
        assert await publisher.publish(Event(data="a")) == "e-a"
    assert server.batches == [["a"]] * 3
    assert len(set(server.keys)) == 1
    assert caplog.text.count("sending 1 event again in") == 2
    assert "s, for up to 300 s" in caplog.text


async def test_a_wait_that_the_server_asks_for_may_exceed_the_time_limit() -> None:
    server = FakeServer(
        lambda events: httpx.Response(503, headers={"Retry-After": "60"}) if events else accepted(events)
    )
    async with server.publisher(resend_s_max=30) as publisher:
        with pytest.raises(LostError, match="503"):
            await publisher.publish(Event(data="a"))
        with pytest.raises(LostError):
            await publisher.flush()


@pytest.mark.parametrize("status", [401, 404])
async def test_a_publisher_that_may_not_publish_fails_when_it_opens(status: int) -> None:
    server = FakeServer(lambda _: refused(status))
    with pytest.raises(RequestError, match=f"{status}: is wrong"):
        await server.publisher().__aenter__()


async def test_a_busy_server_does_not_fail_the_opening() -> None:
    server = FakeServer(lambda events: accepted(events) if events else httpx.Response(503))
    async with server.publisher() as publisher:
        assert await publisher.publish(Event(data="a")) == "e-a"


async def test_a_token_that_becomes_invalid_fails_all_events() -> None:
    server = FakeServer(lambda events: refused(401) if events else accepted(events))
    async with server.publisher(token="old") as publisher:
        sent = [await publisher.send(Event(data=number)) for number in range(3)]
        with pytest.raises(RequestError, match="401"):
            await publisher.flush()
    assert [type(future.exception()) for future in sent] == [RequestError] * 3
    assert len(server.batches) == 1
