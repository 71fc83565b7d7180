"""`relay.cluster.publisher` and `relay.cluster.publication`, over a broker in memory: calls, time limits and waits."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from relay.cluster import publisher as module
from relay.cluster.broker import Result
from relay.cluster.publisher import CALL_EVENTS_MAX, QUEUE_EVENTS_MAX, ClusterPublisher
from relay.config.model import Config
from relay.errors import EndedError, EventError, RequestError
from relay.event import Event
from relay.sources.sink import Receipt
from relay.telemetry.input_errors import InputErrors
from tests.cluster.memory_broker import MemoryBroker, MemoryLog
from tests.sim.world import World


class Observed:
    """Records the observed values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, amount: float, /) -> None:
        """Record a value."""
        self.values.append(amount)


class Publishing(World):
    """One node whose follower is taken to be connected."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(Config(**settings))
        self.log = MemoryLog(epoch="sim")
        self.broker = MemoryBroker(self.log)
        self.kinds: Counter[str] = Counter()
        self.answers: list[Any] = []
        self.calls = Observed()
        loop = asyncio.get_running_loop()
        self._errors = InputErrors("cluster", self, loop, logging.getLogger("relay.cluster"))
        self.publisher = ClusterPublisher(
            self.config, self.hub, self.broker, self._errors, self.calls, loop, time.monotonic
        )
        self.publisher.set_following(True)
        self.task = asyncio.create_task(self.publisher.run())

    def input_error(self, source: str, kind: str) -> None:
        """Count an input error."""
        self.kinds[f"{source} {kind}"] += 1

    def request(self, *events: Event) -> Callable[[], None]:
        """Publish a request; its answer is added to `answers`."""
        return self.publisher.publish(list(events), self.answers.append)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until a condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop publishing."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self._errors.close()
        self.engine._epoll.close()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECONNECT_MIN_S", 0.0)
    monkeypatch.setattr(module, "RECONNECT_MAX_S", 0.0)


@pytest.fixture
async def node() -> AsyncIterator[Publishing]:
    """Return a connected node."""
    node = Publishing()
    await node.until(lambda: node.publisher.available)
    yield node
    await node.stop()


def event(data: str = "x", topic: str = "a", **fields: Any) -> Event:
    """Return an event."""
    return Event(data, topic=topic, **fields)


async def test_requests_of_one_turn_go_out_as_one_call(node: Publishing) -> None:
    node.request(event("1"), event("2", id="own"))
    node.request(event("3"))
    receipt = node.publisher.publish_one(event("4"), 0.0)
    assert node.answers == []
    await node.until(lambda: len(node.answers) == 2)
    assert node.answers == [["sim-1", "own"], ["sim-3"]]
    assert receipt.id == "sim-4"
    assert [len(call) for call in node.broker.published] == [3]
    assert node.hub.acknowledged == node.hub.head == 5
    assert node.publisher.events == 4
    assert len(node.calls.values) == 1


async def test_events_wait_while_a_call_is_not_answered(node: Publishing) -> None:
    for number in range(2 * CALL_EVENTS_MAX + 1):
        node.publisher.publish_one(event(str(number)), 0.0)
    settled = asyncio.create_task(node.publisher.settle())
    await settled
    assert [sum(map(len, call)) for call in node.broker.published] == [CALL_EVENTS_MAX, CALL_EVENTS_MAX, 1]


async def test_a_large_request_is_one_call(node: Publishing) -> None:
    node.request(event("small"))
    node.request(*(event(str(number)) for number in range(CALL_EVENTS_MAX + 1)))
    await node.until(lambda: len(node.answers) == 2)
    assert [sum(map(len, call)) for call in node.broker.published] == [1, CALL_EVENTS_MAX + 1]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (event(topic="a..b"), "topic"),
        (Event("x", topic="a", id="01234567-1"), "has the form of the ids that relay assigns"),
        (event(event="relay.gap"), "reserved"),
        (event("x" * 70_000_000), "data"),
        (event(dedup=""), "dedup"),
        (event(key="\ud800"), "key"),
        (event(data={"a": object()}), "not a JSON value"),  # type: ignore[arg-type]
    ],
)
async def test_a_wrong_event_is_rejected_at_once_and_with_its_whole_request(
    node: Publishing, wrong: Event, reason: str
) -> None:
    node.request(event("good"), wrong)
    [error] = node.answers
    assert isinstance(error, EventError)
    with pytest.raises(EventError, match=reason):
        node.publisher.publish_one(wrong, 0.0)
    assert node.publisher.pending == 0


async def test_a_topic_that_another_node_ended_rejects_a_whole_request(node: Publishing) -> None:
    node.log.ended.append("a")
    node.request(event(topic="b"), event(topic="a"))
    receipt = node.publisher.publish_one(event(topic="a"), 0.0)
    await node.until(lambda: len(node.answers) == 1)
    assert isinstance(node.answers[0], EndedError)
    assert isinstance(receipt.error, EndedError)
    assert node.kinds == {"cluster event": 1}
    assert node.log.entries == []


async def test_an_error_states_which_events_of_a_request_are_published(
    node: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = RequestError(413, "too large")

    async def publish(*_: object) -> tuple[str, list[Result]]:
        return "sim", [1, large, 2, large, large, large]

    monkeypatch.setattr(node.broker, "publish", publish)
    node.request(event("1"), event("2"), event("3"), event("4"))
    node.request(event("5"), event("6"))
    await node.until(lambda: len(node.answers) == 2)
    partly, wholly = node.answers
    assert isinstance(partly, RequestError)
    assert partly.status == 413
    assert str(partly) == "of 4 events, all are published except number 2, 4: too large"
    assert wholly is large
    assert (node.publisher.events, node.publisher.pending) == (2, 0)


async def test_a_dedup_key_gives_the_first_id(node: Publishing) -> None:
    node.request(event(dedup="k"))
    node.request(event(dedup="k"), event("2"))
    await node.until(lambda: len(node.answers) == 2)
    assert node.answers == [["sim-1"], ["sim-1", "sim-2"]]
    assert (node.publisher.events, node.publisher.repeats) == (2, 1)


async def test_without_a_window_dedup_keys_are_ignored() -> None:
    node = Publishing(dedup_window_s=0.0)
    await node.until(lambda: node.publisher.available)
    node.request(event(dedup="k"), event(dedup="k"))
    await node.until(lambda: len(node.answers) == 1)
    assert node.answers == [["sim-1", "sim-2"]]
    await node.stop()


async def test_a_call_whose_answer_is_lost_is_repeated_without_effect(node: Publishing) -> None:
    node.log.lose_answers = 3
    node.request(event("1"))
    node.publisher.publish_one(event("2"), 0.0)
    await node.until(lambda: len(node.answers) == 1)
    assert node.answers == [["sim-1"]]
    assert [entry.sequence for entry, _ in node.log.entries] == [1, 2]
    assert len(node.broker.published) == 1


async def test_while_the_broker_is_unavailable_requests_are_rejected_and_sources_wait(node: Publishing) -> None:
    released = list[int]()
    receipt = node.publisher.publish_one(event("1"), 0.0)
    node.request(event("2"))
    node.log.down = True
    await node.until(lambda: not node.publisher.connected)
    confirmed = list[int]()
    node.publisher.confirm(lambda: confirmed.append(1))
    assert node.publisher.held("a")
    node.publisher.on_release(lambda: released.append(1))
    for _ in range(3):
        node.request(event("3"))
    for error in node.answers:
        assert isinstance(error, RequestError)
        assert (error.status, str(error)) == (503, "the broker is unavailable")
        assert dict(error.headers)["Retry-After"]
    assert len(node.answers) == 3  # the one in the call may have been published
    assert released == confirmed == []
    node.log.down = False
    await node.until(lambda: bool(released and confirmed))
    assert not node.publisher.held("a")
    assert receipt.id == "sim-1"
    assert node.answers[3] == ["sim-2"]


async def test_a_follower_that_is_not_connected_makes_the_broker_unavailable(node: Publishing) -> None:
    answers: list[Any] = []
    node.request(event("queued"))
    node.publisher.set_following(False)
    node.request(event())
    node.publisher.head(answers.append)
    assert [error.status for error in (*node.answers, *answers)] == [503, 503, 503]
    node.publisher.set_following(True)
    await node.until(lambda: node.publisher.available)
    node.request(event("2"))
    await node.until(lambda: len(node.answers) == 3)
    assert node.answers[2] == ["sim-1"]  # the first request was withdrawn


async def test_a_draining_node_accepts_no_request(node: Publishing) -> None:
    node.hub.end_input()
    node.request(event())
    assert str(node.answers[0]) == "the server is draining"


async def test_a_cancelled_request_is_not_published(node: Publishing) -> None:
    node.request(event("1"))()
    receipt = node.publisher.publish_one(event("2"), 0.0)
    await node.until(lambda: bool(receipt.id))
    assert node.answers == []
    assert receipt.id == "sim-1"
    assert node.publisher.pending == 0


async def test_a_confirmation_waits_for_everything_before_it(node: Publishing) -> None:
    order = list[str]()
    node.publisher.confirm(lambda: order.append("nothing"))
    cancel = node.request(event("1"))
    receipt = node.publisher.publish_one(event("2"), 0.0)
    node.publisher.confirm(lambda: order.append(receipt.id))
    cancel()
    assert order == ["nothing"]
    await node.until(lambda: len(order) == 2)
    assert order == ["nothing", "sim-1"]


async def test_a_request_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_GRACE_S", 0.0)
    node = Publishing(block_timeout_s=0.01)
    hung = asyncio.Event()

    async def hang(call: int, requests: Any) -> Any:
        hung.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(node.broker, "publish", hang)
    await node.until(lambda: node.publisher.available)
    node.request(event("sent"))
    await hung.wait()
    node.request(event("waiting"))
    await node.until(lambda: len(node.answers) == 2)
    reasons = [str(error) for error in node.answers]
    assert reasons == ["the broker did not answer in time; it may be published yet", "the broker is unavailable"]
    await node.stop()


def fill(node: Publishing) -> list[Receipt]:
    """Fill the queue with the events of a source, and return their receipts."""
    receipts: list[Receipt] = []
    while not node.publisher.held("a"):
        receipts.append(node.publisher.publish_one(event("x"), 0.0))
    return receipts


async def test_sources_wait_while_the_queue_is_full(node: Publishing) -> None:
    receipts = fill(node)
    assert len(receipts) == QUEUE_EVENTS_MAX
    released = asyncio.Event()
    node.publisher.on_release(released.set)
    await released.wait()
    assert not node.publisher.held("a")
    await node.publisher.settle()
    assert [receipt.id for receipt in receipts] == [f"sim-{number}" for number in range(1, QUEUE_EVENTS_MAX + 1)]


async def test_requests_wait_while_the_queue_is_full(node: Publishing) -> None:
    fill(node)
    for _ in range(3):
        node.request(event())
    node.request(event())()  # cancelled
    assert node.publisher.pending == QUEUE_EVENTS_MAX
    await node.until(lambda: len(node.answers) == 3)
    assert node.answers == [[f"sim-{QUEUE_EVENTS_MAX + number}"] for number in (1, 2, 3)]
    await node.publisher.settle()
    assert node.publisher.pending == 0


async def test_requests_that_wait_for_the_queue_fail_if_the_broker_is_lost(node: Publishing) -> None:
    fill(node)
    node.request(event())
    node.publisher.set_following(False)
    await node.until(lambda: bool(node.answers))
    assert [(error.status, str(error)) for error in node.answers] == [(503, "the broker is unavailable")]


async def test_a_request_that_waits_for_the_queue_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_GRACE_S", 0.0)
    node = Publishing(block_timeout_s=0.01)

    async def hang(call: int, requests: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node.broker, "publish", hang)
    await node.until(lambda: node.publisher.available)
    fill(node)
    node.request(event())
    await node.until(lambda: bool(node.answers))
    assert [(error.status, str(error)) for error in node.answers] == [(503, "too many events wait for the broker")]
    assert node.publisher.pending == QUEUE_EVENTS_MAX
    await node.stop()


async def test_heads_are_answered_between_calls(node: Publishing) -> None:
    heads: list[Any] = []
    for _ in range(3):
        node.publisher.head(heads.append)
    await node.until(lambda: len(heads) == 3)
    assert heads == [1, 1, 1]
    assert node.broker.asked == 1


async def test_events_keep_their_order_over_lost_connections(node: Publishing) -> None:
    receipts = []
    for number in itertools.count():
        if number == 3000:
            break
        receipts.append(node.publisher.publish_one(event(str(number)), 0.0))
        if number % 500 == 0:
            node.log.lose_answers += 1
            await asyncio.sleep(0)
    await node.publisher.settle()
    assert [receipt.id for receipt in receipts] == [f"sim-{number}" for number in range(1, 3001)]
    assert [entry.payload for entry, _ in node.log.entries] == [
        b'{"data":"%d","topic":"a"}' % number for number in range(3000)
    ]


async def test_nothing_is_published_before_the_follower_has_compared_the_logs(node: Publishing) -> None:
    node.publisher.publish_one(event("1"), 0.0)
    node.publisher.publish_one(event("2"), 0.0)
    node.publisher.set_following(False)
    await node.until(lambda: node.publisher.connected)
    for _ in range(10):
        await asyncio.sleep(0)
    before = node.log.head
    node.publisher.set_following(True)
    await node.publisher.settle()
    assert (before, node.log.head) == (1, 3)
