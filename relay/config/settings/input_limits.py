"""The limits of input: sizes of events and requests, times of connections, and the rate of new connections.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import KIB, MIB, setting


@dataclass(frozen=True, kw_only=True)
class InputLimitSettings:
    """Sizes, times and rates of input."""

    __slots__ = ()

    event_bytes_max: int = setting(
        1 * MIB,
        "Largest event as sent, never more than history-bytes. 1MiB by default, so that one event takes at most "
        "1/64 of the default history.",
        "size",
        least=64,
    )
    validate: tuple[str, ...] = setting(
        (),
        "Rule for the data of events on the topics of a pattern: a largest size (logs.**=size 4KiB), or a JSON Schema "
        "in a file (orders.*=schema order.json), which needs jsonschema-rs. All rules that match apply. None by "
        "default, because each check costs time.",
        "text",
        "'PATTERN=RULE VALUE'",
    )
    line_bytes_max: int = setting(
        8 * MIB,
        "Longest line of a feeder. 8MiB by default, because JSON may need six bytes for one byte of the largest event.",
        "size",
        least=1,
    )
    body_bytes_max: int = setting(
        8 * MIB,
        "Largest body of a publish request; relay answers a larger one with 413. 8MiB by default, because JSON may "
        "need six bytes for one byte of the largest event.",
        "size",
        least=1,
    )
    batch_events_max: int = setting(
        10_000,
        "Events of one publish request, which are published together; relay answers more with 413. 10000 by "
        "default, because streams wait while a request is published.",
        "number",
        least=1,
    )
    head_bytes_max: int = setting(
        16 * KIB,
        "Largest request head; relay answers a larger one with 431 or 414. 16KiB by default, because most proxies "
        "accept header lines of up to 8 KiB.",
        "size",
        least=KIB,
    )
    head_timeout_s: float = setting(
        10.0,
        "Time from accept, or from the first byte after an answer, to a complete request head. 10 seconds by "
        "default: enough for a slow network, and a stalled client is closed soon.",
        "duration",
        least=0.001,
    )
    line_timeout_s: float = setting(
        300.0,
        "Time without a line after which relay ends a publish request that stays open; an empty line counts. 5 minutes "
        "by default, because logs pause, and an unused connection must end.",
        "duration",
        least=0.001,
    )
    keepalive_timeout_s: float = setting(
        60.0,
        "Time that a connection without a stream may be idle between requests. 60 seconds by default, the same as "
        "in common proxies.",
        "duration",
        least=0.001,
    )
    backlog: int = setting(
        4096,
        "Connections that may wait for accept; the kernel caps the number at net.core.somaxconn. 4096 by default, "
        "like net.core.somaxconn since Linux 5.4.",
        "number",
        least=1,
        most=2**31 - 1,
    )
    accept_rate: int = setting(
        0,
        "Connections accepted per second; the others wait in the backlog. Off (0) by default, because the right "
        "rate depends on the machine: one core accepts some thousands, with TLS some hundreds.",
        "number",
    )
    half_open_max: int = setting(
        4096,
        "Connections without a complete request head; above it, new ones wait in the backlog, and relay closes the "
        "oldest once it has waited five seconds. 4096 by default, like the backlog; 0 is off.",
        "number",
    )
