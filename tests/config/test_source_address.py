"""`relay.config.source_address`: addresses of sources, as text and as tables, and their errors without passwords."""

from __future__ import annotations

import tomllib

import pytest

from relay.config.broker_address import KafkaAddress, NatsAddress, RedisAddress
from relay.config.load import load
from relay.config.source_address import ServerAddress, join_options, parse_source
from relay.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("redis://u:pw@h?stream=a&group=g", "redis-stream", "redis://h:6379/0?stream=a"),
        ("rediss://h:1/2?channel=a.*", "redis-channel", "rediss://h:1/2?channel=a.*"),
        ("kafka://u:pw@b1,b2:9/events?group=g&topic={key}", "kafka-topic", "kafka://b1:9092,b2:9/events"),
        ("nats://u:pw@h/orders", "nats-stream", "nats://h:4222/orders"),
        ("nats://h/orders?subject=a.>", "nats-stream", "nats://h:4222/orders?subject=a.>"),
        ("nats://u:pw@h?subject=a.>", "nats-subject", "nats://h:4222?subject=a.>"),
        ("mqtt://u:pw@h?filter=a/+/b/#", "mqtt", "mqtt://h:1883/?filter=a/+/b/#"),
        ("mqtts://h?filter=a", "mqtt", "mqtts://h:8883/?filter=a"),
        ("postgres://u:pw@h/db?table=outbox", "postgres-table", "postgres://h:5432/db?table=outbox"),
        ("postgresql://h:1/db?channel=a", "postgres-channel", "postgresql://h:1/db?channel=a"),
        ("postgres://h/db?channel=a&table=b", "postgres-table", "postgres://h:5432/db?table=b"),
        ("postgres:///db?host=/run/postgresql&table=b", "postgres-table", "postgres:///run/postgresql/db?table=b"),
    ],
)
def test_the_kind_of_an_address_and_its_text_without_credentials(text: str, kind: str, shown: str) -> None:
    address = parse_source(text)
    assert (address.kind, address.shown) == (kind, shown)
    assert "pw" not in repr(address)


def test_an_address_contains_the_server_and_the_options() -> None:
    redis = parse_source("redis://u:p%40w@h:1/2?stream=a%20b&topic={key}")
    assert redis.server == RedisAddress((("h", 1),), False, "", 2, "u", "p@w")
    assert (redis.option("stream"), redis.option("topic"), redis.option("group", "x")) == ("a b", "{key}", "x")
    assert parse_source("kafkas://b1,b2/t").server == KafkaAddress((("b1", 9092), ("b2", 9092)), True, "t", "", "")
    nats = parse_source("natss://h/orders").server
    assert nats == NatsAddress((("h", 4222),), True, "orders", "", "")
    server = parse_source("postgres://u@:5433/db?host=/run/pg&table=t&tls=on").server
    assert server == ServerAddress((("/run/pg", 5433),), True, "db", "u", "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("orders", "must begin with one of redis://"),
        ("http://h/events", "must begin with one of redis://"),
        ("redis://u:pw@h", "needs the option stream or channel"),
        ("redis://h?stream=a&channel=b", "needs the option stream or channel"),
        ("redis://h?stream=a&filter=b", "has no option 'filter'"),
        ("redis://h?stream=a&grup=b", "did you mean group?"),
        ("redis://h?stream=a&stream=b", "the option stream is given twice"),
        ("redis://h?stream=", "the option stream needs a value"),
        ("redis://h?stream=a&start=now", "the option start needs one of earliest, latest"),
        ("redis://u:pw@h/x?stream=a", "source: the path of the address must be the number of a database"),
        ("kafka://u:pw@h", "source: the path of the address must be a topic of Kafka"),
        ("nats://u:pw@h", "needs a stream of JetStream as its path, or ?subject=NAME"),
        ("mqtt://h/topic?filter=a", "one host and no path"),
        ("mqtt://h", "needs the option filter"),
        ("postgres://u:pw@h?table=a", "one host and a database"),
        ("postgres://other/db?host=/run&table=a", "replaces HOST"),
    ],
)
def test_the_error_of_an_address_names_the_fault_but_not_the_password(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_source(text)
    assert error in str(raised.value)
    assert "pw" not in str(raised.value)


def test_a_file_contains_addresses_and_tables() -> None:
    table = tomllib.loads(
        'source = ["redis://h?stream=a", {url = "mqtt://h", filter = "a/+ b/#", topic = "m.{0}", dedup = "{id}"}]'
    )
    sources = [parse_source(each) for each in load({}, {}, table).source]
    assert [each.kind for each in sources] == ["redis-stream", "mqtt"]
    assert sources[1].options == {"filter": "a/+ b/#", "topic": "m.{0}", "dedup": "{id}"}
    table = tomllib.loads('[[source]]\nurl = "nats://h"\nsubject = "a.>"')
    assert load({}, {}, table).source == ("nats://h?subject=a.>",)
    table = tomllib.loads('[source]\nurl = "nats://h"\nsubject = "a.>"')
    assert load({}, {}, table).source == ("nats://h?subject=a.>",)


@pytest.mark.parametrize("table", [{}, {"url": "redis://h?stream=a"}, {"url": "redis://h", "stream": 1}])
def test_a_malformed_table_is_an_error(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="source: "):
        join_options(table)


def test_spaces_separate_addresses_in_the_environment_because_addresses_contain_commas() -> None:
    config = load({}, {"RELAY_SOURCE": "kafka://b1,b2/t  redis://:pw@h?stream=a"})
    assert config.source == ("kafka://b1,b2/t", "redis://:pw@h?stream=a")


def test_the_command_line_must_not_contain_a_password() -> None:
    with pytest.raises(ConfigError, match="RELAY_SOURCE") as raised:
        load({"source": ["mqtt://h?filter=a", "redis://:pw@h?stream=a"]}, {})
    assert "pw" not in str(raised.value)


def test_a_source_that_is_given_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"source: redis://h:6379/0\?stream=a is given twice"):
        load({"source": ["redis://h?stream=a", "redis://h?stream=a&group=b"]}, {})
