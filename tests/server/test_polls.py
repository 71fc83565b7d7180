"""Long polls and histories over HTTP: the same events, ids and gaps as a stream, in one JSON document per request.

Covers relay.core.polls and relay.core.forms.document.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.certificate import make_certificate
from tests.faults.raw import RawClient
from tests.h2_client import Http2Client
from tests.running import TIMEOUT_S, Relay, Stream, eventually, relay

SECRET = "s" * 64
JWT = ("--subscribe", "jwt", "--jwt-secret", SECRET)
END = '{"event": "relay.end", "data": "bye"}'


class Poller:
    """One connection that sends polls."""

    def __init__(self, server: Relay, headers: dict[str, str] | None = None) -> None:
        self.server = server
        self.headers = headers or {}
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)

    def send(self, query: str, path: str = "/poll") -> None:
        """Send a request."""
        self.connection.request("GET", f"{path}?{query}", headers=self.headers)

    def wait(self, query: str) -> None:
        """Send a poll, and wait until the server holds it."""
        before = self.server.stats()["streams"]
        self.send(query)
        eventually(lambda: self.server.stats()["streams"] > before, "the poll waits")

    def answer(self) -> dict[str, Any]:
        """Read an answer."""
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        assert response.headers["Cache-Control"].startswith("no-")
        assert response.headers["Content-Type"] == "application/json"
        document: dict[str, Any] = json.loads(body)
        return document

    def ask(self, query: str, path: str = "/poll") -> dict[str, Any]:
        """Send a request and read the answer."""
        self.send(query, path)
        return self.answer()


@contextlib.contextmanager
def polling(server: Relay, headers: dict[str, str] | None = None) -> Iterator[Poller]:
    """Open a connection for polls, and close it."""
    poller = Poller(server, headers)
    with contextlib.closing(poller.connection):
        yield poller


def data(document: dict[str, Any]) -> list[Any]:
    """Return the data of the events of an answer."""
    return [event["data"] for event in document["events"]]


def test_a_poll_with_events_is_answered_at_once_and_the_next_one_waits() -> None:
    with relay() as server, polling(server) as poller:
        ids = [*server.publish("1", "a"), *server.publish('{"data": {"n": 2}}', "b", "application/json")]
        first = poller.ask("topic=a&topic=b&since=earliest")
        assert first == {
            "events": [
                {"id": ids[0], "topic": "a", "data": "1"},
                {"id": ids[1], "topic": "b", "data": {"n": 2}},
            ],
            "next": ids[1],
        }
        poller.wait(f"topic=a&topic=b&lastEventId={first['next']}")
        socket = poller.connection.sock
        server.publish("other", "c")
        [id] = server.publish("3", "b")
        assert poller.answer() == {"events": [{"id": id, "topic": "b", "data": "3"}], "next": id}
        for number in range(3):
            poller.wait("topic=a&wait=20s")
            server.publish(f"again {number}", "a")
            assert data(poller.answer()) == [f"again {number}"]
        assert poller.connection.sock is socket, "the connection stays open"
        assert server.stats()["closes"] == {"answered": 4}
        assert server.metric("relay_polls_total") == 5


def test_a_poll_without_an_event_ends_after_its_wait() -> None:
    with relay("--heartbeat", "0.1s") as server, polling(server) as poller:
        [id] = server.publish("1", "a")
        assert poller.ask("topic=a&wait=0") == {"events": [], "next": id}
        assert poller.ask("topic=a&wait=0.5") == {"events": [], "next": id}
        assert poller.ask(f"topic=a&wait=500ms&lastEventId={id}") == {"events": [], "next": id}
        assert server.publish("2", "b")
        assert poller.ask("topic=a&wait=500ms")["next"] != id, "the next id covers other topics"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_poll_that_waits_keeps_its_limit(workers: str) -> None:
    with relay("--workers", workers) as server, polling(server) as poller:
        poller.wait("topic=a&limit=2")
        server.publish(json.dumps([{"data": str(number)} for number in range(5)]), "a", "application/json")
        first = poller.answer()
        assert data(first) == ["0", "1"]
        assert data(poller.ask(f"topic=a&lastEventId={first['next']}&wait=20s")) == ["2", "3", "4"]


def test_the_setting_limits_the_wait() -> None:
    with relay("--poll-wait-max", "0.2s") as server, polling(server) as poller:
        assert data(poller.ask("topic=a&wait=1h")) == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("query", ["topic=a.1&topic=b", "topic=a.*&topic=b"])
def test_polls_in_a_row_miss_and_repeat_nothing(workers: str, query: str) -> None:
    with relay("--workers", workers) as server, polling(server) as poller:
        published: list[str] = []

        def publish() -> None:
            for number in range(200):
                published.extend(server.publish(str(number), ("a.1", "b", "other")[number % 3]))

        publisher = threading.Thread(target=publish)
        publisher.start()
        received: list[str] = []
        document: dict[str, Any] = {"next": ""}
        position = "since=earliest"
        while publisher.is_alive() or document["events"]:
            document = poller.ask(f"{query}&wait=200ms&limit=7&{position}")
            assert len(document["events"]) <= 7
            received += [event["id"] for event in document["events"]]
            position = f"lastEventId={document['next']}"
            poller.connection.close()  # another worker may answer
        publisher.join()
        assert received == [id for number, id in enumerate(published) if number % 3 < 2]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_missed_events_are_reported_as_gaps(workers: str) -> None:
    with relay("--history-events", "3", "--workers", workers) as server, polling(server) as poller:
        ids = [server.publish(str(number), "a")[0] for number in range(10)]
        history = "topic=a&wait=0&since=earliest"
        eventually(lambda: [e["id"] for e in poller.ask(history)["events"]] == ids[7:], "the log has arrived")
        gap, *rest = poller.ask(f"topic=a&lastEventId={ids[1]}")["events"]
        assert gap == {
            "event": "relay.gap",
            "data": {"reason": "history", "missed": None, "from": ids[2], "to": ids[6]},
        }
        assert [event["id"] for event in rest] == ids[7:]
        gap, *rest = poller.ask("topic=a&lastEventId=foreign-1")["events"]
        assert gap["data"]["reason"] == "unknown"
        assert [event["id"] for event in rest] == ids[7:]
        assert server.metric("relay_gaps_total") == 2


def test_a_topic_that_ended_answers_its_end_and_then_204() -> None:
    with relay() as server, polling(server) as poller:
        poller.wait("topic=a")
        [id] = server.publish(END, "a", "application/json")
        document = poller.answer()
        assert document["events"] == [{"id": id, "event": "relay.end", "topic": "a", "data": "bye"}]
        for wait in ("20s", "0"):
            poller.send(f"topic=a&lastEventId={id}&wait={wait}")
            response = poller.connection.getresponse()
            assert (response.status, response.read()) == (204, b"")
        assert poller.ask(f"limit=10&lastEventId={id}", "/events/a") == {"events": [], "next": id}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_drain_answers_waiting_polls_at_once(workers: str) -> None:
    with relay("--workers", workers, "--drain-rate", "1") as server, contextlib.ExitStack() as stack:
        [id] = server.publish("1", "a")
        pollers = [stack.enter_context(polling(server)) for _ in range(20)]
        for poller in pollers:
            poller.wait("topic=a&wait=60s")
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert [poller.answer() for poller in pollers] == [{"events": [], "next": id}] * 20
        assert time.monotonic() - began_s < 10
        for poller in pollers:
            poller.connection.close()
        server.wait()


def test_an_upgrade_answers_waiting_polls() -> None:
    with relay() as server, polling(server) as poller:
        [id] = server.publish("1", "a")
        poller.wait("topic=a&wait=60s")
        server.upgrade()
        assert poller.answer() == {"events": [], "next": id}
        poller.wait(f"topic=a&wait=60s&lastEventId={id}")
        server.publish("2", "a")
        assert data(poller.answer()) == ["2"]


def test_rights_limits_and_revocation_are_those_of_streams(tmp_path: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    claims = {"sub": "ann", "exp": time.time() + 600, "relay": {"subscribe": ["a"]}}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
    flags = ("--jwt-revoked-file", str(revoked), "--streams-per-subject-max", "1")
    with relay(*JWT, *flags) as server, polling(server, headers) as poller:
        assert server.request("GET", "/poll?topic=a")[0] == 401
        assert server.request("GET", "/poll?topic=b", headers=headers)[0] == 403
        assert server.request("GET", "/events/b?limit=1", headers=headers)[0] == 403
        poller.wait("topic=a&wait=60s")
        assert server.request("GET", "/poll?topic=a", headers=headers)[0] == 429
        revoked.write_text("ann\n")
        os.kill(server.pid, signal.SIGHUP)
        assert data(poller.answer()) == []
        assert server.stats()["closes"] == {"revoked": 1}


def test_an_expired_token_ends_the_wait() -> None:
    with relay(*JWT) as server:
        claims = {"exp": time.time() + 3, "relay": {"subscribe": ["a"]}}
        headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
        with polling(server, headers) as poller:
            poller.wait("topic=a&wait=60s")
            assert data(poller.answer()) == []
            assert server.stats()["closes"] == {"expired": 1}


def test_pages_of_listed_origins_may_poll() -> None:
    headers = {"Origin": "https://a.example"}
    with relay("--cors-origin", "https://a.example") as server, polling(server, headers) as poller:
        for query in ("wait=0", "wait=0.1"):
            poller.send(query)
            response = poller.connection.getresponse()
            response.read()
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
            assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_does_not_keep_its_connection_reads_to_the_end(server: Relay, version: str) -> None:
    [id] = server.publish("1", "a")
    for wait in ("0", "0.1"):
        with contextlib.closing(RawClient(server.port)) as client:
            client.send(
                f"GET /poll?topic=a&wait={wait} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            received = b""
            while piece := client.socket.recv(65536):
                received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            assert b"\r\nConnection: close" in head
            assert json.loads(body) == {"events": [], "next": id}


def test_input_during_the_wait_closes_the_connection_after_the_answer() -> None:
    with relay() as server, contextlib.closing(RawClient(server.port)) as client:
        client.send(b"GET /poll?topic=a&wait=60s HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer().headers["connection"] == "keep-alive"
        client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: server.stats()["streams"] == 1, "the poll waits")
        server.publish("1", "a")
        received = client.unread
        while piece := client.socket.recv(65536):
            received += piece
        assert received.endswith(b"\r\n0\r\n\r\n")
        assert received.count(b'"events"') == 1


def test_polls_work_over_http2_and_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls", "one")
    context = certificate.context()
    with (
        relay(*certificate.flags, context=context) as server,
        Http2Client(server.port, certificate.context()) as client,
    ):
        ids = [client.request("GET", f"/poll?topic={topic}&wait=60s") for topic in ("a", "b")]
        eventually(lambda: server.stats()["streams"] == 2, "the polls wait")
        server.publish("1", "a")
        server.publish("2", "b")
        for number, id in enumerate(ids, 1):
            answer = client.answer(id)
            assert answer.status == 200
            assert data(json.loads(answer.body)) == [str(number)]


def test_one_poll_of_many_leaves_while_the_others_wait() -> None:
    with relay() as server, contextlib.ExitStack() as stack:
        pollers = [stack.enter_context(polling(server)) for _ in range(8)]
        for number, poller in enumerate(pollers):
            poller.wait("topic=*" if number % 2 else "topic=a&topic=b")
        pollers[0].connection.close()
        eventually(lambda: server.stats()["streams"] == 7, "the closed poll is gone")
        server.publish("1", "a")
        assert [data(poller.answer()) for poller in pollers[1:]] == [["1"]] * 7


def test_a_stream_and_a_poll_receive_the_same() -> None:
    with relay() as server, Stream(server.port, "topic=a") as stream, polling(server) as poller:
        poller.wait("topic=a")
        [id] = server.publish("1", "a")
        assert stream.next().id == id == poller.answer()["next"]


def test_a_history_has_the_newest_events_and_the_id_to_continue_from() -> None:
    with relay() as server, polling(server) as poller:
        ids = [server.publish(str(number), "a")[0] for number in range(120)]
        server.publish("other", "b")
        assert data(poller.ask("limit=3", "/events/a")) == ["117", "118", "119"]
        assert data(poller.ask("limit=2&topic=b", "/events/a")) == ["119", "other"]
        poller.headers = {"Accept": "application/json"}
        newest = poller.ask("topic=a", "/events")
        assert [event["id"] for event in newest["events"]] == ids[20:]
        assert poller.ask(f"topic=a&lastEventId={newest['next']}", "/events")["events"] == []
        page = poller.ask("topic=a&since=earliest&limit=50", "/events")
        assert [event["id"] for event in page["events"]] == ids[:50]
        page = poller.ask(f"topic=a&lastEventId={page['next']}&limit=50", "/events")
        assert [event["id"] for event in page["events"]] == ids[50:100]
        assert poller.ask("topic=never", "/events")["events"] == []


def test_a_history_of_large_events_is_bounded_in_bytes() -> None:
    with relay() as server, polling(server) as poller:
        ids = [server.publish("x" * 100_000, "a")[0] for _ in range(8)]
        newest = poller.ask("limit=8", "/events/a")
        assert [event["id"] for event in newest["events"]] == ids[6:]
        received: list[str] = []
        position = "since=earliest"
        while len(received) < len(ids):
            document = poller.ask(f"topic=a&{position}")
            received += [event["id"] for event in document["events"]]
            position = f"lastEventId={document['next']}"
        assert received == ids


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("wait=soon", "wait"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("waits=1", "did you mean wait"),
        ("since=nonsense", "since"),
    ],
)
def test_wrong_arguments_are_rejected(server: Relay, query: str, reason: str) -> None:
    status, _, body = server.request("GET", f"/poll?{query}")
    assert status == 400
    assert reason in json.loads(body)["error"]
