"""The settings: one frozen object, built once and passed down.

Owns every setting's name, default, unit and reason, and how sizes, times, addresses, modes and groups are read.
Never reads the environment, a file or the command line: `relay.config.load` builds it from what `relay.cli` found.

The module is longer than 400 lines because every setting is here with its help, so that adding one touches one file.
"""

from __future__ import annotations

import fnmatch
import grp
import re
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal
from typing import Any

KIB = 1024
MIB = 1024 * KIB
NUMBER_MAX = 2**62


def setting(
    default: Any,
    help: str,
    kind: str,
    metavar: str | None = None,
    *,
    least: float = 0,
    most: float = NUMBER_MAX,
    secret: bool = False,
) -> Any:
    """Declare one setting.

    Args:
        default: its value when nobody sets it.
        help: one sentence; it says why the default is what it is.
        kind: how text becomes its value: `text`, `number`, `size` (bytes), `duration` (seconds), `switch`, `count`
            (a number or `auto`), or `a|b|c` for a choice. A tuple as default makes the setting repeatable.
        metavar: what stands for the value in `--help`.
        least: smallest value of a number, size or duration.
        most: largest value of one.
        secret: whether it is never shown.
    """
    metadata = {
        "help": help,
        "kind": kind,
        "metavar": metavar,
        "least": least,
        "most": most,
        "secret": secret,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of `relay serve`.

    Sizes are in bytes, times in seconds; 0 turns a limit off where it says so.
    """

    # Front
    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",),
        "Address to serve. Only this machine by default, because reading needs no token. :8080 is every IPv4 address, "
        "[::]:8080 every IPv4 and IPv6 address.",
        "text",
        "HOST:PORT",
    )
    tls_cert: str = setting(
        "",
        "PEM file of the certificate and its intermediate certificates. With it, all addresses speak TLS 1.2 or "
        "later. Read again on SIGHUP.",
        "text",
        "PATH",
    )
    tls_key: str = setting(
        "",
        "PEM file of the certificate's private key, without a password. Empty if the key is in the file of tls-cert.",
        "text",
        "PATH",
    )
    trusted_proxy: tuple[str, ...] = setting(
        (),
        "Address or network of a proxy whose X-Forwarded-For is used for limits by address.",
        "text",
        "NETWORK",
    )
    proxy_protocol: bool = setting(
        False, "Trusted proxies begin each connection with a PROXY protocol header, version 1 or 2.", "switch"
    )
    refuse_streams: str = setting(
        "retry",
        "How to refuse a stream temporarily (in a drain, over a limit) if the client accepts text/event-stream. "
        "`retry` is a 200 that ends at once and says when to reconnect, because an EventSource gives up after any "
        "other status. `status` is 503 or 429.",
        "retry|status",
    )
    cors_origin: tuple[str, ...] = setting(
        (),
        "Origin whose pages may read and publish, with cookies too: https://example.com, https://*.example.com, "
        "http://localhost:*. `*` is any origin, without cookies. None by default.",
        "text",
        "ORIGIN",
    )
    allowed_host: tuple[str, ...] = setting(
        (),
        "Host name that requests may use (example.com, *.example.com, [::1]). Any other is answered 421, which stops "
        "DNS rebinding. All by default, because a proxy may forward its own name.",
        "text",
        "HOST",
    )
    publish_token: tuple[str, ...] = setting(
        (),
        "Bearer token for publishing over HTTP. Without one, relay generates a random token and prints it, but only "
        "to a terminal.",
        "text",
        "TOKEN",
        secret=True,
    )
    publish_token_file: str = setting(
        "", "File of more such tokens, one per line. Read again on SIGHUP.", "text", "PATH"
    )
    publish_rate: float = setting(
        0,
        "Events per second that one token or subject may publish over HTTP, with bursts of ten seconds' worth. More "
        "is answered 429. 0 is off.",
        "number",
    )
    subscribe: str = setting("open", "Who may read: `open` is everybody, `jwt` requires a JWT.", "open|jwt")
    jwt_secret: str = setting(
        "",
        "Shared secret that verifies JWTs (HS256): one line of at least 32 bytes. Public keys belong in "
        "jwt-public-key-file.",
        "text",
        "SECRET",
        secret=True,
    )
    jwt_secret_file: str = setting("", "File of such a secret. Read again on SIGHUP.", "text", "PATH")
    jwt_public_key_file: str = setting(
        "",
        "File of public keys that verify JWTs (RSA, P-256, Ed25519): PEM, a JWK or a JWKS. Read again on SIGHUP.",
        "text",
        "PATH",
    )
    jwt_jwks_url: str = setting(
        "",
        "Address of a JWKS with public keys, over https. Fetched regularly, and at once for a token with an unknown "
        "`kid`.",
        "text",
        "URL",
    )
    jwt_key: str = setting("", "Older spelling of jwt-secret.", "text", "SECRET", secret=True)
    jwt_key_file: str = setting("", "Older spelling of jwt-public-key-file.", "text", "PATH")
    jwt_jwks_refresh_s: float = setting(
        300.0, "Time after which the keys are fetched again.", "duration", least=1
    )
    jwt_audience: str = setting(
        "", "Value that a JWT's `aud` must contain. Not checked if empty.", "text", "TEXT"
    )
    jwt_issuer: str = setting("", "Value that a JWT's `iss` must have. Not checked if empty.", "text", "TEXT")
    jwt_claim: str = setting(
        "relay", "Claim that lists the topics and patterns, under `subscribe` and `publish`.", "text", "NAME"
    )
    jwt_cookie: str = setting(
        "",
        "Cookie that may carry a reader's JWT. None by default. A cookie never allows publishing.",
        "text",
        "NAME",
    )
    jwt_revoked_file: str = setting(
        "",
        "File of revoked subjects and token ids (`sub`, `jti`), one per line. Read again on SIGHUP.",
        "text",
        "PATH",
    )
    ticket_s: float = setting(
        30.0,
        "How long a ticket of POST /ticket is valid. Tickets are for EventSource, which cannot send a header.",
        "duration",
        least=1,
        most=3600,
    )
    backlog: int = setting(
        4096,
        "Connections that may wait for accept. The kernel caps it at net.core.somaxconn.",
        "number",
        least=1,
        most=2**31 - 1,
    )
    accept_rate: int = setting(
        0,
        "Connections accepted per second. The others wait in the backlog. 0 is off: one core accepts some thousands "
        "beside its other work, with TLS some hundreds.",
        "number",
    )
    half_open_max: int = setting(
        4096,
        "Connections without a complete request head. Above it, the oldest is closed once it has waited five seconds; "
        "new ones wait in the backlog. 0 is off.",
        "number",
    )
    head_bytes_max: int = setting(
        16 * KIB, "Largest request head. A larger one is answered 431 or 414.", "size", least=KIB
    )
    head_timeout_s: float = setting(
        10.0,
        "Time from accept, or from the first byte after an answer, to a complete request head.",
        "duration",
        least=0.001,
    )
    keepalive_timeout_s: float = setting(
        60.0, "How long a connection without a stream may be idle between requests.", "duration", least=0.001
    )
    body_bytes_max: int = setting(
        8 * MIB, "Largest body of a publish request. A larger one is answered 413.", "size", least=1
    )
    batch_events_max: int = setting(
        10_000,
        "Events of one publish request, which are published together. More are answered 413.",
        "number",
        least=1,
    )
    # Sources
    stdin: str = setting(
        "auto",
        "How standard input is read. `auto` is off on a terminal, otherwise NDJSON.",
        "auto|ndjson|lines|sse|off",
    )
    topic: str = setting("default", "Topic of events, and of streams, that name none.", "text", "TOPIC")
    exit_on_eof: bool = setting(
        False, "Drain and exit when standard input ends. By default relay continues to serve.", "switch"
    )
    unix: str = setting("", "Path of a Unix socket for feeders. None by default.", "text", "PATH")
    unix_mode: str = setting(
        "0660", "Mode of the Unix socket. By default owner and group may publish.", "text", "MODE"
    )
    unix_group: str = setting(
        "", "Group of the Unix socket, by name or number. The group of the process if empty.", "text", "GROUP"
    )
    unix_user: tuple[str, ...] = setting(
        (),
        "User whose processes may publish at the Unix socket. Everybody whom the mode admits if none is named.",
        "text",
        "USER",
    )
    line_bytes_max: int = setting(
        8 * MIB, "Longest line of a feeder. JSON may need six bytes for one byte of data.", "size", least=1
    )
    event_bytes_max: int = setting(
        1 * MIB, "Largest event as sent. Never more than history-bytes.", "size", least=64
    )
    # History
    history_bytes: int = setting(
        64 * MIB, "Bytes of events retained for resume and for slow streams.", "size", least=KIB
    )
    history_events: int = setting(
        1_000_000, "Number of events retained. 0 leaves it to the other limits.", "number"
    )
    history_age_s: float = setting(
        0.0, "Age up to which events are retained. 0 leaves it to the other limits.", "duration"
    )
    data: str = setting(
        "",
        "File that keeps history, ids and dedup keys over restarts. Events are on the disk before anybody receives "
        "them. None by default: history is in memory.",
        "text",
        "PATH",
    )
    durable: bool = setting(
        False,
        "Acknowledge an event only once it is on the disk. By default it is acknowledged at once. Needs data.",
        "switch",
    )
    dedup_window_s: float = setting(
        600.0,
        "How long an event's `dedup` key is remembered, so that a feeder may send the event again without harm.",
        "duration",
    )
    dedup_max: int = setting(
        1_000_000, "Most dedup keys that are remembered, the newest: about 250 MB.", "number", least=1
    )
    # Slow streams
    policy: str = setting(
        "drop-oldest",
        "What happens to a slow stream. drop-oldest by default, because the newest events of a feed matter most.",
        "drop-oldest|drop-newest|conflate|disconnect|block",
    )
    policy_for: tuple[str, ...] = setting(
        (),
        "Policy for the streams of a topic or pattern, and after spaces its own limits (lag-events=10). The first "
        "that matches is used.",
        "text",
        "'PATTERN=POLICY …'",
    )
    policy_request: tuple[str, ...] = setting(
        ("drop-oldest", "drop-newest", "conflate", "disconnect"),
        "Policy that a request may choose by ?policy=. Not `block` by default, because it would let any client hold "
        "up publishers.",
        "text",
        "POLICY",
    )
    lag_bytes: int = setting(
        8 * MIB, "Hard limit of a stream's lag in bytes: an eighth of the default history. 0 is off.", "size"
    )
    lag_events: int = setting(0, "Hard limit of a stream's lag in events. 0 is off.", "number")
    lag_s: float = setting(0.0, "Hard limit of a stream's lag in time. 0 is off.", "duration")
    lag_soft_bytes: int = setting(
        0,
        "Soft limit in bytes: the policy acts once it has been exceeded for lag-soft-for. 0 is off.",
        "size",
    )
    lag_soft_events: int = setting(0, "Soft limit in events. 0 is off.", "number")
    lag_soft_s: float = setting(0.0, "Soft limit in time. 0 is off.", "duration")
    lag_soft_for_s: float = setting(10.0, "How long a soft limit may be exceeded.", "duration")
    block_timeout_s: float = setting(
        10.0,
        "How long one `block` stream may hold up publishers before it is closed.",
        "duration",
        least=0.001,
    )
    # Streams
    streams_max: int = setting(
        0,
        "Open streams in all. 0 takes as many as the descriptor limit allows. More are answered 503.",
        "number",
    )
    streams_per_address_max: int = setting(
        0,
        "Open streams of one address. Off by default, because all clients of a proxy share its address. More are "
        "answered 429.",
        "number",
    )
    streams_per_subject_max: int = setting(
        0, "Open streams of one JWT subject. 0 is off. More are answered 429.", "number"
    )
    streams_per_topic_max: int = setting(
        0, "Open streams of one topic or pattern, as requested. 0 is off. More are answered 503.", "number"
    )
    max_age_s: float = setting(
        0.0,
        "Greatest age of a stream. It then ends and the client reconnects, so that load spreads after a restart. Each "
        "stream ends at a random time in the last fifth. 0 is off.",
        "duration",
    )
    topics_per_stream_max: int = setting(
        1000, "Topics and patterns of one stream. More are answered 400.", "number", least=1
    )
    patterns_per_stream_max: int = setting(
        16,
        "Patterns of one stream. More are answered 400. Few, because each pattern has an index of all events that it "
        "matches.",
        "number",
    )
    client_buffer: int = setting(
        64 * KIB,
        "Kernel send and receive buffer of a stream. It bounds the memory that a stalled reader holds.",
        "size",
        least=4 * KIB,
        most=2**30,
    )
    client_timeout_s: float = setting(
        120.0,
        "TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged before the stream is closed. 0 leaves it to "
        "the system.",
        "duration",
        most=2_000_000,
    )
    discard_bytes_max: int = setting(
        64 * KIB,
        "Bytes that a client may send after its request. They are discarded; if there are more, the stream is closed.",
        "size",
        most=1024 * MIB,
    )
    heartbeat_s: float = setting(
        15.0,
        "Idle time after which a stream is sent a heartbeat. Below the timeouts of common proxies, 30 to 60 s. 0 is "
        "off.",
        "duration",
    )
    heartbeat_as: str = setting(
        "comment",
        "Form of the heartbeat: a comment line, a comment padded to 2 KiB, or an event of type relay.heartbeat.",
        "comment|padded|event",
    )
    retry_min_s: float = setting(
        1.0,
        "Shortest reconnection time sent to a client. Each client gets its own, so that clients do not return at once.",
        "duration",
        least=0.001,
    )
    retry_max_s: float = setting(5.0, "Longest reconnection time sent to a client.", "duration", least=0.001)
    prime: bool = setting(
        True,
        "Send a reconnection time and a first id at once, so that a client cut off before its first event can resume.",
        "switch",
    )
    drain_delay_s: float = setting(
        0.0,
        "How long a drain only fails /readyz and continues to serve, so that a load balancer turns away first. Off by "
        "default, because it delays every stop.",
        "duration",
        most=3600,
    )
    drain_spread_s: float = setting(
        5.0,
        "Time span, from retry-min on, over which the clients of a drain are asked to reconnect, so that the next "
        "server is not asked by all at once.",
        "duration",
        most=3600,
    )
    drain_rate: int = setting(
        2000,
        "Streams per second that a drain ends: about the handshakes that one core accepts beside its other work. More "
        "if half of drain-timeout would not suffice.",
        "number",
        least=1,
    )
    drain_timeout_s: float = setting(
        10.0,
        "How long streams may take to read what is in the log and to close, once relay has stopped accepting.",
        "duration",
    )
    upgrade_timeout_s: float = setting(
        30.0,
        "How long the new process of an upgrade may take to start and to receive the log. After that the old process "
        "continues.",
        "duration",
        least=1,
    )
    # Scale
    workers: str = setting(
        "1",
        "Processes that hold streams, fed by one more. `auto` is one per core. With 1, a single process does "
        "everything.",
        "count",
        "N|auto",
    )
    upstream: str = setting(
        "",
        "Server to follow. relay://HOST:PORT (relays:// over TLS) makes this relay an edge with the log and ids of "
        "that one, to which it passes on what is published here. An http:// or https:// address is an event stream, "
        "whose events are published here.",
        "text",
        "URL",
    )
    upstream_timeout_s: float = setting(
        45.0,
        "Silence after which a followed event stream is considered lost: three of relay's own heartbeats.",
        "duration",
        least=0.1,
    )
    link_listen: str = setting(
        "",
        "Address for edges that have this relay as their upstream. Over TLS if there is a tls-cert.",
        "text",
        "HOST:PORT",
    )
    link_token: str = setting(
        "",
        "Token of links, the same at both ends. Required for link-listen and relay:// upstreams. An http:// or "
        "https:// upstream receives it as a bearer token.",
        "text",
        "TOKEN",
        secret=True,
    )
    # Process
    log_level: str = setting("info", "Lowest level that is logged.", "debug|info|warning|error")
    log_format: str = setting(
        "auto", "Form of the log. `auto` is text on a terminal, otherwise JSON.", "auto|text|json"
    )


SETTINGS: dict[str, Field[Any]] = {
    each.name.removesuffix("_s").replace("_", "-"): each for each in fields(Config)
}
"""Each setting by its name on the command line (without `--`) and in TOML; a time's name drops its unit."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Common": (
        *("listen", "unix", "stdin", "topic", "publish-token", "publish-token-file", "cors-origin", "data", "durable"),
        *("history-age", "policy", "workers", "log-level"),
    ),
    "History": ("history-bytes", "history-events", "dedup-window", "dedup-max"),
    "Slow streams": (
        *("policy-for", "policy-request", "lag-bytes", "lag-events", "lag", "lag-soft-bytes", "lag-soft-events"),
        *("lag-soft", "lag-soft-for", "block-timeout"),
    ),
    "Streams": (
        *("heartbeat", "heartbeat-as", "retry-min", "retry-max", "prime", "max-age", "client-buffer"),
        *("client-timeout", "discard-bytes-max", "refuse-streams"),
    ),
    "Who may read and publish": (
        *("subscribe", "jwt-*", "ticket", "publish-rate", "allowed-host", "unix-mode", "unix-group", "unix-user"),
    ),
    "TLS and proxies": ("tls-cert", "tls-key", "trusted-proxy", "proxy-protocol"),
    "Limits of streams": (
        *("streams-max", "streams-per-*", "topics-per-stream-max", "patterns-per-stream-max"),
    ),
    "Limits of input": (
        *("event-bytes-max", "line-bytes-max", "body-bytes-max", "batch-events-max", "head-bytes-max", "head-timeout"),
        *("keepalive-timeout", "backlog", "accept-rate", "half-open-max"),
    ),
    "Stopping and upgrading": ("exit-on-eof", "drain-*", "upgrade-timeout"),
    "Several machines": ("upstream", "upstream-*", "link-*"),
    "Log": ("log-format",),
}
"""How `--help` groups the settings, the most common first; `*` stands for the rest of a name."""


def group_settings() -> dict[str, list[str]]:
    """Return the names of all settings by group; those that no group names are in the last one, `Other`."""
    rest, groups = dict.fromkeys(SETTINGS), dict[str, list[str]]()
    for group, names in GROUPS.items():
        groups[group] = [each for name in names for each in fnmatch.filter(rest, name)]
        for each in groups[group]:
            rest.pop(each, None)
    return groups | ({"Other": list(rest)} if rest else {})


DURATION_S_MAX = 10 * 366 * 86400.0
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgt])i?)?b?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MODE = re.compile(r"(?:0o)?0?[0-7]{3}")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s/]*)):([0-9]{1,5})")


def parse_size(text: str) -> int:
    """Read a number of bytes: `1048576`, `64KiB`, `64K`, `1.5M`; every unit is a power of 1024.

    Raises:
        ValueError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 1048576, 64KiB or 64M")
    number, unit = match.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    size = (float(number) if "." in number else int(number)) * KIB**power
    if size > NUMBER_MAX:
        raise ValueError(f"{text!r} is too large")
    return int(size)


def parse_duration(text: str) -> float:
    """Read a time in seconds: `15`, `0.5`, `500ms`, `15s`, `2m`, `1h30m`, `7d`.

    Raises:
        ValueError: it is none, or longer than ten years.
    """
    text = text.strip()
    parts = _DURATION.findall(text)
    if text and _DURATION.sub("", text) == "":
        seconds = sum(float(number) / 1000 if unit == "ms" else float(number) * _UNIT_S[unit] for number, unit in parts)
    elif re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        seconds = float(text)
    else:
        raise ValueError(f"{text!r} is not a time like 15s, 500ms, 2m or 1h30m")
    if seconds > DURATION_S_MAX:
        raise ValueError(f"{text!r} is longer than ten years")
    return seconds


def parse_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[IPv6]:PORT` or `:PORT` (every IPv4 address: an empty host) into host and port.

    Raises:
        ValueError: it is none of these.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080")
    return match[1] or match[2] or "", int(match[3])


def parse_mode(text: str) -> int:
    """Read the permissions of a file: `0660`, `660` or `0o660`.

    Raises:
        ValueError: they are none.
    """
    if not _MODE.fullmatch(text):
        raise ValueError(f"{text!r} is not an octal mode like 0660, at most 0777")
    return int(text, 8)


def parse_group(text: str) -> int:
    """Read the number of a group from its name or its number; -1 for none.

    Raises:
        ValueError: there is no group of this name.
    """
    if not text:
        return -1
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {text!r}") from None


def is_event_stream(upstream: str) -> bool:
    """Say whether what is followed is an event stream over HTTP, and not another relay's log."""
    return upstream.startswith(("http://", "https://"))


def parse_upstream(text: str) -> tuple[str, int, bool]:
    """Split `relay://HOST:PORT`, or `relays://` for one over TLS, into host, port and whether it is encrypted.

    Raises:
        ValueError: it is not that.
    """
    scheme, _, address = text.partition("://")
    try:
        host, port = parse_address(address)
    except ValueError:
        host, port = "", 0
    if scheme not in ("relay", "relays") or not host or not port:
        raise ValueError(f"{text!r} is neither relay://HOST:PORT nor the address of an event stream (https://…)")
    return host, port, scheme == "relays"


def size_text(size: int) -> str:
    """Write a number of bytes in its largest whole unit, as `parse_size` reads it."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % KIB**power == 0:
            return f"{size // KIB**power}{unit}"
    return str(size)


def duration_text(seconds: float) -> str:
    """Write a time as `parse_duration` reads it, to the last bit."""
    milliseconds = f"{seconds * 1000:.12g}ms"
    if 0 < seconds < 1 and "e" not in milliseconds and parse_duration(milliseconds) == seconds:
        return milliseconds
    text = f"{Decimal(repr(float(seconds))):f}"
    return f"{text.removesuffix('.0')}s"
