"""The file that locust loads: users, shape, options, and the number of users of each class in a scenario.

Run `locust -f loadtest/locustfile.py --host http://… --unix PATH --scenario NAME`. Add --master and --worker to use
more than one machine. `python -m loadtest` does the same and also starts a relay.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.plan import SCENARIOS
from loadtest.publisher_user import PublisherUser
from loadtest.swarm_user import SwarmUser
from loadtest.timeline import TIMELINES, PlanShape, Timeline
from loadtest.users import SlowUser, SSEUser

__all__ = ["PlanShape", "PublisherUser", "SSEUser", "SlowUser", "SwarmUser"]


def add_options(parser: LocustArgumentParser) -> None:
    """Add the scenario and its numbers. A master passes them to its workers. The web page cannot change them."""
    add = partial(parser.add_argument, include_in_web_ui=False)
    add("--scenario", choices=list(SCENARIOS), default="steady")
    add("--streams", type=int, help="streams of the swarm")
    add("--real-users", dest="users", type=int, help="real streams, each a locust user")
    add("--slow-users", type=int, help="for the scenario slow: number of slow real streams")
    add("--rate", type=float, help="events a second")
    add("--seconds", type=float, help="length of the feed")
    add("--block", type=int, help="streams of one swarm process at most")
    add("--ramp-s", type=float, help="time to open all streams")
    add("--settle-s", type=float, help="time at the end for the last events to arrive")
    add("--read-on-s", type=float, help="for the scenario slow: time at the end for slow streams to catch up")
    add("--publish", choices=["unix", "http", "batch", "mixed"], default="unix", help="how events are published")
    add("--unix", default="", help="path of the relay's Unix socket, as the worker with the publisher sees it")
    add("--token", default="", env_var="LOADTEST_TOKEN", help="the relay's publish-token")
    add("--policy", default="drop-oldest", help="the relay's policy, by which slow streams are judged")
    add("--report", default="", help="file for the observations of each part of the load, as JSON")


def on_init(environment: Environment, **_: Any) -> None:
    """Start the timeline and set the number of users of each class."""
    course = TIMELINES[environment] = Timeline(environment)
    course.listen()
    if isinstance(environment.runner, WorkerRunner):
        return  # the master knows the scenario
    SwarmUser.fixed_count = len(course.plan.blocks)
    SlowUser.fixed_count = course.plan.slow_users
    for none in [user for user, count in counts(course).items() if count == 0]:
        environment.user_classes.remove(none)


def counts(course: Timeline) -> dict[type, int]:
    """Return the number of users of each class in the plan."""
    plan = course.plan
    return {SSEUser: plan.users, SlowUser: plan.slow_users, SwarmUser: len(plan.blocks), PublisherUser: 1}


def on_test_start(environment: Environment, **_: Any) -> None:
    """Discard the observations of an earlier run from the web page."""
    TIMELINES[environment].begin()


def on_quitting(environment: Environment, **_: Any) -> None:
    """Write the observations."""
    TIMELINES[environment].write()


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(on_init)  # type: ignore[no-untyped-call]
events.test_start.add_listener(on_test_start)  # type: ignore[no-untyped-call]
events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
