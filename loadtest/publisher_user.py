"""The publisher: a locust user that publishes numbered events at a fixed rate and awaits each acknowledgement.

Publishes over the Unix socket, over HTTP one event at a time, over HTTP in batches, or over all three in turn. Owns the
numbers. Locust's tables name the acknowledgement latency of each entrance separately.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Protocol

import gevent
import orjson
import requests
from locust import User, constant, task

from loadtest import tally
from loadtest.plan import Plan
from loadtest.timeline import timeline

TIMEOUT_S = 30.0
PACE_S = 0.005
BATCH_MAX = 50
AGAIN_S = 1.0
PLANT_EVERY = 50
"""One event in so many has a planted fault, with which a test checks that the run fails."""

STRAY = 6
"""Distance in event numbers to the topic of a planted event; real streams of the scenario `topics` follow it too."""


class Entrance(Protocol):
    """A way to publish."""

    name: str

    def publish(self, events: list[dict[str, Any]]) -> str | None:
        """Publish, await the acknowledgement and return the fault if there is one."""

    def close(self) -> None:
        """Disconnect."""


class UnixEntrance:
    """The Unix socket; every event is acknowledged."""

    name = "unix"

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def publish(self, events: list[dict[str, Any]]) -> str | None:
        """Write the events as lines and read one answer for each."""
        lines = [orjson.dumps({**event, "ack": event["data"]["n"]}) + b"\n" for event in events]
        self._socket.sendall(b"".join(lines))
        answers = [orjson.loads(self._answers.readline()) for _ in events]
        for event, answer in zip(events, answers, strict=True):
            if answer.get("ack") != event["data"]["n"] or "id" not in answer:
                return f"answered {answer}"
        return None

    def close(self) -> None:
        """Disconnect."""
        self._answers.close()
        self._socket.close()


class HttpTarget:
    """POST /publish, with the events one by one or as one array."""

    def __init__(self, host: str, token: str, *, batch: bool) -> None:
        self.name = "http batch" if batch else "http single"
        self._batch = batch
        self._url = f"{host}/publish"
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._session.headers["Content-Type"] = "application/json"

    def publish(self, events: list[dict[str, Any]]) -> str | None:
        """Post the events and read their ids."""
        for body, count in [(events, len(events))] if self._batch else [(event, 1) for event in events]:
            answer = self._session.post(self._url, orjson.dumps(body), timeout=TIMEOUT_S)
            if answer.status_code != 200 or len(answer.json()["ids"]) != count:
                return f"answered {answer.status_code}: {answer.text[:200]}"
        return None

    def close(self) -> None:
        """Disconnect."""
        self._session.close()


def entrances(mode: str, host: str, unix: str, token: str) -> list[Entrance]:
    """Open the entrances of a mode: `unix`, `http`, `batch`, or `mixed` for all that are available."""
    opened: list[Entrance] = []
    if mode == "unix" or (mode == "mixed" and unix):
        opened.append(UnixEntrance(unix))
    if mode in ("http", "mixed"):
        opened.append(HttpTarget(host, token, batch=False))
    if mode in ("batch", "mixed"):
        opened.append(HttpTarget(host, token, batch=True))
    return opened


def event_of(plan: Plan, number: int) -> dict[str, Any]:
    """Make the event with that number and the current time."""
    event: dict[str, Any] = {
        "topic": plan.topic_of(number),
        "data": {"n": number, "t": time.monotonic_ns(), "p": "x" * plan.padding},
    }
    if plan.keys:
        event["key"] = str(number % plan.keys)
    return event


def planted(plan: Plan, number: int, what: str) -> list[dict[str, Any]]:
    """Return the events for a number; plant a gap, a duplicate or a foreign event at every `PLANT_EVERY`th."""
    event = event_of(plan, number)
    if not what or number % PLANT_EVERY:
        return [event]
    if what == "gap":
        return []
    if what == "duplicate":
        return [event, event]
    return [event, {**event_of(plan, number + 1), "topic": plan.topic_of(number + STRAY)}]


class PublisherUser(User):
    """One publisher at a fixed rate; it awaits the acknowledgements before it sends more."""

    fixed_count = 1
    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect."""
        options = self.environment.parsed_options
        self.course = timeline(self.environment)
        assert self.host is not None
        self.entrances = entrances(options.publish, self.host, options.unix, options.token)
        self.turn = 0
        self.number = 0
        self.due_s = time.monotonic()
        self.plant = os.environ.get("LOADTEST_PLANT", "")
        self.told = False

    @task
    def publish(self) -> None:
        """Publish the events that are due and wait for their acknowledgements."""
        gevent.sleep(PACE_S)
        now_s, rate = time.monotonic(), self.course.phase.rate
        if rate == 0:
            self.due_s = now_s
            if self.course.phase.name == "settle" and not self.told:
                self.told = True
                self.course.published(self.number)
            return
        count = min(BATCH_MAX, int((now_s - self.due_s) * rate))
        if count == 0:
            return
        # Events that relay delayed beyond one batch are skipped and not sent later.
        self.due_s = now_s if count == BATCH_MAX else self.due_s + count / rate
        self._publish(count)

    def _publish(self, count: int) -> None:
        plan, entrance = self.course.plan, self.entrances[self.turn % len(self.entrances)]
        self.turn += 1
        events = [
            event
            for number in range(self.number + 1, self.number + count + 1)
            for event in planted(plan, number, self.plant)
        ]
        self.number += count
        began_s = time.monotonic()
        try:
            fault = entrance.publish(events)
        except (OSError, requests.RequestException) as error:
            fault = f"not published: {type(error).__name__}"
            gevent.sleep(AGAIN_S)
        tally.one(self.environment, "PUBLISH", f"{entrance.name} acknowledged", time.monotonic() - began_s, fault=fault)

    def on_stop(self) -> None:
        """Disconnect."""
        for entrance in self.entrances:
            entrance.close()
