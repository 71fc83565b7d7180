"""Compare relay, the floor and the peers: save the results in `fanout.json` and show them as tables.

Owns these files and the comparison in the project's README; every figure in them comes from a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench import HERE, report
from bench.report import Spread
from loadtest.rig.targets import Target

RESULTS = HERE / "fanout.json"
CHART = "../docs/measurements/fanout.svg"
"""The address of the chart in `README.md`; `bench.measurements` draws it."""

PROJECT = HERE.parent / "README.md"
SECTION = "fanout"

COLUMNS = {
    "delivered": ("delivered", "%"),
    "deliveries_per_s": ("deliveries", "/s"),
    "cpu_us_per_delivery": ("CPU a delivery", "µs"),
    "p50_ms": ("p50", "ms"),
    "p99_ms": ("p99", "ms"),
    "p999_ms": ("p99.9", "ms"),
    "last_ms": ("to the last stream", "ms"),
    "whole_s": ("until all are whole", "s"),
    "streams_per_s": ("opened", "/s"),
    "cpu_us_per_stream": ("CPU a stream", "µs"),
    "bytes_per_stream": ("memory a stream", "bytes"),
    "faults": ("faults", ""),
}
"""The figures to show, in this order, with their headings and units. A load may lack some of them."""

MORE_IS_BETTER = frozenset({"delivered", "deliveries_per_s", "streams_per_s"})
NOISE = 1.1
"""A peer counts as better if it is better by a tenth. Smaller differences are within the spread of repeated runs."""

SUMMARY = (
    ("1000x100", "cpu_us_per_delivery"),
    ("1000x100", "p99_ms"),
    ("10000x10", "cpu_us_per_delivery"),
    ("10000x10", "p99_ms"),
    ("1000x1000", "deliveries_per_s"),
    ("connect", "streams_per_s"),
    ("memory", "bytes_per_stream"),
)
"""The load and the figure of each panel of the chart."""

PROJECT_COLUMNS = (
    ("10000x10", "cpu_us_per_delivery", "CPU per delivery, µs"),
    ("10000x10", "p99_ms", "p99 latency, ms"),
    ("connect", "streams_per_s", "streams opened per second"),
    ("memory", "bytes_per_stream", "memory per idle stream, bytes"),
)
"""The load, figure and heading of each column in the project's README. bench/README.md has all figures."""


Figures = dict[str, Spread | str]
"""The result of one server under a load: its figures by name, or its `error`."""


class Result(msgspec.Struct, frozen=True):
    """The result of one load for each server."""

    load: str
    what: str
    repeat: int
    servers: dict[str, Figures]

    def median(self, server: str, figure: str) -> float | None:
        """Return the median of one figure; None if the server lacks it."""
        spread = self.servers.get(server, {}).get(figure)
        return spread.median if isinstance(spread, Spread) else None


class ServerInfo(msgspec.Struct, frozen=True):
    """A measured server: its version, the way it is fed, and its changed settings."""

    title: str
    version: str
    fed_by: str
    notes: tuple[str, ...]


class FanoutRun(msgspec.Struct, frozen=True):
    """One run of all loads."""

    command: str
    date: str
    seconds: float
    machine: dict[str, str]
    servers: dict[str, ServerInfo]
    results: list[Result]


def write(results: list[Result], targets: Sequence[Target], command: str, seconds: float) -> None:
    """Save a run and write its tables."""
    servers = {each.name: ServerInfo(each.title, each.version, each.fed_by, each.notes) for each in targets}
    stamped = report.stamp({}, command)
    run = FanoutRun(command, stamped["date"], seconds, stamped["machine"], servers, results)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    write_tables(run)


def write_tables(run: FanoutRun) -> None:
    """Write the tables of a run into both READMEs."""
    report.put(report.README, SECTION, render(run))
    report.put(PROJECT, SECTION, summary(run))


def kept() -> FanoutRun:
    """Return the run that was saved last."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=FanoutRun)


def table(result: Result) -> str:
    """Return the table of one load, as Markdown."""
    figures = [name for name in COLUMNS if any(name in each for each in result.servers.values())]
    heads = [" ".join(COLUMNS[name]).strip() for name in figures]
    lines = [f"**{result.what}**", "", _row(["", *heads]), _row(["---"] * (len(figures) + 1))]
    for name, of in result.servers.items():
        error = of.get("error")
        if isinstance(error, str):
            cells = [f"failed: {error.splitlines()[0]}", *[""] * (len(figures) - 1)]
        else:
            cells = [_cell(figure, of.get(figure)) for figure in figures]
            if result.median(name, "delivered") == 0:
                cells[1:] = ["–"] * (len(cells) - 1)  # without deliveries there is no latency and no cost
        lines.append(_row([name, *cells]))
    return "\n".join(lines) + "\n"


def render(run: FanoutRun) -> str:
    """Return all tables of a run, the figures in which a peer is better, and the servers, as Markdown."""
    text = f"`{run.command}`, {run.date}, {run.seconds:g} s a feed. ![chart]({CHART})\n\n"
    text += "".join(table(result) + "\n" for result in run.results)
    text += "### Where another server is better than relay\n\n"
    text += "".join(f"- {line}\n" for line in better(run)) or "Nowhere in this run.\n"
    text += "\n### The servers, and what was set that they do not ship with\n\n"
    for name, server in run.servers.items():
        text += f"- **{name}**: {server.version or server.title}, fed by {server.fed_by}"
        text += "".join(f"; {note}" for note in server.notes) + "\n"
    return text


def better(run: FanoutRun, *, floor: bool = True) -> list[str]:
    """List, for each figure, the servers that delivered as much as relay and are better by more than noise.

    Args:
        run: the run.
        floor: whether to list the floor too.
    """
    omitted = {"relay"} if floor else {"relay", "floor"}
    lines = []
    for result in run.results:
        for figure, (title, _) in COLUMNS.items():
            ours = result.median("relay", figure)
            if ours is None:
                continue
            ahead = [
                f"{name} {_cell(figure, of[figure])}"
                for name, of in result.servers.items()
                if name not in omitted
                and _delivered(result, name)
                and _ahead(figure, result.median(name, figure), ours)
            ]
            if ahead:
                relay = _cell(figure, result.servers["relay"][figure])
                lines.append(f"{result.what}, {title}: {', '.join(ahead)}; relay {relay}")
    return lines


def summary(run: FanoutRun) -> str:
    """Return the table for the project's README."""
    results = {result.load: result for result in run.results}
    shown = [(results[load], figure, head) for load, figure, head in PROJECT_COLUMNS if load in results]
    lines = [_row(["", *(head for _, _, head in shown)]), _row(["---"] * (len(shown) + 1))]
    for name in run.servers:
        cells = [_cell(figure, result.servers.get(name, {}).get(figure)) for result, figure, _ in shown]
        lines.append(_row([name, *cells]))
    return "\n".join(lines) + "\n"


def _delivered(result: Result, name: str) -> bool:
    """Return whether a server delivered as much as relay, within noise; fewer deliveries make a server look faster."""
    theirs, ours = result.median(name, "delivered"), result.median("relay", "delivered")
    return theirs is None or ours is None or theirs * NOISE >= ours


def _ahead(figure: str, theirs: float | None, ours: float) -> bool:
    if theirs is None:
        return False
    return theirs > ours * NOISE if figure in MORE_IS_BETTER else theirs * NOISE < ours


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(figure: str, spread: Spread | str | None) -> str:
    if not isinstance(spread, Spread):
        return "–"
    factor, sign = (100, " %") if figure == "delivered" else (1, "")
    shown = report.number(spread.median * factor) + sign
    if spread.least != spread.greatest:
        shown += f" ({report.number(spread.least * factor)} to {report.number(spread.greatest * factor)})"
    return shown
