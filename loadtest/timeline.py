"""The timeline of a run, which all locust processes share: phases, the last event, and each part's observations.

The process with the load shape announces each phase. The process with the publisher announces the number of the last
event. The processes with streams send their observations, which are written to `--report` at the end. All processes use
locust's own messages, so one process and many processes work in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent.queue
import msgspec
from locust import LoadTestShape
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

from loadtest.plan import SCENARIOS, LoadOptions, Plan

PHASE, LAST, SAW, READY = "load-phase", "load-last", "load-saw", "load-ready"
WANT_BLOCK, BLOCK = "load-want-block", "load-block"
WAIT_S = 10.0
RAMP_S_MAX = 60.0
"""Maximum length of a ramp that waits for streams to open."""


def plan_of(options: Any) -> Plan:
    """Build the plan from locust's parsed options; options that are not given keep the scenario's defaults."""
    scenario = SCENARIOS[options.scenario]
    given = {name: getattr(options, name) for name in LoadOptions.__slots__}
    chosen = {name: value for name, value in given.items() if value is not None}
    return scenario.build(replace(scenario.defaults, **chosen))


class Timeline:
    """The state of the run, as one process knows it.

    Args:
        environment: locust's environment.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.on_change: set[Callable[[], None]] = set()  # called at each new phase, and when the last event is known
        self.begin()

    def begin(self) -> None:
        """Start a run with the current options; by now, a worker has the master's options."""
        self.plan = plan_of(self._environment.parsed_options)
        self._blocks = itertools.count()
        self._given: gevent.queue.Queue[int] = gevent.queue.Queue()
        self.phase = self.plan.phases[0]
        self.storms = 0
        self.last: int | None = None
        self.parts_ready = 0
        self.saw: list[dict[str, Any]] = []

    @property
    def runner(self) -> Runner:
        """Locust's runner."""
        assert self._environment.runner is not None
        return self._environment.runner

    def listen(self) -> None:
        """Register for the messages of the other processes."""
        for name, listener in (
            (PHASE, self._on_phase),
            (LAST, self._on_last),
            (SAW, self._on_saw),
            (READY, self._on_ready),
            (WANT_BLOCK, self._on_want_block),
            (BLOCK, self._on_block),
        ):
            self.runner.register_message(name, listener)

    # Sending

    def enter(self, place: int) -> None:
        """Announce to all processes that a phase begins."""
        self.runner.send_message(PHASE, {"place": place})

    def published(self, last: int) -> None:
        """Announce the number of the last event to all processes."""
        self.runner.send_message(LAST, {"last": last})

    def tell(self, saw: dict[str, Any]) -> None:
        """Send the observations of a part of the load."""
        self.runner.send_message(SAW, saw)

    def ready(self) -> None:
        """Announce that a part of the load has opened its streams."""
        self.runner.send_message(READY, {})

    def next_block(self) -> int:
        """Request the place of a block that no other user holds."""
        self.runner.send_message(WANT_BLOCK, {})
        return self._given.get(timeout=WAIT_S)

    # Receiving

    def _on_phase(self, msg: Any, **_: Any) -> None:
        self.phase = self.plan.phases[msg.data["place"]]
        self.storms += self.phase.name == "storm"
        self._changed()

    def _on_last(self, msg: Any, **_: Any) -> None:
        if isinstance(self.runner, MasterRunner):
            self.runner.send_message(LAST, msg.data)
        else:
            self.last = msg.data["last"]
            self._changed()

    def _changed(self) -> None:
        for call in list(self.on_change):
            call()

    def _on_saw(self, msg: Any, **_: Any) -> None:
        self.saw.append(msg.data)

    def _on_ready(self, **_: Any) -> None:
        self.parts_ready += 1

    def _on_want_block(self, msg: Any, **_: Any) -> None:
        data = {"place": next(self._blocks)}
        if isinstance(self.runner, MasterRunner):
            self.runner.send_message(BLOCK, data, msg.node_id)
        else:
            self.runner.send_message(BLOCK, data)

    def _on_block(self, msg: Any, **_: Any) -> None:
        self._given.put(msg.data["place"])

    def write(self) -> None:
        """Write the observations of all parts if `--report` is set."""
        assert self._environment.parsed_options is not None
        path = self._environment.parsed_options.report
        if path and not isinstance(self.runner, WorkerRunner):
            Path(path).write_bytes(msgspec.json.encode(self.saw))


TIMELINES: dict[Environment, Timeline] = {}


def timeline(environment: Environment) -> Timeline:
    """Return the timeline of this process."""
    return TIMELINES[environment]


class PlanShape(LoadTestShape):
    """A load shape that starts all users in the first phase and ends after the last phase or once all have reported."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reset_time()

    def reset_time(self) -> None:
        """Start a run."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self._place: int | None = None
        self._held_s = 0.0  # time by which the ramp exceeded its planned length

    def tick(self) -> tuple[int, float] | None:
        """Return the current number of users and the spawn rate; announce each phase that begins."""
        assert self.runner is not None
        course = timeline(self.runner.environment)
        if len(course.saw) == parts_of(course.plan):
            return None  # all parts have reported
        time_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        place = course.plan.phase_at(time_s - self._held_s)
        if place == 1 and self._place == 0 and course.parts_ready < parts_of(course.plan) and time_s < RAMP_S_MAX:
            place, self._held_s = 0, time_s - course.plan.phases[0].seconds
        if place is None:
            return None
        if place != self._place and self.runner.user_count:
            self._place = place
            course.enter(place)
        users = users_of(course.plan)
        return users, max(1.0, users / course.plan.phases[0].seconds * 1.5)


def users_of(plan: Plan) -> int:
    """Return the number of locust users in a plan: streams, blocks of streams and the publisher."""
    return parts_of(plan) + 1


def parts_of(plan: Plan) -> int:
    """Return the number of users that send observations."""
    return plan.users + plan.slow_users + len(plan.blocks)
