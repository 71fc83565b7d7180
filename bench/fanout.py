"""`python -m bench.fanout`: relay, the floor and the peers under the same loads, from the same swarm, in one run.

Owns the loads and the order in which servers run them. Never judges a figure. Peers are in `peers/`; peers that are not
installed (`make peers`) are skipped. Writes `fanout.json` and the tables if no load and no server is named.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench import report, standings
from bench.feed import Bench, Figures
from bench.runs import Run, accept, fed, memory, one, replay
from bench.targets import TARGETS
from loadtest.rig.harness import MeasureError, raise_descriptor_limit
from loadtest.rig.native import ProgramError
from loadtest.rig.targets import Target

REPLAYED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load for all servers.

    Args:
        name: name on the command line.
        what: description, for people.
        run: makes one run of one server.
        topics: only for servers with topics; the floor has none.
        replay: only for servers that can replay retained events.
    """

    name: str
    what: str
    run: Run
    topics: bool = False
    replay: bool = False

    def suits(self, target: Target) -> bool:
        """Return whether the server supports this load."""
        return not (self.topics and target.name == "floor") and not (self.replay and not target.replay_path)


LOADS = {
    load.name: load
    for load in (
        Load(name="1000x100", what="1,000 streams × 100 events/s", run=fed(1000, 100)),
        Load(name="10000x10", what="10,000 streams × 10 events/s", run=fed(10_000, 10)),
        Load(name="1000x1000", what="1,000 streams × 1,000 events/s", run=fed(1000, 1000, overload=True)),
        Load(name="10000x1000", what="10,000 streams × 1,000 events/s", run=fed(10_000, 1000, overload=True)),
        *(
            Load(name=f"one-{streams}", what=f"one event to {streams:,} idle streams", run=one(streams))
            for streams in (1000, 5000, 10_000, 19_000)
        ),
        Load(
            name="topics",
            what="1,000 topics × 10 streams, 1,000 events/s over all topics",
            run=fed(10_000, 1000, topics=1000),
            topics=True,
        ),
        Load(name="connect", what="10,000 streams opened as fast as they go", run=accept(10_000)),
        Load(
            name="connect-one-core",
            what="the same, each server on one core and the load on the other",
            run=accept(10_000, pin=True),
        ),
        Load(
            name="replay",
            what=f"{REPLAYED:,} retained events to 1,000 streams that open at once",
            run=replay(1000, REPLAYED),
            replay=True,
        ),
        Load(name="memory", what="memory of 10,000 idle streams", run=memory(10_000)),
    )
}


def main() -> int:
    """Put the servers under the loads that the command line names, or all; 1 if relay itself failed in one."""
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description=main.__doc__)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"default: all of {', '.join(LOADS)}")
    parser.add_argument("--targets", default="", help=f"servers (all installed: {', '.join(TARGETS)})")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each server under each load (1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each feed (5)")
    parser.add_argument("--write", action="store_true", help="save the results even if loads or servers are named")
    options = parser.parse_args()
    names = options.targets.split(",") if options.targets else list(TARGETS)
    unknown = sorted({*options.loads} - {*LOADS} | {*names} - {*TARGETS})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    raise_descriptor_limit()
    bench = Bench(seconds=options.seconds)
    command = shlex.join(["python", "-m", "bench.fanout", *sys.argv[1:]])
    results = [
        measure(LOADS[name], [TARGETS[target] for target in names], bench, repeat=options.repeat)
        for name in options.loads or LOADS
    ]
    if options.write or not (options.loads or options.targets):
        standings.write(results, [TARGETS[name] for name in names], command, bench.seconds)
    return int(any("error" in result.servers.get("relay", {}) for result in results))


def measure(load: Load, targets: Sequence[Target], bench: Bench, *, repeat: int) -> standings.Result:
    """Run a load on each server, in turns, and print its table.

    Args:
        load: the load.
        targets: the servers; those that do not support the load are skipped.
        bench: settings of the runs.
        repeat: runs of each server; each run reverses the order.

    Returns:
        The median, least and greatest value of each figure; a server that failed has its last error as `error`.
    """
    suited = [target for target in targets if load.suits(target)]
    runs: dict[str, list[Figures]] = {target.name: [] for target in suited}
    errors: dict[str, str] = {}
    for turn in range(repeat):
        for target in suited if turn % 2 == 0 else suited[::-1]:
            try:
                runs[target.name].append(load.run(target, bench))
            except (MeasureError, ProgramError) as error:
                errors[target.name] = str(error).strip()
                print(f"{load.name}: {target.name}: {error}", file=sys.stderr, flush=True)
    servers: dict[str, standings.Figures] = {
        name: _summary(of) if of else {"error": errors[name]} for name, of in runs.items()
    }
    result = standings.Result(load=load.name, what=load.what, repeat=repeat, servers=servers)
    print(standings.table(result), flush=True)
    return result


def _summary(runs: Sequence[Figures]) -> standings.Figures:
    """Return the median, least and greatest value of each finite figure; not every server reports every figure."""
    columns = {name: [run[name] for run in runs] for name in runs[0] if math.isfinite(runs[0][name])}
    return {name: report.spread(values) for name, values in columns.items()}


if __name__ == "__main__":
    sys.exit(main())
