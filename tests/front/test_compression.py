"""Compressed streams of a real server: contents, ends, upgrades and workers (`relay.front.negotiate`)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

import pytest

from relay.event import Event
from tests.running import Relay, Stream, environment, eventually, relay

GZIP = {"Accept-Encoding": "gzip"}


def json_event(number: int) -> str:
    """Return an event's data of 150 bytes, as a feed of prices sends it."""
    data = {"symbol": "EURUSD", "bid": 1.07 + number / 1e4, "ask": 1.08 + number / 1e4, "venue": "x" * 60, "n": number}
    return json.dumps(data)


def texts(events: list[Event]) -> list[str]:
    """Return the data of events."""
    return [str(event.data) for event in events]


def wire_bytes(server: Relay) -> float:
    """Return the bytes that the server has sent on streams."""
    return server.metric("relay_sent_bytes_total")


def test_streams_share_a_compressor_and_receive_the_same_events() -> None:
    with relay("--compress", "gzip") as server:
        plain = Stream(server.port)
        packed = [Stream(server.port, headers=GZIP) for _ in range(4)]
        assert b"Content-Encoding" not in plain.head
        assert all(b"Content-Encoding: gzip" in stream.head for stream in packed)
        sent = []
        for number in range(200):
            sent.append(json_event(number))
            server.publish(sent[-1])
            if number == 100:
                packed.append(Stream(server.port, query="since=earliest", headers=GZIP))
        assert texts(plain.take(200)) == sent
        for stream in packed:
            assert texts(stream.take(200)) == sent
        assert server.metric("relay_compressors") == 1
        for stream in (plain, *packed):
            stream.close()


def test_150_byte_events_take_a_third_of_the_bytes() -> None:
    def measured(headers: dict[str, str]) -> float:
        with relay("--compress", "gzip") as server:
            streams = [Stream(server.port, headers=headers) for _ in range(5)]
            begun = wire_bytes(server)
            for number in range(300):
                server.publish(json_event(number))
                if number % 50 == 0:
                    streams[0].take(1 if number == 0 else 50)
            for stream in streams[1:]:
                stream.take(300)
                stream.close()
            streams[0].close()
            return wire_bytes(server) - begun

    assert measured(GZIP) < measured({}) / 3


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_a_drained_stream_ends_with_a_valid_trailer(accept: str) -> None:
    with relay("--compress", "gzip") as server:
        streams = [Stream(server.port, headers={**GZIP, "Accept": accept}) for _ in range(3)]
        for number in range(20):
            server.publish(json_event(number))
        for stream in streams:
            assert texts(stream.take(20)) == [json_event(number) for number in range(20)]
        server.process.terminate()
        for stream in streams:
            assert stream.rest() == []
            assert stream.complete
            stream.close()
        assert server.wait() == 0


def test_a_slow_stream_receives_a_gap_and_joins_again() -> None:
    with relay("--compress", "gzip", "--history-events", "50", "--lag-events", "20") as server:
        slow, fast = Stream(server.port, headers=GZIP, receive_buffer=4096), Stream(server.port, headers=GZIP)
        for number in range(40):
            server.publish(f"{number}:{os.urandom(50_000).hex()}")
            fast.take(1)
        server.publish("last")
        received = slow.take(1)
        while received[-1].data != "last":
            received += slow.take(1)
        assert any(event.event == "relay.gap" for event in received)
        server.publish("after")
        assert texts(slow.take(1)) == ["after"]
        slow.close()
        fast.close()


def test_compressed_streams_survive_an_upgrade() -> None:
    with relay("--compress", "gzip") as server:
        streams = [Stream(server.port, headers=GZIP) for _ in range(3)]
        for number in range(50):
            server.publish(json_event(number))
        server.upgrade()
        for number in range(50, 100):
            server.publish(json_event(number))
        for stream in streams:
            assert texts(stream.take(100)) == [json_event(number) for number in range(100)]
        server.publish(json.dumps({"data": "end", "event": "relay.end"}), content_type="application/json")
        for stream in streams:
            assert [event.event for event in stream.rest()] == ["relay.end"]
            assert stream.complete, "the new process continues the CRC of the old one"
            stream.close()


def test_compressed_streams_at_workers() -> None:
    with relay("--compress", "gzip", "--workers", "2") as server:
        streams = [Stream(server.port, headers=GZIP) for _ in range(8)]
        for number in range(50):
            server.publish(json_event(number))
        for stream in streams:
            assert texts(stream.take(50)) == [json_event(number) for number in range(50)]
            stream.close()


def test_curl_reads_each_event_at_once() -> None:
    with relay("--compress", "gzip") as server:
        url = f"{server.url}/events"
        command = ["curl", "-sN", "--compressed", url]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(LD_PRELOAD="")) as curl,
            contextlib.ExitStack() as stack,
            Stream(server.port, headers=GZIP) as stream,
        ):
            stack.callback(curl.terminate)
            eventually(lambda: server.metric("relay_streams") == 2, "both streams are open")
            assert curl.stdout is not None
            for number in range(3):
                server.publish(f"event {number}")
                lines = iter(curl.stdout.readline, b"")
                assert next(line for line in lines if line.startswith(b"data")) == f"data: event {number}\n".encode()
            stream.take(3)
