"""Replays of patterns: indexes are completed in slices, and one pass over the log serves all waiting streams."""

from __future__ import annotations

from itertools import count

import pytest

from relay.core import backfill as backfill_module
from relay.core import replays as replays_module
from relay.core.audience import Audiences, Subscription
from relay.core.flush import SLICE_S
from relay.core.forms.registry import all_forms
from relay.core.log import Log
from relay.core.policy import Limits, Policy, Rule
from relay.core.replays import Replays
from relay.errors import RequestError

RULE = Rule(Policy.DROP_OLDEST, Limits(), Limits(), 10.0)
ENTRIES = 100


class World:
    """A log with entries, in which each step of a pass takes a third of a slice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backfill_module, "STEP_ROWS", 10)
        self.log = Log("e", bytes_max=1 << 30)
        self.audiences = Audiences(self.log)
        self.forms = all_forms()
        self.publish(ENTRIES)
        ticks = count()
        self.replays = Replays(self.log, self.audiences, lambda: next(ticks) * SLICE_S / 3)
        self.done: list[str] = []

    def publish(self, times: int) -> None:
        """Append entries."""
        for number in range(times):
            name = ("o.x", "p", "o.y")[number % 3]
            known = self.log.topics.get(name) or self.audiences.add_topic(name)
            self.log.append(known, b"x", None, None, 0.0)

    def subscription(self, *terms: str) -> Subscription:
        """Return a subscription, as the hub makes it for a future stream."""
        return self.audiences.get(terms, RULE, self.forms["sse"])

    def is_complete(self, subscription: Subscription) -> bool:
        """Return whether its only index lists all entries of `o.*`."""
        wanted = [s for s in range(1, self.log.head) if self.log.entry(s).topic.startswith("o.")]
        return [list(index.sequences) for index in subscription.indexes] == [wanted]

    def finish(self) -> int:
        """Run turns until no work is left; return their number."""
        for turns in count():
            if not self.replays.due:
                return turns
            self.replays.turn()
        raise AssertionError


def test_a_replay_calls_back_after_its_indexes_are_complete_and_others_have_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    subscription = world.subscription("o.*")
    complete: list[bool] = []
    world.replays.prepare(subscription, 1, lambda _: complete.append(world.is_complete(subscription)), evicted=False)
    assert complete == []
    world.publish(10)
    assert world.finish() > 2
    assert complete == [True]


def test_a_subscription_is_kept_for_the_callback_and_released_without_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    subscription = world.subscription("o.*")

    def enter(_: RequestError | None) -> None:
        assert world.subscription("o.*") is subscription
        assert world.audiences.wanted(subscription, 1, evicted=False) == []
        world.audiences.enter(subscription)

    world.replays.prepare(subscription, 1, enter, evicted=False)
    world.finish()
    assert world.audiences.indexes() == list(subscription.indexes)
    other = world.subscription("p.*")
    world.replays.prepare(other, 1, lambda _: None, evicted=False)
    world.finish()
    assert world.audiences.indexes() == list(subscription.indexes)


def test_replays_requested_during_a_pass_share_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    passes: list[int] = []
    real = backfill_module.backfill

    def counted(log: Log, wanted: list[backfill_module.Wanted], cursor: int, *, evicted: bool) -> object:
        passes.append(len(wanted))
        return real(log, wanted, cursor, evicted=evicted)

    monkeypatch.setattr(replays_module, "backfill", counted)
    subscriptions = [world.subscription("o.*"), *(world.subscription("o.*", f"other.{n}") for n in range(20))]
    for number, subscription in enumerate(subscriptions):
        world.replays.prepare(subscription, 1, lambda _, n=number: world.done.append(str(n)), evicted=False)  # type: ignore[misc]
    world.finish()
    assert sorted(world.done, key=int) == [str(number) for number in range(21)]
    assert passes == [1, 0]


def test_a_cancelled_replay_does_not_call_back_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    subscription = world.subscription("o.*")
    [index] = subscription.indexes
    cancels = [
        world.replays.prepare(subscription, 1, lambda _: world.done.append("called"), evicted=False) for _ in range(2)
    ]
    cancels[0]()
    assert world.audiences.indexes() == [index]
    cancels[1]()
    assert world.audiences.indexes() == []
    world.finish()
    assert world.done == []
    assert len(index.sequences) == 0


def test_a_log_that_begins_again_rejects_the_waiting_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting replay may refer to a sequence that belongs to another event in the new log."""
    world = World(monkeypatch)
    results: list[RequestError | None] = []
    for term in ("o.*", "p.*"):  # The second one waits for the pass of the first one.
        world.replays.prepare(world.subscription(term), 1, results.append, evicted=True)
    world.log.begin("f", 5000, 0.0, world.audiences.indexes())
    world.replays.begin()
    assert [error and error.status for error in results] == [503, 503]
    assert not world.replays.due
    assert world.audiences.indexes() == []
