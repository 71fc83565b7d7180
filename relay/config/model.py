"""The settings: one frozen object, built once and passed down.

Owns the name, default, unit and help of every setting, and the formats of sizes, times, addresses, modes and groups.
Never reads the environment, a file or the command line. `relay.config.load` builds the object from the values that
`relay.cli` reads.

The module is longer than 400 lines because it contains every setting with its help. A new setting changes only this
file.
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
    separator: str | None = ",",
) -> Any:
    """Declare one setting.

    Args:
        default: the default value. A tuple makes the setting repeatable.
        help: one or two sentences: the effect of the setting, and the reason for its default.
        kind: the type of the value: `text`, `number`, `size` (bytes), `duration` (seconds), `switch`, `count` (a number
            or `auto`), or `a|b|c` for a choice.
        metavar: placeholder of the value in `--help`.
        least: smallest number, size or duration.
        most: largest number, size or duration.
        secret: whether relay never shows the value.
        separator: separates repeated values in the environment variable; None for white space.
    """
    metadata = {
        "help": help,
        "kind": kind,
        "metavar": metavar,
        "least": least,
        "most": most,
        "secret": secret,
        "separator": separator,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of `relay serve`.

    Sizes are in bytes, times in seconds. 0 turns a limit off if its help says so.
    """

    # Front
    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",),
        "Address to serve: HOST:PORT, :PORT (every IPv4 address) or [::]:PORT (every IPv4 and IPv6 address). Only "
        "this machine by default, because reading needs no token.",
        "text",
        "HOST:PORT",
    )
    admin_listen: str = setting(
        "",
        "Second address, HOST:PORT, for operators. It serves every path, and the addresses of listen no longer serve "
        "/, /stats, /metrics and /topics. If empty, listen serves all paths.",
        "text",
        "HOST:PORT",
    )
    admin_token: tuple[str, ...] = setting(
        (),
        "Bearer token that /stats, /metrics and /topics then require. None by default, because relay listens on this "
        "machine only by default.",
        "text",
        "TOKEN",
        secret=True,
    )
    admin_token_file: str = setting(
        "", "File of further admin tokens, one per line. relay reads it again on SIGHUP.", "text", "PATH"
    )
    tls_cert: str = setting(
        "",
        "PEM file of the certificate and its intermediate certificates; with it, all addresses use TLS 1.2 or "
        "later. relay reads it again on SIGHUP.",
        "text",
        "PATH",
    )
    tls_key: str = setting(
        "",
        "PEM file of the certificate's private key, without a password. Not needed if the file of tls-cert "
        "contains the key.",
        "text",
        "PATH",
    )
    http2: str = setting(
        "on",
        "Speak HTTP/2 too: over TLS with the clients that offer it, and without TLS with those that begin with it. "
        "`on` because a browser opens at most six HTTP/1.1 connections to a host, in all its tabs together.",
        "on|off",
    )
    h2_streams_max: int = setting(
        256,
        "Concurrent requests of one HTTP/2 connection. More are refused. 256 is above the 100 that clients assume, "
        "and bounds the memory of one connection.",
        "number",
        least=1,
        most=2**31 - 1,
    )
    trusted_proxy: tuple[str, ...] = setting(
        (),
        "Address or network of a proxy whose X-Forwarded-For relay uses for limits by address. None by default, "
        "because any client can send this header.",
        "text",
        "NETWORK",
    )
    proxy_protocol: bool = setting(
        False,
        "Expect a PROXY protocol header, version 1 or 2, at the beginning of each connection from a trusted proxy. "
        "Off by default, because a proxy sends it only if configured to.",
        "switch",
    )
    refuse_streams: str = setting(
        "retry",
        "How to refuse a stream temporarily if the client accepts text/event-stream: `retry` sends a 200 that ends "
        "at once with a reconnection time, `status` sends 503 or 429. `retry` by default, because an EventSource "
        "gives up after any other status.",
        "retry|status",
    )
    cors_origin: tuple[str, ...] = setting(
        (),
        "Origin whose pages may read and publish, with cookies (https://example.com, https://*.example.com, "
        "http://localhost:*); `*` is any origin, without cookies. None by default, so that pages of other sites "
        "have no access.",
        "text",
        "ORIGIN",
    )
    allowed_host: tuple[str, ...] = setting(
        (),
        "Host name that requests may use (example.com, *.example.com, [::1]); relay answers any other with 421, "
        "which stops DNS rebinding. All by default, because a proxy may forward its own name.",
        "text",
        "HOST",
    )
    publish_token: tuple[str, ...] = setting(
        (),
        "Bearer token for publishing over HTTP. Without one, relay generates a random token and prints it, but "
        "only to a terminal.",
        "text",
        "TOKEN",
        secret=True,
    )
    publish_token_file: str = setting(
        "", "File of further publish tokens, one per line. relay reads it again on SIGHUP.", "text", "PATH"
    )
    publish_rate: float = setting(
        0,
        "Events per second that one token or subject may publish over HTTP, with bursts of ten seconds' worth; "
        "relay answers more with 429. In a cluster at Redis, all nodes count together; at Kafka and NATS, each node "
        "counts separately. Off (0) by default, because only holders of a token can publish.",
        "number",
    )
    webhook: tuple[str, ...] = setting(
        (),
        "Webhook whose requests to /publish/{topic} relay reads on the topics of a pattern: the scheme of its "
        "signatures (github, stripe or none), and the header or the JSON member (.name) that holds an event's `event`, "
        "`id`, `key` or `dedup`. relay uses the first one that matches.",
        "text",
        "'PATTERN=SCHEME FIELD=PLACE …'",
    )
    webhook_secret: tuple[str, ...] = setting(
        (),
        "Secret of the webhook with this pattern. relay then checks the signature of each request, and the request "
        "needs no token. At least 16 bytes. Give the new and the old secret during a rotation.",
        "text",
        "PATTERN=SECRET",
        secret=True,
    )
    webhook_secret_file: tuple[str, ...] = setting(
        (),
        "File of further secrets of the webhook with this pattern, one per line. relay reads it again on SIGHUP.",
        "text",
        "PATTERN=PATH",
    )
    signal_rate: float = setting(
        10,
        "Signals per second that one token or subject may send to feeders, with bursts of ten seconds' worth; relay "
        "answers more with 429. 10 by default, because people cause signals; 0 is off.",
        "number",
    )
    subscribe: str = setting(
        "open",
        "Access for readers: `open` admits everybody, `jwt` requires a JWT. `open` by default, because `jwt` needs "
        "a key.",
        "open|jwt",
    )
    jwt_secret: str = setting(
        "",
        "Shared secret that verifies JWTs (HS256): one line of at least 32 bytes. Public keys belong in "
        "jwt-public-key-file.",
        "text",
        "SECRET",
        secret=True,
    )
    jwt_secret_file: str = setting(
        "", "File of a secret such as jwt-secret. relay reads it again on SIGHUP.", "text", "PATH"
    )
    jwt_public_key_file: str = setting(
        "",
        "File of public keys that verify JWTs (RSA, P-256, Ed25519): PEM, a JWK or a JWKS. relay reads it again on "
        "SIGHUP.",
        "text",
        "PATH",
    )
    jwt_jwks_url: str = setting(
        "",
        "Address of a JWKS with public keys, over https. relay fetches it regularly, and at once for a token with "
        "an unknown `kid`.",
        "text",
        "URL",
    )
    jwt_key: str = setting("", "Older spelling of jwt-secret.", "text", "SECRET", secret=True)
    jwt_key_file: str = setting("", "Older spelling of jwt-public-key-file.", "text", "PATH")
    jwt_jwks_refresh_s: float = setting(
        300.0,
        "Time between two fetches of the JWKS. 5 minutes by default, because a withdrawn key stays valid until the "
        "next fetch.",
        "duration",
        least=1,
    )
    jwt_audience: str = setting(
        "", "Value that a JWT's `aud` must contain. If empty, relay does not check `aud`.", "text", "TEXT"
    )
    jwt_issuer: str = setting(
        "", "Value that a JWT's `iss` must have. If empty, relay does not check `iss`.", "text", "TEXT"
    )
    jwt_claim: str = setting(
        "relay",
        "Claim that lists the topics and patterns, under `subscribe` and `publish`. `relay` by default, to avoid "
        "the claims of other programs.",
        "text",
        "NAME",
    )
    jwt_cookie: str = setting(
        "",
        "Cookie that may carry a reader's JWT; it never allows publishing. None by default, because browsers add "
        "cookies to requests of other pages too.",
        "text",
        "NAME",
    )
    jwt_revoked_file: str = setting(
        "",
        "File of revoked subjects and token ids (`sub`, `jti`), one per line. relay reads it again on SIGHUP.",
        "text",
        "PATH",
    )
    ticket_s: float = setting(
        30.0,
        "Time that a ticket of POST /ticket is valid, for an EventSource, which cannot send a header. 30 seconds "
        "by default, because a page uses its ticket at once.",
        "duration",
        least=1,
        most=3600,
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
    keepalive_timeout_s: float = setting(
        60.0,
        "Time that a connection without a stream may be idle between requests. 60 seconds by default, the same as "
        "in common proxies.",
        "duration",
        least=0.001,
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
    line_timeout_s: float = setting(
        300.0,
        "Time without a line after which relay ends a publish request that stays open; an empty line counts. 5 minutes "
        "by default, because logs pause, and an unused connection must end.",
        "duration",
        least=0.001,
    )
    # Sources
    stdin: str = setting(
        "auto",
        "Format of standard input. `auto`, the default, is off on a terminal, otherwise NDJSON.",
        "auto|ndjson|lines|sse|off",
    )
    topic: str = setting("default", "Topic of events, and of streams, that name none.", "text", "TOPIC")
    exit_on_eof: bool = setting(
        False,
        "Drain and exit when standard input ends. Off by default, because other sources may still publish.",
        "switch",
    )
    unix: str = setting("", "Path of a Unix socket for feeders. None by default.", "text", "PATH")
    unix_mode: str = setting(
        "0660",
        "Mode of the Unix socket. By default owner and group may publish, because the socket requires no token.",
        "text",
        "MODE",
    )
    unix_group: str = setting(
        "", "Group of the Unix socket, by name or number. If empty, the group of the process.", "text", "GROUP"
    )
    unix_user: tuple[str, ...] = setting(
        (),
        "User whose processes may publish at the Unix socket. None by default: the mode alone decides.",
        "text",
        "USER",
    )
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
    line_bytes_max: int = setting(
        8 * MIB,
        "Longest line of a feeder. 8MiB by default, because JSON may need six bytes for one byte of the largest event.",
        "size",
        least=1,
    )
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
    # History
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
    history_age_s: float = setting(
        0.0,
        "Age up to which events are retained; 0 is off. Off by default, because history-bytes and history-events "
        "already limit the history.",
        "duration",
    )
    history_for: tuple[str, ...] = setting(
        (),
        "Retention of a topic or pattern: `events N`, `age TIME` or both, for each topic that matches. relay uses the "
        "first one that matches; history-bytes, history-events and history-age limit all topics together.",
        "text",
        "'PATTERN=LIMIT VALUE …'",
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
    # Slow streams
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
    # Streams
    envelope: tuple[str, ...] = setting(
        (),
        "Topic or pattern whose event streams name the topic of each event: data becomes {\"topic\": …, \"data\": …}. "
        "?envelope=1 or =0 in a request takes precedence. Off by default, because clients must expect it.",
        "text",
        "TERM",
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
    max_age_s: float = setting(
        0.0,
        "Greatest age of a stream; it ends at a random time in the last fifth, and the client reconnects, so that "
        "load spreads after a restart. Off (0) by default, because each reconnection costs a handshake.",
        "duration",
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
    poll_wait_max_s: float = setting(
        60.0,
        "Longest time that a long poll waits for an event, whatever its `wait`. 60 seconds by default, the timeout of "
        "common proxies.",
        "duration",
        most=3600,
    )
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
    # Scale
    workers: str = setting(
        "1",
        "Processes that hold streams, fed by one more; `auto` is one per core. 1 by default: a single process does "
        "everything, and no event passes through a link.",
        "count",
        "N|auto",
    )
    upstream: str = setting(
        "",
        "Event stream of another server to follow, an http:// or https:// address. relay publishes its events here.",
        "text",
        "URL",
    )
    upstream_timeout_s: float = setting(
        45.0,
        "Silence after which the upstream is considered lost. 45 seconds by default, three of relay's own heartbeats.",
        "duration",
        least=0.1,
    )
    upstream_token: str = setting(
        "",
        "Token that relay sends to the upstream as a bearer token.",
        "text",
        "TOKEN",
        secret=True,
    )
    cluster: str = setting(
        "",
        "Broker that keeps the log of a cluster of relays: redis://HOST:PORT/DB, rediss:// (TLS), valkey://, "
        "redis+sentinel://HOST:PORT,…/NAME/DB, kafka://HOST:PORT,…/TOPIC, or nats://HOST:PORT,…/STREAM. Every node "
        "has the same events and ids. "
        "An address with a password belongs in RELAY_CLUSTER, because other users can read command lines.",
        "text",
        "URL",
        secret=True,
    )
    cluster_name: str = setting(
        "relay",
        "Name of the cluster, part of the keys in Redis; the same at all nodes. Different names keep clusters apart "
        "that share a broker.",
        "text",
        "NAME",
    )
    cluster_timeout_s: float = setting(
        30.0,
        "Time for which the broker may be unavailable, or this node may lag without progress, before /readyz fails. "
        "30 seconds by default, because a failover of the broker takes some seconds, and all nodes lack the broker at "
        "the same time. At least 2 seconds, because a node compares its log with the broker's only once per second.",
        "duration",
        least=2,
    )
    cluster_password_file: str = setting(
        "",
        "File of the broker's password, or of the credentials of NATS if the address has no user. relay reads it again "
        "for each connection.",
        "text",
        "PATH",
    )
    cluster_sasl: str = setting(
        "scram-sha-512",
        "How relay proves its password to Kafka. scram-sha-512 by default, because it does not send the password.",
        "scram-sha-512|scram-sha-256|plain",
    )
    cluster_tls_ca: str = setting(
        "",
        "PEM file of the certificate authorities that the broker's certificate is checked against. If empty, those of "
        "the system.",
        "text",
        "PATH",
    )
    cluster_tls_cert: str = setting("", "PEM file of the certificate that relay shows to the broker.", "text", "PATH")
    cluster_tls_key: str = setting("", "PEM file of the private key of cluster-tls-cert.", "text", "PATH")
    # Process
    log_level: str = setting(
        "info",
        "Lowest level that is logged. `info` by default, because relay logs single streams at `debug`.",
        "debug|info|warning|error",
    )
    log_format: str = setting(
        "auto", "Form of the log. `auto`, the default, is text on a terminal, otherwise JSON.", "auto|text|json"
    )
    otlp_url: str = setting(
        "",
        "Base URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318. relay sends it the "
        "metrics, and spans of publish requests whose `traceparent` is sampled.",
        "text",
        "URL",
    )
    otlp_interval_s: float = setting(
        60.0,
        "Time between two exports of the metrics to otlp-url. 60 seconds by default, as in other programs with "
        "OpenTelemetry.",
        "duration",
        least=1,
    )


SETTINGS: dict[str, Field[Any]] = {each.name.removesuffix("_s").replace("_", "-"): each for each in fields(Config)}
"""Each setting by its name on the command line (without `--`) and in TOML. The name of a time has no unit."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Common": (
        *("listen", "unix", "stdin", "topic", "publish-token", "publish-token-file", "cors-origin", "data", "durable"),
        *("history-age", "policy", "workers", "log-level"),
    ),
    "Sources": ("source", "source-errors"),
    "History": ("history-bytes", "history-events", "history-for", "dedup-window", "dedup-max"),
    "Slow streams": (
        *("policy-for", "policy-request", "lag-bytes", "lag-events", "lag", "lag-soft-bytes", "lag-soft-events"),
        *("lag-soft", "lag-soft-for", "block-timeout"),
    ),
    "Streams": (
        *("heartbeat", "heartbeat-as", "retry-min", "retry-max", "prime", "max-age", "client-buffer"),
        *("client-timeout", "discard-bytes-max", "refuse-streams", "envelope", "poll-wait-max"),
        *("compress", "compress-level", "compress-contexts"),
    ),
    "Access": (
        *("admin-listen", "admin-token", "admin-token-file"),
        *("subscribe", "jwt-*", "ticket", "publish-rate", "signal-rate", "webhook", "webhook-*", "allowed-host"),
        *("unix-mode", "unix-group", "unix-user"),
    ),
    "TLS, HTTP/2 and proxies": ("tls-cert", "tls-key", "http2", "h2-*", "trusted-proxy", "proxy-protocol"),
    "Limits of streams": (*("streams-max", "streams-per-*", "topics-per-stream-max", "patterns-per-stream-max"),),
    "Limits of input": (
        *("event-bytes-max", "validate", "line-bytes-max", "body-bytes-max", "batch-events-max", "head-bytes-max"),
        *("head-timeout", "line-timeout", "keepalive-timeout", "backlog", "accept-rate", "half-open-max"),
    ),
    "Stopping and upgrading": ("exit-on-eof", "drain-*", "upgrade-timeout"),
    "Several machines": ("cluster", "cluster-*", "upstream", "upstream-*"),
    "Log and telemetry": ("log-format", "otlp-url", "otlp-interval"),
}
"""The groups of settings in `--help`, the most common first. `*` matches the rest of a name."""


def group_settings() -> dict[str, list[str]]:
    """Return the names of all settings by group. The last group, `Other`, contains settings without a group."""
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
    """Parse a number of bytes: `1048576`, `64KiB`, `64K`, `1.5M`. Every unit is a power of 1024.

    Raises:
        ValueError: the text is not a size, or the size is too large.
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
    """Parse a time and return it in seconds: `15`, `0.5`, `500ms`, `15s`, `2m`, `1h30m`, `7d`.

    Raises:
        ValueError: the text is not a time, or the time exceeds ten years.
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
    """Split `HOST:PORT`, `[IPv6]:PORT` or `:PORT` into host and port. An empty host means every IPv4 address.

    Raises:
        ValueError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080")
    return match[1] or match[2] or "", int(match[3])


def parse_mode(text: str) -> int:
    """Parse the mode of a file: `0660`, `660` or `0o660`.

    Raises:
        ValueError: the text is not such a mode.
    """
    if not _MODE.fullmatch(text):
        raise ValueError(f"{text!r} is not an octal mode like 0660, at most 0777")
    return int(text, 8)


def parse_group(text: str) -> int:
    """Return the id of a group from its name or number, or -1 for an empty text.

    Raises:
        ValueError: no group has this name.
    """
    if not text:
        return -1
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"this system has no group {text!r}") from None


def size_text(size: int) -> str:
    """Format a number of bytes in its largest whole unit. `parse_size` reads it back."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % KIB**power == 0:
            return f"{size // KIB**power}{unit}"
    return str(size)


def duration_text(seconds: float) -> str:
    """Format a time. `parse_duration` returns exactly the same number."""
    milliseconds = f"{seconds * 1000:.12g}ms"
    if 0 < seconds < 1 and "e" not in milliseconds and parse_duration(milliseconds) == seconds:
        return milliseconds
    text = f"{Decimal(repr(float(seconds))):f}"
    return f"{text.removesuffix('.0')}s"
