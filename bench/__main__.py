"""`python -m bench`: measure, print one line of JSON per case, and save the results."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from typing import Any

from bench import report
from bench.feed import Bench
from bench.limits import CASES, measure
from bench.targets import TARGETS
from loadtest.rig.harness import MeasureError, raise_descriptor_limit
from loadtest.rig.native import ProgramError


def main() -> int:
    """Run the named cases, or all; return 1 if a limit is not met, 2 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=main.__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: run all and write README.md")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each server (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each feed (5)")
    parser.add_argument("--targets", default="floor,relay", help="servers to measure (floor,relay)")
    parser.add_argument("--relay-args", default="", help="more arguments for relay serve")
    parser.add_argument("--write", action="store_true", help="save the results even if cases are named")
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        help="run server and load on separate cores (default: as the case requires)",
    )
    options = parser.parse_args()
    if options.list:
        for case in CASES.values():
            print(f"{case.name:18} {case.what}")
        return 0
    targets = options.targets.split(",")
    unknown = sorted({*options.cases} - {*CASES} | {*targets} - {*TARGETS})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; see --list")
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    raise_descriptor_limit()
    bench = Bench(seconds=options.seconds, extra=tuple(shlex.split(options.relay_args)))
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    results: list[report.Result] = []
    failed = False
    for name in options.cases or CASES:
        if not any(target in CASES[name].targets for target in targets):
            continue
        try:
            result = measure(CASES[name], bench, repeat=options.repeat, targets=targets, pin=options.pin)
        except (MeasureError, ProgramError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        results.append(report.stamp(_finite(result), command))
        print(json.dumps(results[-1], ensure_ascii=False), flush=True)
    if options.write or not options.cases:
        report.write(results)
    if failed:
        return 2
    return int(any(result.get("met") is False for result in results))


def _finite(value: Any) -> Any:
    """Replace infinities and NaN by None, because JSON cannot represent them."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
