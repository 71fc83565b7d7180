"""`relay.client.outbox`: events keep their order, and each future is completed exactly once."""

from __future__ import annotations

import asyncio

import pytest

from relay.client.outbox import Outbox
from relay.errors import EventError, LostError


async def put(outbox: Outbox, *lines: bytes) -> list[asyncio.Future[str]]:
    futures = []
    for number, line in enumerate(lines, 1):
        await outbox.room()
        futures.append(outbox.put(number, line))
    return futures


async def test_events_are_taken_in_order_and_within_the_limits() -> None:
    outbox = Outbox(10)
    await put(outbox, b"aaaa", b"bb", b"cc", b"d", b"e")
    assert [[each.line for each in outbox.take(3, 4)] for _ in range(4)] == [
        [b"aaaa"],  # larger than any batch
        [b"bb", b"cc"],
        [b"d", b"e"],
        [],
    ]
    assert len(outbox) == 5


async def test_a_rewind_returns_the_unsettled_events_before_the_new_ones() -> None:
    outbox = Outbox(10)
    futures = await put(outbox, b"a", b"b", b"c", b"d")
    outbox.take(3, 10)
    outbox.settle(2, "id-2")
    outbox.rewind()
    assert [each.number for each in outbox.take(10, 10)] == [1, 3, 4]
    for number in (1, 2, 3, 4):
        outbox.settle(number, f"id-{number}")
    await outbox.emptied()
    assert [future.result() for future in futures] == ["id-1", "id-2", "id-3", "id-4"]
    assert outbox.settled == 4


async def test_a_full_outbox_has_room_after_an_event_is_settled() -> None:
    outbox = Outbox(1)
    [future] = await put(outbox, b"a")
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.settle(1, EventError("data", "is wrong"))
    await waiting
    with pytest.raises(EventError):
        future.result()


async def test_a_failure_completes_all_events_and_frees_their_room() -> None:
    outbox = Outbox(2)
    futures = await put(outbox, b"a", b"b")
    futures[0].cancel()
    outbox.fail(LostError("gone"))
    assert len(outbox) == 0
    assert outbox.take(10, 10) == []
    assert isinstance(futures[1].exception(), LostError)
    outbox.settle(2, "too late")
    assert len(await put(outbox, b"c", b"d")) == 2
