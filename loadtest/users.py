"""Users with one real stream each: one user reads at full speed, the other too slowly.

Each user owns a subscriber and its judge. Never uses the results of other users.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

import gevent
import orjson
import urllib3
from locust import User, constant, task

from loadtest import tally
from loadtest.follower import Follower, FollowError
from loadtest.judge import Judge, broken_promise
from loadtest.plan import wanted
from loadtest.timeline import timeline
from relay.event import Event

AGAIN_S = 0.2
SLOW_READ_BYTES = 512
SLOW_EVERY_S = 0.1
SLOW_RECEIVE_BUFFER = 32 * 1024
"""Small, so that the stream soon lags. A much smaller buffer costs one delayed ACK per 4 KiB during catch-up."""



class StreamUser(User):
    """The base class of all users with a real stream."""

    abstract = True
    wait_time = constant(0)
    kind = "SSE"
    receive_buffer = 0
    gaps_allowed = False

    def on_start(self) -> None:
        """Create the follower and the judge, without a position in the stream."""
        self.course = timeline(self.environment)
        plan = self.course.plan
        self.place = next(self.places)
        assert self.host is not None
        self.follower = Follower(self.host, plan.terms_of(self.place), receive_buffer=self.receive_buffer)
        self.judge = Judge(wanted(plan, self.place), first=plan.first or None, gaps_allowed=self.gaps_allowed)
        self.first_of_connection = True
        self.opened = 0
        self.faults: Counter[str] = Counter()
        self.ended = False
        self.course.on_change.add(self.look)

    @property
    def places(self) -> itertools.count[int]:
        """A counter of the users of this class in this process."""
        raise NotImplementedError

    def connect(self) -> bool:
        """Open the stream, or resume it after a disconnect; return whether it is open."""
        self.asked_s = time.monotonic()
        name = "reconnect" if self.opened else "connect"
        try:
            self.follower.open()
        except (FollowError, OSError, urllib3.exceptions.HTTPError) as error:
            self.fail(name, str(error))
            gevent.sleep(AGAIN_S)
            return False
        self.opened += 1
        if self.opened == 1:
            self.course.ready()
        self.first_of_connection = True
        self.measure(name, time.monotonic() - self.asked_s)
        return True

    def take(self, events: list[Event]) -> None:
        """Judge the events."""
        for event in events:
            if event.event == "relay.gap":
                self.fail("delivery", self.judge.gap(event))
            elif event.event != "relay.heartbeat":
                self._take_event(event)
        self.look()

    def _take_event(self, event: Event) -> None:
        payload = orjson.loads(event.data)
        if self.first_of_connection:
            self.first_of_connection = False
            self.measure("first event", time.monotonic() - self.asked_s)
        fault = self.judge.number(payload["n"])
        if fault is not None:
            self.faults[fault] += 1
        late_s = (time.monotonic_ns() - payload["t"]) / 1e9
        tally.one(self.environment, self.kind, "delivery", late_s, len(event.data), fault)

    def measure(self, name: str, seconds: float) -> None:
        """Report a measurement."""
        tally.one(self.environment, self.kind, name, seconds)

    def fail(self, name: str, fault: str | None) -> None:
        """Report a fault; do nothing if it is None."""
        if fault is not None:
            self.faults[fault] += 1
            tally.one(self.environment, self.kind, name, 0.0, fault=fault)

    def end(self, fault: str | None) -> None:
        """Report the final state of the stream; do nothing on later calls."""
        if self.ended:
            return
        self.ended = True
        if fault is not None:
            self.faults[fault] += 1
        tally.one(self.environment, self.kind, "whole", 0.0, fault=fault)
        self.course.tell({"part": self.kind, "faults": self.faults, **self.facts()})

    def facts(self) -> dict[str, Any]:
        """Return the facts to report beside the faults."""
        return {"seen": self.judge.seen, "opened": self.opened}

    def look(self) -> None:
        """Judge the whole stream once all its events have arrived."""
        if self.course.last is not None and self.judge.whole(self.course.last):
            self.end(self.verdict(self.course.last))

    def verdict(self, last: int) -> str | None:
        """Return the fault of a stream that has reached its last event, or None."""
        del last
        return None

    def on_stop(self) -> None:
        """Judge the stream if it has not finished, then close it."""
        self.course.on_change.discard(self.look)
        self.end(f"stands at {self.judge.next}, not at {self.course.last}")
        self.follower.close()


class SSEUser(StreamUser):
    """A stream that is read at full speed and reconnects with its last id after a disconnect."""

    _places = itertools.count()
    storms = 0

    @property
    def places(self) -> itertools.count[int]:
        """A counter of the users of this class in this process."""
        return self._places

    def on_start(self) -> None:
        """Also watch for storms."""
        super().on_start()
        self.storms = self.course.storms

    def look(self) -> None:
        """Disconnect in a storm."""
        super().look()
        if self.course.storms > self.storms:
            self.storms = self.course.storms
            self.follower.drop()

    @task
    def follow(self) -> None:
        """Open the stream and read it until it ends."""
        if not self.connect():
            return
        while (events := self.follower.read()) is not None:
            self.take(events)


class SlowUser(StreamUser):
    """A stream that is read slowly or not at all until the `read-on` phase; at its end it is judged by its policy."""

    kind = "SLOW"
    receive_buffer = SLOW_RECEIVE_BUFFER
    gaps_allowed = True
    _places = itertools.count()

    @property
    def places(self) -> itertools.count[int]:
        """A counter of the users of this class in this process."""
        return self._places

    @task
    def follow(self) -> None:
        """Read at the speed of the current phase."""
        if not self.follower.is_open and not self.connect():
            return
        if self.course.phase.name not in ("read-on", "settle"):
            gevent.sleep(SLOW_EVERY_S)
            # The first read gives every stream an id to resume from. After it, every second stream stops reading.
            if self.judge.seen and self.place % 2:
                return
            events = self.follower.read(SLOW_READ_BYTES)
        else:
            events = self.follower.read()
        if events is not None:
            self.take(events)

    def _take_event(self, event: Event) -> None:
        fault = self.judge.number(orjson.loads(event.data)["n"])
        self.fail("delivery", fault)

    def verdict(self, last: int) -> str | None:
        """Check the stream's events against the promise of the policy."""
        policy = self.environment.parsed_options.policy
        return broken_promise(policy, self.judge, last, lambda number: number % self.course.plan.keys)

    def facts(self) -> dict[str, Any]:
        """Return the facts to report beside the faults."""
        return {**super().facts(), "missed": len(self.judge.missed), "told": self.judge.told}
