"""The checks of sources at real servers (`relay.doctor.sources`): they report what is missing and change nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import nats
import pytest
from confluent_kafka import Producer

from relay.config.model import Config
from relay.doctor.finding import Level
from relay.doctor.sources import check_sources
from tests.kafka_server import KafkaServer
from tests.mosquitto_server import MosquittoServer
from tests.nats_server import NatsServer
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer, need_redis
from tests.running import eventually, free_port, relay, run


async def levels(*sources: str) -> list[Level]:
    """Return the level of the finding of each source."""
    findings = await check_sources(Config(source=sources))
    assert all(bool(each.remedy) is (each.level is Level.FAULT) for each in findings)
    return [each.level for each in findings]


async def test_without_a_source_nothing_is_checked() -> None:
    [found] = await check_sources(Config())
    assert (found.level, found.text) == (Level.OK, "not used: source is not set")


async def test_a_redis_is_reachable_and_the_check_creates_no_group(tmp_path: Path) -> None:
    need_redis()
    with contextlib.closing(RedisServer(tmp_path)) as server:
        sources = (f"{server.url}?stream=orders", f"{server.url}?channel=orders:*")
        assert await levels(*sources) == [Level.OK, Level.OK]
        assert server.client.keys() == []


async def test_a_stream_of_nats_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    with contextlib.closing(NatsServer(tmp_path)) as server:
        host = f"nats://127.0.0.1:{server.port}"
        assert await levels(f"{host}?subject=orders.>", f"{host}/orders") == [Level.OK, Level.FAULT]
        client = await nats.connect(host)
        await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
        assert await levels(f"{host}/orders") == [Level.OK]
        assert await client.jetstream().consumers_info("orders") == []
        await client.close()


async def test_a_topic_of_kafka_that_is_missing_is_a_fault() -> None:
    with contextlib.closing(KafkaServer()) as server:
        assert await levels(server.url) == [Level.FAULT]
        producer = Producer({"bootstrap.servers": server.url.split("/")[2], "log_level": 0})
        producer.produce("events", "1")  # creates the topic
        producer.flush(30)
        assert await levels(server.url) == [Level.OK]


async def test_the_check_of_mqtt_does_not_end_the_session_of_relay(tmp_path: Path) -> None:
    with contextlib.closing(MosquittoServer(tmp_path)) as server:
        source = f"mqtt://127.0.0.1:{server.port}?filter=orders/+"
        with relay("--source", source) as reading:
            eventually(lambda: reading.stats()["sources"][0]["connected"], "relay reads")
            assert await levels(source) == [Level.OK]
            server.publish([("orders/eu", "1")])
            eventually(lambda: reading.stats()["sources"][0]["events"] == 1, "relay still reads")
            assert reading.stats()["sources"][0]["breaks"] == 0


async def test_a_missing_table_of_postgresql_is_a_fault() -> None:
    with contextlib.closing(PostgresServer()) as server:
        table, channel = f"{server.url}&table=outbox", f"{server.url}&channel=orders"
        assert await levels(table, channel) == [Level.FAULT, Level.OK]
        server.execute("CREATE TABLE outbox (id bigserial PRIMARY KEY, data text)")
        assert await levels(table) == [Level.OK]


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{}/0?stream=a", "mqtt://127.0.0.1:{}?filter=a", "nats://127.0.0.1:{}/a"]
)
def test_a_server_that_is_down_is_a_fault_without_the_password(url: str) -> None:
    address = url.format(free_port()).replace("://", "://ann:pass-word@")
    done = run("doctor", RELAY_SOURCE=address)
    assert done.returncode == 1
    assert "fault    source: cannot read " in done.stdout
    assert "pass-word" not in done.stdout + done.stderr
