"""Every limit acts, is counted under its setting's name, and leaves a server that answers.

Covers `relay.core.admission` and `relay.front.acceptor`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from relay.config.model import SETTINGS
from relay.config.values import show
from relay.limits import Limit
from tests import ROOT
from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, eventually, relay

PAGE = ROOT / "docs" / "reference" / "limits.md"
SECRET = "a secret of at least thirty-two bytes"
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
JSON = {"Content-Type": "application/json"}
PUBLISHER = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}


def limited(server: Relay) -> dict[str, int]:
    """Return how often each limit acted, without the limits that never acted."""
    text = server.request("GET", "/metrics")[2].decode()
    found = re.findall(r'^relay_limited_total{limit="(\S+)"} (\S+)$', text, re.MULTILINE)
    assert [name for name, _ in found] == list(Limit)
    return {name: int(float(count)) for name, count in found if float(count)}


@contextlib.contextmanager
def silent(server: Relay, count: int) -> Iterator[list[socket.socket]]:
    """Hold open connections that send nothing."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)) for _ in range(count)
        ]


def begin_requests(clients: list[socket.socket]) -> None:
    """Send one byte of each client, because the kernel reports a connection without input only after a second."""
    for client in clients:
        client.sendall(b"G")


def authorization(subject: str) -> dict[str, str]:
    """Return the header of a client that may read everything."""
    claims = {"sub": subject, "exp": time.time() + 600, "relay": {"subscribe": ["**"]}}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


@pytest.mark.parametrize(
    ("flag", "query", "status"),
    [
        ("--streams-max=2", "topic=b", 503),
        ("--streams-per-address-max=2", "topic=b", 429),
        ("--streams-per-subject-max=2", "topic=b", 429),
        ("--streams-per-topic-max=2", "topic=b&topic=a", 503),
        ("--topics-per-stream-max=2", "topic=a&topic=b&topic=c", 400),
        ("--patterns-per-stream-max=2", "topic=a.*&topic=b.*&topic=c.*", 400),
    ],
)
def test_a_stream_over_a_limit_is_rejected_until_another_closes(flag: str, query: str, status: int) -> None:
    name = flag.removeprefix("--").partition("=")[0]
    flags = (flag, "--refuse-streams", "status", "--subscribe", "jwt", "--jwt-secret", SECRET)
    ann = authorization("ann")
    with relay(*flags) as server, Stream(server.port, "topic=a", ann), Stream(server.port, "topic=a", ann) as second:
        assert server.request("GET", f"/events?{query}", headers=ann)[0] == status
        assert limited(server) == {name: 1}
        if status != 400:
            second.close()
            eventually(lambda: server.stats()["streams"] == 1, "the second stream is closed")
            Stream(server.port, query, ann).close()
            assert limited(server) == {name: 1}


def test_a_pattern_counts_as_a_term_of_its_own() -> None:
    with (
        relay("--streams-per-topic-max", "1", "--refuse-streams", "status") as server,
        Stream(server.port, "topic=a.*"),
        Stream(server.port, "topic=a.b"),
    ):
        assert server.request("GET", "/events?topic=a.*")[0] == 503


@pytest.mark.parametrize(
    ("flags", "headers", "body", "status", "name"),
    [
        (("--body-bytes-max", "10"), {}, b"x" * 11, 413, "body-bytes-max"),
        (("--head-bytes-max", "1KiB"), {"X-Long": "x" * 1024}, b"x", 431, "head-bytes-max"),
        (("--batch-events-max", "2"), JSON, b"[{},{},{}]", 413, "batch-events-max"),
        (("--publish-rate", "1"), JSON, b"[" + b"{}," * 9 + b"{}]", 429, "publish-rate"),
    ],
)
def test_a_publish_request_over_a_limit_is_rejected(
    flags: tuple[str, ...], headers: dict[str, str], body: bytes, status: int, name: str
) -> None:
    with relay(*flags) as server:
        first = 200 if name == "publish-rate" else status  # the bucket is full at the start
        assert server.request("POST", "/publish", body, PUBLISHER | headers)[0] == first
        if first == 200:
            assert server.request("POST", "/publish", body, PUBLISHER | headers)[0] == status
        assert limited(server) == {name: 1}


def test_a_slow_head_is_closed_at_the_time_limit() -> None:
    with relay("--head-timeout", "400ms") as server, silent(server, 2) as (quiet, slow):
        began_s = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in REQUEST:
                slow.sendall(bytes([byte]))
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    answer = slow.recv(4096)
                    break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert quiet.recv(1) == b""
        assert 0.3 < time.monotonic() - began_s < 10
        assert limited(server) == {"head-timeout": 2}


def test_a_slow_body_is_closed_at_the_time_limit() -> None:
    with relay("--head-timeout", "200ms", "--body-bytes-max", "1KiB") as server, silent(server, 1) as (client,):
        client.sendall(f"POST /publish HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n".encode())
        client.sendall(b"Content-Type: text/plain\r\nContent-Length: 100\r\n\r\nhello")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert limited(server) == {"body-time": 1}


def test_connections_above_the_rate_wait_in_the_backlog_and_nothing_spins() -> None:
    with relay("--accept-rate", "20") as server, silent(server, 40) as clients:
        began_s, cpu_s = time.monotonic(), server.cpu_s()
        for client in clients:
            client.sendall(REQUEST)
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert 1.0 < time.monotonic() - began_s < 10, "about 38 connections waited a twentieth of a second each"
        assert server.cpu_s() - cpu_s < 0.5
        assert limited(server)["accept-rate"] >= 20


def test_the_oldest_of_too_many_silent_connections_is_closed_for_a_new_one() -> None:
    with relay("--half-open-max", "10") as server, silent(server, 14) as clients:
        begin_requests(clients)
        began_s = time.monotonic()
        assert server.request("GET", "/healthz")[0] == 200
        assert time.monotonic() - began_s < 9, "it did not wait for their time limit"
        assert server.connections() <= 12
        assert limited(server)["half-open-max"] >= 5


def admin(server: Relay) -> None:
    """Fetch the pages for operators, each over a separate connection."""
    for path in ("/healthz", "/readyz", "/metrics", "/stats"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == 200


def test_operators_receive_answers_when_every_descriptor_is_in_use(tmp_path: Path) -> None:
    flags = ("--refuse-streams", "status", "--unix", str(tmp_path / "u"))
    with (
        relay(*flags, before=("prlimit", "--nofile=300:300", "--")) as server,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(Stream(server.port, "topic=a")) for _ in range(300 - 128)]
        assert server.request("GET", "/events?topic=a")[0] == 503
        with silent(server, 150) as clients:
            begin_requests(clients)
            cpu_s, began_s = server.cpu_s(), time.monotonic()
            admin(server)
            assert limited(server)["descriptors"] > 0
            with contextlib.ExitStack() as feeders:
                with contextlib.suppress(OSError):
                    for _ in range(60):  # more than the reserved descriptors, so that accept() fails too
                        feeders.enter_context(Feeder(tmp_path / "u"))
                admin(server)
                assert server.open_descriptors() <= 300
            assert server.cpu_s() - cpu_s < 0.2 + 0.5 * (time.monotonic() - began_s), "it does not spin"
        assert len(server.log) < 60, "it does not flood the log"
        server.publish("still here", "a")
        for stream in streams:
            assert stream.next().data == "still here"


def test_the_page_of_limits_lists_every_one_with_its_default() -> None:
    section = PAGE.read_text().partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \|", section, re.MULTILINE))
    assert sorted(listed) == sorted(Limit)
    for name, default in listed.items():
        if name in SETTINGS:
            assert default == show(SETTINGS[name].metadata["kind"], SETTINGS[name].default)
        else:
            assert default.startswith("no setting")
