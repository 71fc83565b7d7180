"""A stream as a value: the request that opens it, and its state when it passes to another process.

Owns these forms. Never opens, reads or writes a stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from relay.core.grant import ANYBODY, Grant


@dataclass(frozen=True, slots=True)
class Subscribe:
    """What a client wants to follow.

    Args:
        terms: checked topics and patterns, each once, at least one.
        last_ids: the readings of the last id that the client saw; empty without one.
        since_s: replay what is at most that old; `math.inf` for all that is retained; None for only what comes.
        policy: the policy it chose, allowed by the settings; None leaves it to them.
        padding: it wants a comment of 2 KiB first, which makes old browsers begin.
        head: the response head, to be sent before anything else.
        grant: for whom it is opened.
        ends_s: when the grant ends, in the hub's time.
        after: sequence of the last id, where whoever feeds this hub had to be asked for it.
        must_know: the last id is one that `since` names; an unknown one begins at `since_s`, or is refused without it.
    """

    terms: tuple[str, ...]
    last_ids: tuple[str, ...]
    since_s: float | None
    policy: str | None
    padding: bool
    head: bytes
    grant: Grant = ANYBODY
    ends_s: float = math.inf
    after: int | None = None
    must_know: bool = False


class PackedLag(msgspec.Struct, array_like=True, frozen=True):
    """The state of a stream that lags or replays, for another process: `Lagging`, with `seen` as a count.

    An ordinal of one log has no meaning in another, and an evicted entry has none. The head is the same in both, so
    `owed` counts from there.
    """

    replaying: bool
    refused: bool
    owed: int  # events of the subscription from `seen` to the head, evicted ones included
    soft_since_s: float | None
    over_since_s: float | None
    ceiling: int | None
    conflating: bool
    told: list[int]


class PackedStream(msgspec.Struct, frozen=True, array_like=True):
    """One open stream, for another process.

    `reason` is set for a stream that is closing, `behind` for another one.
    """

    subscription: int
    address: str
    cursor: int
    pending: bytes
    written_s: float
    reason: str | None
    lease: tuple[float, str, Grant] | None
    behind: PackedLag | None
