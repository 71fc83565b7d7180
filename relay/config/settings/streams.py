"""The settings of streams: heartbeats, reconnection, socket options, and the format of the bytes.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import KIB, MIB, setting


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """The form and the life of streams."""

    __slots__ = ()

    heartbeat_s: float = setting(
        15.0,
        "Idle time after which relay sends a heartbeat on a stream; 0 is off. 15 seconds by default, below the "
        "timeouts of common proxies (30 to 60 seconds).",
        "duration",
    )
    heartbeat_as: str = setting(
        "comment",
        "Form of the heartbeat: a comment line, a comment padded to 2 KiB, or an event of type relay.heartbeat. "
        "`comment` by default, because every client ignores comments.",
        "comment|padded|event",
    )
    retry_min_s: float = setting(
        1.0,
        "Shortest reconnection time sent to a client. Each client receives a random time up to retry-max, so that "
        "clients do not all reconnect at once.",
        "duration",
        least=0.001,
    )
    retry_max_s: float = setting(
        5.0,
        "Longest reconnection time sent to a client. 5 seconds by default, because users notice longer pauses.",
        "duration",
        least=0.001,
    )
    prime: bool = setting(
        True,
        "Send a reconnection time and a first id at once. On by default, so that a client that is cut off before "
        "its first event can resume.",
        "switch",
    )
    max_age_s: float = setting(
        0.0,
        "Greatest age of a stream; it ends at a random time in the last fifth, and the client reconnects, so that "
        "load spreads after a restart. Off (0) by default, because each reconnection costs a handshake.",
        "duration",
    )
    client_buffer: int = setting(
        64 * KIB,
        "Kernel send and receive buffer of a stream. 64KiB by default, because the kernel's own sizes let a "
        "stalled reader hold megabytes.",
        "size",
        least=4 * KIB,
        most=2**30,
    )
    client_timeout_s: float = setting(
        120.0,
        "Time that sent bytes may stay unacknowledged before relay closes the stream (TCP_USER_TIMEOUT); 0 leaves "
        "it to the system. 2 minutes by default, so that a stream survives a short network failure.",
        "duration",
        most=2_000_000,
    )
    discard_bytes_max: int = setting(
        64 * KIB,
        "Bytes that a client may send after its request; relay discards them, and closes the stream if there are "
        "more. 64KiB by default, because subscribers have nothing to send.",
        "size",
        most=1024 * MIB,
    )
    refuse_streams: str = setting(
        "retry",
        "How to refuse a stream temporarily if the client accepts text/event-stream: `retry` sends a 200 that ends "
        "at once with a reconnection time, `status` sends 503 or 429. `retry` by default, because an EventSource "
        "gives up after any other status.",
        "retry|status",
    )
    envelope: tuple[str, ...] = setting(
        (),
        "Topic or pattern whose event streams name the topic of each event: data becomes {\"topic\": …, \"data\": …}. "
        "?envelope=1 or =0 in a request takes precedence. Off by default, because clients must expect it.",
        "text",
        "TERM",
    )
    poll_wait_max_s: float = setting(
        60.0,
        "Longest time that a long poll waits for an event, even if its `wait` is longer. 60 seconds by default, the "
        "timeout of common proxies.",
        "duration",
        most=3600,
    )
    compress: str = setting(
        "off",
        "Coding of streams whose clients accept it. Off by default: where events mix secrets with text that others "
        "choose, the size of compressed events can reveal the secrets (BREACH).",
        "off|gzip",
    )
    compress_level: int = setting(
        6, "Level of gzip, from 1 (fastest) to 9 (smallest).", "number", least=1, most=9
    )
    compress_contexts: int = setting(
        64,
        "Topics and patterns that are compressed at the same time, each for all of its streams. Each takes 256 KiB. "
        "Those with the most streams are chosen; the streams of others get gzip without compression.",
        "number",
    )
