"""`python -m loadtest`: run a relay of its own under locust's load, and judge the result.

Writes an HTML report and CSV files to `loadtest/results/`. The exit code is 1 when a stream missed an event, saw one
twice or out of order, or was told of a gap.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.harness import TARGETS, Server

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> int:
    """Run the load; return locust's exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=main.__doc__)
    parser.add_argument("--users", type=int, default=200, help="open streams (200)")
    parser.add_argument("--ramp", type=int, default=50, help="streams opened a second (50)")
    parser.add_argument("--rate", type=float, default=20.0, help="events a second (20)")
    parser.add_argument("--seconds", type=int, default=50, help="length of the run (50)")
    parser.add_argument("--ui", action="store_true", help="open locust's web page instead of running at once")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with Server(TARGETS["relay"]) as server:
        command = [
            *(sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py")),
            *("--host", f"http://127.0.0.1:{server.port}", "--users", str(options.users + 1)),
            *("--spawn-rate", str(options.ramp), "--run-time", f"{options.seconds}s", "--stop-timeout", "1"),
            *("--html", str(RESULTS / "report.html"), "--csv", str(RESULTS / "load"), "--only-summary"),
        ]
        if not options.ui:
            command.append("--headless")
        environment = {
            **os.environ,
            "RELAY_LOAD_UNIX": str(server.unix),
            "RELAY_LOAD_RATE": str(options.rate),
            "PYTHONPATH": str(HERE.parent),
        }
        code = subprocess.run(command, env=environment, check=False).returncode
        stats = server.stats()
    delivered, lost = stats["deliveries"], stats["policy_actions"]
    print(f"relay: {stats['events']} events published, {delivered} delivered, policy actions {lost}")
    print(f"report: {RESULTS / 'report.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
