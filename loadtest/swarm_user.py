"""A user that is a block of streams, held by the native swarm in a process of its own.

Owns one swarm and hands its measures to locust once a second, as histograms. Never looks at an event.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import gevent
import msgspec
from locust import User, constant, task
from locust.runners import WorkerRunner

from loadtest import tally
from loadtest.plan import Block
from loadtest.swarm import Swarm, SwarmReport
from loadtest.timeline import timeline

KIND = "SWARM"
EVERY_S = 0.5
STORM_S = 60.0
SPARE_S = 60.0
UNMEASURED = ("ramp", "read-on", "settle")
"""Phases whose latencies are not those that a scenario is about."""

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
"""What is a fault only at streams that read all that comes."""


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
        self.counted: dict[str, int] = dict.fromkeys((*FAULTS, *ODD), 0)
        self.swarm = self._open(self.block)
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
        """The first source address: its own for each block of each process, where the loopback has so many."""
        if not host.startswith("127."):
            return "any"
        runner = self.environment.runner
        worker = runner.worker_index + 1 if isinstance(runner, WorkerRunner) else 0
        return f"127.{1 + worker % 250}.{1 + self.place % 250}.1"

    @task
    def watch(self) -> None:
        """Hand on what the swarm has seen since the last time."""
        gevent.sleep(EVERY_S)
        if self.course.storms > self.storms:
            self.storms = self.course.storms
            self._storm()
        self._hand_on()

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
        for field, fault in (FAULTS | ODD if self.block.healthy else FAULTS).items():
            count = getattr(self.latest, field)
            tally.faults(self.environment, KIND, "delivery", fault, count - self.counted[field])
            self.counted[field] = count

    def on_stop(self) -> None:
        """Judge how the streams stand; end them."""
        self._hand_on()
        assert self.latest is not None
        last, block, report = self.course.last, self.block, self.latest
        fault = None
        if block.healthy and not block.life_s:
            if last is None or report.last_min < last:
                fault = f"some stream stands at {report.last_min}, not at {last}"
            elif report.healthy_open != block.streams:
                fault = f"{report.healthy_open} of {block.streams} streams open"
        tally.one(self.environment, KIND, "whole", 0.0, fault=fault)
        self.course.tell(
            {
                "part": KIND,
                "fault": fault,
                "faults": sum(self.counted.values()) + (fault is not None),
                "healthy": block.healthy,
                "report": msgspec.to_builtins(report),
                "storm": msgspec.to_builtins(self.recovered),
                "delivery": sorted(self.delivery.items()),
            }
        )
        self.swarm.close()
