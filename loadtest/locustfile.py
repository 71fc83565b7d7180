"""Locust users: real streams, and a publisher whose every event is checked at each of them.

Each payload carries its number and the time it was published at. A stream reports connect time, time to its first event
and delivery latency as locust requests; a number that is missing, doubled or out of order is a failure, and so the
run's exit code is 1. RELAY_LOAD_UNIX names the relay's Unix socket, RELAY_LOAD_RATE the events a second.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import orjson
import requests
from locust import User, constant, task

from relay.sse import Decoder

TOPIC = "load"
PADDING = "x" * 100
EVENT_BYTES_MAX = 1 << 20
READ_BYTES = 64 * 1024
TIMEOUT_S = 30.0


class LossError(Exception):
    """A stream did not see every event in order, exactly once."""


def report(user: User, kind: str, name: str, seconds: float, size: int = 0, error: Exception | None = None) -> None:
    """Hand one measurement to locust."""
    user.environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=seconds * 1000,
        response_length=size,
        exception=error,
        context={},
    )


class SSEUser(User):
    """One open stream."""

    weight = 1
    wait_time = constant(0.1)

    def on_start(self) -> None:
        """Begin without a place in the stream."""
        self.last_id = ""
        self.number: int | None = None

    @task
    def follow(self) -> None:
        """Open the stream, from where it broke off if it did, and read it until the test ends."""
        began_s = time.monotonic()
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        with requests.get(
            f"{self.host}/events", params={"topic": TOPIC}, headers=headers, stream=True, timeout=TIMEOUT_S
        ) as response:
            response.raise_for_status()
            report(self, "SSE", "connect", time.monotonic() - began_s)
            decoder, first = Decoder(EVENT_BYTES_MAX), True
            while data := response.raw.read1(READ_BYTES):
                for event in decoder.feed(data):
                    self._check(event.event, event.data)
                    if first:
                        report(self, "SSE", "first event", time.monotonic() - began_s)
                        first = False
                self.last_id = decoder.last_event_id

    def _check(self, kind: str | None, data: Any) -> None:
        if kind == "relay.gap":
            report(self, "SSE", "delivery", 0, error=LossError(f"a gap: {data}"))
            self.number = None
            return
        payload = orjson.loads(data)
        number = payload["n"]
        error = None
        if self.number is not None and number != self.number + 1:
            error = LossError(f"event {number} after {self.number}")
        self.number = number
        report(self, "SSE", "delivery", (time.monotonic_ns() - payload["t"]) / 1e9, len(data), error)


class PublisherUser(User):
    """One feeder at the Unix socket, at a fixed rate; each event is acknowledged."""

    fixed_count = 1
    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect."""
        self.rate = float(os.environ.get("RELAY_LOAD_RATE", "20"))
        self.number = 0
        self.next_s = time.monotonic()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(os.environ["RELAY_LOAD_UNIX"])
        self.answers = self.socket.makefile("rb")

    @task
    def publish(self) -> None:
        """Publish one event when it is due, and wait for its acknowledgement."""
        self.next_s += 1 / self.rate
        time.sleep(max(0.0, self.next_s - time.monotonic()))
        self.number += 1
        began_ns = time.monotonic_ns()
        payload = {"n": self.number, "t": began_ns, "p": PADDING}
        if os.environ.get("RELAY_LOAD_PLANT_GAP") and self.number % 50 == 0:
            return  # so that a test sees that a missing event fails the run
        self.socket.sendall(orjson.dumps({"topic": TOPIC, "data": payload, "ack": self.number}) + b"\n")
        answer = orjson.loads(self.answers.readline())
        error = None if answer.get("ack") == self.number and "id" in answer else LossError(f"answered {answer}")
        report(self, "publish", "acknowledged", (time.monotonic_ns() - began_ns) / 1e9, error=error)

    def on_stop(self) -> None:
        """Disconnect."""
        self.answers.close()
        self.socket.close()
