"""Holds: the topics whose publishers have to wait for a `block` stream, here or at an edge.

Owns what the edges hold up. Never waits, and never judges a stream of this process (`relay.core.catchup`).
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core.audience import Audiences
from relay.core.catchup import CatchUp
from relay.topic import TermTree

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
        self._held: TermTree[tuple[object, str]] = TermTree()

    def held(self, topic: str) -> bool:
        """Say whether publishers of a topic have to wait."""
        held = self._catchup.held
        if held and any(audience in held for audience in self._audiences.of_topic(topic)):
            return True
        return bool(self._edges and self._held.covering(topic))

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms whose publishers have to wait, sorted, at most `HOLDS_MAX`."""
        terms = {audience.term for audience in self._catchup.held}.union(*self._edges.values())
        return tuple(sorted(terms)[:HOLDS_MAX])

    def hold(self, edge: object, terms: Sequence[str]) -> None:
        """Let the publishers of these checked terms wait, for an edge; in place of those it held until now."""
        before = self._edges.pop(edge, ())
        for term in before:
            self._held.remove(term, (edge, term))
        if terms:
            self._edges[edge] = tuple(dict.fromkeys(terms))
            for term in self._edges[edge]:
                self._held.add(term, (edge, term))
        if set(before).difference(terms):
            self._catchup.release()
