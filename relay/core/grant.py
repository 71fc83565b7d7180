"""Grants: the topics that a client may read and write, and their expiry.

Owns the rule that a grant must cover the whole request. Never reads a token; `relay.auth.tokens` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from relay.errors import RequestError
from relay.topic import TermTree

EVERYTHING = ("**",)
COVERS_CACHED = 1024
"""Number of comparisons of a grant with terms that are kept, for clients that reconnect."""
_REALM = 'Bearer realm="relay"'


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights of a client.

    Args:
        subject: the subject, which limits and revocation use; empty for an anonymous client.
        id: the id of the token (`jti`); empty if it has none.
        subscribe: topics and patterns that may be read.
        publish: topics and patterns that may be written.
        signal: topics and patterns to whose feeders signals may be sent.
        ends_s: time at which the grant expires.
    """

    subject: str = ""
    id: str = ""
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    signal: tuple[str, ...] = ()
    ends_s: float = math.inf

    def check_subscribe(self, terms: tuple[str, ...]) -> None:
        """Raise RequestError 403 unless the grant covers each term for reading."""
        _check(self.subscribe, terms, "read")

    def check_publish(self, topics: set[str]) -> None:
        """Raise RequestError 403 unless the grant covers all topics for writing."""
        _check(self.publish, sorted(topics), "publish on")

    def check_signal(self, topic: str) -> None:
        """Raise RequestError 403 unless the grant covers the topic for signals."""
        _check(self.signal, (topic,), "signal")


ANYBODY = Grant(subscribe=EVERYTHING)
"""The grant of every client if subscribing needs no token."""


def _check(granted: tuple[str, ...], terms: Iterable[str], doing: str) -> None:
    if granted == EVERYTHING:
        return
    term = _uncovered(granted, tuple(terms))
    if term is not None:
        raise RequestError(403, f"the token does not allow to {doing} {term!r}", challenge("insufficient_scope"))


@lru_cache(COVERS_CACHED)
def _uncovered(granted: tuple[str, ...], terms: tuple[str, ...]) -> str | None:
    """Return the first term that no granted pattern covers; None if all are covered."""
    tree: TermTree[str] = TermTree()
    for each in granted:
        tree.add(each, each)
    for term in terms:
        if not tree.covering(term):
            return term
    return None


def challenge(error: str = "") -> tuple[tuple[str, str], ...]:
    """Return the challenge header; without an error code if no token was sent (RFC 6750 section 3)."""
    return (("WWW-Authenticate", f'{_REALM}, error="{error}"' if error else _REALM),)
