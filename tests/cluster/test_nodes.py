"""Real nodes at a real Redis have the same events and ids, also when the broker or a node fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from loadtest.rig.cable import Cable
from relay.brokers.credentials import TlsFiles
from relay.cluster.redis_broker import RedisBroker
from relay.config.broker_address import parse_redis
from relay.errors import BrokerError
from tests import ROOT
from tests.certificate import make_certificate
from tests.cluster.nodes import (
    JSON,
    QUICK,
    check_every_node,
    data,
    detach,
    epoch,
    follow,
    publish,
    ready,
    try_to_publish,
)
from tests.forms import FORMS, FormStream
from tests.redis_server import RedisServer, need_redis
from tests.running import (
    TIMEOUT_S,
    Feeder,
    Relay,
    command,
    environment,
    eventually,
    free_port,
    relay,
    run,
)
from tests.telemetry.test_metrics import documented, exported


def has_ended(server: Relay, last_id: str) -> bool:
    """Return whether topic t has ended at a node."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
    return server.request("GET", "/events?topic=t", headers=headers)[0] == 204


@pytest.fixture
def cluster_url(redis: RedisServer) -> str:
    """Return the address of the broker."""
    return redis.url


def test_every_node_has_the_same_events_ids_and_order(pair: tuple[Relay, Relay]) -> None:
    check_every_node(pair)


def test_a_client_moves_to_another_node(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(a) as stream:
        a.publish("1")
        [event] = stream.take(1)
    a.publish("2")
    a.publish("3")
    with follow(b, str(event.id)) as stream:
        assert data(stream, 2) == ["2", "3"]
        last_id = stream.last_event_id
    b.publish("4", "other")
    with follow(a, last_id) as stream:
        a.publish("5")
        assert data(stream, 1) == ["5"]


def test_a_node_that_is_behind_waits_for_the_event_of_a_last_id(redis: RedisServer) -> None:
    cable = Cable(redis.port)
    with relay("--cluster", redis.url, *QUICK) as a, relay("--cluster", f"redis://127.0.0.1:{cable.port}", *QUICK) as b:
        publish(b, "1")  # Both connections of the node are open.
        eventually(lambda: b.stats()["log"]["head"] == 2, "the event arrives")
        cable.flowing.clear()
        [default] = a.publish("2")
        own = json.loads(a.request("POST", "/publish", b'{"data":"3","id":"own"}', JSON)[2])["ids"][0]
        a.publish("4")
        with ThreadPoolExecutor() as threads:
            opening = [threads.submit(follow, b, last_id) for last_id in (default, own)]
            eventually(lambda: b.connections() == 2, "the clients wait")
            assert b.stats()["log"]["head"] == 2
            cable.flowing.set()
            for opened, expected in zip(opening, (["3", "4"], ["4"]), strict=True):
                with opened.result() as stream:
                    assert data(stream, len(expected)) == expected
    cable.close()


def test_a_new_node_has_the_history(redis: RedisServer, pair: tuple[Relay, Relay]) -> None:
    a, _ = pair
    [first] = a.publish("1")
    for number in range(2, 8):
        a.publish(str(number))
    with relay("--cluster", redis.url) as new, follow(new, first) as stream:
        assert data(stream, 6) == ["2", "3", "4", "5", "6", "7"]
        assert "relay.gap" not in stream.raw.decode()


def test_the_end_of_a_topic_holds_at_every_node(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(b, topic="t") as stream:
        a.publish("1", "t")
        a.publish('{"event":"relay.end","data":"bye"}', "t", "application/json")
        assert [event.event for event in stream.rest()] == [None, "relay.end"]
    for server in pair:
        assert server.request("POST", "/publish?topic=t", b"late", {**JSON, "Content-Type": "text/plain"})[0] == 410
        eventually(partial(has_ended, server, stream.last_event_id), "a client that resumes receives 204")
    with Feeder(b.unix_path) as feeder:
        feeder.send({"topic": "t", "data": "late", "ack": 1})
        assert feeder.answer() == {"error": "topic: has ended for good", "line": 1, "ack": 1}


def test_a_dedup_key_holds_at_every_node(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with Feeder(a.unix_path) as first, Feeder(b.unix_path) as second, follow(a) as stream:
        id = first.publish(data="1", dedup="k")
        assert second.publish(data="1", dedup="k") == id
        body = json.dumps([{"data": "1", "dedup": "k"}, {"data": "2"}]).encode()
        ids = json.loads(a.request("POST", "/publish", body, JSON)[2])["ids"]
        assert ids[0] == id
        assert data(stream, 2) == ["1", "2"]
    assert a.metric("relay_cluster_repeats_total") + b.metric("relay_cluster_repeats_total") == 2


def test_while_the_broker_is_away_streams_are_served_and_publishers_wait(
    redis: RedisServer, pair: tuple[Relay, Relay]
) -> None:
    a, b = pair
    redis.client.config_set("appendonly", "yes")
    redis.client.config_set("appendfsync", "always")
    eventually(lambda: redis.client.info("persistence")["aof_rewrite_in_progress"] == 0, "the file is written")
    eventually(lambda: redis.client.info("persistence")["aof_last_bgrewrite_status"] == "ok", "the file is written")
    first = publish(a, "1")
    a.publish("2")
    eventually(lambda: b.stats()["log"]["head"] == 3, "the events arrive")
    with follow(b) as stream, Feeder(a.unix_path) as feeder:
        redis.kill()
        eventually(lambda: not a.stats()["cluster"]["connected"], "the loss is noticed")
        status, headers, document = try_to_publish(a, "refused")
        assert (status, document["error"]) == (503, "the broker is unavailable")
        assert int(headers["retry-after"]) > 0
        with follow(a, first) as other:
            assert data(other, 1) == ["2"]  # from memory
        feeder.send({"data": "3", "ack": 3}, {"data": "4", "ack": 4})
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails")
        assert json.loads(a.request("GET", "/readyz")[2]) == {"status": "waiting for its log"}
        assert a.request("GET", "/healthz")[0] == 200
        redis.start("--appendonly", "yes")
        assert [feeder.answer()["ack"] for _ in range(2)] == [3, 4]
        assert data(stream, 2) == ["3", "4"]
    eventually(lambda: ready(a) and ready(b), "/readyz succeeds")
    assert epoch(publish(b, "5")) == epoch(first)
    assert a.messages("cluster: lost redis://127.0.0.1")
    assert a.messages("cluster: following redis://127.0.0.1:" + str(redis.port) + "/0 again")


def test_a_broker_that_stalls_makes_nodes_unready_and_loses_nothing(
    redis: RedisServer, pair: tuple[Relay, Relay]
) -> None:
    a, b = pair
    with follow(b) as stream, Feeder(a.unix_path) as feeder:
        [id] = a.publish("1")
        redis.signal(signal.SIGSTOP)
        feeder.send({"data": "2", "ack": 2})
        eventually(lambda: not ready(a) and not ready(b), "/readyz fails")
        redis.signal(signal.SIGCONT)
        assert feeder.answer()["id"] == f"{epoch(id)}-2"
        assert data(stream, 2) == ["1", "2"]
        eventually(lambda: ready(a) and ready(b), "/readyz succeeds")
    [last] = a.publish("3")
    assert last == f"{epoch(id)}-3"  # the call that was repeated was appended once


def test_a_stuck_follower_makes_one_node_unready(redis: RedisServer) -> None:
    cable = Cable(redis.port)
    with relay("--cluster", redis.url, *QUICK) as a, relay("--cluster", f"redis://127.0.0.1:{cable.port}", *QUICK) as b:
        cable.flowing.clear()
        a.publish("1")
        eventually(lambda: ready(a) and not ready(b), "/readyz fails at one node only")
        cable.flowing.set()
        eventually(lambda: ready(b), "/readyz succeeds")
        assert b.stats()["log"]["head"] == 2
    cable.close()


def test_an_empty_broker_starts_a_new_log_and_clients_are_notified(
    redis: RedisServer, pair: tuple[Relay, Relay]
) -> None:
    a, _ = pair
    with follow(a) as stream:
        [old] = a.publish("1")
        stream.take(1)
        redis.kill()
        redis.start()
        assert [event.data for event in stream.rest()] == []
        eventually(lambda: all(node.stats()["log"]["events"] == 0 for node in pair), "the nodes begin again")
    for node in pair:
        with follow(node, old) as stream:
            gap = stream.next()
            assert (gap.event, json.loads(gap.data)["reason"]) == ("relay.gap", "unknown")
    ids = [publish(node, "2") for node in pair]
    assert epoch(ids[0]) == epoch(ids[1]) != epoch(old)
    assert [id.rpartition("-")[2] for id in ids] == ["1", "2"]


def test_the_streams_of_a_node_whose_broker_starts_anew_have_no_last_chunk(redis: RedisServer) -> None:
    with relay("--cluster", redis.url, *QUICK) as node, ExitStack() as stack:
        streams = [stack.enter_context(FormStream(node.port, form)) for form in FORMS]
        for stream in streams:
            stream.primed()
        publish(node, "x")
        for stream in streams:
            assert stream.next().data == "x"
        redis.kill()
        redis.start()
        for stream in streams:
            assert stream.end() == []
            assert not stream.has_last_chunk
            assert not stream.is_torn
            assert b"retry" in stream.raw.splitlines()[-1]
        eventually(lambda: node.stats()["closes"] == {"lapped": len(FORMS)}, "the streams are closed")


def test_a_node_that_is_slower_than_the_trimming_reports_a_gap(redis: RedisServer) -> None:
    history = ("--history-events", "20")
    with relay("--cluster", redis.url, *QUICK, *history) as a, relay("--cluster", redis.url, *QUICK, *history) as b:
        with follow(b) as stream:
            [first] = a.publish("0")
            stream.take(1)
            os.kill(b.pid, signal.SIGSTOP)
            last_id = a.publish("1")[0]  # the broker sends it to the stopped node, whose read waits
            body = json.dumps([{"data": "x"} for _ in range(500)]).encode()
            ids = json.loads(a.request("POST", "/publish", body, JSON)[2])["ids"]
            eventually(lambda: redis.client.xlen("{relay}:log") < 200, "the broker is trimmed")
            os.kill(b.pid, signal.SIGCONT)
            assert [event.id for event in stream.rest()] == [last_id]
        eventually(lambda: b.stats()["cluster"]["lapped"] == 1, "the node is lapped")
        eventually(lambda: b.stats()["log"]["head"] == 503, "the node has the log")
        with follow(b, last_id) as stream:
            gap = json.loads(stream.next().data)
            events = [stream.next()]
            while events[-1].id != ids[-1]:
                events.append(stream.next())
        missed = {"from": f"{epoch(first)}-3", "to": f"{epoch(first)}-{b.stats()['log']['tail'] - 1}"}
        assert gap == {"reason": "history", "missed": None, **missed}
        assert [event.id for event in events] == ids[-len(events) :]
        assert epoch(ids[0]) == epoch(first)


@pytest.fixture
def replica(redis: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """Run a replica of the broker."""
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RedisServer(folder, "--replicaof", "127.0.0.1", str(redis.port))
    eventually(lambda: server.client.info("replication")["master_link_status"] == "up", "the replica is linked")
    yield server
    server.close()


def test_a_failover_without_loss_continues_the_log(redis: RedisServer, replica: RedisServer) -> None:
    cable = Cable(redis.port)
    url = f"redis://127.0.0.1:{cable.port}"
    with relay("--cluster", url, *QUICK) as a, relay("--cluster", url, *QUICK) as b, follow(b) as stream:
        [first] = a.publish("1")
        eventually(lambda: replica.client.xlen("{relay}:log") == 1, "the entry is replicated")
        redis.kill()
        replica.client.replicaof("NO", "ONE")
        cable.target = replica.port
        cable.cut()
        publish(a, "2")
        assert data(stream, 2) == ["1", "2"]
        assert epoch(publish(b, "3")) == epoch(first)
    cable.close()


def test_a_failover_that_lost_acknowledged_events_renews_the_epoch_once(
    redis: RedisServer, replica: RedisServer
) -> None:
    cable = Cable(redis.port)
    url = f"redis://127.0.0.1:{cable.port}"
    with relay("--cluster", url, *QUICK) as a, relay("--cluster", url, *QUICK) as b:
        with follow(a) as at_a, follow(b) as at_b:
            [kept] = a.publish("kept")
            eventually(lambda: replica.client.xlen("{relay}:log") == 1, "the entry is replicated")
            detach(redis)
            lost = [a.publish(f"lost {number}")[0] for number in range(5)]
            for stream in (at_a, at_b):
                assert stream.take(6)[-1].id == lost[-1]
            redis.kill()
            replica.client.replicaof("NO", "ONE")
            cable.target = replica.port
            cable.cut()
            for stream in (at_a, at_b):  # all clients are notified: their streams end
                assert stream.rest() == []
        eventually(lambda: epoch(publish(b, "new")) != epoch(kept), "the epoch is renewed")
        eventually(lambda: a.stats()["log"]["head"] == b.stats()["log"]["head"], "the nodes agree")
        renewed = replica.client.hget("{relay}:state", "epoch").decode()
        for node in (a, b):
            with follow(node, lost[-1]) as stream:
                gap, first = stream.take(2)
                assert (gap.event, json.loads(gap.data)["reason"]) == ("relay.gap", "unknown")
                assert (first.data, first.id) == ("kept", f"{renewed}-1")
        assert sum(node.stats()["cluster"]["renewals"] for node in (a, b)) == 1
    cable.close()


def test_a_node_finds_the_new_primary_through_sentinels(
    redis: RedisServer, replica: RedisServer, tmp_path: Path
) -> None:
    configuration, port = tmp_path / "sentinel.conf", free_port()
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {redis.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
    )
    sentinel = RedisServer(tmp_path, port=port, command=(str(configuration), "--sentinel"))
    try:
        eventually(lambda: sentinel.client.sentinel_master("mymaster")["num-slaves"] == 1, "the replica is known")
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0"
        with relay("--cluster", url, *QUICK) as node, follow(node) as stream:
            [first] = node.publish("1")
            eventually(lambda: replica.client.xlen("{relay}:log") == 1, "the entry is replicated")
            redis.kill()
            publish(node, "2")
            assert data(stream, 2) == ["1", "2"]
            assert epoch(publish(node, "3")) == epoch(first)
    finally:
        sentinel.close()


def test_workers_share_one_follower(redis: RedisServer) -> None:
    quick = ("--cluster", redis.url, *QUICK)
    with relay(*quick, "--workers", "2") as node, relay(*quick) as other:
        streams = [follow(node) for _ in range(8)]
        ids = [node.publish("1")[0], other.publish("2")[0]]
        for stream in streams:
            assert [event.id for event in stream.take(2)] == ids
            stream.close()
        assert len(redis.client.client_list(_type="normal")) == 2 * 2 + 1  # two connections of each machine, and mine
        stats = node.stats()
        assert len(stats["workers"]) == 2
        assert stats["cluster"]["published"] == 1
        with follow(node, ids[0]) as stream:
            assert data(stream, 1) == ["2"]
        redis.kill()
        eventually(lambda: not ready(node), "/readyz of a worker fails")
        assert try_to_publish(node, "refused")[0] == 503
        redis.start()
        eventually(lambda: ready(node), "/readyz of a worker succeeds")
        assert publish(node, "3") == f"{epoch(publish(other, '4'))}-1"


def test_credentials_appear_nowhere(redis: RedisServer, tmp_path: Path) -> None:
    secret = "a-secret-for-the-broker"
    redis.client.execute_command("ACL", "SETUSER", "app", "on", f">{secret}", "~*", "+@all")
    redis.client.config_set("requirepass", "other")
    url = f"redis://app:{secret}@127.0.0.1:{redis.port}/0"
    with relay(environ={"RELAY_CLUSTER": url}) as node:
        publish(node, "1")
        shown = [
            Path(f"/proc/{node.pid}/cmdline").read_bytes().decode(),
            json.dumps(node.log),
            json.dumps(node.stats()),
            node.request("GET", "/metrics")[2].decode(),
            run("serve", "--print-config", RELAY_CLUSTER=url).stdout,
        ]
        assert node.stats()["cluster"]["broker"] == f"redis://127.0.0.1:{redis.port}/0"
        redis.client.execute_command("ACL", "SETUSER", "app", "resetpass", ">another")
        redis.client.execute_command("CLIENT", "KILL", "USER", "app")
        eventually(lambda: "invalid username-password" in json.dumps(node.stats()), "the error is shown")
        shown += [json.dumps(node.log), json.dumps(node.stats())]
    for text in shown:
        assert secret not in text
    failed = run("--cluster", url)
    assert failed.returncode == 2
    assert "other users of this machine can read a password in the command line" in failed.stderr
    assert secret not in failed.stderr
    password = tmp_path / "password"
    password.write_text("another\n")
    url = f"redis://app@127.0.0.1:{redis.port}/0"
    with relay("--cluster", url, "--cluster-password-file", str(password)) as node:
        node.publish("2")


async def test_a_broker_with_tls(tmp_path: Path) -> None:
    need_redis()
    certificate = make_certificate(tmp_path / "tls", "broker")
    other = make_certificate(tmp_path / "other", "other")
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(
        folder,
        *("--tls-port", "0", "--tls-cert-file", str(certificate.cert), "--tls-key-file", str(certificate.key)),
        *("--tls-ca-cert-file", str(certificate.cert), "--tls-auth-clients", "yes"),
    )
    try:
        port = free_port()
        server.client.config_set("tls-port", port)
        flags = ("--cluster", f"rediss://127.0.0.1:{port}/0", "--cluster-tls-ca", str(certificate.cert))
        keys = ("--cluster-tls-cert", str(certificate.cert), "--cluster-tls-key", str(certificate.key))
        with relay(*flags, *keys) as node, follow(node) as stream:
            publish(node, "1")
            assert data(stream, 1) == ["1"]
        broker = RedisBroker(
            parse_redis(flags[1]), "relay", "00000000", 60.0, lambda: "", TlsFiles(str(other.cert))
        )
        with pytest.raises(BrokerError, match="certificate verify failed"):
            await broker.connect()
        await broker.close_publisher()
    finally:
        server.close()


def test_another_program_publishes_with_the_documented_script(redis: RedisServer, pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    [first] = a.publish("1")
    script = (ROOT / "relay" / "cluster" / "log.lua").read_text()
    keys = ("{relay}:log", "{relay}:state", "{relay}:ended", "{relay}:dedup:", "{relay}:call:shop1")
    event = '{"topic":"default","data":{"price":1.50}}'
    with follow(b, first) as stream:
        call = (script, 5, *keys, "publish", "5f0c21aa", "shop1", "1", "600000", "", "default", event)
        assert redis.client.eval(*call) == f"{epoch(first)}\n2".encode()
        assert redis.client.eval(*call) == f"{epoch(first)}\n2".encode()
        wrong = ("", "default", "not JSON", "d", "default", event, "default\nk", "")
        assert redis.client.eval(*call[:-5], "2", "600000", *wrong) == f"{epoch(first)}\n3\n4".encode()
        events = stream.take(3)
    assert [event.id for event in events] == [f"{epoch(first)}-{sequence}" for sequence in (2, 3, 4)]
    assert [events[0].data, events[2].data] == ['{"price":1.50}'] * 2
    assert json.loads(events[1].data)["reason"] == "refused"
    assert b.metric("relay_input_errors_total") == 1
    assert event in (ROOT / "docs" / "reference" / "broker-entries.md").read_text().replace("orders.42", "default")


def test_the_metrics_of_a_cluster_match_the_documentation_and_top_shows_it(pair: tuple[Relay, Relay]) -> None:
    a, _ = pair
    assert exported(a.request("GET", "/metrics")[2].decode()) == documented() | documented("## In a cluster")
    rows = [line.split() for line in run("top", a.url, "--once", COLUMNS="120").stdout.splitlines()]
    assert ["cluster", "connected", "cluster", "lag", "0", "events"] in rows


def test_a_drain_delivers_what_was_acknowledged(pair: tuple[Relay, Relay]) -> None:
    a, b = pair
    with follow(a) as stream, Feeder(a.unix_path) as feeder:
        feeder.send(*({"data": str(number)} for number in range(2000)))
        feeder.send({"data": "last", "ack": 1})
        feeder.answer()
        began_s = time.monotonic()
        a.process.send_signal(signal.SIGTERM)
        assert [event.data for event in stream.rest()][-1] == "last"
        assert a.wait() == 0
        assert time.monotonic() - began_s < TIMEOUT_S
    eventually(lambda: b.stats()["log"]["head"] == 2002, "the other node has all events")


def test_standard_input_is_published_completely_before_the_exit(redis: RedisServer) -> None:
    lines = "".join(f"{number}\n" for number in range(5000))
    done = run("--cluster", redis.url, "--stdin", "lines", "--exit-on-eof", "--listen", "127.0.0.1:0", input=lines)
    assert done.returncode == 0, done.stderr
    entries = redis.client.xrange("{relay}:log")
    assert [json.loads(fields[b"v1"])["data"] for _, fields in entries] == lines.splitlines()


def test_an_unreachable_broker_delays_the_start(redis: RedisServer) -> None:
    redis.kill()
    with ThreadPoolExecutor() as threads:
        with socket.create_server(("127.0.0.1", redis.port)) as listener:
            starting = threads.submit(Relay, "--cluster", redis.url)
            listener.accept()[0].close()
            listener.accept()[0].close()
        redis.start()
        node = starting.result()
    try:
        assert node.messages("cluster: cannot reach redis://127.0.0.1")
        assert not node.messages("cluster: lost")
        publish(node, "1")
    finally:
        node.stop(signal.SIGKILL)


@pytest.mark.parametrize("address", ["redis://{}/0", "kafka://{}/events", "nats://{}/events"])
def test_a_node_that_waits_for_its_broker_states_the_reason_and_stops_on_request(address: str) -> None:
    url = address.format("app:a-secret@127.0.0.1:1")
    arguments = command("serve", "--listen", "127.0.0.1:0")
    log = ""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment(RELAY_CLUSTER=url)) as process:
        assert process.stderr is not None
        while "cluster: cannot reach" not in log:
            log += process.stderr.readline()
        process.terminate()
        log += process.stderr.read()
    assert process.returncode == 0
    assert f"cluster: cannot reach {address.format('127.0.0.1:1')}: " in log
    assert "serving at" not in log
    assert "a-secret" not in log
