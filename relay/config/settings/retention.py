"""The settings of the history: which events and dedup keys relay keeps, where, and for how long.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import KIB, MIB, setting


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """Retained events and dedup keys."""

    __slots__ = ()

    history_age_s: float = setting(
        0.0,
        "Age up to which events are retained; 0 is off. Off by default, because history-bytes and history-events "
        "already limit the history.",
        "duration",
    )
    data: str = setting(
        "",
        "File that keeps history, ids and dedup keys across restarts; events are on the disk before any subscriber "
        "receives them. None by default: history is only in memory.",
        "text",
        "PATH",
    )
    durable: bool = setting(
        False,
        "Acknowledge an event only once it is on the disk; needs data. Off by default, because publishers then "
        "wait for the disk.",
        "switch",
    )
    history_bytes: int = setting(
        64 * MIB,
        "Bytes of events retained for resume and for slow streams. 64MiB by default, because they are in memory.",
        "size",
        least=KIB,
    )
    history_events: int = setting(
        1_000_000,
        "Number of events retained; 0 is off. 1000000 by default, because small events need more memory than "
        "history-bytes counts.",
        "number",
    )
    history_for: tuple[str, ...] = setting(
        (),
        "Retention of a topic or pattern: `events N`, `age TIME` or both, for each topic that matches. relay uses the "
        "first one that matches; history-bytes, history-events and history-age limit all topics together.",
        "text",
        "'PATTERN=LIMIT VALUE …'",
    )
    dedup_window_s: float = setting(
        600.0,
        "Time for which an event's `dedup` key is remembered, so that a feeder can send the event again without "
        "harm. 10 minutes by default, twice the time for which `relay publish` sends an event again.",
        "duration",
    )
    dedup_max: int = setting(
        1_000_000,
        "Most dedup keys that are remembered; the oldest are forgotten first. The default takes about 250 MB.",
        "number",
        least=1,
    )
