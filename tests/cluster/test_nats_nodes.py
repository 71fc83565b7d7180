"""Real nodes at a real JetStream server have the same events and ids, also when the server stalls or restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from tests.cluster.nodes import check_every_node, data, epoch, follow, publish, ready, try_to_publish
from tests.nats_server import NatsServer
from tests.running import Feeder, Relay, eventually, relay

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Run an empty server."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.close()


@pytest.fixture
def cluster_url(server: NatsServer) -> str:
    """Return the address of the broker."""
    return server.url


def test_every_node_has_the_same_events_ids_and_order(server: NatsServer, pair: tuple[Relay, Relay]) -> None:
    ids = check_every_node(pair)
    a, _ = pair
    with follow(a, "own") as stream:
        a.publish("5")
        assert data(stream, 1) == ["5"]
    with relay("--cluster", server.url, "--workers", "2") as new, follow(new, ids[0]) as stream:
        assert data(stream, 4) == ["2", "3", "4", "5"]
        assert epoch(new.publish("6")[0]) == epoch(ids[0])
        assert data(stream, 1) == ["6"]


def test_dedup_keys_and_the_end_of_a_topic_hold_at_every_node(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with Feeder(a.unix_path) as first, Feeder(b.unix_path) as second:
        id = first.publish(data="1", dedup="k")
        assert second.publish(data="1", dedup="k") == id
    with follow(b, topic="t") as stream:
        a.publish('{"event":"relay.end","data":"bye"}', "t", "application/json")
        assert [event.event for event in stream.rest()] == ["relay.end"]
    with pytest.raises(AssertionError, match="has ended"):
        b.publish("late", "t")


def test_a_restart_of_the_broker_keeps_the_log(server: NatsServer, pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(b) as stream, Feeder(a.unix_path) as feeder:
        [first] = a.publish("1")
        eventually(lambda: [node.stats()["log"]["head"] for node in pair] == [2, 2], "the nodes have the event")
        server.kill()
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails")
        assert try_to_publish(a, "refused")[0] == 503
        with follow(a, f"{epoch(first)}-0") as other:
            assert data(other, 1) == ["1"]  # from memory
        feeder.send({"data": "2", "ack": 2})
        server.start()
        assert feeder.answer() == {"ack": 2, "id": f"{epoch(first)}-2"}
        assert data(stream, 2) == ["1", "2"]
        eventually(lambda: ready(a) and ready(b), "/readyz succeeds")


def test_a_broker_that_stalls_loses_nothing(server: NatsServer, pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(b) as stream, Feeder(a.unix_path) as feeder:
        [id] = a.publish("1")
        server.signal(signal.SIGSTOP)
        feeder.send({"data": "2", "ack": 2})
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails", 60.0)
        server.signal(signal.SIGCONT)
        assert feeder.answer()["id"] == f"{epoch(id)}-2"
        assert data(stream, 2) == ["1", "2"]
        eventually(lambda: ready(a) and ready(b), "/readyz succeeds", 60.0)
    assert publish(a, "3") == f"{epoch(id)}-3"  # the call that was repeated was stored once


def test_an_empty_broker_starts_a_new_log_and_clients_are_notified(
    server: NatsServer, pair: tuple[Relay, Relay]
) -> None:
    a, _ = pair
    with follow(a) as stream:
        [old] = a.publish("1")
        stream.take(1)
        server.kill()
        server.start_empty()
        assert stream.rest() == []
    eventually(lambda: all(node.stats()["log"]["events"] == 0 and ready(node) for node in pair), "a new log")
    for node in pair:
        with follow(node, old) as stream:
            gap = stream.next()
            assert (gap.event, json.loads(gap.data)["reason"]) == ("relay.gap", "unknown")
    ids = [publish(node, "2") for node in pair]
    assert epoch(ids[0]) == epoch(ids[1]) != epoch(old)
    assert [id.rpartition("-")[2] for id in ids] == ["1", "2"]


def test_a_node_that_is_slower_than_the_removal_reports_a_gap(server: NatsServer, pair: tuple[Relay, Relay]) -> None:
    a, b = pair

    async def purge() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{server.port}")
        await client.jetstream().purge_stream("events", keep=5)
        await client.close()

    with follow(b) as stream:
        [first] = a.publish("0")
        stream.take(1)
        os.kill(b.pid, signal.SIGSTOP)
        a.publish("1")
        body = json.dumps([{"data": "x" * 1000} for _ in range(900)]).encode()
        headers = {"Authorization": "Bearer a-token-for-tests", "Content-Type": "application/json"}
        last = json.loads(a.request("POST", "/publish", body, headers)[2])["ids"][-1]
        asyncio.run(purge())
        os.kill(b.pid, signal.SIGCONT)
        stream.rest()
    eventually(lambda: b.stats()["log"]["head"] == a.stats()["log"]["head"], "the node has the log")
    assert b.stats()["cluster"]["lapped"] == 1
    with follow(b, first) as stream:
        gap = json.loads(stream.next().data)
        assert (gap["reason"], gap["from"]) == ("history", f"{epoch(first)}-2")
        while stream.next().id != last:
            pass
