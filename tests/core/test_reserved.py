"""Only relay sends event types that start with `relay.`, so that subscribers can trust them.

Covers `relay.core.writer`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.config.model import Config
from relay.errors import EventError
from relay.event import Event
from tests.running import TOKEN, Feeder, Stream, eventually, relay
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]

JSON = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


@pytest.mark.parametrize("kind", ["relay.gap", "relay.heartbeat", "relay.", "relay.ends", "relay.not-yet"])
def test_a_reserved_type_is_rejected_from_every_publisher(kind: str) -> None:
    world = World(Config())
    for dedup in (None, "d"):
        event = Event(data="x", topic="a", event=kind, dedup=dedup)
        with pytest.raises(EventError, match=r"^event: .* reserved"):
            world.hub.publish_one(event, 0.0)
        with pytest.raises(EventError, match=r"^event: .* reserved"):
            world.hub.publish([Event(data="x", topic="a"), event], 0.0)
    assert (world.hub.log.head, len(world.hub.writer.seen)) == (1, 0), "nothing has changed"


@pytest.mark.parametrize("kind", [None, "relay", "relayed", "Relay.gap", "x.relay.gap", "relay.end"])
def test_other_types_and_the_end_of_a_topic_are_accepted(kind: str | None) -> None:
    world = World(Config())
    world.hub.publish_one(Event(data="x", topic="a", event=kind), 0.0)
    world.hub.publish([Event(data="x", topic="b", event=kind)], 0.0)
    assert world.hub.log.head == 3


def test_reserved_types_of_another_server_are_accepted() -> None:
    world = World(Config())
    world.hub.publish_one(Event(data="{}", topic="a", event="relay.gap"), 0.0, foreign=True)
    assert world.hub.log.head == 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_source_can_forge_a_gap(workers: str, tmp_path: Path) -> None:
    forged = {"event": "relay.gap", "data": "{}"}
    stdin = tmp_path / "input"
    stdin.write_text(json.dumps(forged) + "\n" + json.dumps({"data": "from stdin"}) + "\n")
    feeders = ("--unix", str(tmp_path / "feeders"), "--workers", workers)
    with stdin.open("rb") as input, relay(*feeders, stdin=input) as server:
        status, _, body = server.request("POST", "/publish", json.dumps(forged).encode(), JSON)
        assert (status, json.loads(body)["field"]) == (400, "event")
        with Feeder(server.unix_path) as feeder:
            feeder.send(forged | {"ack": 1})
            assert "reserved" in feeder.answer()["error"]
        server.publish("last")
        eventually(lambda: bool(server.messages("stdin, line 1: event: ")), "the line on stdin is rejected")
        with Stream(server.port, "since=earliest") as stream:
            assert {event.data for event in stream.take(2)} == {"from stdin", "last"}
