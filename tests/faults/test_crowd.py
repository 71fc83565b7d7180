"""Clients with a thousand topics and patterns connect and disconnect; other streams are served meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time

from tests.running import TIMEOUT_S, TOKEN, Stream, eventually, relay

LARGE_STREAMS = 80
DELAY_MAX_S = 1.0
"""Far above the normal delay, because the machine has other work. Work that grows with all topics took seconds."""


def request(number: int) -> bytes:
    """Make the request for a stream within the default limits, with topics that no other stream has."""
    terms = [f"w{number}.{each}" for each in range(960)] + [f"p{number}.{each}.*" for each in range(15)]
    query = "&".join(f"topic={term}" for term in terms)
    return f"GET /events?{query} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


def test_a_crowd_of_large_streams_opens_and_closes_without_a_delay_for_others() -> None:
    requests = [request(number) for number in range(LARGE_STREAMS)]
    with relay("--heartbeat", "0") as server, contextlib.ExitStack() as crowd:
        watcher = Stream(server.port, "topic=time")
        delays_s: list[float] = []
        over = threading.Event()

        def watch() -> None:
            """Publish an event and wait for it, repeatedly."""
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
            while not over.is_set():
                began_s = time.monotonic()
                connection.request("POST", "/publish?topic=time", b"x", headers)
                with connection.getresponse() as response:
                    assert (response.status, bool(response.read())) == (200, True)
                watcher.next()
                delays_s.append(time.monotonic() - began_s)
            connection.close()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            eventually(lambda: len(delays_s) > 0, "the watcher's connection is accepted")
            streams = [
                crowd.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)) for _ in requests
            ]
            for stream, wanted in zip(streams, requests, strict=True):
                stream.sendall(wanted)
            for stream in streams:
                assert stream.recv(12) == b"HTTP/1.1 200"
            crowd.close()
            eventually(lambda: server.connections() == 2, "the crowd has disconnected")
            seen = len(delays_s)
            eventually(lambda: len(delays_s) > seen + 10, "other streams continue")
        finally:
            over.set()
            watching.join()
        assert max(delays_s[1:]) < DELAY_MAX_S
