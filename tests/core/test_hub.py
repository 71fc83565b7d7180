"""The hub in a world with a virtual clock: the effects of one stream on other streams and on memory."""

from __future__ import annotations

import json
import logging
import math
from itertools import count

import pytest

from relay.config.model import Config
from relay.core.audience import Subscription
from relay.core.catchup import CatchUp
from relay.core.flush import SLICE_S
from relay.core.forms.registry import POLL
from relay.core.stream import Subscribe
from relay.errors import EventError, RequestError
from relay.event import Event
from relay.speedups import Chunk
from relay.telemetry.stats import Stats
from relay.telemetry.stats_schema import TopicStats
from tests.sim.conftest import native_engine
from tests.sim.world import Client, World

__all__ = ["native_engine"]


def stalled(world: World, policy: str) -> Client:
    """Connect a client that follows `a`, is live, and stops reading."""
    client = world.client(("a",), policy, 400)
    world.connect(client)
    world.read(client, 1 << 20)
    world.step()
    assert not world.engine.is_behind(world.engine.handles_by_fd[client.pipe.fd if client.pipe else 0])
    return client


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "conflate"])
def test_the_longest_ids_fit_into_a_gap(policy: str) -> None:
    world = World(Config(lag_events=2))
    client = stalled(world, policy)
    for number in range(20):
        world.publish("a", 10, "key", id=f"{number}-".ljust(1024, "\\"))
        world.step()
    world.settle()
    assert client.oracle.gaps > 0


def test_a_longer_id_is_rejected() -> None:
    world = World(Config())
    with pytest.raises(EventError, match="id: has 1025 characters"):
        world.hub.publish_one(Event(data="x", topic="a", id="x" * 1025), 0.0)


@pytest.mark.parametrize("key", ["k" * 257, "\N{SNOWMAN}" * 257])
def test_a_longer_key_is_rejected_because_the_log_keeps_it_beside_the_frame(key: str) -> None:
    world = World(Config())
    with pytest.raises(EventError, match="key: has 257 characters; at most 256"):
        world.hub.publish_one(Event(data="x", topic="a", key=key), 0.0)
    with pytest.raises(EventError, match="key: has 257 characters"):
        world.hub.publish([Event(data="x", topic="a", key=key, dedup="d")], 0.0)
    world.hub.publish_one(Event(data="x", topic="a", key=key[1:]), 0.0)


def test_a_poll_receives_no_event_of_a_former_epoch() -> None:
    world = World(Config())
    poll = Subscribe(("a",), (), math.inf, None, False, b"", POLL)
    for epoch in ("first", "second"):
        world.hub.begin(epoch, 1, 1, -math.inf, world.now_s)
        world.hub.publish_one(Event(data=epoch, topic="a"), world.now_s)
        answer = json.loads(world.hub.answer(poll, 10, world.now_s).body)
        assert answer == {"events": [{"id": f"{epoch}-1", "topic": "a", "data": epoch}], "next": f"{epoch}-1"}


def test_a_poll_is_not_answered_before_the_hub_knows_which_entries_were_evicted() -> None:
    world = World(Config())
    world.hub.begin("sim", 5, 5, 0.0, world.now_s)
    world.hub.knows_evicted = False
    poll = Subscribe(("a",), ("sim-1",), None, None, False, b"", POLL)
    with pytest.raises(RequestError) as raised:
        world.hub.answer(poll, 10, world.now_s)
    assert raised.value.status == 503
    world.hub.know_evicted([("a", 3, 0.0)], [], (0, -math.inf))
    assert b"relay.gap" in world.hub.answer(poll, 10, world.now_s).body


def test_an_error_while_serving_a_stream_ends_only_that_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(Config())
    stalled(world, "drop-oldest")
    other = world.client(("b",), None, 1 << 20)
    world.connect(other)
    world.publish("a", 1000)
    world.step()
    real = CatchUp._serve

    def failing(self: CatchUp, handle: int, now_s: float) -> bool:
        raise RuntimeError("planted")

    monkeypatch.setattr(CatchUp, "_serve", failing)
    world.read(world.clients[0], 1 << 20)
    with caplog.at_level(logging.ERROR):
        world.step()
    monkeypatch.setattr(CatchUp, "_serve", real)
    assert "cannot serve a stream" in caplog.text
    caplog.records[0].exc_info = None  # its frames refer to the world, and so to the engine's descriptor
    assert world.hub.closes == {"error": 1}
    world.publish("b", 10)
    world.step()
    world.read(other, 1 << 20)
    assert other.oracle.seen == 1


def test_an_error_while_serving_streams_together_ends_only_the_streams_of_this_subscription(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(Config())
    clients = [world.client((topic,), None, 400, "sse") for topic in ("a", "a", "b")]
    for client in clients:
        world.connect(client)
        world.read(client, 1 << 20)
    for topic in ("a", "b"):
        world.publish(topic, 1000)
        world.publish(topic, 10)
    world.step()
    real = CatchUp._chunk

    def failing(self: CatchUp, subscription: Subscription, cursor: int) -> Chunk | None:
        if subscription.terms == ("a",):
            raise RuntimeError("planted")
        return real(self, subscription, cursor)

    monkeypatch.setattr(CatchUp, "_chunk", failing)
    with caplog.at_level(logging.ERROR):
        for _ in range(10):
            for client in clients:
                world.read(client, 1 << 20)
            world.step()
    assert "cannot serve streams" in caplog.text
    caplog.records[0].exc_info = None  # its frames refer to the world, and so to the engine's descriptor
    assert world.hub.closes == {"error": 2}
    assert clients[2].oracle.seen == 2


def test_the_log_stays_bounded_with_a_stalled_block_stream() -> None:
    world = World(Config(history_bytes=10_000, event_bytes_max=2000, lag_bytes=5000))
    stalled(world, "block")
    world.publish("a", 1000)
    world.step()
    for _ in range(200):
        world.publish("other", 1000)
        world.step()
        assert world.hub.log.bytes <= 10_000 + 2000, "a half-sent frame keeps no entry of the log"
    world.publish("a", 1000)
    for _ in range(200):
        world.publish("other", 1000)
        world.step()
        assert world.hub.log.bytes <= 2 * 10_000 + 2000


def test_a_stream_receives_many_due_topics_in_order() -> None:
    world = World(Config())
    client = world.client(tuple(f"t{number}" for number in range(100)), None, 1 << 20)
    world.connect(client)
    for number in range(100):
        world.publish(f"t{number}", 10)
    while world.step():
        pass
    world.read(client, 1 << 20)
    assert client.oracle.seen == 100


def test_expensive_stats_are_computed_at_most_once_a_second() -> None:
    world = World(Config())
    stats = Stats(world.hub, lambda: 0, world.now_s)
    world.publish("a", 10)
    listed = stats.collect(world.now_s).topics
    assert listed == [TopicStats("a", 0, 1, 1)]
    world.publish("b", 10)
    assert stats.collect(world.now_s + 0.9).topics is listed
    assert len(stats.collect(world.now_s + 1.0).topics) == 2


def test_a_since_time_before_the_retained_events_causes_a_gap() -> None:
    world = World(Config(history_events=3))
    for _ in range(10):
        world.publish("a", 10)
        world.pass_time(1.0)
    for since_s, gaps in ((5.5, 1), (2.5, 0), (float("inf"), 0)):
        client = world.client(("a",), None, 1 << 20)
        world.connect(client, since_s)
        world.read(client, 1 << 20)
        assert client.oracle.gaps == gaps
    other = world.client(("b",), None, 1 << 20)
    world.connect(other, 5.5)
    world.read(other, 1 << 20)
    assert other.oracle.gaps == 0


def test_all_streams_that_catch_up_under_a_steady_feed_become_live() -> None:
    world = World(Config())
    for _ in range(200):
        world.connect(world.client(("a",), None, 1 << 20))
    while world.step():
        pass
    for handle in world.engine.handles():
        world.hub._fall_behind(handle, world.hub.log.head)  # as a flush that is too large does, and an upgrade
    turns = 0
    while any(map(world.engine.is_behind, world.engine.handles())):
        world.publish("a", 10)
        world.hub.turn(world.now_s)
        turns += 1
        assert turns <= 8, "one round, 32 streams a turn"
    world.settle()


def test_a_topic_that_was_deleted_reports_only_its_own_losses() -> None:
    """Many topics are short-lived. A resume after the last event of one is complete, even if others lost events."""
    world = World(Config(history_events=5))
    clients = []
    for number in range(50):
        client = world.client((f"job.{number}",), None, 1 << 20)
        world.connect(client)
        for _ in range(3):
            world.publish(f"job.{number}", 10)
        world.step()
        world.read(client, 1 << 20)
        world.cut(client)
        world.step()
        clients.append(client)
    for client in clients:
        world.connect(client)
    world.settle()
    assert world.hub.resumes == {"hit": 50}
    assert sum(client.oracle.gaps for client in clients) == 0
    late = world.client(("job.7",), None, 1 << 20)
    late.last_id = "sim-22"  # the client has received the first of three
    world.connect(late)
    assert world.hub.resumes == {"hit": 50, "gap": 1}


def test_closed_streams_leave_their_audiences_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream may leave a thousand audiences. The other streams wait for one slice at most."""
    world = World(Config())
    for number in range(10):
        client = world.client(tuple(f"{number}.{each}" for each in range(10)), None, 1 << 20)
        world.connect(client)
    ticks = count()
    monkeypatch.setattr(world.hub, "_clock", lambda: next(ticks) * SLICE_S * 0.75)
    for handle in world.engine.handles():
        world.engine.abort(handle, "client")
    left = []
    while world.hub.turn(world.now_s):
        left.append(len(world.hub.audiences.indexes()))
    assert left == [80, 60, 40, 20]
    assert world.hub.audiences.indexes() == []
    assert world.hub.closes == {"client": 10}


def test_a_stream_that_waited_for_its_replay_is_live_after_a_flush_during_the_wait() -> None:
    """The audience has no stream yet when the flush sends an event that marked it."""
    world = World(Config())
    world.slices = True
    for _ in range(10):
        world.publish("p.a", 10)
    client = world.client(("p.*",), None, 1 << 20)
    world.prepare(client, math.inf)
    assert client.pipe is None, "the client waits"
    world.publish("p.a", 10)
    world.settle()
    assert client.oracle.seen == 11
    world.publish("p.a", 10)
    world.settle()
    assert client.oracle.seen == 12
