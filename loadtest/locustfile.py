"""What locust loads: the users, the shape, the options, and how many of each user a scenario has.

`locust -f loadtest/locustfile.py --host http://… --unix PATH --scenario NAME`, with --master and --worker where it is
to run on more than one machine; `python -m loadtest` does this with a relay of its own.
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
    """Take the scenario and its numbers; a master hands them to its workers. The web page does not change them."""
    add = partial(parser.add_argument, include_in_web_ui=False)
    add("--scenario", choices=list(SCENARIOS), default="steady")
    add("--streams", type=int, help="streams of the swarm")
    add("--real-users", dest="users", type=int, help="streams that are a locust user each")
    add("--slow-users", type=int, help="of the scenario slow: real streams that are slow")
    add("--rate", type=float, help="events a second")
    add("--seconds", type=float, help="length of the feed")
    add("--block", type=int, help="streams of one swarm process at most")
    add("--ramp-s", type=float, help="time for everybody to come")
    add("--settle-s", type=float, help="time at the end for what was sent to arrive")
    add("--read-on-s", type=float, help="of the scenario slow: time at the end for slow ones to read on")
    add("--publish", choices=["unix", "http", "batch", "mixed"], default="unix", help="how relay is fed")
    add("--unix", default="", help="path of the relay's Unix socket, as the worker with the publisher sees it")
    add("--token", default="", env_var="LOADTEST_TOKEN", help="the relay's publish-token")
    add("--policy", default="drop-oldest", help="the relay's policy, which slow streams are judged by")
    add("--report", default="", help="where to write what each part of the load saw, as JSON")


def on_init(environment: Environment, **_: Any) -> None:
    """Begin the timeline, and set how many users of each class there are."""
    course = TIMELINES[environment] = Timeline(environment)
    course.listen()
    if isinstance(environment.runner, WorkerRunner):
        return  # the master knows the scenario
    SwarmUser.fixed_count = len(course.plan.blocks)
    SlowUser.fixed_count = course.plan.slow_users
    for none in [user for user, count in counts(course).items() if count == 0]:
        environment.user_classes.remove(none)


def counts(course: Timeline) -> dict[type, int]:
    """Return how many users of each class the plan has."""
    plan = course.plan
    return {SSEUser: plan.users, SlowUser: plan.slow_users, SwarmUser: len(plan.blocks), PublisherUser: 1}


def on_test_start(environment: Environment, **_: Any) -> None:
    """Forget what an earlier run from the web page saw."""
    TIMELINES[environment].begin()


def on_quitting(environment: Environment, **_: Any) -> None:
    """Write down what was seen."""
    TIMELINES[environment].write()


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(on_init)  # type: ignore[no-untyped-call]
events.test_start.add_listener(on_test_start)  # type: ignore[no-untyped-call]
events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
