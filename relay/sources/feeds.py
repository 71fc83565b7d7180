"""The feeds of the settings: makes the feed of an address.

Owns the choice of the module and the checks of its library. The modules of feeds are imported only here and only if a
source needs them, because their libraries are optional.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from functools import partial

from relay.brokers.credentials import read_password, tls_context
from relay.config.broker_address import KafkaAddress, NatsAddress, RedisAddress
from relay.config.source_address import ServerAddress, SourceAddress
from relay.errors import BrokerError, ConfigError
from relay.extras import need_extra
from relay.sources.feed import SourceFeed

GROUP = "relay"
"""Default name under which a server stores the position of relay."""


def make_feed(address: SourceAddress) -> SourceFeed:
    """Return the feed of an address, not connected yet.

    Raises:
        ConfigError: its library is not installed, or the file of the password cannot be read.
    """
    password = partial(read_password, address.option("password-file"), "source: password-file")
    try:
        password()
    except BrokerError as error:
        raise ConfigError(str(error)) from None
    server = address.server
    if isinstance(server, RedisAddress):
        return _redis(address, server, password)
    if isinstance(server, KafkaAddress):
        return _kafka(address, server, password)
    if isinstance(server, NatsAddress):
        return _nats(address, server, password)
    return _mqtt(address, server, password) if address.kind == "mqtt" else _postgres(address, server, password)


def _redis(address: SourceAddress, server: RedisAddress, password: Callable[[], str]) -> SourceFeed:
    for module in ("redis", "hiredis"):
        need_extra(module, "redis", "source")
    from relay.sources.redis_feed import RedisChannelFeed, RedisStreamFeed

    tls = _tls(address, "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    if address.kind == "redis-channel":
        return RedisChannelFeed(server, password, tls, address.option("channel"))
    group, consumer = address.option("group", GROUP), address.option("consumer", socket.gethostname())
    earliest = address.option("start") != "latest"
    return RedisStreamFeed(server, password, tls, address.option("stream"), group, consumer, earliest=earliest)


def _kafka(address: SourceAddress, server: KafkaAddress, password: Callable[[], str]) -> SourceFeed:
    need_extra("confluent_kafka", "kafka", "source")
    from relay.sources.kafka_feed import KafkaFeed

    more = {
        "sasl.mechanism": address.option("sasl", "scram-sha-512").upper(),
        **_tls(address, "ssl.ca.location", "ssl.certificate.location", "ssl.key.location"),
    }
    return KafkaFeed(server, password, more, address.option("group", GROUP), address.option("start", "earliest"))


def _nats(address: SourceAddress, server: NatsAddress, password: Callable[[], str]) -> SourceFeed:
    for module in ("nats", "nkeys"):
        need_extra(module, "nats", "source")
    from relay.brokers.nats_client import NatsConnector
    from relay.sources.nats_feed import NatsStreamFeed, NatsSubjectFeed

    connector = NatsConnector(server, password, partial(_context, address) if server.tls else None)
    if address.kind == "nats-subject":
        return NatsSubjectFeed(connector, address.option("subject"), address.option("group"))
    subject, group = address.option("subject"), address.option("group", GROUP)
    return NatsStreamFeed(connector, server.stream, subject, group, earliest=address.option("start") != "latest")


def _mqtt(address: SourceAddress, server: ServerAddress, password: Callable[[], str]) -> SourceFeed:
    need_extra("paho", "mqtt", "source")
    from relay.sources.mqtt_feed import MqttFeed

    context = partial(_context, address) if server.tls else None
    return MqttFeed(server, password, context, address.option("filter"), address.option("client", GROUP))


def _postgres(address: SourceAddress, server: ServerAddress, password: Callable[[], str]) -> SourceFeed:
    need_extra("asyncpg", "postgres", "source")
    from relay.sources.postgres_feed import PostgresChannelFeed, PostgresConnector, PostgresTableFeed

    connector = PostgresConnector(server, password, partial(_context, address) if server.tls else None)
    if address.kind == "postgres-table":
        return PostgresTableFeed(connector, address.option("table"), address.option("channel"))
    return PostgresChannelFeed(connector, address.option("channel"))


def _context(address: SourceAddress) -> ssl.SSLContext:
    return tls_context(address.option("tls-ca"), address.option("tls-cert"), address.option("tls-key"))


def _tls(address: SourceAddress, ca: str, cert: str, key: str) -> dict[str, str]:
    """Return the files for TLS under the names of a client library."""
    files = {ca: address.option("tls-ca"), cert: address.option("tls-cert"), key: address.option("tls-key")}
    return {name: path for name, path in files.items() if path}
