"""The addresses of brokers, `relay.config.broker_address`."""

from __future__ import annotations

import pytest

from relay.config.broker_address import (
    BrokerAddress,
    KafkaAddress,
    NatsAddress,
    RedisAddress,
    has_password,
    parse_broker,
)
from relay.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        (
            "redis://broker",
            RedisAddress((("broker", 6379),), False, "", 0, "", ""),
            "redis://broker:6379/0",
        ),
        (
            "rediss://user:p%40ss@broker:7000/3",
            RedisAddress((("broker", 7000),), True, "", 3, "user", "p@ss"),
            "rediss://broker:7000/3",
        ),
        (
            "valkey://:pass@[::1]:7000/",
            RedisAddress((("::1", 7000),), False, "", 0, "", "pass"),
            "redis://[::1]:7000/0",
        ),
        (
            "valkeys://10.0.0.1",
            RedisAddress((("10.0.0.1", 6379),), True, "", 0, "", ""),
            "rediss://10.0.0.1:6379/0",
        ),
        (
            "redis+sentinel://user:pass@s1,s2:7001/main/2",
            RedisAddress((("s1", 26379), ("s2", 7001)), False, "main", 2, "user", "pass"),
            "redis+sentinel://s1:26379,s2:7001/main/2",
        ),
        (
            "rediss+sentinel://s1/main",
            RedisAddress((("s1", 26379),), True, "main", 0, "", ""),
            "rediss+sentinel://s1:26379/main/0",
        ),
        (
            "kafka://b1,b2:9093/events",
            KafkaAddress((("b1", 9092), ("b2", 9093)), False, "events", "", ""),
            "kafka://b1:9092,b2:9093/events",
        ),
        (
            "nats://n1,n2:4223/events",
            NatsAddress((("n1", 4222), ("n2", 4223)), False, "events", "", ""),
            "nats://n1:4222,n2:4223/events",
        ),
        (
            "natss://user:pass@n1/events",
            NatsAddress((("n1", 4222),), True, "events", "user", "pass"),
            "natss://n1:4222/events",
        ),
        (
            "kafkas://user:pass@b1/events",
            KafkaAddress((("b1", 9092),), True, "events", "user", "pass"),
            "kafkas://b1:9092/events",
        ),
    ],
)
def test_an_address_is_parsed_and_shown_without_credentials(
    url: str, address: BrokerAddress, shown: str
) -> None:
    assert parse_broker(url) == address
    assert parse_broker(url).shown == shown
    assert "pass" not in repr(address).replace("password", "")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must have one of the forms"),
        ("broker:6379", "must have one of the forms"),
        ("mongo://hush:hush@broker", "must have one of the forms"),
        ("nats://hush:hush@broker/a.b", "must be a stream of JetStream"),
        ("kafka://hush:hush@broker", "must be a topic of Kafka"),
        ("kafka://hush:hush@broker/a/b", "must be a topic of Kafka"),
        ("kafka://hush:hush@broker/a b", "must be a topic of Kafka"),
        ("redis://:hush@", "is not HOST or HOST:PORT"),
        ("redis://:hush@a:99999", "is not HOST or HOST:PORT"),
        ("redis://:hush@a:0", "is not HOST or HOST:PORT"),
        ("redis://:hush@a,b", "only redis.sentinel:// has several hosts"),
        ("redis://:hush@a/x", "must be the number of a database"),
        ("redis://:hush@a/0/1", "must be the number of a database"),
        ("redis://:hush@a/0?ssl=1", "must not have a query"),
        ("redis+sentinel://:hush@a", "needs the server's name"),
        ("redis://:hush@[a", "malformed"),
    ],
)
def test_a_wrong_address_is_an_error_without_the_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        parse_broker(url)
    assert str(raised.value).startswith("cluster: ")
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "result"),
    [("redis://a", False), ("redis://user@a", False), ("redis://:p@a", True), ("redis://u:p@a", True), ("x://[", 0)],
)
def test_a_password_is_noticed(url: str, result: bool) -> None:
    assert has_password(url) == result
