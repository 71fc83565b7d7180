"""Holds: the topics whose publishers have to wait for a `block` stream, here or at an edge.

Owns what the edges hold up. Never waits, and never judges a stream of this process (`relay.catchup`).
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.audience import Audiences
from relay.catchup import CatchUp
from relay.topic import matcher

HOLDS_MAX = 1000
"""Terms that one edge holds up at a time, at most."""


class Holds:
    """The holds of one hub.

    Args:
        audiences: know which of them a topic has.
        catchup: knows which of them are held, and calls those that wait.
    """

    def __init__(self, audiences: Audiences, catchup: CatchUp) -> None:
        self._audiences = audiences
        self._catchup = catchup
        self._edges: dict[object, tuple[str, ...]] = {}

    def held(self, topic: str) -> bool:
        """Say whether publishers of a topic have to wait."""
        held = self._catchup.held
        if held and any(audience in held for audience in self._audiences.of_topic(topic) or ()):
            return True
        if not self._edges:
            return False
        return any(matcher(term)(topic) for terms in self._edges.values() for term in terms)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms whose publishers have to wait, sorted, at most `HOLDS_MAX`."""
        terms = {audience.term for audience in self._catchup.held}.union(*self._edges.values())
        return tuple(sorted(terms)[:HOLDS_MAX])

    def hold(self, edge: object, terms: Sequence[str]) -> None:
        """Let the publishers of these checked terms wait, for an edge; in place of those it held until now."""
        before = self._edges.pop(edge, ())
        if terms:
            self._edges[edge] = tuple(terms)
        if set(before).difference(terms):
            self._catchup.release()
