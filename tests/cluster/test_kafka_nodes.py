"""Real nodes at the mock broker of librdkafka have the same events and ids, also when the broker stalls."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.cluster.nodes import QUICK, check_every_node, data, epoch, follow, ready, try_to_publish
from tests.kafka_server import KafkaServer
from tests.running import Feeder, Relay, eventually, relay

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[KafkaServer]:
    """Run an empty broker."""
    server = KafkaServer()
    yield server
    server.close()


@pytest.fixture
def cluster_url(server: KafkaServer) -> str:
    """Return the address of the broker."""
    return server.url


def test_every_node_has_the_same_events_ids_and_order(pair: tuple[Relay, Relay]) -> None:
    ids = check_every_node(pair)
    a, b = pair
    with follow(b, ids[0]) as stream:
        assert data(stream, 3) == ["2", "3", "4"]
    with follow(a, "own") as stream:
        a.publish("5")
        assert data(stream, 1) == ["5"]


def test_a_new_node_has_the_history_and_the_epoch(server: KafkaServer, pair: tuple[Relay, Relay]) -> None:
    a, _ = pair
    [first] = a.publish("1")
    a.publish("2")
    with relay("--cluster", server.url, "--workers", "2") as new, follow(new, first) as stream:
        assert data(stream, 1) == ["2"]
        assert epoch(new.publish("3")[0]) == epoch(first)
        assert data(stream, 1) == ["3"]


def test_dedup_keys_and_the_end_of_a_topic_hold_at_every_node(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with Feeder(a.unix_path) as first, Feeder(b.unix_path) as second:
        id = first.publish(data="1", dedup="k")
        eventually(lambda: b.stats()["log"]["head"] == 2, "the other node has the event")
        assert second.publish(data="1", dedup="k") == id
    with follow(b, topic="t") as stream:
        a.publish('{"event":"relay.end","data":"bye"}', "t", "application/json")
        assert [event.event for event in stream.rest()] == ["relay.end"]
    with pytest.raises(AssertionError, match="has ended"):
        b.publish("late", "t")


def test_events_that_two_nodes_publish_at_once_are_delivered_once(
    server: KafkaServer, pair: tuple[Relay, Relay]
) -> None:
    a, b = pair
    events = [{"data": str(number), "dedup": str(number), "ack": number} for number in range(200)]
    with (
        relay("--cluster", server.url, "--workers", "2", *QUICK) as workers,
        Feeder(a.unix_path) as first,
        Feeder(b.unix_path) as second,
        ExitStack() as stack,
    ):
        streams = [stack.enter_context(follow(node)) for node in (a, b, workers)]
        for event in events:
            first.send(event)
            second.send(event)
        answers = [first.answer() for _ in events]
        assert answers == [second.answer() for _ in events]
        a.publish("end")
        for stream in streams:
            received = stream.take(len(events) + 1)
            assert [event.data for event in received] == [*map(str, range(len(events))), "end"]
            assert [event.id for event in received[:-1]] == [answer["id"] for answer in answers]
        assert a.stats()["log"]["head"] > len(events) + 2, "no event reached the log twice"


def test_a_broker_that_stalls_makes_nodes_unready_and_loses_nothing(
    server: KafkaServer, pair: tuple[Relay, Relay]
) -> None:
    a, b = pair
    with follow(b) as stream, Feeder(a.unix_path) as feeder:
        [id] = a.publish("1")
        eventually(lambda: [node.stats()["log"]["head"] for node in pair] == [2, 2], "the nodes have the event")
        server.signal(signal.SIGSTOP)
        feeder.send({"data": "2", "ack": 2})
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails")
        eventually(lambda: try_to_publish(a, "refused")[0] == 503, "publishing is refused", 60.0)
        with follow(a, f"{epoch(id)}-0") as other:
            assert data(other, 1) == ["1"]  # from memory
        server.signal(signal.SIGCONT)
        assert feeder.answer()["id"] == f"{epoch(id)}-2"
        assert data(stream, 2) == ["1", "2"]
        eventually(lambda: ready(a) and ready(b), "/readyz succeeds")


def test_a_node_that_is_slower_than_the_retention_reports_a_gap(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(b) as stream:
        [first] = a.publish("0")
        stream.take(1)
        os.kill(b.pid, signal.SIGSTOP)
        for _ in range(12):  # the mock broker keeps 5 MB; the client library of the node buffers some
            a.publish("x" * 900_000)
        [last] = a.publish("last")
        os.kill(b.pid, signal.SIGCONT)
        stream.rest()
    eventually(lambda: b.stats()["log"]["head"] == 15, "the node has the log")
    assert b.stats()["cluster"]["lapped"] == 1
    with follow(b, first) as stream:
        gap = json.loads(stream.next().data)
        assert (gap["reason"], gap["from"]) == ("history", f"{epoch(first)}-2")
        while stream.next().id != last:
            pass
