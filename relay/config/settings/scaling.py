"""The settings of several processes and several machines: workers, a cluster and an upstream.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """Workers, the cluster and the upstream."""

    __slots__ = ()

    workers: str = setting(
        "1",
        "Processes that hold streams, fed by one more; `auto` is one per core. 1 by default: a single process does "
        "everything, and no event passes through a link.",
        "count",
        "N|auto",
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
