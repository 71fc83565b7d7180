"""The promise of a drain: a live stream receives every event that was acknowledged before its connection is closed.

Covers relay.server.drain.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import threading
from pathlib import Path

import pytest

from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, eventually, relay

STREAMS = 16
ROUNDS = 2
"""Drains of each kind. The events in transit at the signal differ each time."""

PAUSE_S = 0.002
"""Between two batches of one publisher, so that slow machines can handle the load."""

BEFORE = 200
"""Events that are acknowledged before the signal."""

MODES = {
    "single": (),
    "data": ("--data", "FILE"),
    "durable": ("--data", "FILE", "--durable"),
    "workers": ("--workers", "2"),
    "workers, data": ("--workers", "2", "--data", "FILE"),
    "workers, durable": ("--workers", "2", "--data", "FILE", "--durable"),
}


class Publishers:
    """Publishers that continue over the Unix socket and HTTP until relay exits.

    Args:
        feeders: the Unix socket.
        port: of the HTTP server.
    """

    def __init__(self, feeders: Path, port: int) -> None:
        self.acknowledged: list[str] = []
        self._over = threading.Event()
        self._feeders = feeders
        self._port = port
        self._threads = [
            threading.Thread(target=target, args=(f"{id(self)} {target.__name__} {number}",))
            for target in (self._feed, self._post)
            for number in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self, name: str) -> None:
        number = 0
        with contextlib.suppress(OSError, ValueError), Feeder(self._feeders) as feeder:
            while not self._over.wait(PAUSE_S):
                feeder.send(*({"data": f"{name}, {number + each}", "ack": number + each} for each in range(5)))
                for _ in range(5):
                    self.acknowledged.append(f"{name}, {feeder.answer()['ack']}")
                number += 5

    def _post(self, name: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
        number = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not self._over.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
                with contextlib.closing(connection):
                    while not self._over.wait(PAUSE_S):
                        connection.request("POST", "/publish", f"{name}, {number}", headers)
                        response = connection.getresponse()
                        if response.read() and response.status == 200:
                            self.acknowledged.append(f"{name}, {number}")
                        number += 1
                        if response.will_close:
                            break

    def stop(self) -> None:
        """Stop publishing."""
        self._over.set()
        self.join()

    def join(self) -> None:
        """Wait until relay has exited."""
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a publisher continues after relay has exited"


class Readers:
    """Streams that are read to their end while events arrive."""

    def __init__(self, port: int) -> None:
        self.streams = [Stream(port) for _ in range(STREAMS)]
        for stream in self.streams:
            stream.read_until(b"\nid: ")
        self._data: list[list[str]] = [[] for _ in self.streams]
        self._threads = [
            threading.Thread(target=self._read, args=(stream, data))
            for stream, data in zip(self.streams, self._data, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Stream, data: list[str]) -> None:
        with stream:
            data += [event.data for event in stream.rest()]

    def join(self) -> list[list[str]]:
        """Wait until all streams have ended; return the received data of each."""
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a stream does not end"
        return self._data


def drain(server: Relay, publishers: Publishers) -> None:
    """Send SIGTERM during the load."""
    eventually(lambda: len(publishers.acknowledged) > BEFORE, "events are acknowledged")
    assert server.stop() == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_stream_receives_every_acknowledged_event(mode: str, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        settings = [text.replace("FILE", str(tmp_path / f"{number}.db")) for text in MODES[mode]]
        with relay("--unix", str(tmp_path / "u"), *settings) as server:
            readers, publishers = Readers(server.port), Publishers(tmp_path / "u", server.port)
            drain(server, publishers)
            publishers.join()
            for data in readers.join():
                assert set(publishers.acknowledged) - set(data) == set()


@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_standard_input_ends_relay_after_every_stream_has_all_events(mode: str, tmp_path: Path) -> None:
    settings = [text.replace("FILE", str(tmp_path / "f.db")) for text in MODES[mode]]
    with relay("--exit-on-eof", *settings, stdin=subprocess.PIPE) as server:
        readers, stdin = Readers(server.port), server.process.stdin
        assert stdin is not None
        with stdin:
            stdin.write(b"".join(json.dumps({"data": str(number)}).encode() + b"\n" for number in range(3000)))
        assert server.wait() == 0
        for data in readers.join():
            assert data == [str(number) for number in range(3000)]
