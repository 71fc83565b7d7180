"""The measuring publisher writes valid requests over a socket and HTTP, and detects a rejection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec
import pytest

from loadtest.rig.publisher import HttpEntrance, PublisherProgram, PublisherReport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;x=y\r\nyes\r\n0\r\n\r\n"
NO_BODY = b"HTTP/1.1 204 No Content\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nfull"
BYE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Seen:
    """The requests that a scripted server received.

    Args:
        heads, bodies: of each request.
        connections: the number of connections.
        unanswered_max: the largest number of requests that waited for an answer.
    """

    port: int
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    unanswered_max: int = 0

    @property
    def targets(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]


class Serving:
    """A server that answers the n-th request with `answer(n)` once `hold` requests, or all remaining ones, wait."""

    def __init__(self, answer: Callable[[int], bytes], *, hold: int = 1, total: int = 1 << 30) -> None:
        self._answer, self._hold, self._total = answer, hold, total
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.seen = Seen(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.seen.connections += 1
            with connection:
                self._serve_connection(connection)

    def _serve_connection(self, connection: socket.socket) -> None:
        pending, answered = b"", len(self.seen.heads)
        while received := connection.recv(1 << 16):
            pending = self._take(pending + received)
            there = len(self.seen.heads)
            self.seen.unanswered_max = max(self.seen.unanswered_max, there - answered)
            while answered < there and (there - answered >= self._hold or there == self._total):
                answered += 1
                said = self._answer(answered)
                connection.sendall(said)
                if not said or b"Connection: close" in said:
                    return

    def _take(self, pending: bytes) -> bytes:
        while b"\r\n\r\n" in pending:
            head, _, rest = pending.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(rest) < length:
                break
            self.seen.heads.append(head.decode())
            self.seen.bodies.append(rest[:length])
            pending = rest[length:]
        return pending


@contextmanager
def serving(answer: Callable[[int], bytes], *, hold: int = 1, total: int = 1 << 30) -> Iterator[Seen]:
    server = Serving(answer, hold=hold, total=total)
    server.start()
    yield server.seen
    server.stop()


def publish(entrance: Path | HttpEntrance, *, count: int = 20, topics: int = 0, size: int = 150) -> PublisherReport:
    with PublisherProgram(entrance, rate=0, count=count, seconds=10, topics=topics, size=size) as publisher:
        return publisher.done()


def numbers(bodies: list[bytes]) -> list[int]:
    return [msgspec.json.decode(body)["n"] for body in bodies]


def test_events_are_sent_over_one_connection_in_order_and_each_is_answered() -> None:
    with serving(lambda _: OK) as seen:
        report = publish(HttpEntrance(port=seen.port, target="/pub?id={topic}", headers=("X-A: b", "X-C: d")))
    assert (report.sent, report.answered, report.refused, report.taken) == (20, 20, 0, True)
    assert (seen.connections, seen.unanswered_max) == (1, 1)
    assert numbers(seen.bodies) == list(range(1, 21))
    assert all(len(body) == 150 for body in seen.bodies)
    assert set(seen.targets) == {"/pub?id=default"}
    assert seen.heads[0].split("\r\n")[2:4] == ["X-A: b", "X-C: d"]


def test_the_number_of_unanswered_requests_is_limited() -> None:
    with serving(lambda _: OK, hold=8, total=50) as seen:
        report = publish(HttpEntrance(port=seen.port, target="/", depth=8), count=50)
    assert (report.answered, report.taken, seen.unanswered_max) == (50, True, 8)
    assert numbers(seen.bodies) == list(range(1, 51))


def test_answers_can_be_chunked_or_have_no_body() -> None:
    said = [OK, CHUNKED, NO_BODY]
    with serving(lambda number: said[number % 3], hold=5, total=20) as seen:
        report = publish(HttpEntrance(port=seen.port, target="/", depth=5))
    assert (report.answered, report.refused, report.taken) == (20, 0, True)


def test_a_rejected_event_is_reported() -> None:
    with serving(lambda number: FAILED if number in (3, 7) else OK) as seen:
        report = publish(HttpEntrance(port=seen.port, target="/"))
    assert (report.sent, report.answered, report.refused, report.first_refusal) == (20, 20, 2, 500)
    assert report.answered_bytes == len("full") * 2
    assert not report.taken


def test_the_publisher_reconnects_if_the_server_closes_after_an_answer() -> None:
    with serving(lambda number: BYE if number % 5 == 0 else OK) as seen:
        report = publish(HttpEntrance(port=seen.port, target="/"))
    assert (report.answered, report.taken, seen.connections) == (20, True, 4)
    assert numbers(seen.bodies) == list(range(1, 21))


def test_a_server_that_closes_early_has_not_received_all_events() -> None:
    with serving(lambda number: OK if number < 4 else b"") as seen:
        report = publish(HttpEntrance(port=seen.port, target="/"))
    assert (report.answered, report.taken) == (3, False)


def test_the_body_has_the_format_of_each_server() -> None:
    with serving(lambda _: OK) as seen:
        form = HttpEntrance(port=seen.port, target="/", body="topic={topic}&data={data}&x={y}", escape="form")
        publish(form, count=1)
        wrapped = HttpEntrance(port=seen.port, target="/", body='{"to":"{topic}","say":"{data}\\n"}', escape="json")
        publish(wrapped, count=1)
    fields = parse_qs(seen.bodies[0].decode())
    assert fields["topic"] == ["default"]
    assert msgspec.json.decode(fields["data"][0])["n"] == 1
    assert fields["x"] == ["{y}"]
    said = msgspec.json.decode(seen.bodies[1])
    assert said["to"] == "default"
    assert msgspec.json.decode(said["say"])["p"].strip("x") == ""


def test_large_events_are_complete_in_every_escaping() -> None:
    with serving(lambda _: OK) as seen:
        publish(HttpEntrance(port=seen.port, target="/", escape="raw"), count=5, size=32768)
        publish(HttpEntrance(port=seen.port, target="/", escape="json"), count=5, size=32768)
        publish(HttpEntrance(port=seen.port, target="/", escape="form"), count=5, size=32768)
    raw, as_json, as_form = seen.bodies[:5], seen.bodies[5:10], seen.bodies[10:]
    assert numbers(raw) == numbers([body.replace(b"\\", b"") for body in as_json]) == [1, 2, 3, 4, 5]
    assert numbers([unquote_to_bytes(body) for body in as_form]) == [1, 2, 3, 4, 5]
    assert all(len(body) == 32768 for body in raw)


def test_events_are_sent_to_the_topics_in_rotation() -> None:
    with serving(lambda _: OK) as seen:
        publish(HttpEntrance(port=seen.port, target="/{topic}"), count=5, topics=3)
    assert seen.targets == ["/t.1", "/t.2", "/t.0", "/t.1", "/t.2"]


@pytest.mark.parametrize(("topics", "names"), [(0, [None] * 4), (2, ["t.1", "t.0", "t.1", "t.0"])])
def test_lines_name_their_topic_if_topics_are_set(tmp_path: Path, topics: int, names: list[str | None]) -> None:
    lines: list[bytes] = []

    def read() -> None:
        with listener.accept()[0] as connection, connection.makefile("rb") as feed:
            lines.extend(feed)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "feed.sock"))
        listener.listen()
        reader = threading.Thread(target=read)
        reader.start()
        report = publish(tmp_path / "feed.sock", count=4, topics=topics)
        reader.join()
    events = [msgspec.json.decode(line) for line in lines]
    assert report.taken
    assert [event.get("topic") for event in events] == names
    assert [event["data"]["n"] for event in events] == [1, 2, 3, 4]
