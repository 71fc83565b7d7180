"""The settings of slow streams: the limits of their lag, and the action beyond a limit.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import MIB, setting


@dataclass(frozen=True, kw_only=True)
class SlowStreamSettings:
    """Limits of lag, and policies."""

    __slots__ = ()

    policy: str = setting(
        "drop-oldest",
        "Action for a slow stream. drop-oldest by default, because the newest events of a feed matter most.",
        "drop-oldest|drop-newest|conflate|disconnect|block",
    )
    policy_for: tuple[str, ...] = setting(
        (),
        "Policy for the streams of a topic or pattern, and after spaces its own limits (lag-events=10). relay uses "
        "the first one that matches.",
        "text",
        "'PATTERN=POLICY …'",
    )
    policy_request: tuple[str, ...] = setting(
        ("drop-oldest", "drop-newest", "conflate", "disconnect"),
        "Policy that a request may choose by ?policy=. Not `block` by default, because any client could then hold "
        "up publishers.",
        "text",
        "POLICY",
    )
    lag_bytes: int = setting(
        8 * MIB,
        "Hard limit of a stream's lag in bytes; 0 is off. By default an eighth of the default history, so that the "
        "policy acts long before the log laps the stream.",
        "size",
    )
    lag_events: int = setting(
        0,
        "Hard limit of a stream's lag in events. Off (0) by default, because lag-bytes already limits the lag.",
        "number",
    )
    lag_s: float = setting(
        0.0,
        "Hard limit of a stream's lag in time. Off (0) by default, because lag-bytes already limits the lag.",
        "duration",
    )
    lag_soft_bytes: int = setting(
        0,
        "Soft limit of a stream's lag in bytes: the policy acts once the lag has exceeded it for lag-soft-for. Off "
        "(0) by default, because a useful value depends on the feed.",
        "size",
    )
    lag_soft_events: int = setting(
        0, "Soft limit of a stream's lag in events, like lag-soft-bytes. Off (0) by default.", "number"
    )
    lag_soft_s: float = setting(
        0.0, "Soft limit of a stream's lag in time, like lag-soft-bytes. Off (0) by default.", "duration"
    )
    lag_soft_for_s: float = setting(
        10.0,
        "Time for which a stream may exceed a soft limit. 10 seconds by default, so that a short burst does not "
        "trigger the policy.",
        "duration",
    )
    block_timeout_s: float = setting(
        10.0,
        "Longest time that one `block` stream may hold up publishers before relay closes it. 10 seconds by "
        "default, because relay's clients wait 30 seconds for an acknowledgement over HTTP.",
        "duration",
        least=0.001,
    )
