"""A stream as a value: the request that opens it, and its state when another process takes it over.

Owns these structures. Never opens, reads or writes a stream.
"""

from __future__ import annotations

import math

import msgspec

from relay.core.grant import ANYBODY, Grant
from relay.core.policy import Rule


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    """A request to open a stream.

    Args:
        terms: checked topics and patterns, each once, at least one.
        last_ids: the possible readings of the client's last id; empty without one.
        since_s: replay events of at most this age; `math.inf` for all retained events; None for new events only.
        policy: the client's choice among the policies that the settings allow; None for the configured policy.
        padding: begin with a comment of 2 KiB, which makes old browsers read the stream.
        head: the response head, which is sent first.
        form: name of the form of the body; see `relay.core.forms`.
        grant: the grant of the client.
        ends_s: end of the grant, in the hub's time.
        after: sequence of the last id, if the hub that feeds this one had to look it up.
        wait_s: maximum time until a poll is answered; ignored for other forms.
        events_max: maximum number of events in the answer to a poll; 0 for the default. Ignored for other forms.
        must_know: the last id comes from `since`. If it is unknown, begin at `since_s`; without `since_s`, reject.
        newest: of the retained events, replay only the newest of each topic and key; `since_s` is infinite.
    """

    terms: tuple[str, ...]
    last_ids: tuple[str, ...]
    since_s: float | None
    policy: str | None
    padding: bool
    head: bytes
    form: str = "sse"
    grant: Grant = ANYBODY
    ends_s: float = math.inf
    after: int | None = None
    must_know: bool = False
    wait_s: float = 0.0
    newest: bool = False
    events_max: int = 0

    @property
    def replays(self) -> bool:
        """Whether the stream may begin with retained events."""
        return bool(self.last_ids) or self.since_s is not None


PackedSubscription = tuple[tuple[str, ...], Rule, str]
"""The terms, the rule and the form that some streams share, for another process."""


class PackedLag(msgspec.Struct, array_like=True, frozen=True):
    """The state of a stream that is behind, for another process: `Lagging`, with `seen` as a count.

    An ordinal is valid in one log only. The head is the same in both logs, so `owed` counts back from the head.
    """

    replaying: bool
    refused: bool
    owed: int | None  # number of events of the subscription from `seen` to the head, with evicted ones
    soft_since_s: float | None
    over_since_s: float | None
    ceiling: int | None
    conflating: bool
    told: list[int]
    newest_until: int | None = None


class PackedStream(msgspec.Struct, frozen=True, array_like=True):
    """One open stream, for another process.

    A stream that is closing has a `reason`; any other stream has `behind`.
    """

    subscription: int
    address: str
    cursor: int
    pending: bytes
    written_s: float
    reason: str | None
    lease: tuple[float, str, Grant] | None
    behind: PackedLag | None
    content: tuple[int, int] = (0, 0)  # CRC-32 and size of the content, in a compressed form
