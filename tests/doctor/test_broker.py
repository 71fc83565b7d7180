"""The checks of real brokers (`relay.doctor.broker`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.cluster.broker import BrokerReport
from relay.cluster.broker_factory import make_broker
from relay.config.model import Config
from relay.doctor.broker import check_broker, judge
from relay.doctor.finding import Level
from tests.nats_server import NatsServer
from tests.redis_server import RedisServer, need_redis
from tests.running import free_port


async def test_a_redis_is_reachable_and_its_settings_are_judged(tmp_path: Path) -> None:
    need_redis()
    server = RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru")
    try:
        reachable, *settings = await check_broker(Config(cluster=server.url))
        assert reachable.level is Level.OK
        assert "is reachable: redis " in reachable.text
        levels = {each.text: each.level for each in settings}
        assert levels["maxmemory-policy is allkeys-lru"] is Level.FAULT
        assert levels["appendonly is no"] is Level.WARNING
        assert server.client.keys() == []  # the check creates nothing
    finally:
        server.close()


async def test_a_redis_whose_user_may_not_read_the_settings_is_a_warning(tmp_path: Path) -> None:
    need_redis()
    server = RedisServer(tmp_path)
    try:
        server.client.execute_command("ACL", "SETUSER", "app", "on", ">pass-word", "~*", "+@connection", "+ping")
        url = server.url.replace("redis://", "redis://app:pass-word@")
        reachable, found = await check_broker(Config(cluster=url))
        assert (reachable.level, found.level) == (Level.OK, Level.WARNING)
        assert "+info" in found.remedy
        assert "pass-word" not in reachable.text + found.text
    finally:
        server.close()


async def test_a_nats_server_without_the_stream_is_no_fault(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    try:
        config = Config(cluster=server.url)
        reachable, stream = await check_broker(config)
        assert "is reachable: nats-server 2." in reachable.text
        assert stream.text == "stream is missing; relay creates it"
        assert await check_broker(config) == [reachable, stream]  # the check creates nothing
        broker, _ = make_broker(config)
        await broker.open("a")  # creates the stream
        await broker.close()
        _, *settings = await check_broker(config)
        assert {each.level for each in settings} == {Level.OK}
        assert "storage is file" in [each.text for each in settings]
    finally:
        server.close()


@pytest.mark.parametrize("scheme", ["redis://127.0.0.1:{}/0", "nats://127.0.0.1:{}/events"])
async def test_a_broker_that_is_down_is_a_fault(scheme: str) -> None:
    [found] = await check_broker(Config(cluster=scheme.format(free_port())))
    assert (found.level, "cannot reach" in found.text) == (Level.FAULT, True)


def test_settings_that_lose_events_are_faults() -> None:
    settings = {"partitions": "3", "cleanup.policy": "compact", "message.timestamp.type": "CreateTime"}
    report = BrokerReport("Kafka", {**settings, "retention.ms": "1"})
    assert [each.level for each in judge(report)] == [Level.FAULT, Level.FAULT, Level.WARNING, Level.OK]
