"""The settings of access: the addresses that relay serves, and the tokens, keys and rates of its clients.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Addresses, tokens, JWTs, webhooks and rates."""

    __slots__ = ()

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",),
        "Address to serve: HOST:PORT, :PORT (every IPv4 address) or [::]:PORT (every IPv4 and IPv6 address). Only "
        "this machine by default, because reading needs no token.",
        "text",
        "HOST:PORT",
    )
    cors_origin: tuple[str, ...] = setting(
        (),
        "Origin whose pages may read and publish, with cookies (https://example.com, https://*.example.com, "
        "http://localhost:*); `*` is any origin, without cookies. None by default, so that pages of other sites "
        "have no access.",
        "text",
        "ORIGIN",
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
    unix: str = setting("", "Path of a Unix socket for feeders. None by default.", "text", "PATH")
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
    publish_rate: float = setting(
        0,
        "Events per second that one token or subject may publish over HTTP, with bursts of ten seconds' worth; "
        "relay answers more with 429. In a cluster at Redis, all nodes count together; at Kafka and NATS, each node "
        "counts separately. Off (0) by default, because only holders of a token can publish.",
        "number",
    )
    signal_rate: float = setting(
        10,
        "Signals per second that one token or subject may send to feeders, with bursts of ten seconds' worth; relay "
        "answers more with 429. 10 by default, because people cause signals; 0 is off.",
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
    allowed_host: tuple[str, ...] = setting(
        (),
        "Host name that requests may use (example.com, *.example.com, [::1]); relay answers any other with 421, "
        "which stops DNS rebinding. All by default, because a proxy may forward its own name.",
        "text",
        "HOST",
    )
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
