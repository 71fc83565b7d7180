"""The limits of streams: how many there may be, and how many topics each may have.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class StreamLimitSettings:
    """Numbers of streams and of their topics."""

    __slots__ = ()

    streams_max: int = setting(
        0,
        "Open streams in total; relay answers more with 503. 0, the default, allows as many as the descriptor "
        "limit, because that depends on the machine.",
        "number",
    )
    streams_per_address_max: int = setting(
        0,
        "Open streams of one address; relay answers more with 429. Off (0) by default, because all clients of a "
        "proxy share its address.",
        "number",
    )
    streams_per_subject_max: int = setting(
        0,
        "Open streams of one JWT subject; relay answers more with 429. Off (0) by default, because a subject may "
        "have many tabs and devices.",
        "number",
    )
    streams_per_topic_max: int = setting(
        0,
        "Open streams of one topic or pattern, as requested; relay answers more with 503. Off (0) by default, "
        "because all clients may want the same topic.",
        "number",
    )
    topics_per_stream_max: int = setting(
        1000,
        "Topics and patterns of one stream; relay answers more with 400. 1000 by default, about as many as fit "
        "into a request head of 16 KiB.",
        "number",
        least=1,
    )
    patterns_per_stream_max: int = setting(
        16,
        "Patterns of one stream; relay answers more with 400. 16 by default, because each pattern has an index of "
        "all events that it matches.",
        "number",
    )
