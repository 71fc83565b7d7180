"""`python -m bench.crowd`: measure ordinary streams while clients open and close streams of about 1,000 terms.

Owns these runs. One process publishes the time and reads it from ordinary streams. Another opens many large streams at
once and closes them at once. Prints the latency of events before the crowd opens, while it opens, while it closes and
over both; and the time to open one large stream.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, MeasureError, raise_descriptor_limit

WATCHERS = 10
PERIOD_S = 0.005
QUIET_S = 2.0
AFTER_S = 2.0
ANSWER_S = 120.0
TOPICS, PATTERNS = 960, 15
"""As many terms as fit into the largest request head that relay accepts by default."""
ALONE = 20
P99_MAX_MS = 50.0
OPEN_MAX_MS = 5.0


def main() -> int:
    """Measure and print; 1 if the p99 of the other streams, or the opening of a large one, is over its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=main.__doc__)
    parser.add_argument("--streams", type=int, default=300, help="large streams that open and close at once (300)")
    parser.add_argument("--topics", type=int, default=0, help="topics that have an event before the run (0)")
    options = parser.parse_args()
    raise_descriptor_limit()
    with MeasuredServer(TARGETS["relay"]) as server:
        publish_topics(server, options.topics)
        alone_ms = [1000 * open_alone(server.port, number) for number in range(ALONE)]
        phases = measure(server, options.streams)
    alone_ms.sort()
    print(f"one stream of {TOPICS} topics and {PATTERNS} patterns, from request to response head: ", end="")
    print(f"p50 {quantile(alone_ms, 0.5):.1f} ms, max {alone_ms[-1]:.1f} ms of {ALONE}")
    for phase, taken_ms in phases.items():
        print(f"{phase:>20}: p50 {quantile(taken_ms, 0.5):6.1f} ms, p99 {quantile(taken_ms, 0.99):6.1f} ms", end="")
        print(f", max {max(taken_ms):6.1f} ms of {len(taken_ms)} events")
    crowd_ms = phases["coming and leaving"]
    return quantile(crowd_ms, 0.99) > P99_MAX_MS or quantile(alone_ms, 0.5) > OPEN_MAX_MS


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[max(0, round(share * len(values)) - 1)]


def request(number: int) -> bytes:
    """Make the request for a large stream; no other stream has its topics."""
    terms = [f"w{number}.{each}" for each in range(TOPICS)] + [f"p{number}.{each}.*" for each in range(PATTERNS)]
    query = "&".join(f"topic={term}" for term in terms)
    return f"GET /events?{query} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def open_alone(port: int, number: int) -> float:
    """Open one large stream and close it; return the time until its response began, in seconds."""
    wanted = request(number)
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as stream:
        began_s = time.monotonic()
        stream.sendall(wanted)
        if not stream.recv(12).endswith(b"200"):
            raise MeasureError("a large stream was refused")
        return time.monotonic() - began_s


def publish_topics(server: MeasuredServer, count: int) -> None:
    """Publish one event on each of `count` topics."""
    with feeder(server) as feed:
        for start in range(0, count, 1000):
            feed.sendall(b"".join(b'{"data": "x", "topic": "known.%d"}\n' % n for n in range(start, start + 1000)))
    while server.stats()["log"]["events"] < count:
        time.sleep(0.05)


def feeder(server: MeasuredServer) -> socket.socket:
    """Connect as a feeder."""
    feed = socket.socket(socket.AF_UNIX)
    feed.connect(str(server.unix))
    return feed


def measure(server: MeasuredServer, streams: int) -> dict[str, list[float]]:
    """Open and close many large streams beside ordinary ones; return the latencies of each phase, in milliseconds."""
    ours, theirs = multiprocessing.Pipe()
    crowd = multiprocessing.get_context("spawn").Process(target=come_and_go, args=(server.port, streams, theirs))
    crowd.start()
    with watching(server) as taken:
        ours.recv()
        marks = [time.monotonic()]
        time.sleep(QUIET_S)
        marks.append(time.monotonic())
        for _ in ("coming", "leaving"):
            ours.send(None)
            if not ours.poll(ANSWER_S):
                raise MeasureError("the large streams did not open or close in time")
            ours.recv()
            time.sleep(AFTER_S)  # closing continues for a moment; a request to /stats would itself add a delay
            marks.append(time.monotonic())
    crowd.join()
    phases = {
        name: [1000 * taken_s for sent_s, taken_s in taken if start <= sent_s < stop]
        for name, start, stop in zip(("before", "coming", "leaving"), marks, marks[1:], strict=False)
    }
    phases["coming and leaving"] = phases["coming"] + phases["leaving"]
    return phases


def come_and_go(port: int, streams: int, main: Connection) -> None:
    """Open large streams at once and later close them at once, on messages from `main`; run in a separate process."""
    raise_descriptor_limit()
    requests = [request(number) for number in range(streams)]
    main.send(None)
    main.recv()
    opened = [socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) for _ in requests]
    for stream, wanted in zip(opened, requests, strict=True):
        stream.sendall(wanted)
    for stream in opened:
        if not stream.recv(12).endswith(b"200"):
            raise MeasureError("a large stream was refused")
    main.send(None)
    main.recv()
    for stream in opened:
        stream.close()
    main.send(None)


@contextlib.contextmanager
def watching(server: MeasuredServer) -> Iterator[list[tuple[float, float]]]:
    """Publish the time and read it from ordinary streams; yield a list of (time sent, latency), in seconds."""
    taken: list[tuple[float, float]] = []
    over = threading.Event()
    watchers = [socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_S) for _ in range(WATCHERS)]
    for watcher in watchers:
        watcher.sendall(b"GET /events?topic=time HTTP/1.1\r\nHost: bench\r\n\r\n")
        watcher.recv(4096)

    def publish() -> None:
        with feeder(server) as feed:
            while not over.wait(PERIOD_S):
                feed.sendall(b'{"data": "at %.6f;", "topic": "time"}\n' % time.monotonic())

    def read() -> None:
        with selectors.DefaultSelector() as selector:
            for watcher in watchers:
                selector.register(watcher, selectors.EVENT_READ)
            while not over.is_set():
                for key, _ in selector.select(0.1):
                    now_s = time.monotonic()
                    for part in key.fileobj.recv(1 << 16).split(b"data: at ")[1:]:  # type: ignore[union-attr]
                        sent_s = float(part[: part.index(b";")])
                        taken.append((sent_s, now_s - sent_s))

    threads = [threading.Thread(target=publish), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        yield taken
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for watcher in watchers:
            watcher.close()


if __name__ == "__main__":
    raise SystemExit(main())
