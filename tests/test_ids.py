"""The ids that publishers can use."""

from __future__ import annotations

import pytest

from relay.config.model import Config
from relay.errors import EventError
from relay.event import Event
from relay.ids import check_id, may_keep
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]


@pytest.mark.parametrize("id", ["1", "a b", "~", "!", "a-1", "x" * 1024, "2026-01-01T00:00Z", '{"a": 1}', "deadbeef-x"])
def test_an_id_that_every_client_can_send_back_is_accepted(id: str) -> None:
    check_id(id)


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("", "printable ASCII"),
        (" ", "printable ASCII"),
        (" a", "printable ASCII"),
        ("a ", "printable ASCII"),
        ("a\t", "printable ASCII"),
        ("a\x01b", "printable ASCII"),
        ("a\x7fb", "printable ASCII"),
        ("a\nb", "printable ASCII"),
        ("a\n", "printable ASCII"),
        ("a\0", "printable ASCII"),
        ("caf\u00e9", "printable ASCII"),
        ("\u20ac", "printable ASCII"),
        ("\ud800", "printable ASCII"),
        ("x" * 1025, "1025 characters"),
        ("5f0c21aa-3", "the form of the ids that relay assigns"),
        ("00000000-0", "the form of the ids that relay assigns"),
    ],
)
def test_any_other_id_is_rejected_from_every_publisher(id: str, reason: str) -> None:
    world = World(Config())
    event = Event(data="x", topic="a", id=id)
    with pytest.raises(EventError, match=reason):
        world.hub.publish_one(event, 0.0)
    with pytest.raises(EventError, match=reason):
        world.hub.publish([event], 0.0)
    assert world.hub.log.head == 1


def test_an_upstream_event_with_an_unusable_id_receives_a_default_id() -> None:
    world = World(Config())
    for id, kept in (("5f0c21aa-3", "5f0c21aa-3"), ("caf\u00e9", "sim-2"), ("sim-9", "sim-3"), ("x" * 1025, "sim-4")):
        assert world.hub.publish_one(Event(data="x", topic="a", id=id), 0.0, foreign=True) == kept
    assert not may_keep("sim-1", "sim")
