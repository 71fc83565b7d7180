"""The feeds of the settings: makes the feed of an address.

Owns the choice of the module and the checks of its library. The modules of feeds are imported only here and only if a
source needs them, because their libraries are optional.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from relay.brokers.credentials import TlsFiles, read_password
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
    tls = TlsFiles(*map(address.option, ("tls-ca", "tls-cert", "tls-key")))
    server = address.server
    if isinstance(server, RedisAddress):
        return _redis(address, server, password, tls)
    if isinstance(server, KafkaAddress):
        return _kafka(address, server, password, tls)
    if isinstance(server, NatsAddress):
        return _nats(address, server, password, tls)
    return (_mqtt if address.kind == "mqtt" else _postgres)(address, server, password, tls)


def _redis(address: SourceAddress, server: RedisAddress, password: Callable[[], str], tls: TlsFiles) -> SourceFeed:
    need_extra("redis", "source")
    from relay.sources.redis_feed import RedisChannelFeed, RedisStreamFeed

    if address.kind == "redis-channel":
        return RedisChannelFeed(server, password, tls, address.option("channel"))
    group, consumer = address.option("group", GROUP), address.option("consumer", socket.gethostname())
    earliest = address.option("start") != "latest"
    return RedisStreamFeed(server, password, tls, address.option("stream"), group, consumer, earliest=earliest)


def _kafka(address: SourceAddress, server: KafkaAddress, password: Callable[[], str], tls: TlsFiles) -> SourceFeed:
    need_extra("kafka", "source")
    from relay.sources.kafka_feed import KafkaFeed

    group, start = address.option("group", GROUP), address.option("start", "earliest")
    return KafkaFeed(server, password, tls, address.option("sasl", "scram-sha-512"), group, start)


def _nats(address: SourceAddress, server: NatsAddress, password: Callable[[], str], tls: TlsFiles) -> SourceFeed:
    need_extra("nats", "source")
    from relay.brokers.nats_client import NatsConnector
    from relay.sources.nats_feed import NatsStreamFeed, NatsSubjectFeed

    connector = NatsConnector(server, password, tls)
    if address.kind == "nats-subject":
        return NatsSubjectFeed(connector, address.option("subject"), address.option("group"))
    subject, group = address.option("subject"), address.option("group", GROUP)
    return NatsStreamFeed(connector, server.name, subject, group, earliest=address.option("start") != "latest")


def _mqtt(address: SourceAddress, server: ServerAddress, password: Callable[[], str], tls: TlsFiles) -> SourceFeed:
    need_extra("mqtt", "source")
    from relay.sources.mqtt_feed import MqttFeed

    return MqttFeed(server, password, tls, address.option("filter"), address.option("client", GROUP))


def _postgres(address: SourceAddress, server: ServerAddress, password: Callable[[], str], tls: TlsFiles) -> SourceFeed:
    need_extra("postgres", "source")
    from relay.sources.postgres_feed import PostgresChannelFeed, PostgresConnector, PostgresTableFeed

    connector = PostgresConnector(server, password, tls)
    if address.kind == "postgres-table":
        return PostgresTableFeed(connector, address.option("table"), address.option("channel"))
    return PostgresChannelFeed(connector, address.option("channel"))
