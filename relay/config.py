"""The settings: one frozen object, built once and passed down.

Owns every setting's name, default, unit and reason. Never reads the environment, a file or the command line by itself:
`relay.cli` hands in what it found there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KIB = 1024
MIB = 1024 * KIB


def setting(default: Any, help: str, kind: str, metavar: str | None = None) -> Any:
    """Declare one setting.

    Args:
        default: its value when nobody sets it.
        help: one sentence; it says why the default is what it is.
        kind: how text becomes its value: `text`, `number`, `size` (bytes), `duration` (seconds), `switch`, or
            `a|b|c` for a choice. A tuple as default makes the setting repeatable.
        metavar: what stands for the value in `--help`.
    """
    return field(default=default, metadata={"help": help, "kind": kind, "metavar": metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of `relay serve`. Sizes are in bytes, times in seconds; 0 turns a limit off where it says so."""

    # Front
    listen: tuple[str, ...] = setting(("127.0.0.1:8080",), "Address to serve; only this machine by default, since reading needs no token.", "text", "HOST:PORT")
    cors_origin: tuple[str, ...] = setting((), "Origin whose pages may read and publish; `*` for any; none by default.", "text", "ORIGIN")
    publish_token: str = setting("", "Bearer token for publishing over HTTP; a random one is made and printed when empty.", "text", "TOKEN")
    backlog: int = setting(4096, "Connections that may wait for accept; the kernel caps it at net.core.somaxconn.", "number")
    head_bytes_max: int = setting(16 * KIB, "Largest request head; above it 431.", "size")
    head_timeout_s: float = setting(10.0, "Time from accept, or from the last answer's next byte, to a whole request head.", "duration")
    keepalive_timeout_s: float = setting(60.0, "How long an ordinary connection may rest between requests.", "duration")
    body_bytes_max: int = setting(8 * MIB, "Largest body of a publish request; above it 413.", "size")
    # Sources
    stdin: str = setting("auto", "How standard input is read; `auto` is off on a terminal, else NDJSON.", "auto|ndjson|lines|sse|off")
    topic: str = setting("default", "Topic of events that name none.", "text", "TOPIC")
    exit_on_eof: bool = setting(False, "Drain and exit when standard input ends; by default serving goes on.", "switch")
    unix: str = setting("", "Path of a Unix socket for feeders; none by default.", "text", "PATH")
    unix_mode: str = setting("0660", "Mode of the Unix socket: owner and group may publish.", "text", "MODE")
    unix_group: str = setting("", "Group of the Unix socket; the process's own when empty.", "text", "GROUP")
    line_bytes_max: int = setting(8 * MIB, "Longest line of a feeder; JSON may need six bytes for one of data.", "size")
    event_bytes_max: int = setting(1 * MIB, "Largest event as sent; never more than history-bytes.", "size")
    # History
    history_bytes: int = setting(64 * MIB, "Bytes of events retained for resume and for slow streams.", "size")
    history_events: int = setting(1_000_000, "Events retained; 0 leaves it to the other limits.", "number")
    history_age_s: float = setting(0.0, "Age up to which events are retained; 0 leaves it to the other limits.", "duration")
    # Slow streams
    policy: str = setting("drop-oldest", "What a slow stream gets; a feed's newest events matter most.", "drop-oldest|drop-newest|conflate|disconnect|block")
    policy_for: tuple[str, ...] = setting((), "Policy for the streams of a topic or pattern; the first that matches wins.", "text", "PATTERN=POLICY")
    policy_request: tuple[str, ...] = setting(("drop-oldest", "drop-newest", "conflate", "disconnect"), "Policy that a request may choose by ?policy=; not `block`, which would let any client hold up publishers.", "text", "POLICY")
    lag_bytes: int = setting(8 * MIB, "Hard limit of a stream's lag in bytes; an eighth of the default history; 0 is off.", "size")
    lag_events: int = setting(0, "Hard limit of a stream's lag in events; 0 is off.", "number")
    lag_s: float = setting(0.0, "Hard limit of a stream's lag in time; 0 is off.", "duration")
    lag_soft_bytes: int = setting(0, "Soft limit in bytes: acts when passed for lag-soft-for; 0 is off.", "size")
    lag_soft_events: int = setting(0, "Soft limit in events; 0 is off.", "number")
    lag_soft_s: float = setting(0.0, "Soft limit in time; 0 is off.", "duration")
    lag_soft_for_s: float = setting(10.0, "How long a soft limit may be passed.", "duration")
    block_timeout_s: float = setting(10.0, "How long one `block` stream may hold up publishers before it is disconnected.", "duration")
    # Streams
    streams_max: int = setting(0, "Open streams in all; 0 takes what the descriptor limit allows. Above it 503.", "number")
    streams_per_address_max: int = setting(0, "Open streams of one address; off by default, since a proxy is one address. Above it 429.", "number")
    topics_per_stream_max: int = setting(1000, "Topics and patterns of one stream; above it 400.", "number")
    client_buffer: int = setting(64 * KIB, "Kernel send and receive buffer of a stream; bounds what a stalled reader holds.", "size")
    client_timeout_s: float = setting(120.0, "TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged before the stream is closed; 0 leaves it to the system.", "duration")
    discard_bytes_max: int = setting(64 * KIB, "What a client may send after its request; it is thrown away, and above this the stream is closed.", "size")
    heartbeat_s: float = setting(15.0, "Sent to streams that were idle so long: below the 30 to 60 s of common proxies; 0 is off.", "duration")
    heartbeat_as: str = setting("comment", "Heartbeat's form: a comment line, one padded to 2 KiB, or an event named relay.heartbeat.", "comment|padded|event")
    retry_min_s: float = setting(1.0, "Shortest reconnection time given to a client; each gets its own, so that a herd spreads.", "duration")
    retry_max_s: float = setting(5.0, "Longest reconnection time given to a client.", "duration")
    prime: bool = setting(True, "Send retry and a first id at once, so that a client cut before its first event can resume.", "switch")
    drain_timeout_s: float = setting(10.0, "How long a drain waits for what is queued.", "duration")
    # Process
    log_level: str = setting("info", "Least level that is logged.", "debug|info|warning|error")
    log_format: str = setting("auto", "Form of the log; `auto` is text on a terminal, else JSON.", "auto|text|json")
