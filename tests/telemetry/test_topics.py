"""GET /topics and GET /topics/{topic}: the pages, and the combination of the pages of several processes.

Covers `relay.telemetry.topics`.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from relay.config.model import Config
from relay.telemetry import topics
from relay.telemetry.topics import TopicsPage, TopicsQuery, TopicState
from tests.running import Relay, Stream, eventually, relay
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]


def page(world: World, **query: Any) -> TopicsPage:
    """Return a page."""
    *_, found = topics.find(world.hub, TopicsQuery(**query), 1_000_000.0)
    assert found is not None
    return found


def get(server: Relay, path: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an answer."""
    status, headers, body = server.request("GET", path)
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)


def test_a_page_has_the_first_names_after_another_name() -> None:
    world = World(Config())
    for topic in ("b", "a.x", "c", "a", "\u00fc", "b"):
        world.publish(topic, 10)
    world.connect(world.client(("a.*",), None, 1 << 20, "sse"))
    world.connect(world.client(("silent",), None, 1 << 20, "sse"))
    assert [state.topic for state in page(world).topics] == ["a", "a.x", "b", "c", "silent", "\u00fc"]
    first = page(world, limit=2)
    assert ([state.topic for state in first.topics], first.next) == (["a", "a.x"], "a.x")
    second = page(world, limit=4, after="a.x")
    assert ([state.topic for state in second.topics], second.next) == (["b", "c", "silent", "\u00fc"], None)
    b, silent = second.topics[0], second.topics[2]
    assert (b.events, b.newest_id, b.newest_time, b.subscribers) == (2, "sim-6", 1_001_000.0, 0)
    assert b.bytes == sum(len(world.hub.log.frame(sequence)) for sequence in (1, 6))
    assert silent == TopicState("silent", subscribers=1)
    assert first.topics[1].subscribers == 1
    assert page(world, topic="c").topics == [second.topics[1]]
    assert page(world, topic="unknown").topics == []


def test_a_search_takes_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "NAMES_A_STEP", 10)
    world = World(Config())
    for number in range(95):
        world.publish(f"t.{number:02}", 0)
    assert len(list(topics.find(world.hub, TopicsQuery(), 0.0))) == 11
    seen, after = [], ""
    while True:
        found = page(world, limit=7, after=after)
        seen += [state.topic for state in found.topics]
        if found.next is None:
            break
        after = found.next
    assert seen == [f"t.{number:02}" for number in range(95)]


def test_pages_of_several_processes_are_combined() -> None:
    hub = TopicsPage([TopicState("a", 1, 10, "e-1", 1.0, 1), TopicState("c", 1, 10, "e-2", 2.0)], "c")
    worker = TopicsPage([TopicState("a", 1, 10, "e-1", 1.1, 2), TopicState("b", subscribers=1)], None)
    combined = topics.combine([hub, worker], 2)
    assert combined.topics == [TopicState("a", 1, 10, "e-1", 1.0, 3), TopicState("b", subscribers=1)]
    assert combined.next == "b"
    assert topics.combine([worker, worker], 2).next is None


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_the_answer_covers_the_whole_server(arguments: tuple[str, ...]) -> None:
    with relay(*arguments) as server:
        ids = [server.publish(data, quote("a/b.\u00fc"))[0] for data in "xyz"]
        streams = [Stream(server.port, f"topic={quote('a/b.*')}&since=earliest") for _ in range(4)]
        for stream in streams:
            stream.take(3)
        one = "/topics/" + quote("a/b.\u00fc", safe="")
        eventually(lambda: get(server, one)[1]["subscribers"] == 4, "all streams are counted")
        status, state = get(server, one)
        assert (status, state["events"], state["newest_id"]) == (200, 3, ids[-1])
        assert abs(state["newest_time"] - time.time()) < 30
        assert get(server, "/topics") == (200, {"topics": [state], "next": None})
        assert get(server, "/topics/unknown")[0] == 404
        for query in ("limit=0", "limit=1001", "limit=x", "limit=99999999", "Limit=1"):
            assert get(server, f"/topics?{query}")[0] == 400
        for stream in streams:
            stream.close()
