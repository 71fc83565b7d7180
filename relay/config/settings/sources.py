"""The settings of sources: the input that relay publishes, apart from HTTP.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Standard input and the feeds that relay reads."""

    __slots__ = ()

    stdin: str = setting(
        "auto",
        "Format of standard input. `auto`, the default, is off on a terminal, otherwise NDJSON.",
        "auto|ndjson|lines|sse|off",
    )
    topic: str = setting("default", "Topic of events, and of streams, that name none.", "text", "TOPIC")
    source: tuple[str, ...] = setting(
        (),
        "Feed to read: redis://HOST:PORT/DB?stream=NAME (or ?channel=NAME), kafka://HOST:PORT,…/TOPIC, "
        "nats://HOST:PORT/STREAM (or nats://HOST:PORT?subject=NAME), mqtt://HOST:PORT?filter=FILTER, or "
        "postgres://HOST:PORT/DB?table=NAME (or ?channel=NAME). In RELAY_SOURCE, spaces separate addresses. None by "
        "default. An address with a password belongs in RELAY_SOURCE, because other users can read command lines.",
        "text",
        "URL",
        secret=True,
        separator=None,
    )
    source_errors: str = setting(
        "skip",
        "Action for a message of a source that cannot be published: `skip` counts it, logs it and continues, `stop` "
        "stops the source at it. `skip` by default, because one message must not stop a feed.",
        "skip|stop",
    )
