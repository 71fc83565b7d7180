"""`relay.sources.feeds`: feeds of real servers are published complete, with their topics, also after a crash.

The feeds: `relay.sources.redis_feed`, `relay.sources.kafka_feed`, `relay.sources.nats_feed`, `relay.sources.mqtt_feed`
and `relay.sources.postgres_feed`, with `relay.brokers.redis_client` and `relay.brokers.credentials`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from relay.config.source_address import parse_source
from relay.errors import ConfigError
from relay.extras import missing_extra
from relay.sources.feeds import make_feed
from tests.certificate import make_certificate
from tests.kafka_server import KafkaServer, RealKafka, need_kafka
from tests.mosquitto_server import PASSWORD as MQTT_PASSWORD
from tests.mosquitto_server import MosquittoServer
from tests.nats_server import NatsServer
from tests.postgres_server import PASSWORD, USER, PostgresServer
from tests.redis_server import RedisServer, need_redis
from tests.running import Relay, Stream, eventually, relay

COUNT = 200
OUTBOX = "CREATE TABLE outbox (id bigserial PRIMARY KEY, customer text, data text NOT NULL)"


class ServerOfFeed(Protocol):
    """A server that contains a feed. `url` is the source, which maps the message of a number to the topic `in.eu`."""

    url: str

    def send(self, numbers: Sequence[int]) -> None: ...


class RestartableServer(ServerOfFeed, Protocol):
    """A server that a test can restart."""

    def restart(self) -> None: ...


class RedisStreamServer:
    """Redis with a stream."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = f"{server.url}?stream=orders&topic=in.{{customer}}"

    def send(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.server.client.xadd("orders", {"customer": "eu", "data": str(number)})

    def restart(self) -> None:
        self.server.kill()
        self.server.start()


class RedisChannelServer(RedisStreamServer):
    """Redis with PUB/SUB channels."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.url = f"{server.url}?channel=orders:*&topic=in.{{2}}"

    def send(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.server.client.publish("orders:eu", str(number))


class KafkaTopicServer:
    """Kafka with a topic."""

    def __init__(self, server: KafkaServer | RealKafka) -> None:
        self.url = server.url + "?topic=in.{key}"
        self._options = {"bootstrap.servers": server.url.split("/")[2], "log_level": 0, "linger.ms": 1}

    def send(self, numbers: Sequence[int]) -> None:
        producer = Producer(self._options)  # closed with the last reference
        for number in numbers:
            producer.produce("events", str(number), "eu")
            producer.flush(30)


class NatsSubjectServer:
    """NATS with a subject."""

    stream: tuple[str, ...] = ()

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.url = server.url.removesuffix("/events") + "?subject=orders.>&topic=in.{2}"

    def send(self, numbers: Sequence[int]) -> None:
        async def publish() -> None:
            client = await nats.connect(f"nats://127.0.0.1:{self.server.port}")
            for subject in self.stream:
                await client.jetstream().add_stream(name="orders", subjects=[subject])
            for number in numbers:
                if self.stream:
                    await client.jetstream().publish("orders.eu", str(number).encode())
                else:
                    await client.publish("orders.eu", str(number).encode())
            await client.close()

        asyncio.run(publish())

    def restart(self) -> None:
        self.server.kill()
        self.server.start()


class NatsStreamServer(NatsSubjectServer):
    """NATS with a stream of JetStream."""

    stream = ("orders.>",)

    def __init__(self, server: NatsServer) -> None:
        super().__init__(server)
        self.url = f"nats://127.0.0.1:{server.port}/orders?topic=in.{{2}}"


class MqttServer:
    """Mosquitto."""

    def __init__(self, server: MosquittoServer) -> None:
        self.server = server
        self.url = f"mqtt://127.0.0.1:{server.port}?filter=orders/+&topic=in.{{2}}&dedup={{number}}"

    def send(self, numbers: Sequence[int]) -> None:
        self.server.publish(("orders/eu", str(number)) for number in numbers)

    def restart(self) -> None:
        self.server.close()
        self.server.start()


class PostgresTableServer:
    """PostgreSQL with an outbox."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.url = f"{server.url}&table=outbox&channel=added&topic=in.{{customer}}"
        server.execute(OUTBOX)

    def send(self, numbers: Sequence[int]) -> None:
        for place in range(0, len(numbers), 20):
            rows = ",".join(f"('eu', '{number}')" for number in numbers[place : place + 20])
            self.server.execute(f"INSERT INTO outbox (customer, data) VALUES {rows}; NOTIFY added")

    def restart(self) -> None:
        self.server.kill()
        self.server.start()


class PostgresChannelServer(PostgresTableServer):
    """PostgreSQL with LISTEN."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__(server)
        self.url = f"{server.url}&channel=orders&topic=in.eu"

    def send(self, numbers: Sequence[int]) -> None:
        self.server.execute(";".join(f"NOTIFY orders, '{number}'" for number in numbers))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def feed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Run the server of a kind of feed."""
    kind, folder = request.param, tmp_path / "server"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        if kind in (RedisStreamServer, RedisChannelServer):
            need_redis()
            server: Any = RedisServer(folder)
        elif kind is KafkaTopicServer:
            server = KafkaServer()
        elif kind in (NatsStreamServer, NatsSubjectServer):
            server = NatsServer(folder)
        elif kind is MqttServer:
            server = MosquittoServer(folder)
        else:
            server = request.getfixturevalue("postgres")
            server.execute("DROP TABLE IF EXISTS outbox")
        if kind not in (PostgresTableServer, PostgresChannelServer):
            stack.callback(server.close)
        yield kind(server)


WITH_POSITION = (RedisStreamServer, KafkaTopicServer, NatsStreamServer, MqttServer, PostgresTableServer)
WITHOUT_POSITION = (RedisChannelServer, NatsSubjectServer, PostgresChannelServer)


def name(kind: type) -> str:
    return kind.__name__.removesuffix("Server")


def state(server: Relay) -> dict[str, Any]:
    [source] = server.stats()["sources"]
    return dict(source)


def connected(server: Relay) -> Callable[[], bool]:
    return lambda: bool(state(server)["connected"])


def check_after_crash(feed: ServerOfFeed, folder: Path) -> None:
    """Kill relay while it reads; check that it has all messages once after a restart."""
    flags = ("--source", feed.url, "--data", str(folder / "data"))
    first = 0 if isinstance(feed, MqttServer) else 1  # Mosquitto keeps no message for a session that does not exist
    feed.send(range(first))
    with relay(*flags) as server:
        eventually(connected(server), "connected")
        sender = threading.Thread(target=feed.send, args=(range(first, COUNT),))
        sender.start()
        eventually(lambda: state(server)["events"] >= COUNT // 8, "some messages are published")
        server.stop(signal.SIGKILL)
        sender.join()
    with relay(*flags) as server:
        with Stream(server.port, "topic=in.*&since=earliest") as stream:
            seen = Counter(event.data for event in stream.take(COUNT))
        assert seen == Counter(map(str, range(COUNT)))
        assert server.stats()["log"]["events"] == COUNT
        assert state(server)["errors"] == 0


# The test waits until Kafka removes the killed relay from the group.
SLOW = pytest.param(KafkaTopicServer, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "feed", [SLOW if kind is KafkaTopicServer else kind for kind in WITH_POSITION], ids=name, indirect=True
)
def test_after_kill_9_of_relay_no_message_is_lost_and_none_is_published_twice(
    feed: ServerOfFeed, tmp_path: Path
) -> None:
    check_after_crash(feed, tmp_path)


@pytest.mark.slow
def test_after_kill_9_of_relay_no_message_of_a_real_kafka_is_lost_or_published_twice(tmp_path: Path) -> None:
    need_kafka()
    folder = tmp_path / "kafka"
    folder.mkdir()
    with contextlib.closing(RealKafka(folder)) as server:
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{server.port}"})
        admin.create_topics([NewTopic("events", 2)])["events"].result(30)
        check_after_crash(KafkaTopicServer(server), tmp_path)


KINDS = [kind for kind in (*WITH_POSITION, *WITHOUT_POSITION) if kind is not KafkaTopicServer]


@pytest.mark.parametrize("feed", KINDS, ids=name, indirect=True)
def test_relay_reconnects_after_a_restart_of_the_server(feed: RestartableServer) -> None:
    """The mock of Kafka cannot be restarted; librdkafka reconnects by itself."""
    if isinstance(feed, NatsStreamServer):
        feed.send([])  # creates the stream
    with relay("--source", feed.url) as server, Stream(server.port, "topic=in.eu") as stream:
        eventually(connected(server), "connected")
        feed.send([1])
        assert stream.next().data == "1"
        feed.restart()
        eventually(lambda: state(server)["breaks"] == 1 and state(server)["connected"], "connected again")
        feed.send([2])
        assert stream.next().data == "2"
        assert server.stats()["log"]["events"] == 2
        assert server.metric("relay_source_breaks_total") == server.metric("relay_source_connected") == 1


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [
        ("redis://h?stream=a", "redis", "redis"),
        ("kafka://h/a", "confluent_kafka", "kafka"),
        ("nats://h/a", "nats", "nats"),
        ("mqtt://h?filter=a", "paho", "mqtt"),
        ("postgres://h/a?table=b", "asyncpg", "postgres"),
    ],
)
def test_a_missing_library_is_an_error_that_names_the_extra(
    address: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"source: needs the library {module}, which is not installed") as raised:
        make_feed(parse_source(address))
    assert str(raised.value).endswith(missing_extra(extra))


def test_a_relay_without_sources_imports_no_library_of_a_source() -> None:
    program = (
        "import sys; import relay.server.server; "
        "print(*{'redis', 'confluent_kafka', 'nats', 'paho', 'asyncpg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    need_redis()
    server = RedisServer(tmp_path)
    server.client.config_set("requirepass", "a-secret-of-redis")
    yield server
    server.close()


def shown_everywhere(server: Relay) -> str:
    command = Path(f"/proc/{server.pid}/cmdline").read_text()
    parts = (server.stats(), server.request("GET", "/metrics")[2].decode(), server.log, command)
    return json.dumps(parts)


def test_a_password_in_the_environment_or_in_a_file_is_used_and_never_shown(
    redis: RedisServer, tmp_path: Path
) -> None:
    secret, file = "a-secret-of-redis", tmp_path / "password"
    file.write_text(secret)
    place = f"127.0.0.1:{redis.port}"
    environ = {"RELAY_SOURCE": f"redis://:{secret}@{place}/0?stream=a redis://{place}/0?stream=b&password-file={file}"}
    with relay(environ=environ) as server:
        eventually(lambda: all(each["connected"] for each in server.stats()["sources"]), "both are connected")
        assert secret not in shown_everywhere(server)
    environ = {"RELAY_SOURCE": f"redis://:wrong-{secret}@{place}/0?stream=a"}
    with relay(environ=environ) as server:
        eventually(lambda: "AuthenticationError" in state(server)["error"], "the password is rejected")
        name = f"source redis://{place}/0?stream=a"
        eventually(lambda: bool(server.messages(f"{name}: cannot connect: ")), "the failure is logged")
        assert secret not in shown_everywhere(server)


def test_postgres_accepts_the_password_of_the_address(postgres: PostgresServer) -> None:
    address = f"127.0.0.1:{postgres.port}/postgres?channel=orders"
    with relay(environ={"RELAY_SOURCE": f"postgres://{USER}:{PASSWORD}@{address}"}) as server:
        eventually(connected(server), "connected")
        assert PASSWORD not in shown_everywhere(server)
    with relay(environ={"RELAY_SOURCE": f"postgres://{USER}:wrong@{address}"}) as server:
        eventually(lambda: "password" in state(server)["error"], "the password is rejected")


def test_tls_checks_the_certificate_of_postgres_and_mqtt(postgres: PostgresServer, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "certificate", "mosquitto")
    with contextlib.closing(MosquittoServer(tmp_path, certificate)) as mosquitto:
        tls, own = f"{USER}:{PASSWORD}@127.0.0.1:{postgres.port}/postgres?tls=on", postgres.certificate.cert
        mqtts = f"mqtts://app:{MQTT_PASSWORD}@127.0.0.1:{mosquitto.port}"
        trusted = f"postgres://{tls}&channel=a&tls-ca={own} {mqtts}?filter=a&tls-ca={certificate.cert}"
        unknown = f"postgres://{tls}&channel=b {mqtts}?filter=b&client=b"
        wrong = f"{mqtts.replace(MQTT_PASSWORD, 'wrong')}?filter=c&client=c&tls-ca={certificate.cert}"
        with relay(environ={"RELAY_SOURCE": f"{trusted} {unknown} {wrong}"}) as server:

            def errors() -> list[str]:
                return [each["error"] for each in server.stats()["sources"]]

            eventually(lambda: all(errors()[2:]), "three are rejected")
            eventually(lambda: all(each["connected"] for each in server.stats()["sources"][:2]), "two are connected")
            assert all("certificate verify failed" in error for error in errors()[2:4])
            assert "uthori" in errors()[4]
            for secret in (PASSWORD, MQTT_PASSWORD):
                assert secret not in shown_everywhere(server)


@pytest.mark.parametrize("feed", [RedisStreamServer], ids=name, indirect=True)
def test_a_message_that_cannot_be_published_is_skipped_and_counted(feed: RedisStreamServer) -> None:
    feed.send([1])
    feed.server.client.xadd("orders", {"data": "2"})
    feed.send([3])
    with relay("--source", feed.url) as server:
        with Stream(server.port, "topic=in.*&since=earliest") as stream:
            assert [event.data for event in stream.take(2)] == ["1", "3"]
        assert (state(server)["events"], state(server)["errors"]) == (2, 1)
        assert server.metric("relay_source_errors_total") == 1
        name = f"source {state(server)['source']}"
        eventually(lambda: bool(server.messages(f"{name}: rejected a message of 'orders'")), "the error is logged")
        [line] = server.messages(f"{name}: rejected")
        assert "no part 'customer'" in line
        eventually(lambda: feed.server.client.xpending("orders", "relay")["pending"] == 0, "all are acknowledged")


@pytest.mark.parametrize("feed", [RedisStreamServer], ids=name, indirect=True)
def test_with_stop_the_source_stops_at_the_message_and_relay_serves_on(feed: RedisStreamServer) -> None:
    feed.send([1])
    bad = feed.server.client.xadd("orders", {"data": "2"}).decode()
    feed.send([3])
    with relay("--source", feed.url, "--source-errors", "stop") as server:
        eventually(lambda: bool(state(server)["ended"]), "the source stops")
        assert bad in state(server)["ended"]
        assert (state(server)["events"], state(server)["connected"]) == (1, False)
        waiting = feed.server.client.xpending("orders", "relay")
        assert (waiting["pending"], waiting["min"].decode()) == (2, bad)
        server.publish("served")


@pytest.mark.parametrize("feed", [RedisStreamServer], ids=name, indirect=True)
def test_a_source_feeds_the_workers(feed: RedisStreamServer) -> None:
    with relay("--source", feed.url, "--workers", "2") as server, Stream(server.port, "topic=in.eu") as stream:
        feed.send([1])
        assert stream.next().data == "1"
        assert state(server)["events"] == 1


@pytest.mark.parametrize("feed", [PostgresTableServer], ids=name, indirect=True)
def test_one_of_two_relays_reads_a_table_and_the_other_continues_when_it_ends(feed: PostgresTableServer) -> None:
    with relay("--source", feed.url) as second:
        with relay("--source", feed.url) as first:
            eventually(connected(first), "connected")
            feed.send([1, 2])
            eventually(lambda: state(first)["events"] + state(second)["events"] == 2, "the rows are published")
            assert 0 in (state(first)["events"], state(second)["events"])
        before = state(second)["events"]
        feed.send([3])
        eventually(lambda: state(second)["events"] == before + 1, "the other one continues")
    assert feed.server.execute("SELECT count(*) FROM outbox").strip() == "0"


@pytest.mark.parametrize("feed", [RedisStreamServer], ids=name, indirect=True)
def test_after_kill_9_of_a_node_its_cluster_has_each_message_once(feed: RedisStreamServer) -> None:
    """The broker of the cluster keeps the dedup keys, so that the node needs no file."""
    cluster = ("--cluster", feed.server.url)
    flags = (*cluster, "--source", feed.url)
    with relay(*cluster) as other, Stream(other.port, "topic=in.*") as stream:
        with relay(*flags) as node:
            sender = threading.Thread(target=feed.send, args=(range(COUNT),))
            sender.start()
            eventually(lambda: state(node)["events"] >= COUNT // 8, "some messages are published")
            node.stop(signal.SIGKILL)
            sender.join()
        with relay(*flags) as node:
            assert Counter(event.data for event in stream.take(COUNT)) == Counter(map(str, range(COUNT)))
            eventually(lambda: feed.server.client.xpending("orders", "relay")["pending"] == 0, "all are acknowledged")
            feed.send([COUNT])
            assert stream.next().data == str(COUNT)
            assert state(node)["errors"] == 0
