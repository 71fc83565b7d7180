"""`python -m bench.restart`: measure the start with a full file, and the cost of the file while events are published.

Owns these runs. Each run starts real servers, kills them with SIGKILL, and checks the events of the next server.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from bench.report import README, number, put, stamp
from bench.targets import TARGETS
from loadtest.rig.harness import MeasuredServer

BLOCK_EVENTS = 1000
ANSWER_S = 120.0
KEEP_ALL = ("--history-bytes", "4GiB", "--history-events", "0")
SIZE = 150
"""Bytes of data of an event."""


def main() -> int:
    """Measure, print and write bench/README.md; return 1 if an event was missing after a kill."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=main.__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the file (1000000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs (3)")
    options = parser.parse_args()
    starts: list[float] = []
    rates: dict[str, list[float]] = {"memory": [], "data": [], "durable": []}
    alone: dict[str, list[float]] = {"memory": [], "data": [], "durable": []}
    size = missing = 0
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            data, other = Path(folder, "relay.db"), Path(folder, "other.db")
            ways = {"memory": (), "data": ("--data", str(data)), "durable": ("--data", str(other), "--durable")}
            for way, extra in ways.items():
                with MeasuredServer(TARGETS["relay"], extra=(*extra, *KEEP_ALL)) as server:
                    rates[way].append(options.events / feed(server, options.events))
                    alone[way].append(statistics.median(one_by_one(server)))
                    os.kill(server.pid, signal.SIGKILL)
            size = sum(path.stat().st_size for path in data.parent.glob("relay.db*"))
            began_s = time.monotonic()
            with MeasuredServer(TARGETS["relay"], extra=(*ways["data"], *KEEP_ALL)) as server:
                starts.append(time.monotonic() - began_s)
                missing += options.events - min(options.events, server.stats()["log"]["events"])
    text = render(options.events, starts, rates, alone, size)
    print(text, end="")
    print(f"{missing} events missing after a kill")
    put(README, "restart", text)
    return 1 if missing else 0


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


def render(
    events: int, starts: list[float], rates: dict[str, list[float]], alone: dict[str, list[float]], size: int
) -> str:
    """Return the table, the command and its date, as Markdown."""

    def spread(values: list[float], factor: float = 1.0) -> str:
        least, median, most = (number(factor * each) for each in (min(values), statistics.median(values), max(values)))
        return f"{median} ({least} to {most})"

    facts = stamp({}, "python -m bench.restart")
    return (
        f"`{facts['command']}`, {facts['date']}, commit {facts['machine']['commit']}; medians of {len(starts)} runs, "
        "with the least and the greatest.\n\n"
        "| | in memory | `--data` | `--data --durable` |\n| --- | --- | --- | --- |\n"
        f"| events a second, one feeder, {SIZE} bytes each | {' | '.join(map(spread, rates.values()))} |\n"
        f"| one event to its acknowledgement, ms | {' | '.join(spread(each, 1000) for each in alone.values())} |\n\n"
        f"After `kill -9` with {events:,} events, a file of {size / 1e6:,.0f} MB, it serves again, with all of them, "
        f"{spread(starts)} s after its start.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
