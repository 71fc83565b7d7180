"""Save the results of `bench.cluster` and write them as tables to `README.md`.

Owns `cluster.json`, `cluster-peers.json` and the sections with their tables. Never measures anything.
"""

from __future__ import annotations

import json
from typing import Any

from bench import HERE
from bench.report import README, number, put, stamp
from bench.section import Demand

RESULTS = HERE / "cluster.json"
PEER_RESULTS = HERE / "cluster-peers.json"
PACKAGES = ("uvloop", "redis", "hiredis", "confluent-kafka", "nats-py", "msgspec")

EVENTS_PER_S_MIN = {"redis": 50_000, "kafka": 100_000, "jetstream": 10_000}
"""Required events per second into two nodes, from one feeder."""

FOLLOWER_US_MAX = 10.0
"""Most CPU time of a follower per event; required at Redis."""

P99_MS_MAX = 10.0
"""Greatest p99 of the added latency at 1,000 events/s."""

Run = dict[str, Any]


def save(runs: list[Run], arguments: str, *, peers: bool) -> None:
    """Write the results to their file, and the tables to the page."""
    results = stamp({"runs": runs}, f"make bench-cluster ARGS='{arguments}'", PACKAGES)
    (PEER_RESULTS if peers else RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    machine = results["machine"]
    text = f"`{results['command']}`, {results['date']}, {machine['processor']}, commit {machine['commit']}.\n\n"
    if peers:
        put(README, "cluster-peers", text + render_peers(runs))
    else:
        put(README, "cluster", text + render(runs))


def render(runs: list[Run]) -> str:
    """Return the tables of the runs at brokers, and the requirements that are not met."""
    heads = "broker | nodes | events/s | CPU per event: publisher, follower, broker, µs | latency p50, p99, max, ms | "
    text = _head(heads + "start of a node, s")
    for run in runs:
        start = f"{run['start_s']} with {run['start_events']:,} events" if "start_s" in run else ""
        cells = (run["broker"] or "none", run["nodes"], number(run["events_per_s"]), _cpu(run), _latency(run), start)
        text += _row(*cells)
    faulty = [run for run in runs if "recovery_s" in run]
    if faulty:
        text += "\nTime until a client receives an event again, in s:\n\n"
        text += _head(" | ".join(["fault", *(run["broker"] for run in faulty)]))
        for fault in faulty[0]["recovery_s"]:
            text += _row(fault, *(run["recovery_s"][fault] for run in faulty))
        gaps = ("not counted" if run["gaps"] is None else run["gaps"] for run in faulty)
        text += _row("gaps that the client received", *gaps)
    short = [
        f"{each.what}: {each.measured} instead of {each.required}"
        for run in runs
        if run["nodes"] == 2
        for each in judge(run)
        if not each.met
    ]
    return text + f"\n{'Short of the requirements: ' + '; '.join(short) if short else 'All requirements are met'}.\n"


def render_peers(runs: list[Run]) -> str:
    """Return the table of the servers at one Redis."""
    heads = "two nodes at one Redis | events/s | CPU per event: publisher, follower, broker, µs | "
    text = _head(heads + "latency p50, p99, max, ms | missed, each node | faults, each node")
    for run in runs:
        missed = ", ".join(f"{100 * share:g} %" for share in run["missed"])
        faults = ", ".join(map(str, run["faults"]))
        text += _row(run["server"], number(run["events_per_s"]), _cpu(run), _latency(run), missed, faults)
    return text + "\n" + "".join(f"- {run['version']}\n" for run in runs if not run["server"].startswith("relay"))


def judge(run: Run) -> list[Demand]:
    """Compare a run of two nodes with the requirements."""
    broker, rate, p99_ms = run["broker"], run["events_per_s"], run["latency_ms"]["p99"]
    required = EVENTS_PER_S_MIN[broker]
    demands = [
        Demand(
            what=f"{broker}, events per second into two nodes",
            measured=number(rate),
            required=f"≥ {number(required)}",
            met=rate >= required,
        ),
        Demand(
            what=f"{broker}, p99 latency at 1,000 events per second",
            measured=f"{number(p99_ms)} ms",
            required=f"≤ {number(P99_MS_MAX)} ms",
            met=p99_ms <= P99_MS_MAX,
        ),
    ]
    if broker == "redis":
        cost_us = run["cpu_us_per_event"]["follower"]
        demands.append(
            Demand(
                what=f"{broker}, CPU of the follower per event",
                measured=f"{number(cost_us)} µs",
                required=f"≤ {number(FOLLOWER_US_MAX)} µs",
                met=cost_us <= FOLLOWER_US_MAX,
            )
        )
    return demands


def _cpu(run: Run) -> str:
    costs = run["cpu_us_per_event"]
    return ", ".join(number(costs[name]) if name in costs else "–" for name in ("publisher", "follower", "broker"))


def _latency(run: Run) -> str:
    return ", ".join(number(run["latency_ms"][name]) for name in ("p50", "p99", "max"))


def _head(heads: str) -> str:
    return f"| {heads} |\n" + "| --- " * (heads.count("|") + 1) + "|\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"
