"""The policies: relay's actions when the lag of a stream exceeds a limit.

Owns the limits and the choice of a stream's rule. All values are pure. Never acts on a stream; `relay.core.catchup`
does.

A limit of 0 is off. A single event never exceeds a limit, however large or old it is, because no policy can help.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

import msgspec

from relay.config.check import split_policy
from relay.config.model import Config
from relay.topic import TermTree


class Policy(StrEnum):
    """The policy for a slow stream."""

    DROP_OLDEST = "drop-oldest"
    DROP_NEWEST = "drop-newest"
    CONFLATE = "conflate"
    DISCONNECT = "disconnect"
    BLOCK = "block"


class Lag(NamedTuple):
    """The distance of a stream from the head: number, bytes and age of the events that it has not received."""

    events: int
    bytes: int
    age_s: float


class Limits(msgspec.Struct, frozen=True):
    """The maximum lag; 0 for no limit."""

    events: int = 0
    bytes: int = 0
    age_s: float = 0.0

    def passed(self, lag: Lag) -> bool:
        """Return whether the lag exceeds one of the limits."""
        return lag.events > 1 and (
            0 < self.bytes < lag.bytes or 0 < self.events < lag.events or 0 < self.age_s < lag.age_s
        )


class Rule(msgspec.Struct, frozen=True):
    """A policy and its limits. `hard` acts at once, `soft` after the lag exceeded it for `soft_for_s` seconds."""

    policy: Policy
    hard: Limits
    soft: Limits
    soft_for_s: float

    def fits(self, lag: Lag) -> bool:
        """Return whether the lag is within both limits."""
        return not self.hard.passed(lag) and not self.soft.passed(lag)

    def broken(self, lag: Lag, soft_since_s: float | None, now_s: float) -> bool:
        """Return whether the policy must act; `soft_since_s` is the time since which the lag exceeds the soft limit."""
        return self.hard.passed(lag) or (soft_since_s is not None and now_s - soft_since_s >= self.soft_for_s)


class Rules:
    """Chooses the rule of a stream: the first `policy-for` that matches one of its terms, else the server's policy.

    For a stream that requested a policy, only `policy-for` settings with this policy count. The stream then has the
    limits that the settings give this policy for its topics. Requesting the default policy changes nothing.
    """

    def __init__(self, config: Config) -> None:
        self._default = _rule(config)
        self._requested = {policy: _rule(replace(config, policy=policy.value)) for policy in Policy}
        self._rules: list[Rule] = []
        self._patterns: TermTree[int] = TermTree()
        for place, text in enumerate(config.policy_for):
            pattern, changed = split_policy(text, config)
            self._rules.append(_rule(changed))
            self._patterns.add(pattern, place)

    def choose(self, terms: Iterable[str], requested: str | None = None) -> Rule:
        """Return the rule for a stream of these terms; `requested` is a policy that the front has allowed."""
        if self._rules:
            matching = {place for term in terms for place in self._patterns.covering(term)}
            for place in sorted(matching):
                if requested in (None, self._rules[place].policy):
                    return self._rules[place]
        return self._default if requested is None else self._requested[Policy(requested)]


def _rule(config: Config) -> Rule:
    return Rule(
        Policy(config.policy),
        hard=Limits(config.lag_events, config.lag_bytes, config.lag_s),
        soft=Limits(config.lag_soft_events, config.lag_soft_bytes, config.lag_soft_s),
        soft_for_s=config.lag_soft_for_s,
    )
