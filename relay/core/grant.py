"""Grants: what somebody may do, and how long.

Owns the rule that a request must lie wholly within its grant. Never reads a token: `relay.auth.tokens` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from relay.errors import RequestError
from relay.topic import TermTree

EVERYTHING = ("**",)
_REALM = 'Bearer realm="relay"'


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may do.

    Args:
        subject: who it is, empty for nobody in particular; limits and revocation go by it.
        id: the token's own id (`jti`), empty when it has none.
        subscribe: topics and patterns that may be read.
        publish: topics and patterns that may be written.
        ends_s: the time from which on it is void.
    """

    subject: str = ""
    id: str = ""
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    ends_s: float = math.inf

    def check_subscribe(self, terms: tuple[str, ...]) -> None:
        """Raise RequestError 403 unless each term lies wholly within what may be read."""
        _check(self.subscribe, terms, "read")

    def check_publish(self, topics: set[str]) -> None:
        """Raise RequestError 403 unless all topics may be written."""
        _check(self.publish, sorted(topics), "publish on")


ANYBODY = Grant(subscribe=EVERYTHING)
"""What everybody has where reading is open."""


def _check(granted: tuple[str, ...], terms: Iterable[str], doing: str) -> None:
    if granted == EVERYTHING:
        return
    tree: TermTree[str] = TermTree()
    for each in granted:
        tree.add(each, each)
    for term in terms:
        if not tree.covering(term):
            raise RequestError(403, f"the token does not allow to {doing} {term!r}", challenge("insufficient_scope"))


def challenge(error: str = "") -> tuple[tuple[str, str], ...]:
    """Return the header of a refusal; with no error code where no token was sent (RFC 6750 section 3)."""
    return (("WWW-Authenticate", f'{_REALM}, error="{error}"' if error else _REALM),)
