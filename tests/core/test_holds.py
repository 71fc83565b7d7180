"""Holds: the topics that edges hold, by their terms."""

from __future__ import annotations

from relay.config.model import Config
from relay.core.holds import Holds
from tests.sim.world import World


def make_holds() -> Holds:
    """Make the holds of a hub without streams."""
    return World(Config()).hub.holds


def test_a_topic_is_held_while_an_edge_has_a_matching_term() -> None:
    holds, one, other = make_holds(), object(), object()
    holds.hold(one, ["o.*", "news"])
    holds.hold(other, ["o.**"])
    assert [holds.held(topic) for topic in ("o.x", "o.x.y", "news", "o", "new")] == [True, True, True, False, False]
    holds.hold(one, [])
    assert [holds.held(topic) for topic in ("o.x", "news")] == [True, False]
    holds.hold(other, [])
    assert not holds.held("o.x")
    assert holds.terms == ()


def test_patterns_that_several_terms_share_are_released_with_the_last() -> None:
    holds, edge = make_holds(), object()
    holds.hold(edge, ["*.x\no.*", "o.*", "o.*"])
    holds.hold(edge, ["o.*"])
    assert [holds.held(topic) for topic in ("o.y", "p.x")] == [True, False]
    holds.hold(edge, [])
    assert not holds.held("o.y")


def test_a_thousand_terms_of_an_edge_take_one_lookup() -> None:
    holds = make_holds()
    holds.hold(object(), [f"o.{number}.*" for number in range(1000)])
    assert holds.held("o.999.x")
    assert not holds.held("o.1000.x")
