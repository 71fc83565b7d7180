"""What locust loads: the users, the shape, the options, and how many of each user a scenario has.

`locust -f loadtest/locustfile.py --host http://… --unix PATH --scenario NAME`, with --master and --worker where it is
to run on more than one machine; `python -m loadtest` does this with a relay of its own.
"""

from __future__ import annotations

from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.plan import SCENARIOS
from loadtest.publisher_user import PublisherUser
from loadtest.swarm_user import SwarmUser
from loadtest.timeline import TIMELINES, PlanShape, Timeline
from loadtest.users import SlowUser, SSEUser

__all__ = ["PlanShape", "PublisherUser", "SSEUser", "SlowUser", "SwarmUser"]


def add_options(parser: LocustArgumentParser) -> None:
    """Take the scenario and its numbers; a master hands them to its workers."""
    group = parser.add_argument_group("relay")
    group.add_argument("--scenario", choices=list(SCENARIOS), default="steady")
    group.add_argument("--streams", type=int, help="streams of the swarm")
    group.add_argument("--real-users", dest="users", type=int, help="streams that are a locust user each")
    group.add_argument("--slow-users", type=int, help="of the scenario slow: real streams that are slow")
    group.add_argument("--rate", type=float, help="events a second")
    group.add_argument("--seconds", type=float, help="length of the feed")
    group.add_argument("--block", type=int, help="streams of one swarm process at most")
    group.add_argument("--ramp-s", type=float, help="time for everybody to come")
    group.add_argument("--settle-s", type=float, help="time at the end for what was sent to arrive")
    group.add_argument("--read-on-s", type=float, help="of the scenario slow: time at the end for slow ones to read on")
    group.add_argument("--publish", choices=["unix", "http", "batch", "mixed"], default="unix")
    group.add_argument("--unix", default="", help="path of the relay's Unix socket")
    group.add_argument("--policy", default="drop-oldest", help="the relay's policy, which slow streams are judged by")
    group.add_argument("--token", default="", env_var="RELAY_LOAD_TOKEN", help="the relay's publish-token")
    group.add_argument("--report", default="", help="where to write what each part of the load saw, as JSON")


def on_init(environment: Environment, **_: Any) -> None:
    """Begin the timeline, and set how many users of each class there are."""
    course = TIMELINES[environment] = Timeline(environment)
    course.listen()
    SwarmUser.fixed_count = len(course.plan.blocks)
    SlowUser.fixed_count = course.plan.slow_users
    for none in [user for user, count in counts(course).items() if count == 0]:
        environment.user_classes.remove(none)


def counts(course: Timeline) -> dict[type, int]:
    """Return how many users of each class the plan has."""
    plan = course.plan
    return {SSEUser: plan.users, SlowUser: plan.slow_users, SwarmUser: len(plan.blocks), PublisherUser: 1}


def on_quitting(environment: Environment, **_: Any) -> None:
    """Write down what was seen."""
    TIMELINES[environment].write()


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(on_init)  # type: ignore[no-untyped-call]
events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
