"""Signals from subscribers to the feeders of a topic: `relay.sources.topic_signals` and `relay.front.signalling`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from relay.client import Publisher
from relay.errors import RequestError
from relay.event import Event
from relay.sources import topic_signals
from relay.sources.topic_signals import SIGNAL_BYTES_MAX, TopicSignals, read_signal
from tests.faults.raw import RawClient
from tests.running import TOKEN, Feeder, Relay, eventually, relay

SECRET = "s" * 64
JSON = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def signal(server: Relay, topic: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
    """Send a signal and return the status."""
    return server.request("POST", f"/topics/{topic}/signal", body, JSON if headers is None else headers)[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_reaches_every_feeder_of_the_topic_and_no_other(workers: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(relay("--unix", str(tmp_path / "relay.sock"), "--workers", workers))
        one, two, other = (stack.enter_context(Feeder(server.unix_path)) for _ in range(3))
        one.publish(topic="chat.1", data="Hello")
        two.publish(topic="chat.1", data="Hello")
        other.publish(topic="chat.2", data="Hello")
        assert signal(server, "chat.1", b'{"action": "stop"}') == 202
        for feeder in (one, two):
            assert feeder.answer() == {"signal": {"action": "stop"}, "topic": "chat.1"}
        assert signal(server, "chat.2", "größer".encode(), JSON | {"Content-Type": "text/plain"}) == 202
        assert other.answer() == {"signal": "größer", "topic": "chat.2"}
        assert signal(server, "never") == 202
        assert signal(server, "chat.2") == 202
        assert other.answer() == {"signal": None, "topic": "chat.2"}
        eventually(lambda: server.metric("relay_signals_total") == 4, "the signals are counted")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_reaches_an_open_publish_request(workers: str) -> None:
    with relay("--workers", workers) as server, contextlib.closing(RawClient(server.port)) as client:
        fields = {**JSON, "Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"POST /publish?topic=chat.1 HTTP/1.1\r\nHost: a\r\n{lines}Transfer-Encoding: chunked\r\n\r\n"
        client.send(head.encode() + b'10\r\n{"data": "one"} \r\n1\r\n\n\r\n')
        received = b""
        while b'"id"' not in received:
            received += client.socket.recv(4096)
        assert signal(server, "chat.1", b'"stop"') == 202
        while b'{"signal":"stop","topic":"chat.1"}\n' not in received:
            received += client.socket.recv(4096)
        client.send(b"0\r\n\r\n")
        while piece := client.socket.recv(4096):
            received += piece
        assert b'"complete":true' in received
        assert received.endswith(b"0\r\n\r\n")


def test_a_signal_at_a_worker_reaches_the_feeders_of_the_hub(tmp_path: Path) -> None:
    with relay("--workers", "2", "--unix", str(tmp_path / "relay.sock")) as server, Feeder(server.unix_path) as feeder:
        feeder.publish(topic="a", data=1)
        for number in range(4):
            assert signal(server, "a", b"%d" % number) == 202
            assert feeder.answer() == {"signal": number, "topic": "a"}


def test_the_token_must_cover_the_topic(tmp_path: Path) -> None:
    def bearer(**grants: list[str]) -> dict[str, str]:
        claims = {"sub": "ann", "exp": time.time() + 60, "relay": grants}
        return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}

    flags = ("--unix", str(tmp_path / "relay.sock"), "--jwt-secret", SECRET)
    with relay(*flags) as server, Feeder(server.unix_path) as feeder:
        feeder.publish(topic="chat.1", data=1)
        assert signal(server, "chat.1", headers={}) == 401
        assert signal(server, "chat.1", headers=bearer(publish=["**"], subscribe=["**"])) == 403
        assert signal(server, "other", headers=bearer(signal=["chat.*"])) == 403
        assert signal(server, "chat.1", headers=bearer(signal=["chat.*"])) == 202
        assert feeder.answer() == {"signal": None, "topic": "chat.1"}


def test_malformed_and_excessive_signals_are_rejected() -> None:
    with relay("--signal-rate", "1") as server:
        assert signal(server, "a*b") == 400
        assert signal(server, "a/b") == 404
        assert signal(server, "a", b"{") == 400
        assert signal(server, "a", b"{}", JSON | {"Content-Type": "image/png"}) == 415
        assert signal(server, "a", b"1" * (SIGNAL_BYTES_MAX + 1)) == 413
        assert server.request("GET", "/topics/a/signal")[0] == 405
        statuses = [signal(server, "a") for _ in range(12)]
        assert statuses[:10] == [202] * 10
        assert 429 in statuses


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (
            b' {"n": [0.12345678901234567890, -0, 123456789012345678901234, 1E5]}\r\n',
            b'{"n":[0.12345678901234567890,-0,123456789012345678901234,1E5]}',
        ),
        (b'\t"a \\u00e9\\n" ', '"a \u00e9\\n"'.encode()),
        (b"12345678901234567890.5\n", b"12345678901234567890.5"),
    ],
)
def test_a_signal_of_json_keeps_the_digits_of_its_numbers(body: bytes, value: bytes) -> None:
    assert read_signal("application/json", body) == value


@pytest.mark.parametrize("body", [b'"a\nb"', b'["\\ud800"]', b'"\xff"', b"[1,]", b"NaN", b"[" * 600 + b"]" * 600])
def test_a_signal_of_malformed_json_is_rejected(body: bytes) -> None:
    with pytest.raises(RequestError, match="the signal is not valid"):
        read_signal("application/json", body)


def test_a_publisher_calls_back_for_each_signal(tmp_path: Path) -> None:
    async def publish(server: Relay) -> list[tuple[str, Any]]:
        received: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        publisher = Publisher(str(server.unix_path), on_signal=lambda *each: received.put_nowait(each))
        async with publisher:
            await publisher.publish(Event("Hello", topic="chat.1"))
            assert await asyncio.to_thread(signal, server, "chat.1", b'"stop"') == 202
            return [await asyncio.wait_for(received.get(), 10)]

    with relay("--unix", str(tmp_path / "relay.sock")) as server:
        assert asyncio.run(publish(server)) == [("chat.1", "stop")]


def test_a_feeder_with_too_many_topics_loses_the_signals_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_signals, "TOPICS_MAX", 2)
    lines: list[Any] = []
    signals = TopicSignals({"delivered": 0, "dropped": 0})
    feeder = signals.feeder(lambda line: lines.append(json.loads(line)) or True)  # type: ignore[func-returns-value]
    for topic in ("a", "b", "c"):
        feeder.add(topic)
    for topic in ("a", "b", "c"):
        signals.deliver(topic, b"1")
    assert [line["topic"] for line in lines] == ["b", "c"]
    feeder.close()
    assert signals.topics == {}
