"""The broker of the settings: makes the object for its address, and the publish rates that its nodes share.

Owns the choice of the module and the checks of its library. The modules of brokers are imported only here and only if
the settings need them, because their libraries are optional. Never connects.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from relay.brokers.credentials import TlsFiles, read_password
from relay.cluster.broker import Broker
from relay.config.broker_address import KafkaAddress, NatsAddress, RedisAddress, parse_broker
from relay.config.model import Config
from relay.errors import BrokerError, ConfigError
from relay.extras import need_extra

if TYPE_CHECKING:
    from relay.cluster.shared_rates import SharedRates


def make_broker(config: Config) -> tuple[Broker, str]:
    """Return the broker of the settings, and its address without credentials.

    Raises:
        ConfigError: a library is missing, or a file cannot be read.
    """
    password, tls = _credentials(config)
    try:
        password()
    except BrokerError as error:
        raise ConfigError(str(error)) from None
    address = parse_broker(config.cluster)
    broker: Broker
    if isinstance(address, KafkaAddress):
        need_extra("kafka", "cluster")
        from relay.cluster.kafka_broker import KafkaBroker

        broker = KafkaBroker(address, config.dedup_window_s, config.dedup_max, password, tls, config.cluster_sasl)
    elif isinstance(address, NatsAddress):
        need_extra("nats", "cluster")
        from relay.cluster.nats_broker import NatsBroker

        broker = NatsBroker(address, secrets.token_hex(4), config.dedup_window_s, password, tls)
    else:
        need_extra("redis", "cluster")
        from relay.cluster.redis_broker import RedisBroker

        node = secrets.token_hex(4)
        broker = RedisBroker(address, config.cluster_name, node, config.dedup_window_s, password, tls)
    return broker, address.shown


def make_shared_rates(config: Config, burst_s: float) -> SharedRates | None:
    """Return the publish rates that all nodes share; None if there is no cluster at Redis, or no limit.

    Args:
        config: the settings.
        burst_s: capacity of a bucket, in seconds of the rate.
    """
    address = parse_broker(config.cluster) if config.cluster and config.publish_rate else None
    if not isinstance(address, RedisAddress):
        return None
    from relay.brokers.redis_client import RedisClient
    from relay.cluster.shared_rates import SharedRates

    connect = partial(RedisClient, address, *_credentials(config))
    return SharedRates(connect, config.cluster_name, config.publish_rate, burst_s)


def _credentials(config: Config) -> tuple[Callable[[], str], TlsFiles]:
    """Return the function that reads the password, and the files for TLS."""
    return (
        partial(read_password, config.cluster_password_file, "cluster-password-file"),
        TlsFiles(config.cluster_tls_ca, config.cluster_tls_cert, config.cluster_tls_key),
    )
