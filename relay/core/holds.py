"""Holds: the topics whose publishers have to wait for a `block` stream, in this process or at an edge.

Owns the held topics and the callbacks of the waiting publishers. Never judges a stream (`relay.core.catchup` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from relay.core.audience import Audience, Audiences
from relay.topic import TermTree

HOLDS_MAX = 1000
"""Maximum number of terms that one edge holds at a time."""


class Holds:
    """The holds of one hub.

    Args:
        audiences: the hub's audiences.
    """

    def __init__(self, audiences: Audiences) -> None:
        self.audiences: AbstractSet[Audience] = frozenset()  # held by streams of this process
        self._all_audiences = audiences
        self._on_change: Callable[[], None] | None = None
        self._on_release: list[Callable[[], None]] = []
        self._edges: dict[object, tuple[str, ...]] = {}
        self._held: TermTree[tuple[object, str]] = TermTree()

    def held(self, topic: str) -> bool:
        """Return whether publishers of a topic have to wait."""
        held = self.audiences
        if held and any(audience in held for audience in self._all_audiences.of_topic(topic)):
            return True
        return bool(self._edges and self._held.covering(topic))

    @property
    def terms(self) -> tuple[str, ...]:
        """The held terms, sorted, at most `HOLDS_MAX`."""
        terms = {audience.term for audience in self.audiences}.union(*self._edges.values())
        return tuple(sorted(terms)[:HOLDS_MAX])

    def hold(self, edge: object, terms: Sequence[str]) -> None:
        """Replace the terms that an edge holds with these checked terms."""
        before = self._edges.pop(edge, ())
        for term in before:
            self._held.remove(term, (edge, term))
        if terms:
            self._edges[edge] = tuple(dict.fromkeys(terms))
            for term in self._edges[edge]:
                self._held.add(term, (edge, term))
        if set(before).difference(terms):
            self.release()

    def hold_audiences(self, audiences: AbstractSet[Audience]) -> None:
        """Replace the audiences that the streams of this process hold."""
        before, self.audiences = self.audiences, audiences
        if before != audiences and self._on_change is not None:
            self._on_change()
        if before - audiences:
            self.release()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back each time the audiences that the streams of this process hold change."""
        self._on_change = callback

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, when a topic is released."""
        self._on_release.append(callback)

    def release(self) -> None:
        """Call all waiting publishers back; each checks its own topic again."""
        waiting, self._on_release = self._on_release, []
        for callback in waiting:
            callback()
