"""Real nodes of a cluster: how the tests follow them and publish to them."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.redis_server import RedisServer
from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, eventually

JSON = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
QUICK = ("--retry-min", "1ms", "--retry-max", "2ms", "--cluster-timeout", "2s")


def follow(server: Relay, last_id: str = "", topic: str = "default") -> Stream:
    """Open a stream that resumes after an id."""
    return Stream(server.port, f"topic={topic}", {"Last-Event-ID": last_id} if last_id else {})


def data(stream: Stream, count: int) -> list[str]:
    """Return the data of the next events."""
    return [event.data for event in stream.take(count)]


def ready(server: Relay) -> bool:
    """Return whether a node is ready."""
    return server.request("GET", "/readyz")[0] == 200


def try_to_publish(server: Relay, text: str) -> tuple[int, dict[str, str], Any]:
    """Publish an event; return the status, the headers and the document."""
    status, headers, body = server.request("POST", "/publish", json.dumps({"data": text}).encode(), JSON)
    return status, headers, json.loads(body) if body else None


def publish(server: Relay, text: str) -> str:
    """Publish an event as soon as the node can publish, and return its id."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        status, _, document = try_to_publish(server, text)
        if status == 200:
            return str(document["ids"][0])
        assert status == 503, document
        assert time.monotonic() < deadline_s, "publishing does not work again"
        time.sleep(0.01)


def epoch(id: str) -> str:
    """Return the epoch of a default id."""
    return id.rpartition("-")[0]


def check_every_node(pair: tuple[Relay, Relay]) -> list[str]:
    """Publish four events at two nodes, and check that both deliver them with the same ids in the same order.

    Returns:
        The ids. The publisher chose the last one.
    """
    a, b = pair
    with follow(a) as at_a, follow(b) as at_b, Feeder(b.unix_path) as feeder:
        ids = [a.publish("1")[0], feeder.publish(data="2"), b.publish("3")[0], feeder.publish(data="4", id="own")]
        for stream in (at_a, at_b):
            assert [(event.data, event.id) for event in stream.take(4)] == list(zip("1234", ids, strict=True))
    assert [id.rpartition("-")[2] for id in ids] == ["1", "2", "3", "own"]
    return ids


def detach(redis: RedisServer) -> None:
    """Let the broker lose its replica, so that the replica lacks later entries."""
    redis.client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
    redis.client.execute_command("CLIENT", "KILL", "TYPE", "REPLICA")
    eventually(lambda: redis.client.info("replication")["connected_slaves"] == 0, "the replica is detached")
