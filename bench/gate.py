"""The gate: `python -m bench.gate instructions|ratios|baseline` fails if relay became slower.

Owns the messages and the exit codes: 0 for passed, 1 for worse, 2 if nothing could be measured or compared. Outside CI
(no `CI` in the environment), a machine without valgrind, or with versions other than the baseline's, skips the
instructions and reports it. Never measures anything itself; `bench.instructions` and `bench.ratios` do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import instructions, ratios
from bench.workloads import WORKLOADS
from loadtest.rig.harness import MeasureError, raise_descriptor_limit
from loadtest.rig.native import ProgramError


def check_instructions(names: Sequence[str], path: Path = instructions.BASELINE) -> int:
    """Compare workloads with a baseline; return the exit code.

    Args:
        names: the workloads; all if empty.
        path: the file of the baseline.

    Raises:
        MeasureError: a workload failed, or the baseline is missing.
    """
    base, here = instructions.read(path), instructions.environment()
    if "valgrind" not in here:
        return _cannot(["valgrind is not installed (Debian: apt install valgrind)"])
    if other := instructions.differing(base.environment, here, instructions.DECISIVE):
        return _cannot([*other, "not comparable: run make bench-baseline, preferably on the parent commit"])
    expected = {name: count for name, count in base.workloads.items() if not names or name in names}
    counts = instructions.count(names or list(WORKLOADS))
    comparison = instructions.compare(expected, counts)
    print("\n".join(comparison.lines))
    worse = [name for name in comparison.bad if name in expected and name in counts]
    counts = instructions.with_bytecodes(counts, worse)
    for name in worse:
        print(f"what grew most in {name}, one unit of which is {WORKLOADS[name].what}:")
        print("\n".join(f"    {line}" for line in instructions.grown(expected[name], counts[name])))
    if not comparison.bad:
        return 0
    for line in instructions.differing(base.environment, here, instructions.PACKAGES):
        print(f"note: {line}")
    print("If the growth is necessary, run make bench-baseline and state the reason in the commit.")
    return 1


def _cannot(reasons: list[str]) -> int:
    in_ci = bool(os.environ.get("CI"))
    print("\n".join(["instructions: not compared" if in_ci else "instructions: skipped", *reasons]))
    return 2 if in_ci else 0


def write_baseline() -> int:
    """Count all workloads and write the baseline; return the exit code.

    Raises:
        MeasureError: a workload failed, or valgrind is not installed.
    """
    here = instructions.environment()
    if "valgrind" not in here:
        raise MeasureError("valgrind is not installed (Debian: apt install valgrind)")
    counts = instructions.with_bytecodes(instructions.count(list(WORKLOADS)), list(WORKLOADS))
    instructions.write(instructions.Baseline(here, counts))
    print(f"{instructions.BASELINE}: {len(counts)} workloads; state the reason in the commit")
    return 0


def check_ratios() -> int:
    """Compare relay with the floor; return the exit code.

    Raises:
        MeasureError: a run failed, or an event was lost.
    """
    bad = ratios.check()
    for limit in bad:
        print(f"{limit.case}: {limit.figure} exceeded its limit twice")
    return int(bool(bad))


def main() -> int:
    """Run one part of the gate; return 1 if a figure got worse, 2 if nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=main.__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("instructions", help="count the workloads' instructions and compare with baseline.json")
    part.add_argument("names", nargs="*", metavar="WORKLOAD", help="count only these")
    part.add_argument(
        "--baseline",
        type=Path,
        default=instructions.BASELINE,
        metavar="FILE",
        help="compare with this baseline, such as that of an earlier commit",
    )
    parts.add_parser("ratios", help="measure relay and the floor, and compare")
    parts.add_parser("baseline", help="rewrite baseline.json")
    options = parser.parse_args()
    if unknown := sorted({*getattr(options, "names", ())} - {*WORKLOADS}):
        parser.error(f"unknown: {', '.join(unknown)}; the workloads are {', '.join(WORKLOADS)}")
    raise_descriptor_limit()
    try:
        if options.part == "instructions":
            return check_instructions(options.names, options.baseline)
        return write_baseline() if options.part == "baseline" else check_ratios()
    except (MeasureError, ProgramError) as error:
        print(f"{options.part}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
