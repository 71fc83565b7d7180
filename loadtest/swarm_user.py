"""A locust user that stands for a block of streams, which a separate native swarm process holds.

Owns one swarm and passes its measurements to locust every `EVERY_S` seconds, as histograms. Never looks at an event.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import gevent
import msgspec
from locust import User, constant, task
from locust.runners import WorkerRunner

from loadtest import tally
from loadtest.plan import Block
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.timeline import timeline

KIND = "SWARM"
EVERY_S = 0.5
STORM_S = 60.0
SPARE_S = 60.0
UNMEASURED = ("ramp", "read-on", "settle")
"""Phases whose latencies do not count in the verdict."""

FAULTS = {
    "untold": "events missing that it was not told of",
    "duplicates": "an event twice",
    "wrong_order": "an event out of order",
    "torn": "an event cut short",
    "foreign": "an event of another topic",
}
ODD = {
    "told_gaps": "told of a gap",
    "closed": "closed by the server",
    "refused": "refused",
    "failed": "not connected",
}
"""Conditions that are faults only for healthy streams."""


class SwarmUser(User):
    """A block of the plan's streams."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Open the streams."""
        self.course = timeline(self.environment)
        self.place = self.course.next_block()
        self.block = self.course.plan.blocks[self.place]
        self.storms = self.course.storms
        self.delivery: dict[int, int] = {}
        self.judged = FAULTS | ODD if self.block.healthy else FAULTS
        self.counted = dict.fromkeys(self.judged, 0)
        self.swarm = self._open(self.block)
        self.ready = self.seen_whole = self.ended = False
        self.latest: SwarmReport | None = None
        self.recovered: SwarmReport | None = None

    def _open(self, block: Block) -> Swarm:
        assert self.host is not None
        place = urlsplit(self.host)
        assert place.hostname is not None
        return Swarm(
            place.port or 80,
            block.streams,
            host=place.hostname,
            path=block.path,
            topics=block.topics,
            first=block.first,
            slow=block.slow,
            stalled=block.stalled,
            reconnect=block.reconnect,
            life_s=block.life_s,
            rcvbuf=block.receive_buffer,
            source=self._source(place.hostname),
            seconds=self.course.plan.seconds + SPARE_S,
        )

    def _source(self, host: str) -> str:
        """Return the first source address; on the loopback network, each block of each process has its own."""
        if not host.startswith("127."):
            return "any"
        runner = self.environment.runner
        worker = runner.worker_index + 1 if isinstance(runner, WorkerRunner) else 0
        return f"127.{1 + worker % 250}.{1 + self.place % 250}.1"

    @task
    def watch(self) -> None:
        """Report the swarm's measurements since the last call."""
        gevent.sleep(EVERY_S)
        if self.course.storms > self.storms:
            self.storms = self.course.storms
            self._storm()
        self._hand_on()
        if not self.ready and self.latest is not None and self.latest.open == self.block.streams:
            self.ready = True
            self.course.ready()
        # Look once more before the end, so that a surplus event can still arrive and be counted.
        if self.course.last is not None and self._unfinished() is None:
            if self.seen_whole:
                self._end(None)
            self.seen_whole = True

    def _storm(self) -> None:
        recovered = self.recovered = self.swarm.storm(STORM_S)
        for name, seconds in (("all open again", recovered.reopen_s), ("all recovered", recovered.recover_s)):
            tally.one(self.environment, KIND, name, seconds)

    def _hand_on(self) -> None:
        times = self.swarm.histograms()
        self.latest = self.swarm.mark()
        for name, histogram in (("delivery", times.delivery), ("connect", times.connect), ("first event", times.first)):
            tally.many(self.environment, KIND, name, histogram)
        for top_us, count in times.delivery if self.course.phase.name not in UNMEASURED else ():
            self.delivery[top_us] = self.delivery.get(top_us, 0) + count
        for field, fault in self.judged.items():
            count = getattr(self.latest, field)
            tally.faults(self.environment, KIND, "delivery", fault, count - self.counted[field])
            self.counted[field] = count

    def _unfinished(self) -> str | None:
        """Return why the healthy, lasting streams are not finished, or None if they are."""
        last, block, report = self.course.last, self.block, self.latest
        if report is None or last is None:
            return f"nobody knows the last event, {last}, or what was seen"
        if not block.healthy or block.life_s:
            return None
        if report.healthy_open != block.streams:
            return f"{report.healthy_open} of {block.streams} streams open"
        return None if report.last_min >= last else f"some stream stands at {report.last_min}, not at {last}"

    def _end(self, fault: str | None) -> None:
        """Report the final state of the streams; do nothing on later calls."""
        if self.ended or self.latest is None:
            return
        self.ended = True
        faults = {self.judged[field]: count for field, count in self.counted.items() if count}
        tally.one(self.environment, KIND, "whole", 0.0, fault=fault)
        self.course.tell(
            {
                "part": KIND,
                "faults": faults if fault is None else {**faults, fault: 1},
                "healthy": self.block.healthy,
                "report": msgspec.to_builtins(self.latest),
                "storm": msgspec.to_builtins(self.recovered),
                "delivery": sorted(self.delivery.items()),
            }
        )

    def on_stop(self) -> None:
        """Judge the streams that have not finished, then close all."""
        self._end(self._unfinished())
        self.swarm.close()
