"""Tests of relay.store.restore and the whole store in real servers.

No event that was acknowledged as durable, or delivered, is lost, delivered twice or given another id.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.event import Event
from tests.faults.resender import Resender
from tests.oracle import Oracle
from tests.running import TOKEN, Feeder, Relay, Stream, eventually, relay, run


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "relay.db")


def post(server: Relay, body: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    status, _, answer = server.request("POST", "/publish", json.dumps(body).encode(), headers)
    return status, json.loads(answer)


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_history_ids_and_epoch_survive_the_process(data: str, ended_by: int) -> None:
    with relay("--data", data, "--durable") as server:
        with Stream(server.port, "topic=**") as stream:
            ids = [server.publish(str(number), f"t.{number % 3}")[0] for number in range(30)]
            assert [event.id for event in stream.take(30)] == ids
            last = stream.last_event_id
        server.stop(ended_by)
    with relay("--data", data) as server:
        assert server.stats()["log"]["events"] == 30
        after = server.publish("after", "t.0")[0]
        assert after.partition("-")[0] == ids[0].partition("-")[0]
        with Stream(server.port, "topic=**", {"Last-Event-ID": last}) as stream:
            assert stream.next().data == "after"
        with Stream(server.port, "topic=t.1", {"Last-Event-ID": ids[13]}) as stream:
            assert [event.id for event in stream.take(5)] == ids[16::3]
        with Stream(server.port, "topic=**&since=earliest") as stream:
            assert [event.data for event in stream.take(31)] == [*map(str, range(30)), "after"]


def test_every_event_is_received_once_and_in_order_despite_repeated_kills(data: str, tmp_path: Path) -> None:
    """The feeder resends unacknowledged events; the subscriber reconnects with its last id."""
    count, kills, draw = 6000, 5, random.Random(3)
    path = tmp_path / "relay.sock"
    arguments = ("--data", data, "--durable", "--unix", str(path))
    feeder = Resender(path, count)
    seen: list[Event] = []
    last: str | None = None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(relay(*arguments))
        feeder.start()
        for number in range(kills + 1):
            headers = {} if last is None else {"Last-Event-ID": last}
            query = "topic=**&since=earliest" if last is None else "topic=**"
            with Stream(server.port, query, headers) as stream:
                until = count if number == kills else min(count, len(seen) + draw.randint(100, 1000))
                while len(seen) < until:
                    seen.append(stream.next())
                if number < kills:
                    server.stop(signal.SIGKILL)
                    with contextlib.suppress(ConnectionError):
                        seen += stream.rest()
                last = stream.last_event_id or last
            if number < kills:
                server = stack.enter_context(relay(*arguments))
        assert feeder.over.wait(30)
    assert not [event for event in seen if event.event == "relay.gap"]
    oracle = Oracle(feeder.published(), ("**",))
    oracle.connect(1)
    for event in seen:
        oracle.receive(event)
    oracle.finish()
    assert len(seen) == count
    print(f"{feeder.sent_again} events sent for {count}, over {kills + 1} servers")
    assert feeder.sent_again > count


def test_without_durable_received_events_survive_a_kill(data: str, tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--data", data, "--unix", str(path)) as server, Stream(server.port) as stream:
        with Feeder(path) as feeder:
            feeder.send(*({"data": number} for number in range(3000)))
            seen = stream.take(1000)
            server.stop(signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            seen += stream.rest()
    with relay("--data", data) as server:
        with Stream(server.port, "topic=default&since=earliest") as stream:
            again = stream.take(len(seen))
        assert [(event.id, event.data) for event in again] == [(event.id, event.data) for event in seen]
        [id] = server.publish("new")
        assert id not in {event.id for event in again}


@contextlib.contextmanager
def full_disk(server: Relay) -> Iterator[None]:
    """Prevent every file of a server from growing, as a full disk does."""
    pid, limits = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_stops_publishing_but_not_serving_and_loses_no_acknowledged_event(
    data: str, tmp_path: Path
) -> None:
    path = tmp_path / "relay.sock"
    with relay("--data", data, "--durable", "--unix", str(path), "--heartbeat", "200ms") as server:
        server.publish("before")
        with Stream(server.port) as live, Feeder(path) as feeder:
            with full_disk(server):
                feeder.send({"data": "waits", "ack": 1})
                eventually(lambda: server.metric("relay_store_failing") == 1, "the write fails")
                status, answer = post(server, {"data": "refused"})
                assert status == 503
                assert "cannot store events: " in answer["error"]
                assert server.request("GET", "/readyz")[0] == 200
                with Stream(server.port, "topic=default&since=earliest") as replay:
                    assert replay.next().data == "before"
                    live.read_until(b":\n")
                    assert b"data" not in live.raw
            assert feeder.answer()["ack"] == 1
            assert live.next().data == "waits"
            server.publish("after")
            assert live.next().data == "after"
        assert server.metric("relay_store_failures_total") >= 1
        assert server.metric("relay_store_pending") == 0
        server.stop(signal.SIGKILL)
        errors = [record for record in server.log if record.get("level") == "ERROR"]
        assert len(errors) == 1
        assert "publishing is refused: " in errors[0]["message"]
    with relay("--data", data) as server, Stream(server.port, "topic=default&since=earliest") as stream:
        assert [event.data for event in stream.take(3)] == ["before", "waits", "after"]


def test_a_stop_with_a_full_disk_reports_the_lost_events(data: str, tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--data", data, "--unix", str(path), "--drain-timeout", "1s") as server, Feeder(path) as feeder:
        assert feeder.publish(data="stored")
        eventually(lambda: server.metric("relay_store_pending") == 0, "the first is stored")
        with full_disk(server):
            assert feeder.publish(data="taken")
            eventually(lambda: server.metric("relay_store_failing") == 1, "the write fails")
            server.stop()
        assert any("lost 1 accepted events" in record["message"] for record in server.log)


def test_a_durable_acknowledgement_follows_the_write_to_disk(data: str, tmp_path: Path) -> None:
    """Every event acknowledged before a kill is in the file, from each kind of publisher."""
    path = tmp_path / "relay.sock"
    arguments = ("--data", data, "--durable", "--workers", "2", "--unix", str(path))
    acknowledged: list[str] = []
    with relay(*arguments) as server:
        with Feeder(path) as feeder:
            for number in range(50):
                acknowledged.append(feeder.publish(data=number))
                acknowledged += server.publish(f"http {number}")
        server.stop(signal.SIGKILL)
    with relay(*arguments) as server, Stream(server.port, "topic=default&since=earliest") as stream:
        assert [event.id for event in stream.take(100)] == acknowledged


def test_a_resent_event_receives_its_first_id_even_after_a_restart(data: str) -> None:
    body = [{"data": "a", "dedup": "1"}, {"data": "b", "dedup": "2"}, {"data": "c"}]
    with relay("--data", data, "--durable") as server:
        _, first = post(server, body)
        assert post(server, body[:2]) == (200, {"ids": first["ids"][:2]})
        server.stop(signal.SIGKILL)
    with relay("--data", data, "--durable") as server:
        status, again = post(server, [*body, {"data": "a", "dedup": "1", "topic": "other"}])
        assert status == 200
        assert again["ids"][:2] == first["ids"][:2]
        assert len({*first["ids"], *again["ids"]}) == 5
        assert server.stats()["events"] == 5
        assert server.metric("relay_dedup_hits_total") == 2
        with Stream(server.port, "topic=**&since=earliest") as stream:
            assert [event.data for event in stream.take(5)] == ["a", "b", "c", "c", "a"]


def test_the_same_dedup_twice_in_one_request_is_one_event() -> None:
    with relay() as server:
        status, answer = post(server, [{"data": 1, "dedup": "x"}, {"data": 2, "dedup": "x"}, {"data": 3}])
        assert status == 200
        assert answer["ids"][0] == answer["ids"][1] != answer["ids"][2]
        assert server.stats()["events"] == 2
        status, answer = post(server, {"data": 1, "dedup": ""})
        assert (status, answer["field"]) == (400, "dedup")
        status, answer = post(server, [{"data": 4, "dedup": "y"}, {"data": 5, "dedup": "y" * 257}])
        assert status == 400
        assert post(server, {"data": 4, "dedup": "y"})[0] == 200
        assert server.stats()["events"] == 3


def test_a_dedup_key_is_new_again_after_its_window() -> None:
    with relay("--dedup-window", "200ms") as server:
        _, first = post(server, {"data": 1, "dedup": "x"})
        eventually(lambda: post(server, {"data": 1, "dedup": "x"})[1] != first, "the window is over")


def test_retention_applies_to_the_file_and_evicted_events_cause_a_gap(data: str) -> None:
    limits = ("--history-events", "10", "--data", data)
    with relay(*limits) as server:
        ids = [server.publish(str(number))[0] for number in range(40)]
        eventually(lambda: server.stats()["log"]["events"] == 10, "the log evicts")
        server.stop()
    db = sqlite3.connect(data)
    assert db.execute("SELECT count(*) FROM entries").fetchone()[0] < 40
    db.close()
    with relay(*limits) as server:
        assert server.stats()["log"]["events"] == 10
        with Stream(server.port, headers={"Last-Event-ID": ids[5]}) as stream:
            gap = stream.next()
            assert gap.event == "relay.gap"
            assert [event.id for event in stream.take(10)] == ids[30:]


@pytest.mark.parametrize("content", [b"", b"not a database, but a text of some length\n" * 50])
def test_a_file_of_another_program_fails_the_start_and_is_unchanged(data: str, content: bytes) -> None:
    Path(data).write_bytes(content)
    process = run("serve", "--listen", "127.0.0.1:0", "--stdin", "off", "--data", data)
    assert process.returncode == 2
    assert f"data: {data}" in process.stderr
    assert Path(data).read_bytes() == content


def test_two_relays_do_not_share_a_file(data: str) -> None:
    with relay("--data", data, "--durable") as server:
        process = run("serve", "--listen", "127.0.0.1:0", "--stdin", "off", "--data", data)
        assert process.returncode == 2
        assert f"data: {data}: another process uses it" in process.stderr
        server.publish("still there")
        assert server.stats()["log"]["events"] == 1


def test_a_cancelled_request_is_not_acknowledged_but_its_event_is_stored(data: str) -> None:
    with relay("--data", data, "--durable", "--block-timeout", "1ms") as server:
        body = json.dumps({"data": "gone", "dedup": "1"}).encode()
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(
            b"POST /publish HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (TOKEN.encode(), len(body), body)
        )
        client.close()
        eventually(lambda: server.stats()["events"] in (0, 1), "the server continues")
        status, _ = post(server, {"data": "gone", "dedup": "1"})
        assert status == 200
        assert server.stats()["events"] == 1
