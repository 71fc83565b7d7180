"""The sections of docs/measurements.md about operation: scale, storm, start, upgrade, clusters and the soak.

Owns the choice of their figures and their requirements, except those of `bench.cluster_report` and `loadtest.soak`.
Never measures anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bench import HERE, cluster_report, report, restart, scale, upgrade
from bench.chart import Curves, Panel
from bench.report import Result, Spread, number, shown
from bench.section import Demand, Section, source, table
from bench.standings import NOISE
from loadtest.soak.report import MIB, SLOPE_MIB_PER_HOUR_MAX, SavedSoak, text_of

SOAK_RESULTS = HERE.parent / "loadtest" / "soak.json"
STORM_S_MAX = 12.0
"""Time for 100,000 streams that reconnect at once, on two cores."""

WAYS = {"memory": "in memory", "data": "`--data`", "durable": "`--data --durable`"}
FAULTS = "streams refused, and events missed or doubled"


def scaled() -> Section:
    """Return the section of the runs of `bench.scale` without a storm."""
    results = [result for result in report.kept(scale.RESULTS) if "recover_s" not in result]
    lasts = [(_scale(result), max(event["last_ms"] for event in result["events"]) / 1000) for result in results]
    figures = {
        "streams, workers": [_scale(result) for result in results],
        "time to open all": [f"{number(result['connect_s'])} s" for result in results],
        "user memory per stream": [f"{number(result['user_bytes_a_stream'])} bytes" for result in results],
        "kernel memory per stream, one end": [_kib(result["kernel_bytes_a_stream"]) for result in results],
        "one event to all streams: to the last": [f"{number(last_s)} s" for _, last_s in lasts],
        "CPU of that event": [f"{number(max(event['cpu_s'] for event in each['events']))} s" for each in results],
    }
    memory = [(kind, result[f"{kind}_bytes_a_stream"] / 1024) for result in results for kind in ("user", "kernel")]
    return Section(
        name="scale",
        title="Scale: a million streams",
        about="Clients and server share the machine. Each process may open 20,000 descriptors, so a million streams "
        "need 58 workers. The run opens all streams and publishes one event to all of them.",
        command="make bench-scale ARGS=--save",
        sources=[source(result) for result in results],
        tables=_turned(figures),
        panels=(
            Panel(title="time, s", bars=[*[("open all", result["connect_s"]) for result in results], *_named(lasts)]),
            Panel(title="memory per stream, KiB", bars=memory),
        )
        if results
        else (),
        demands=[
            Demand(
                what=f"open streams of {result['streams']:,}",
                measured=f"{result['open']:,}, {result['faults']} faults",
                required=f"{result['streams']:,}, 0 faults",
                met=result["open"] == result["streams"] and not result["faults"],
            )
            for result in results
        ],
    )


def _scale(result: Result) -> str:
    return f"{result['streams']:,} over {result['workers']}"


def _named(lasts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [("one event to the last", last_s) for _, last_s in lasts]


def _kib(size: float) -> str:
    return f"{number(size / 1024)} KiB"


def _turned(columns: dict[str, list[str]]) -> str:
    """Return a table with one row for each figure and one column for each run."""
    (head, names), *rows = columns.items()
    return table((head, *names), [(figure, *cells) for figure, cells in rows])


def storm() -> Section:
    """Return the section of the runs of `bench.scale` with a storm."""
    results = [result for result in report.kept(scale.RESULTS) if "recover_s" in result]
    figures = {
        "streams, workers": [_scale(result) for result in results],
        "all streams open again after": [f"{number(result['reopen_s'])} s" for result in results],
        "all have received an event after": [f"{number(result['recover_s'])} s" for result in results],
        FAULTS: [str(result["faults"]) for result in results],
    }
    return Section(
        name="storm",
        title="Storm: all streams reconnect at once",
        about="All streams lose their connections at the same time, while events are published. Each client "
        "reconnects with its last id.",
        command="make bench-storm ARGS=--save",
        sources=[source(result) for result in results],
        tables=_turned(figures),
        panels=[
            Panel(
                title=f"{_scale(result)}: time after the storm, s",
                bars=[("all open", result["reopen_s"]), ("all received", result["recover_s"])],
            )
            for result in results
        ],
        demands=[
            Demand(
                what=f"storm of {result['streams']:,} streams",
                measured=f"{number(result['recover_s'])} s, {result['faults']} faults",
                required=f"≤ {number(STORM_S_MAX)} s, 0 faults",
                met=result["recover_s"] <= STORM_S_MAX and not result["faults"],
            )
            for result in results
        ],
    )


def started() -> Section:
    """Return the section of `bench.restart`."""
    results = report.kept(restart.RESULTS)
    rows, panels, demands = [], [], []
    for result in results:
        rates = msgspec.convert(result["events_per_s"], dict[str, Spread])
        delays = msgspec.convert(result["acknowledged_ms"], dict[str, Spread])
        start = msgspec.convert(result["start_s"], Spread)
        rows += [
            (f"events per second, one feeder, {restart.SIZE} bytes each", *map(shown, rates.values())),
            ("one event to its acknowledgement, ms", *map(shown, delays.values())),
            (f"start after `kill -9` with {result['events']:,} events, s", "–", shown(start), "–"),
        ]
        for title, of in (("events per second", rates), ("acknowledgement, ms", delays)):
            bars = [(WAYS[way].replace("`", ""), each.median) for way, each in of.items()]
            panels.append(Panel(title=title, bars=bars))
        demands.append(Demand(what="events missing after `kill -9`", **_none(result["missing"])))
    return Section(
        name="restart",
        title="Durability: the cost of a file, and the start with it",
        about="One feeder publishes through the Unix socket. The server is then killed and started again with its "
        "file. The figures are medians with the least and the greatest.",
        command="make bench-restart ARGS=--save",
        sources=[source(result) for result in results],
        tables=table(("", *WAYS.values()), rows),
        panels=panels,
        demands=demands,
    )


def upgraded() -> Section:
    """Return the section of `bench.upgrade`."""
    results = report.kept(upgrade.RESULTS)
    rows, panels, demands = [], [], []
    for result in results:
        for place, each in enumerate(result["upgrades"], 1):
            usual, beside = number(each["usual_max_ms"]), number(each["upgrade_max_ms"])
            rows.append((place, f"{number(each['took_s'])} s", f"{usual} ms", f"{beside} ms"))
        names = [f"upgrade {place}" for place in range(1, len(result["upgrades"]) + 1)]
        for title, figure in (
            ("largest latency before, ms", "usual_max_ms"),
            ("largest latency around the upgrade, ms", "upgrade_max_ms"),
        ):
            bars = [(name, each[figure]) for name, each in zip(names, result["upgrades"], strict=True)]
            panels.append(Panel(title=title, bars=bars))
        demands.append(
            Demand(
                what=f"streams closed and events missed, of {result['deliveries']:,} deliveries during upgrades",
                **_none(result["closed"] + result["faults"]),
            )
        )
    return Section(
        name="upgrade",
        title="Upgrade: the process is replaced under load",
        about="10,000 streams receive 20 events per second while `relay upgrade` replaces the server three times. "
        "The history holds 100,000 events.",
        command="make bench-upgrade ARGS=--save",
        sources=[source(result) for result in results],
        tables=table(("upgrade", "duration", "largest latency before", "largest latency around it"), rows),
        panels=panels,
        demands=demands,
    )


def clusters() -> Section:
    """Return the section of `bench.cluster`."""
    results = msgspec.json.decode(cluster_report.RESULTS.read_bytes())
    runs = [run for run in results["runs"] if run["nodes"] == 2]
    rows = [
        (run["broker"], number(run["events_per_s"]), *(number(run["latency_ms"][name]) for name in ("p50", "p99")))
        for run in runs
    ]
    recovery = [(run["broker"], max(run["recovery_s"].values())) for run in runs]
    return Section(
        name="cluster",
        title="Clusters: two nodes at Redis, Kafka and JetStream",
        about="One feeder publishes at the first node. The rate is that at which both nodes have the events. The "
        "latency is that to a stream of the second node, at 1,000 events per second. Feeder, nodes and broker "
        "share the machine. The longest recovery is the time until a client receives an event again, over all "
        "faults of broker and nodes.",
        command="make bench-cluster ARGS=--save",
        sources=[source(results)],
        tables=table(
            ("broker", "events per second", "latency p50, ms", "p99, ms", "longest recovery, s"),
            [(*row, number(longest_s)) for row, (_, longest_s) in zip(rows, recovery, strict=True)],
        ),
        panels=(
            Panel(title="events per second", bars=[(run["broker"], run["events_per_s"]) for run in runs]),
            Panel(title="latency p99, ms", bars=[(run["broker"], run["latency_ms"]["p99"]) for run in runs]),
            Panel(title="longest recovery, s", bars=recovery),
        ),
        demands=[demand for run in runs for demand in cluster_report.judge(run)],
    )


def cluster_peers() -> Section:
    """Return the section of `bench.cluster_peers`."""
    results = msgspec.json.decode(cluster_report.PEER_RESULTS.read_bytes())
    runs = results["runs"]
    rates: list[tuple[str, float]] = [(run["server"], run["events_per_s"]) for run in runs]
    p99_ms: list[tuple[str, float]] = [(run["server"], run["latency_ms"]["p99"]) for run in runs]
    return Section(
        name="cluster-peers",
        title="Clusters: relay, Centrifugo and nchan at one Redis",
        about="Two nodes of each server share a Redis, and each node has 100 streams. The publisher sends one event "
        "per HTTP request, at most 32 of them unanswered. relay is measured once more with the publisher at "
        "its Unix socket.",
        command='make bench-cluster ARGS="--peers --events 100000 --save"',
        sources=[source(results)],
        tables=table(
            ("two nodes", "events per second", "latency p50, ms", "p99, ms", "missed"),
            [
                (
                    run["server"],
                    number(run["events_per_s"]),
                    number(run["latency_ms"]["p50"]),
                    number(run["latency_ms"]["p99"]),
                    f"{100 * max(run['missed']):g} %",
                )
                for run in runs
            ],
        ),
        panels=(
            Panel(title="events per second", bars=rates, is_log=True),
            Panel(title="latency p99, ms", bars=p99_ms),
        ),
        better=[
            *_better("events per second over HTTP into two nodes", rates, more_is_better=True),
            *_better("p99 latency from one node to the other, ms", p99_ms, more_is_better=False),
        ],
    )


def _better(what: str, bars: list[tuple[str, float]], *, more_is_better: bool) -> list[str]:
    """Return the peers that are better than relay by more than noise, if there are any."""
    ours = dict(bars)["relay"]
    ahead = [
        f"{name} {number(value)}"
        for name, value in bars
        if not name.startswith("relay") and (value > ours * NOISE if more_is_better else value * NOISE < ours)
    ]
    return [f"{what}: {', '.join(ahead)}; relay {number(ours)}"] if ahead else []


def soaked() -> Section:
    """Return the section of the soak of the load tests."""
    runs = [msgspec.json.decode(SOAK_RESULTS.read_bytes(), type=SavedSoak)] if SOAK_RESULTS.exists() else []
    return Section(
        name="soak",
        title="Soak: hours with everything switched on",
        about="Servers with workers, compression, TLS, HTTP/2, a file and a cluster run for two hours. Meanwhile slow "
        "clients stall, clients reconnect, and servers are upgraded and restarted. The slope is that of the memory "
        "after the warm-up, with its standard error.",
        command="make soak ARGS=--save",
        sources=[f"{run.started}, commit {run.commit}, {run.hours:g} hours" for run in runs],
        tables="".join(text_of(run.result) + "\n" for run in runs),
        panels=[Curves(title="memory of each server, MiB", time="minutes", lines=_memory(run)) for run in runs],
        demands=[demand for run in runs for demand in _soak_demands(run)],
    )


def _memory(run: SavedSoak) -> dict[str, list[tuple[float, float]]]:
    """Return the time in minutes and the memory in MiB of each sample, by server."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for sample in run.samples:
        for name, each in sample.servers.items():
            size = (each.hub_bytes + each.workers_bytes) / MIB
            curves.setdefault(name, []).append((sample.time_s / 60, size))
    return curves


def _soak_demands(run: SavedSoak) -> list[Demand]:
    faults = sum(run.result.last.faults.values())
    slopes = [
        Demand(
            what=f"growth of the memory of {name} in the soak",
            measured=f"{each.mib_per_hour:+.2f} ± {each.standard_error:.2f} MiB per hour",
            required=f"≤ {number(SLOPE_MIB_PER_HOUR_MAX)} MiB per hour",
            met=each.mib_per_hour <= SLOPE_MIB_PER_HOUR_MAX,
        )
        for name, each in run.result.memory.items()
    ]
    return [
        Demand(what="events missed without a gap, received twice or out of order, in the soak", **_none(faults)),
        Demand(what="errors in the logs of the soak", **_none(len(run.result.last.errors))),
        *slopes,
    ]


def _none(count: int) -> dict[str, Any]:
    return {"measured": number(count), "required": "0", "met": not count}
