"""A server does not grow while streams open and close and events are published."""

from __future__ import annotations

import json

from tests.running import ASIDE_BYTES, Relay, Stream, eventually, relay

ROUNDS, WARM_UP = 40, 10
STREAMS, EVENTS = 20, 100
SLOPE_BYTES_MAX = 2 * 1024 * 1024


def run(server: Relay, number: int) -> None:
    """Open streams of several kinds, some of which lag or resume; publish; close them in different ways.

    The topics repeat after the warm-up, because relay remembers a bounded number of topics that it has evicted.
    """
    streams = [Stream(server.port, f"topic=slope&topic=t{each}.*&policy=conflate") for each in range(STREAMS)]
    slow = [Stream(server.port, "topic=**", receive_buffer=4096) for _ in range(2)]
    lines = [json.dumps({"data": "x" * 500, "topic": f"t{each % 30}.{number % WARM_UP}"}) for each in range(EVENTS)]
    server.publish("\n".join(lines), content_type="application/x-ndjson")
    server.publish("y" * 50_000, "slope")
    for stream in streams:
        stream.read_until(b"y" * 50_000)
        stream.close()
    with Stream(server.port, "topic=slope", {"Last-Event-ID": streams[0].last_event_id}):
        pass
    for stream in slow:
        stream.close()


def counted(server: Relay) -> bool:
    """Return whether the last count of the topics included the stream that settled() opens."""
    return any(topic["topic"] == "settled" for topic in server.stats()["topics"])


def settled(server: Relay) -> tuple[int, int]:
    """Wait until no resource is held. Return the memory and the number of objects that the garbage collector tracks.

    The server counts objects once a second, with the topics. So a topic opens and closes before the count is read.
    """
    with Stream(server.port, "topic=settled", context=server.context):
        eventually(lambda: counted(server), "the topics are counted with the stream")
    nothing = {"chunks": 0, "frames": 0, "streams": 0}
    eventually(lambda: server.stats()["held"] == nothing and server.connections() == 0, "the server is idle")
    eventually(lambda: not counted(server), "the topics are counted without the stream")
    return server.memory_bytes(), server.stats()["gc_objects"]


def test_many_rounds_of_streams_and_events_leak_nothing() -> None:
    with relay("--history-bytes", "128KiB", "--event-bytes-max", "64KiB", "--client-buffer", "16KiB") as server:
        for number in range(WARM_UP):
            run(server, number)
        before = settled(server)
        for number in range(WARM_UP, ROUNDS):
            run(server, number)
        after = settled(server)
        slope_bytes = after[0] - before[0]
        rounds, objects = ROUNDS - WARM_UP, after[1] - before[1]
        print(f"{rounds} rounds: memory {slope_bytes:+}, bound {SLOPE_BYTES_MAX}; objects {objects:+}")
        assert slope_bytes < SLOPE_BYTES_MAX + ASIDE_BYTES
        assert objects <= 50
