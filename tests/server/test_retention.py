"""Retention by topic and `ttl` at a real server: alone, with workers, and across a restart from a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, command, environment, eventually, relay

HISTORY = ("--history-for", "prices.*=events 1", "--history-for", "brief=age 300ms")


def publish(server: Relay, *events: dict[str, Any]) -> list[str]:
    """Publish events in one request; return their ids."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    status, _, body = server.request("POST", "/publish", json.dumps(events).encode(), headers)
    assert status == 200, body
    ids: list[str] = json.loads(body)["ids"]
    return ids


def replayed(server: Relay, query: str, last: str, last_id: str = "") -> list[str]:
    """Return the data of the events of a stream up to the last one, with `gap` for a gap."""
    seen: list[str] = []
    with Stream(server.port, query, {"Last-Event-ID": last_id} if last_id else {}) as stream:
        while last not in seen:
            event = stream.next()
            seen.append("gap" if event.event == "relay.gap" else event.data)
    return seen


@contextmanager
def started(kind: str, path: Path) -> Iterator[tuple[Relay, list[str]]]:
    """Start a server in which some events were published; return the ids of these events too."""
    arguments = {"alone": HISTORY, "workers": (*HISTORY, "--workers", "2"), "file": (*HISTORY, "--data", str(path))}
    events: list[dict[str, Any]] = [
        {"topic": topic, "data": f"{topic} {number}"} for number in range(3) for topic in ("prices.eu", "x")
    ]
    events += [{"topic": "x", "data": "gone", "ttl": 0.2}, {"topic": "x", "data": "kept", "ttl": 1000}]
    with relay(*arguments[kind]) as server:
        ids = publish(server, *events)
        if kind != "file":
            yield server, ids
    if kind == "file":
        with relay(*arguments[kind]) as server:
            yield server, ids


@pytest.mark.parametrize("kind", ["alone", "workers", "file"])
def test_a_replay_has_only_the_events_that_are_retained(kind: str, tmp_path: Path) -> None:
    with started(kind, tmp_path / "relay.db") as (server, ids):
        query = "topic=prices.*&topic=x&since=earliest"
        wanted = ["x 0", "x 1", "prices.eu 2", "x 2", "kept"]
        eventually(lambda: replayed(server, query, "kept") == wanted, "the other events are evicted")
        assert replayed(server, "topic=prices.eu", "prices.eu 2", ids[0]) == ["gap", "prices.eu 2"]
        assert replayed(server, "topic=x", "kept", ids[1]) == ["gap", "x 1", "x 2", "kept"]
        assert replayed(server, "topic=x", "kept", ids[6]) == ["kept"], "the client has received the event that is gone"
        with Stream(server.port, "topic=prices.*") as stream:
            publish(server, *({"topic": "prices.us", "data": str(number)} for number in range(50)))
            assert [event.data for event in stream.take(50)] == [str(number) for number in range(50)], "live"


def test_events_expire_while_nothing_is_published(tmp_path: Path) -> None:
    with relay(*HISTORY, "--unix", str(tmp_path / "relay.sock")) as server, Feeder(server.unix_path) as feeder:
        feeder.publish(topic="brief", data="x")
        feeder.publish(topic="other", data="y", ttl=0.3)
        eventually(lambda: server.stats()["log"]["expired"] == 2, "both are evicted")
        stats = server.stats()
        assert (stats["log"]["events"], stats["topics_total"]) == (0, 0)
        assert server.metric("relay_expired_total") == 2


def test_each_way_to_publish_accepts_a_ttl(tmp_path: Path) -> None:
    with relay("--unix", str(tmp_path / "relay.sock")) as server:
        with Feeder(server.unix_path) as feeder:
            feeder.publish(topic="t", data="unix", ttl=0)
        publish(server, {"topic": "t", "data": "json", "ttl": 0.1})
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
        assert server.request("POST", "/publish?topic=t&ttl=100ms", b"text", headers)[0] == 200
        status, _, body = server.request("POST", "/publish?topic=t&ttl=soon", b"text", headers)
        assert (status, json.loads(body)["error"][:4]) == (400, "ttl:")
        arguments = ("publish", "--to", server.url, "--token", TOKEN, "--topic", "t", "--ttl", "0.1", "command")
        subprocess.run(command(*arguments), env=environment(), check=True, capture_output=True, timeout=TIMEOUT_S)
        eventually(lambda: server.stats()["log"]["expired"] == 4, "all are evicted")


def test_a_subscriber_that_is_behind_misses_an_expired_event_with_the_exact_number() -> None:
    limits = ("--client-buffer", "4KiB", "--history-for", "t=events 3")
    with relay(*limits) as server, Stream(server.port, "topic=t", receive_buffer=4096) as stream:
        for number in range(60):
            publish(server, {"topic": "t", "data": f"{number} " + "x" * 2000})
        seen = missed = 0
        while seen + missed < 60:
            event = stream.next()
            if event.event == "relay.gap":
                gap = json.loads(event.data)
                assert gap["reason"] == "slow"
                missed += gap["missed"]
            else:
                seen += 1
        assert missed > 0
        assert event.data.startswith("59 ")
