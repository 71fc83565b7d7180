"""`python -m bench.restart`: measure the start with a full file, and the cost of the file while events are published.

Owns these runs. Each run starts real servers, kills them with SIGKILL, and checks the events of the next server.
`--save` writes the figures to `restart.json`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import orjson

from bench import HERE
from bench.report import Result, save, spread, stamp
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer

RESULTS = HERE / "restart.json"
BLOCK_EVENTS = 1000
ANSWER_S = 120.0
KEEP_ALL = ("--history-bytes", "4GiB", "--history-events", "0")
SIZE = 150
"""Bytes of data of an event."""


def main() -> int:
    """Measure, and print one line of JSON; return 1 if an event was missing after a kill."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=main.__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the file (1000000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs (3)")
    parser.add_argument("--save", action="store_true", help="save the result in bench/restart.json")
    options = parser.parse_args()
    result = measure(options.events, options.repeat)
    print(msgspec.json.encode(result).decode(), flush=True)
    if options.save:
        save(RESULTS, stamp(result, shlex.join(["python", "-m", "bench.restart", *sys.argv[1:]])))
    return 1 if result["missing"] else 0


def measure(events: int, repeat: int) -> Result:
    """Publish without a file, with one and with a durable one; kill the server and start it with its file.

    Args:
        events: events in the file.
        repeat: number of runs.
    """
    starts: list[float] = []
    rates: dict[str, list[float]] = {"memory": [], "data": [], "durable": []}
    alone: dict[str, list[float]] = {"memory": [], "data": [], "durable": []}
    size = missing = 0
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            data, other = Path(folder, "relay.db"), Path(folder, "other.db")
            ways = {"memory": (), "data": ("--data", str(data)), "durable": ("--data", str(other), "--durable")}
            for way, extra in ways.items():
                with MeasuredServer(TARGETS["relay"], extra=(*extra, *KEEP_ALL)) as server:
                    rates[way].append(events / feed(server, events))
                    alone[way].append(1000 * statistics.median(one_by_one(server)))
                    os.kill(server.pid, signal.SIGKILL)
            size = sum(path.stat().st_size for path in data.parent.glob("relay.db*"))
            began_s = time.monotonic()
            with MeasuredServer(TARGETS["relay"], extra=(*ways["data"], *KEEP_ALL)) as server:
                starts.append(time.monotonic() - began_s)
                missing += events - min(events, server.stats()["log"]["events"])
    return {
        "case": "restart",
        "events": events,
        "repeat": repeat,
        "events_per_s": {way: spread(values) for way, values in rates.items()},
        "acknowledged_ms": {way: spread(values) for way, values in alone.items()},
        "start_s": spread(starts),
        "file_bytes": size,
        "missing": missing,
    }


def feed(server: MeasuredServer, events: int) -> float:
    """Publish over the Unix socket at full speed; return the seconds until all events are acknowledged and stored."""
    line = orjson.dumps({"data": "x" * SIZE, "topic": "bench"}) + b"\n"
    with socket.socket(socket.AF_UNIX) as feeder:
        feeder.settimeout(ANSWER_S)
        feeder.connect(str(server.unix))
        began_s = time.monotonic()
        for _ in range(0, events, BLOCK_EVENTS):
            feeder.sendall(line * BLOCK_EVENTS)
        feeder.sendall(b'{"data": "the last", "topic": "bench", "ack": 1}\n')
        feeder.recv(4096)
        # Without `durable`, relay acknowledges an event before it is stored.
        while (server.stats()["store"] or {"pending": 0})["pending"]:
            time.sleep(0.01)
        return time.monotonic() - began_s


def one_by_one(server: MeasuredServer) -> Sequence[float]:
    """Publish 1,000 events, each after the acknowledgement of the one before; return the seconds that each took."""
    took_s = []
    with socket.socket(socket.AF_UNIX) as feeder:
        feeder.settimeout(ANSWER_S)
        feeder.connect(str(server.unix))
        for _ in range(1000):
            began_s = time.perf_counter()
            feeder.sendall(b'{"data": "one", "topic": "bench", "ack": 1}\n')
            feeder.recv(4096)
            took_s.append(time.perf_counter() - began_s)
    return took_s


if __name__ == "__main__":
    raise SystemExit(main())
