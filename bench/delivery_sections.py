"""The sections of docs/measurements.md about delivery: limits, fan-out, compression, HTTP/2 and model streams.

Owns the choice of their figures and the requirements of fan-out and model streams. The others are those of
`bench.limits` and `bench.compression`. Never measures anything.
"""

from __future__ import annotations

import statistics
from typing import Any

import msgspec

from bench import compression, http2, models, report, standings
from bench.chart import Panel
from bench.report import number, shown
from bench.section import Demand, Section, source, table
from bench.standings import FanoutRun

OPENED = {
    "connect-one-core": "streams opened per second, 10,000 streams, one core",
    "connect": "streams opened per second, 10,000 streams, all cores",
}
OPENED_LIKE = ("nchan", "go-sse")
"""Peers that must not open more streams per second than relay."""

TOPICS_US_MAX = 15.0
TOPICS_SHARE_MAX = 0.6
"""CPU per delivery with many topics: at most this time, or this share of the best peer's."""

COMPRESSED_LOADS = ("json-10000x10", "tokens-10000x10", "html-10000x10")
COMPRESSED_FIGURES = {
    "bytes_per_delivery": "bytes per delivery",
    "cpu_us_per_delivery": "CPU per delivery, µs",
    "memory_bytes_per_stream": "memory per stream, bytes",
}


def limits() -> Section:
    """Return the section of `bench.limits`."""
    results = report.kept(report.RESULTS)
    demands = [
        Demand(
            what=result["what"],
            measured=f"{result['ratio']:.3g} × floor" if _is_ratio(result) else _value(result),
            required=report.asked(result),
            met=result["met"],
        )
        for result in results
    ]
    relative = [(result["case"], _of_limit(result)) for result in results]
    return Section(
        name="limits",
        title="Limits: relay beside a bare C loop",
        about="The floor is `bench/floor.c`, a loop that only sends. Server and floor run in turns, on the same "
        "machine. Each figure is the median of the runs. The chart shows each figure as a share of its limit.",
        command="make bench",
        sources=_unique(results),
        tables=table(
            ("figure", "measured", "required", "met"),
            [(each.what, each.measured, each.required, "yes" if each.met else "**no**") for each in demands],
        ),
        panels=(Panel(title="share of the limit; 1 is the limit", bars=relative, limit=1.0),),
        demands=demands,
    )


def _is_ratio(result: dict[str, Any]) -> bool:
    return bool(result["limit_for"] == "ratio")


def _value(result: dict[str, Any]) -> str:
    return f"{number(result['relay']['median'])} {result['unit']}".rstrip()


def _of_limit(result: dict[str, Any]) -> float:
    """Return the figure as a share of its limit; for a minimum, the limit as a share of the figure."""
    value = result["ratio"] if _is_ratio(result) else result["relay"]["median"]
    share: float = value / result["limit"]
    return 1 / share if result["limit_is"] == "least" else share


def _unique(results: list[dict[str, Any]]) -> list[str]:
    """Return the source of the last result of each commit and command."""
    return list({(each["machine"]["commit"], each["command"]): source(each) for each in results}.values())


def fanout() -> Section:
    """Return the section of `bench.fanout`."""
    run = standings.kept()
    results = {result.load: result for result in run.results}
    panels = [
        Panel(
            title=f"{results[load].what}\n{', '.join(standings.COLUMNS[figure])}",
            bars=[(name, value) for name in run.servers if (value := results[load].median(name, figure))],
            is_log=True,
        )
        for load, figure in standings.SUMMARY
    ]
    return Section(
        name="fanout",
        title="Fan-out: relay beside other servers",
        about="All servers receive the same clients and the same publisher, one after the other. relay and the "
        "floor run one process; nchan and the servers in Go use both cores. `bench/README.md` in the checkout has all "
        "loads, the versions of the servers and their changed settings.",
        command="make peers bench-fanout",
        sources=[source(msgspec.to_builtins(run))],
        tables=standings.summary(run),
        panels=panels,
        demands=_fanout_demands(run),
        better=standings.better(run, floor=False),
    )


def _fanout_demands(run: FanoutRun) -> list[Demand]:
    results = {result.load: result for result in run.results}
    demands = []
    opening = results.get("connect-one-core", results["connect"])
    if opened := opening.median("relay", "streams_per_s"):
        most = max(opening.median(name, "streams_per_s") or 0.0 for name in OPENED_LIKE)
        demands.append(
            Demand(
                what=OPENED[opening.load],
                measured=f"{number(opened)} /s",
                required=f"≥ {number(most)} /s, the best of {' and '.join(OPENED_LIKE)}",
                met=opened >= most,
            )
        )
    costs = {name: results["topics"].median(name, "cpu_us_per_delivery") for name in run.servers}
    ours, theirs = costs["relay"], [cost for name, cost in costs.items() if cost and name != "relay"]
    if ours and theirs:
        bound = max(TOPICS_US_MAX, TOPICS_SHARE_MAX * min(theirs))
        demands.append(
            Demand(
                what=f"CPU per delivery, {results['topics'].what}",
                measured=f"{number(ours)} µs",
                required=f"≤ {number(bound)} µs",
                met=ours <= bound,
            )
        )
    return demands


def compressed() -> Section:
    """Return the section of `bench.compression`."""
    run = msgspec.json.decode(compression.RESULTS.read_bytes())
    rows, panels = [], []
    for outcome in run["outcomes"]:
        if outcome["load"] not in COMPRESSED_LOADS:
            continue
        content = outcome["what"].partition(" on average")[0]
        medians = {
            name: {figure: statistics.median(each[figure] for each in runs) for figure in COMPRESSED_FIGURES}
            for name, runs in outcome["runs"].items()
            if runs
        }
        for name, of in medians.items():
            rows.append((content, compression.ARRANGEMENTS[name].title, *map(number, of.values())))
        panels.append(
            Panel(
                title=f"{content}\nCPU per delivery, µs",
                bars=[(name, of["cpu_us_per_delivery"]) for name, of in medians.items()],
            )
        )
    verdicts = msgspec.convert(run["requirements"], list[compression.Verdict])
    return Section(
        name="compression",
        title="Forms: gzip of relay, nginx and Caddy",
        about="10,000 streams receive 10 events per second from relay without compression, from relay with "
        "`--compress gzip`, and from nginx and Caddy with gzip in front of relay. CPU and memory are those of "
        "all server processes. A server that does not keep up joins events, which saves bytes and CPU.",
        command="make bench-compression",
        sources=[source(run)],
        tables=table(("data of an event", "servers", *COMPRESSED_FIGURES.values()), rows),
        panels=panels,
        demands=[
            Demand(what=f"{each.what}, {each.load}", measured=shown(each.value), required=each.required, met=each.met)
            for each in verdicts
        ],
    )


def pumps() -> Section:
    """Return the section of `bench.http2`."""
    results = report.kept(http2.RESULTS)
    kinds = [kind for result in results for kind in result["kinds"]]
    return Section(
        name="http2",
        title="Protocols: HTTP/1.1, HTTP/2 and TLS",
        about="500 streams receive 10 events of 150 bytes per second; HTTP/2 has 50 streams on each connection. "
        "Memory and CPU are those of relay's process.",
        command="make bench-http2 ARGS=--save",
        sources=_unique(results),
        tables=table(
            ("kind", "memory per stream", "CPU per delivery"),
            [(kind["kind"], _kib(kind["stream_bytes"]), f"{number(kind['delivery_us'])} µs") for kind in kinds],
        ),
        panels=(
            Panel(title="memory per stream, KiB", bars=[(each["kind"], each["stream_bytes"] / 1024) for each in kinds]),
            Panel(title="CPU per delivery, µs", bars=[(each["kind"], each["delivery_us"]) for each in kinds]),
        )
        if kinds
        else (),
    )


def _kib(size: float) -> str:
    return f"{number(size / 1024)} KiB"


def conversations() -> Section:
    """Return the section of `bench.models`."""
    results = report.kept(models.RESULTS)
    figures = [result["figures"] for result in results]
    rows = [
        row
        for of in figures
        for row in (
            ("deliveries per second", number(of["deliveries_per_s"])),
            ("cores of the server", number(of["cores"])),
            ("CPU per delivery", f"{number(of['cpu_us_per_delivery'])} µs"),
            ("all viewers reload: all tokens again after", f"{number(of['caught_up_s'])} s"),
            ("tokens lost, repeated, out of order or torn", of["faults"]),
            ("viewers without the last token", of["lost_viewers"]),
        )
    ]
    return Section(
        name="models",
        title="Model streams: conversations whose viewers reload",
        about="1,000 conversations of 50 tokens per second have three viewers each. In the middle of the run, all "
        "viewers reload at once, and each receives its conversation from the first token.",
        command="make bench-models ARGS=--save",
        sources=_unique(results),
        tables=table(("figure", "measured"), rows),
        panels=[
            Panel(title="from publish to read, ms", bars=[("p50", of["p50_ms"]), ("p99", of["p99_ms"])])
            for of in figures
        ],
        demands=[
            Demand(
                what="tokens lost or repeated while all viewers reload",
                measured=number(of["faults"] + of["lost_viewers"]),
                required="0",
                met=not of["faults"] and not of["lost_viewers"],
            )
            for of in figures
        ],
    )
