"""Users with one real stream each: one that reads, and one that does not read fast enough.

Own a subscriber and its judge; never know how others fare.
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
"""Little enough that relay soon sees the stream lag; with much less, reading on takes a delayed ACK for each 4 KiB."""



class StreamUser(User):
    """What all users with a real stream share."""

    abstract = True
    wait_time = constant(0)
    kind = "SSE"
    receive_buffer = 0
    gaps_allowed = False

    def on_start(self) -> None:
        """Begin without a place in the stream."""
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
        """Counts the users of this class in this process."""
        raise NotImplementedError

    def connect(self) -> bool:
        """Open the stream, from where it broke off if it did; return whether it is open."""
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
        """Judge what has come."""
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
        """Report a fault, if it is one."""
        if fault is not None:
            self.faults[fault] += 1
            tally.one(self.environment, self.kind, name, 0.0, fault=fault)

    def end(self, fault: str | None) -> None:
        """Say, once, how the stream stands at the end."""
        if self.ended:
            return
        self.ended = True
        if fault is not None:
            self.faults[fault] += 1
        tally.one(self.environment, self.kind, "whole", 0.0, fault=fault)
        self.course.tell({"part": self.kind, "faults": self.faults, **self.facts()})

    def facts(self) -> dict[str, Any]:
        """What is told beside the faults."""
        return {"seen": self.judge.seen, "opened": self.opened}

    def look(self) -> None:
        """Judge the whole of the stream as soon as it has come."""
        if self.course.last is not None and self.judge.whole(self.course.last):
            self.end(self.verdict(self.course.last))

    def verdict(self, last: int) -> str | None:
        """Return what is wrong with a stream that has come to its last event."""
        del last
        return None

    def on_stop(self) -> None:
        """Judge a stream that has not come to its end; hang up."""
        self.course.on_change.discard(self.look)
        self.end(f"stands at {self.judge.next}, not at {self.course.last}")
        self.follower.close()


class SSEUser(StreamUser):
    """A stream that is read as fast as it comes, and that comes back with its last id when it is cut."""

    _places = itertools.count()
    storms = 0

    @property
    def places(self) -> itertools.count[int]:
        """Counts the users of this class in this process."""
        return self._places

    def on_start(self) -> None:
        """Listen for storms as well."""
        super().on_start()
        self.storms = self.course.storms

    def look(self) -> None:
        """Break off in a storm."""
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
    """A stream that is read slowly, or not at all, until it may read on; then it is judged by its policy."""

    kind = "SLOW"
    receive_buffer = SLOW_RECEIVE_BUFFER
    gaps_allowed = True
    _places = itertools.count()

    @property
    def places(self) -> itertools.count[int]:
        """Counts the users of this class in this process."""
        return self._places

    @task
    def follow(self) -> None:
        """Read as slowly as it is in this phase."""
        if not self.follower.is_open and not self.connect():
            return
        if self.course.phase.name not in ("read-on", "settle"):
            gevent.sleep(SLOW_EVERY_S)
            # The first read of every stream gives it a place to resume from; then each other one stops reading.
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
        """Hold what the stream got against the policy's promise."""
        policy = self.environment.parsed_options.policy
        return broken_promise(policy, self.judge, last, lambda number: number % self.course.plan.keys)

    def facts(self) -> dict[str, Any]:
        """What is told beside the faults."""
        return {**super().facts(), "missed": len(self.judge.missed), "told": self.judge.told}
