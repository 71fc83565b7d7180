"""`python -m bench.scale`: measure many streams over several workers, one event to all of them, and a storm.

Owns this run: the number of swarms and the order of measurements. Prints one line of JSON. `--save` also writes it to
`scale.json`. The run has a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import HERE, report
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer, MeasureError, raise_descriptor_limit, tcp_memory_bytes
from loadtest.rig.native import ProgramError
from loadtest.rig.swarm import Swarm, SwarmReport

RESULTS = HERE / "scale.json"
STREAMS_A_SWARM = 10_000
"""Each swarm has one source address. Beyond about 14,000 streams, the kernel's search for a free port becomes slow."""

FEED_RATE = 0.2
"""Events a second in the storm. One event to 100,000 streams costs a second of the two cores that all share."""

SECONDS = 400.0
"""Time limit of the whole run."""


def main() -> int:
    """Measure many streams; return 1 if a stream was refused or missed an event, 2 if the run failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=main.__doc__)
    parser.add_argument("--streams", type=int, default=100_000, help="number of streams (100000)")
    parser.add_argument("--workers", type=int, default=6, help="worker processes that hold the streams (6)")
    parser.add_argument("--events", type=int, default=3, help="events to all streams, one by one (3)")
    parser.add_argument("--no-storm", action="store_true", help="skip the run in which all streams reconnect at once")
    parser.add_argument("--save", action="store_true", help="save the result in bench/scale.json")
    options = parser.parse_args()
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # end the server and the swarms too
    try:
        result = measure(options.streams, options.workers, options.events, storm=not options.no_storm)
    except (MeasureError, ProgramError) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result), flush=True)
    if options.save:
        report.save(RESULTS, report.stamp(result, shlex.join(["python", "-m", "bench.scale", *sys.argv[1:]])))
    return 0 if result["open"] == options.streams and not result["faults"] else 1


def measure(streams: int, workers: int, events: int, *, storm: bool) -> dict[str, Any]:
    """Connect the streams, publish events, and let all streams reconnect at once.

    Args:
        streams: number of streams.
        workers: number of worker processes of the server.
        events: number of events, published one by one.
        storm: whether the streams reconnect at once; this takes longer than connecting them.
    """
    counts = [min(STREAMS_A_SWARM, streams - done) for done in range(0, streams, STREAMS_A_SWARM)]
    # Heartbeats would distort the cost of one event. Without them, the kernel sends keepalive probes, in bursts that
    # the loopback device drops, and closes the streams. So the heartbeat is on, but later than the event.
    extra = ("--workers", str(workers), "--heartbeat", f"{SECONDS:.0f}s")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MeasuredServer(TARGETS["relay"], extra=extra))
        pool = stack.enter_context(ThreadPoolExecutor(len(counts)))
        user_bytes, kernel_bytes = server.pss_bytes(), kernel_memory_bytes()
        began_s = time.monotonic()
        swarms = [
            stack.enter_context(
                Swarm(
                    server.port,
                    count,
                    path="/events?topic=default",
                    seconds=SECONDS,
                    first=0,
                    reconnect=True,
                    source=f"127.{10 + place}.1.1",
                )
            )
            for place, count in enumerate(counts)
        ]

        def each(call: Callable[[Swarm], SwarmReport]) -> list[SwarmReport]:
            return list(pool.map(call, swarms))

        ready = each(lambda swarm: swarm.ready(SECONDS))
        connect_s = time.monotonic() - began_s
        reached = sum(report.healthy_open for report in ready)
        print(f"scale: {reached:,} streams after {connect_s:.0f} s", file=sys.stderr)
        user_bytes, kernel_bytes = server.pss_bytes() - user_bytes, kernel_memory_bytes() - kernel_bytes
        spread = [worker["streams"] for worker in server.stats()["workers"]]
        rounds = []
        for number in range(1, events + 1):
            for swarm in swarms:
                swarm.reset()
            each(Swarm.mark)
            cpu_s = server.cpu_s()
            with server.publisher(rate=1.0, count=1, first=number) as publisher:
                publisher.done()
                done = each(lambda swarm: swarm.wait_for(number, SECONDS))  # noqa: B023
            print(f"scale: event {number} has reached all streams", file=sys.stderr)
            rounds.append(
                {
                    "last_ms": max(report.max_ms for report in done),
                    "p50_ms": sum(report.p50_ms for report in done) / len(done),
                    "cpu_s": round(server.cpu_s() - cpu_s, 3),
                }
            )
        result: dict[str, Any] = {
            "case": f"scale-{streams}",
            "streams": streams,
            "workers": workers,
            "swarms": len(swarms),
            "cores": os.cpu_count(),
            "open": reached,
            "spread": spread,
            "connect_s": round(connect_s, 2),
            "user_bytes_a_stream": round(user_bytes / streams),
            # Both ends of each connection are on this machine.
            "kernel_bytes_a_stream": round(kernel_bytes / streams / 2),
            "events": rounds,
            "faults": sum(report.faults for report in done),
        }
        if storm:
            stack.enter_context(server.publisher(rate=FEED_RATE, count=1000, seconds=SECONDS, first=events + 1))
            cpu_s = server.cpu_s()
            back = each(lambda swarm: swarm.storm(SECONDS))
            result |= {
                "storm_cpu_s": round(server.cpu_s() - cpu_s, 2),
                "reopen_s": max(report.reopen_s for report in back),
                "recover_s": max(report.recover_s for report in back),
                "storm_last": max(report.last_max for report in back),
                "faults": sum(report.faults for report in back),
            }
        stats = server.stats()
    return result | {"encodes": stats.get("encodes"), "resumes": stats.get("resumes")}


def kernel_memory_bytes() -> int:
    """Return the memory of the kernel's objects and of the buffers of all TCP sockets."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024 + tcp_memory_bytes()
    raise MeasureError("no Slab in /proc/meminfo")


if __name__ == "__main__":
    sys.exit(main())
