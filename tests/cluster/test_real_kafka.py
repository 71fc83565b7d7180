"""Real nodes at a real Kafka, which is killed and restarted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cluster.broker_factory import make_broker
from relay.config.model import Config
from relay.doctor.broker import check_broker
from relay.doctor.finding import Level
from relay.errors import BrokerError
from tests.cluster.nodes import QUICK, data, epoch, follow, publish, ready
from tests.kafka_server import PASSWORD, RealKafka, need_kafka
from tests.running import Feeder, eventually, relay

pytestmark = pytest.mark.slow


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[RealKafka]:
    """Run a server."""
    need_kafka()
    folder = tmp_path / "kafka"
    folder.mkdir()
    server = RealKafka(folder)
    yield server
    server.close()


def test_a_restart_of_the_broker_loses_nothing_and_keeps_the_epoch(kafka: RealKafka, tmp_path: Path) -> None:
    unix = ("--unix", str(tmp_path / "a.sock"))
    with (
        relay("--cluster", kafka.url, *QUICK, *unix) as a,  # creates the topics
        relay("--cluster", kafka.url, *QUICK) as b,
        follow(b) as stream,
        Feeder(a.unix_path) as feeder,
    ):
        [first] = a.publish("1")
        feeder.send(*({"data": str(number)} for number in range(2, 2000)))
        id = feeder.publish(data="2000")
        assert (epoch(id), id.rpartition("-")[2]) == (epoch(first), "2000")
        assert data(stream, 2000) == [str(number) for number in range(1, 2001)]
        kafka.kill()
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails", 60.0)
        feeder.send({"data": "2001", "ack": 1})
        kafka.start()
        feeder.socket.settimeout(120.0)
        assert feeder.answer() == {"ack": 1, "id": f"{epoch(first)}-2001"}
        assert data(stream, 1) == ["2001"]
        eventually(lambda: ready(a) and ready(b), "/readyz succeeds", 60.0)
        with relay("--cluster", kafka.url) as new, follow(new, f"{epoch(first)}-1999") as resumed:
            assert data(resumed, 2) == ["2000", "2001"]
            publish(new, "2002")
            assert data(stream, 1) == data(resumed, 1) == ["2002"]


def test_an_event_above_the_limit_of_the_broker_is_rejected(kafka: RealKafka) -> None:
    with relay("--cluster", kafka.url, "--event-bytes-max", "8MiB", *QUICK) as node, follow(node) as stream:
        headers = {"Authorization": "Bearer a-token-for-tests", "Content-Type": "text/plain"}
        status, _, body = node.request("POST", "/publish", b"x" * 3_000_000, headers)
        assert (status, "message.max.bytes" in json.loads(body)["error"]) == (413, True)
        publish(node, "small")
        assert data(stream, 1) == ["small"]
        reachable, *settings = asyncio.run(check_broker(Config(cluster=kafka.url)))
        assert "is reachable: Kafka (brokers: 1)" in reachable.text
        levels = {each.text: each.level for each in settings}
        assert levels["partitions is 1"] is levels["cleanup.policy is delete"] is Level.OK
        assert levels["message.timestamp.type is LogAppendTime"] is Level.OK


async def test_a_node_logs_in_over_tls(kafka: RealKafka, tmp_path: Path) -> None:
    address, ca = f"127.0.0.1:{kafka.secure_port}/events", str(kafka.certificate.cert)
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    secret = ("--cluster-password-file", str(password), "--cluster-tls-ca", ca)
    with relay("--cluster", f"kafkas://app@{address}", *secret, *QUICK) as node, follow(node) as stream:
        publish(node, "1")
        assert data(stream, 1) == ["1"]
        assert PASSWORD not in json.dumps([node.log, node.stats()])
    broker, _ = make_broker(Config(cluster=f"kafkas://app:a-wrong-password@{address}", cluster_tls_ca=ca))
    with pytest.raises(BrokerError, match=r"(?i)authentication failed") as raised:
        await broker.open("0a1b2c3d")
    assert "a-wrong-password" not in str(raised.value)
    await broker.close()
