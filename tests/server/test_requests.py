"""A server process answers requests other than streams.

Covers `relay.server.parts` and `relay.front.refusals`.
"""

from __future__ import annotations

import json
import socket
import time
from email.utils import parsedate_to_datetime

from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, relay


def test_publishing_needs_the_token_and_the_log_never_contains_it(server: Relay) -> None:
    status, headers, _ = server.request("POST", "/publish", b"x", {"Content-Type": "text/plain"})
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="relay"')
    assert not any(TOKEN in json.dumps(record) for record in server.log)


def test_health_readiness_metrics_and_page_are_served(server: Relay) -> None:
    assert server.request("GET", "/healthz")[0] == 200
    assert server.request("GET", "/readyz")[0] == 200
    assert server.request("GET", "/")[1]["content-type"].startswith("text/html")
    assert server.metric("relay_streams_max") > 100


def test_streams_over_a_limit_are_rejected_with_retry_after() -> None:
    with relay("--streams-max", "1") as server, Stream(server.port), Stream(server.port) as second:
        assert second.head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in second.head
    with relay("--streams-per-address-max", "1") as server, Stream(server.port), Stream(server.port) as second:
        assert second.head.startswith(b"HTTP/1.1 429 ")


def test_a_request_with_too_many_events_publishes_none() -> None:
    with relay("--batch-events-max", "2") as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        assert server.request("POST", "/publish", b'[{"data":1},{"data":2},{"data":3}]', headers)[0] == 413
        assert server.stats()["events"] == 0
        assert server.request("POST", "/publish", b'[{"data":1},{"data":2}]', headers)[0] == 200


def test_every_response_to_a_listed_origin_allows_credentials_and_has_a_date() -> None:
    origin = {"Origin": "https://app.example.com"}
    with relay("--cors-origin", "https://*.example.com", "--streams-max", "1", "--refuse-streams", "status") as server:
        with Stream(server.port, headers=origin) as stream:
            answers = [server.request("GET", path, headers=origin) for path in ("/", "/stats", "/none", "/events")]
            answers.append(server.request("POST", "/publish", b"x", origin))
            assert [status for status, _, _ in answers] == [200, 200, 404, 503, 401]
            heads = [headers for _, headers, _ in answers]
            lines = stream.head.decode().split("\r\n")[1:]
            heads.append({name.lower(): value for name, value in (line.split(": ", 1) for line in lines)})
        for head in heads:
            assert head["access-control-allow-origin"] == origin["Origin"]
            assert head["access-control-allow-credentials"] == "true"
            assert head["vary"] in ("Origin", "Accept, Origin")
            assert abs(parsedate_to_datetime(head["date"]).timestamp() - time.time()) < TIMEOUT_S
        evil = server.request("GET", "/stats", headers={"Origin": "https://app.example.com.evil"})[1]
        assert "access-control-allow-origin" not in evil


def test_only_allowed_hosts_are_served() -> None:
    with relay("--allowed-host", "127.0.0.1", "--allowed-host", "localhost") as server:
        for host, expected in (("localhost:1", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421)):
            assert server.request("GET", "/stats", headers={"Host": host})[0] == expected
        for lines in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
                client.sendall(b"GET / HTTP/1.1\r\n%b\r\n" % lines)
                assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_rejected_stream_that_ends_at_once_has_a_date() -> None:
    accept = {"Accept": "text/event-stream"}
    with (
        relay("--streams-max", "1") as server,
        Stream(server.port),
        Stream(server.port, headers=accept) as rejected,
    ):
        assert rejected.head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nDate: " in rejected.head
