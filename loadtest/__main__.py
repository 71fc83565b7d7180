"""`python -m loadtest`: start a relay, put it under locust's load and judge the result.

Writes an HTML report, CSV files and the observations of each part of the load to `loadtest/results/`. Prints each
criterion of the scenario beside the measured value. The exit code is 1 if any criterion fails.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from loadtest.plan import SCENARIOS
from loadtest.run import RESULTS, LoadRun, judged


def main() -> int:
    """Run one scenario; return 0 if all its criteria pass."""
    run = parse(sys.argv[1:])
    criteria = judged(run)
    width = max(len(each.name) for each in criteria)
    print(f"\n{run.name}: {run.scenario.what}\npasses: {run.scenario.passes}")
    for each in criteria:
        print(f"  {'pass' if each.passed else 'FAIL'}  {each.name:{width}}  {each.value}")
    passed = all(each.passed for each in criteria)
    print(f"{run.name} {'passed' if passed else 'FAILED'}; reports in {run.results}")
    return 0 if passed else 1


def parse(arguments: list[str]) -> LoadRun:
    """Parse the command line; options that are not given keep the scenario's defaults."""
    table = "\n".join(
        f"  {name:8} {scenario.what}\n           passes: {scenario.passes}" for name, scenario in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=main.__doc__,
        epilog=f"scenarios:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="steady", help="what happens (steady)")
    parser.add_argument("--streams", type=int, help="streams held by the native swarm")
    parser.add_argument("--users", type=int, help="real streams, each a locust user")
    parser.add_argument("--slow-users", type=int, help="for `slow`: number of slow real streams")
    parser.add_argument("--rate", type=float, help="events a second")
    parser.add_argument("--seconds", type=float, help="length of the feed")
    parser.add_argument("--minutes", type=float, help="the same in minutes, for soak")
    parser.add_argument("--block", type=int, help="streams of one swarm process at most (10000)")
    parser.add_argument("--ramp-s", type=float, help="time to open all streams")
    parser.add_argument("--settle-s", type=float, help="time at the end for the last events to arrive")
    parser.add_argument("--read-on-s", type=float, help="for `slow`: time at the end for slow streams to catch up")
    parser.add_argument("--publish", choices=["unix", "http", "batch", "mixed"], default="", help="way to publish")
    parser.add_argument("--policy", action="append", default=[], help="for `slow`: run only this policy; repeatable")
    parser.add_argument("--pairs", type=int, default=3, help="for `slow`: maximum runs while latency is too high (3)")
    parser.add_argument("--workers", type=int, default=0, help="locust workers under a master; 0: one process (0)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports go (loadtest/results)")
    parser.add_argument("--ui", action="store_true", help="serve locust's web page, on port 8089, and wait for it")
    given = parser.parse_args(arguments)
    if given.minutes is not None:
        given.seconds = given.minutes * 60
    defaults = SCENARIOS[given.scenario].defaults
    numbers = {name: getattr(given, name) for name in defaults.__slots__ if getattr(given, name) is not None}
    return LoadRun(
        name=given.scenario,
        options=replace(defaults, **numbers),
        publish=given.publish,
        workers=given.workers,
        ui=given.ui,
        policies=tuple(given.policy),
        pairs=given.pairs,
        results=given.results,
    )


if __name__ == "__main__":
    sys.exit(main())
