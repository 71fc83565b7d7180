"""`relay.sources.feed_source`: positions are stored only after their events are confirmed; failures are retried."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from relay.config.source_address import parse_source
from relay.errors import BrokerError, EventError, RequestError
from relay.event import Event
from relay.sources.feed import FeedMessage
from relay.sources.feed_source import FeedSource
from relay.sources.mapping import MessageMapping
from relay.sources.sink import Receipt
from tests.sources.fakes import FakeHub, FakeMetrics

ADDRESS = parse_source("redis://:s3cret@h?stream=a")


class Hub(FakeHub):
    """Confirms when the test says so; `results` are the receipts of events by data."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []
        self.confirming = True
        self.results: dict[str, Receipt] = {}

    def publish_one(self, event: Event, now_s: float, *, foreign: bool = False) -> Any:
        id = super().publish_one(event, now_s, foreign=foreign)
        return self.results.get(event.data, id)

    def confirm_stored(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)
        if self.confirming:
            self.confirm_all()

    def confirm_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class ScriptedFeed:
    """Returns scripted reads, then waits. An exception in the script is raised by that read."""

    def __init__(self, *reads: Sequence[str] | Exception) -> None:
        self.lost = 0
        self.reads = list(reads)
        self.stored: list[str] = []
        self.connects = 0
        self.open = False
        self.failures: list[Exception] = []

    async def connect(self) -> None:
        self.connects += 1
        if self.failures:
            raise self.failures.pop(0)
        self.open = True

    async def read(self) -> Sequence[FeedMessage]:
        if not self.reads:
            await asyncio.Event().wait()
        read = self.reads.pop(0)
        if isinstance(read, Exception):
            raise read
        return [FeedMessage(text, text.encode(), {}, f"a/{text}", text) for text in read]

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        self.stored += [message.handle for message in messages]

    async def check(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.open = False


class Running:
    def __init__(self, feed: ScriptedFeed, *, stops: bool = False, topic: str = "t") -> None:
        self.feed, self.hub, self.metrics = feed, Hub(), FakeMetrics()
        mapping = MessageMapping({"topic": topic}, "default", ADDRESS.shown)
        loop = asyncio.get_running_loop()
        self.source = FeedSource(
            ADDRESS, feed, mapping, self.hub, self.metrics, loop, time.monotonic, stops=stops
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def ended(self) -> None:
        task = self.source._task
        assert task is not None
        async with asyncio.timeout(10):
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextlib.asynccontextmanager
async def running(feed: ScriptedFeed, **arguments: Any) -> AsyncIterator[Running]:
    one = Running(feed, **arguments)
    one.source.start()
    yield one
    one.source.close()
    await one.ended()
    assert not feed.open


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.sources.feed_source.RECONNECT_MIN_S", 0.0)


async def test_messages_are_published_in_order_and_their_positions_stored() -> None:
    async with running(ScriptedFeed(["1", "2"], [], ["3"])) as one:
        await one.until(lambda: len(one.feed.stored) == 3)
        assert one.hub.data == one.feed.stored == ["1", "2", "3"]
        assert [str(event.dedup).partition("/")[2] for event in one.hub.events] == ["a/1", "a/2", "a/3"]
        stats = one.source.stats()
        assert (stats.source, stats.connected, stats.events) == ("redis://h:6379/0?stream=a", True, 3)


async def test_the_position_is_stored_only_after_the_events_are_confirmed() -> None:
    one = Running(ScriptedFeed(["1"], ["2"]))
    one.hub.confirming = False
    one.source.start()
    await one.until(lambda: bool(one.hub.waiting))
    assert (one.hub.data, one.feed.stored) == (["1"], [])
    one.source.stop()  # finishes what it publishes, and reads no more
    one.hub.confirm_all()
    await one.ended()
    assert (one.hub.data, one.feed.stored) == (["1"], ["1"])


async def test_stop_ends_a_source_that_cannot_store_the_position() -> None:
    one = Running(ScriptedFeed(["1"], ["2"]))
    one.hub.confirming = False
    receipt = one.hub.results["1"] = Receipt()
    receipt.error = RequestError(503, "closing")
    one.source.start()
    await one.until(lambda: bool(one.hub.waiting))
    one.source.stop()
    one.hub.confirm_all()
    await one.ended()
    assert (one.hub.data, one.feed.stored, one.feed.connects) == (["1"], [], 1)


async def test_stop_ends_a_source_that_waits_for_messages() -> None:
    one = Running(ScriptedFeed([]))
    one.source.start()
    await one.until(lambda: one.feed.open)
    one.source.stop()
    await one.ended()
    assert not one.feed.open


async def test_a_held_topic_makes_the_source_wait_and_it_reads_no_more() -> None:
    async with running(ScriptedFeed(["1"], ["2"])) as one:
        one.hub.holding.add("t")
        await one.until(lambda: bool(one.hub._callbacks))
        assert (one.hub.data, one.feed.reads) == ([], [["2"]])
        one.hub.release("t")
        await one.until(lambda: one.feed.stored == ["1", "2"])


async def test_a_failure_is_logged_once_and_relay_connects_again(caplog: pytest.LogCaptureFixture) -> None:
    feed = ScriptedFeed(["1"], BrokerError("the line broke"), ["2"])
    feed.failures = [BrokerError("refused"), BrokerError("refused")]
    async with running(feed) as one:
        await one.until(lambda: feed.stored == ["1", "2"])
        assert (feed.connects, one.source.stats().breaks, one.source.stats().error) == (4, 1, "")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    name = "source redis://h:6379/0?stream=a"
    assert errors == [
        f"{name}: cannot connect: refused; relay tries again",
        f"{name}: lost the connection: the line broke; relay tries again",
    ]
    assert "s3cret" not in caplog.text


async def test_the_stats_show_the_reason_of_a_failure() -> None:
    feed = ScriptedFeed()
    feed.failures = [BrokerError("refused")] * 1000
    async with running(feed) as one:
        await one.until(lambda: feed.connects > 3)
        assert (one.source.stats().connected, one.source.stats().error) == (False, "refused")


async def test_a_message_that_cannot_be_published_is_skipped_and_its_position_stored() -> None:
    async with running(ScriptedFeed(["1", "bad", "3"]), topic="{1}") as one:
        await one.until(lambda: len(one.feed.stored) == 3)
        assert one.hub.data == ["1", "3"]
        assert one.metrics.errors == [("redis-stream", "event")]
        assert (one.source.stats().events, one.source.stats().errors) == (2, 1)


async def test_with_stop_the_position_before_the_message_is_stored_and_the_source_ends() -> None:
    async with running(ScriptedFeed(["1", "bad", "3"]), topic="{1}", stops=True) as one:
        await one.ended()
        assert (one.hub.data, one.feed.stored) == (["1"], ["1"])
        assert one.source.stats().ended == "cannot publish a message of 'bad', position a/bad: topic: is bad"
        assert not one.source.stats().connected


async def test_an_event_that_the_broker_of_a_cluster_rejects_counts_as_an_error() -> None:
    async with running(ScriptedFeed(["1", "2"])) as one:
        receipt = one.hub.results["1"] = Receipt()
        receipt.error = EventError("topic", "has ended")
        await one.until(lambda: one.feed.stored == ["1", "2"])
        assert (one.source.stats().events, one.source.stats().errors) == (1, 1)


async def test_a_message_whose_event_the_broker_of_a_cluster_does_not_accept_is_read_again() -> None:
    async with running(ScriptedFeed(["1"], ["again"])) as one:
        receipt = one.hub.results["1"] = Receipt()
        receipt.error = RequestError(503, "closing")
        await one.until(lambda: one.feed.stored == ["again"])
        assert one.source.stats().breaks == 1


async def test_an_internal_error_ends_the_source_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running(ScriptedFeed(["1"]), topic="broken") as one:
        await one.ended()
        assert one.source.stats().ended == "internal error"
    assert "ZeroDivisionError" in caplog.text
