"""`python -m bench.upgrade`: replace a relay under load by another process several times.

Owns this run and the order of its measurements. Prints one line of JSON. `--save` also writes it to `upgrade.json`. The
run has a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import HERE, report
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, MeasureError, raise_descriptor_limit
from loadtest.rig.native import ProgramError
from loadtest.rig.swarm import Swarm

RESULTS = HERE / "upgrade.json"
SECONDS = 200.0
"""Time limit of the whole run."""

BEFORE_S = 2.0
"""Seconds of load before each upgrade and after the last."""


def main() -> int:
    """Upgrade a relay under load; return 1 if a stream was closed or missed an event, 2 if the run failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.upgrade", description=main.__doc__)
    parser.add_argument("--streams", type=int, default=10_000, help="number of streams (10000)")
    parser.add_argument("--rate", type=float, default=20.0, help="events a second, each to all streams (20)")
    parser.add_argument("--upgrades", type=int, default=3, help="number of upgrades (3)")
    parser.add_argument("--history", type=int, default=100_000, help="events retained before the run (100000)")
    parser.add_argument("--save", action="store_true", help="save the result in bench/upgrade.json")
    options = parser.parse_args()
    raise_descriptor_limit()
    try:
        result = measure(options.streams, options.rate, options.upgrades, options.history)
    except (MeasureError, ProgramError) as error:
        print(f"upgrade: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result), flush=True)
    if options.save:
        report.save(RESULTS, report.stamp(result, shlex.join(["python", "-m", "bench.upgrade", *sys.argv[1:]])))
    return 0 if result["open"] == options.streams and not result["closed"] and not result["faults"] else 1


def measure(streams: int, rate: float, upgrades: int, history: int) -> dict[str, Any]:
    """Feed all streams at a rate while the server is replaced.

    Args:
        streams: number of streams, all of one topic.
        rate: events a second.
        upgrades: number of upgrades.
        history: events retained before the first stream opens.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MeasuredServer(TARGETS["relay"]))
        with server.publisher(rate=0, count=history) as publisher:
            publisher.done()
        swarm = stack.enter_context(
            Swarm(server.port, streams, path="/events?topic=default", seconds=SECONDS, first=history + 1)
        )
        swarm.ready(SECONDS)
        count = round(rate * (BEFORE_S + 2) * (upgrades + 1))
        publisher = stack.enter_context(server.publisher(rate=rate, count=count, first=history + 1))
        pid, rounds = server.pid, []
        for _ in range(upgrades):
            time.sleep(BEFORE_S)
            usual_ms = swarm.mark().max_ms
            swarm.reset()
            began_s = time.monotonic()
            command = [sys.executable, "-m", "relay", "upgrade", str(pid)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            took_s = time.monotonic() - began_s
            if done.returncode:
                raise MeasureError(f"the upgrade failed: {done.stderr.strip()}")
            pid = _successor(server.pid, pid)
            time.sleep(BEFORE_S / 2)
            rounds.append(
                {"took_s": round(took_s, 2), "usual_max_ms": usual_ms, "upgrade_max_ms": swarm.mark().max_ms}
            )
            swarm.reset()
        published = publisher.done()
        last = swarm.wait_for(published.last, SECONDS)
    return {
        "case": f"upgrade-{streams}x{rate:g}",
        "streams": streams,
        "rate": rate,
        "history": history,
        "cores": os.cpu_count(),
        "events": published.sent,
        "upgrades": rounds,
        "open": last.healthy_open,
        "closed": last.closed,
        "faults": last.faults + last.missed,
        "deliveries": last.deliveries,
    }


def _successor(session: int, gone: int) -> int:
    """Find the process that has replaced another in a session."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z" and int(folder.name) != gone:
                return int(folder.name)
    raise MeasureError("no process serves after the upgrade")


if __name__ == "__main__":
    sys.exit(main())
