"""The settings of stopping and upgrading.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """The drain and the upgrade."""

    __slots__ = ()

    exit_on_eof: bool = setting(
        False,
        "Drain and exit when standard input ends. Off by default, because other sources may still publish.",
        "switch",
    )
    drain_delay_s: float = setting(
        0.0,
        "Time for which a drain only fails /readyz and continues to serve, so that a load balancer stops sending "
        "clients first. Off (0) by default, because it delays every stop.",
        "duration",
        most=3600,
    )
    drain_spread_s: float = setting(
        5.0,
        "Time span, beginning at retry-min, over which the clients of a drain reconnect. 5 seconds by default, so "
        "that they do not all reach the next server at once.",
        "duration",
        most=3600,
    )
    drain_rate: int = setting(
        2000,
        "Streams per second that a drain ends; more if half of drain-timeout would not suffice. By default about "
        "the handshakes that one core accepts beside its other work.",
        "number",
        least=1,
    )
    drain_timeout_s: float = setting(
        10.0,
        "Time for streams to read the rest of the log and to close, once relay has stopped accepting. 10 seconds "
        "by default, below the 30 seconds that Kubernetes waits.",
        "duration",
    )
    upgrade_timeout_s: float = setting(
        30.0,
        "Time for the new process of an upgrade to start and to receive the log; after that, the old process "
        "continues. 30 seconds by default, to leave time for a large history.",
        "duration",
        least=1,
    )
