"""Make the table of the micro-benchmarks from the output of pytest-benchmark.

Owns the layout and the comparisons; every figure in it comes from a run.
"""

from __future__ import annotations

from typing import Any

from bench.report import Result

CYTHON = "relay, Cython"
PYTHON = "relay, Python"
RELAY = "relay"
TWINS = (CYTHON, PYTHON, RELAY)

# The work that one figure measures, by group, in the order of the table.
GROUPS = {
    "encode": "one event's fields to its bytes",
    "decode": "one event out of a stream of 64 KiB (or of one event, where that is longer)",
    "log": "the log, one operation",
    "publish to flush": "one event published and sent to one stream, over a socket pair",
    "NDJSON line to log": "one line parsed, encoded and appended to a full log, read 64 KiB at a time",
    "request head": "one request head parsed",
}

HEAD = """\
# The parts, one by one

Written by `make bench-micro`; do not edit. Each figure is the time of one event, line, operation or request: the median
of many rounds in one process, without the garbage collector, and of {turns} turns the best. In brackets: how many times
what relay's Cython twin takes; below 1, the other is quicker.

relay's encoder and decoder keep to limits of size and refuse, or count, what the format cannot carry; the others check
less. "String building" is better-sse's way, done in Python. httpx-sse is fed through httpx, its only entrance.
"""


def rows(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Sort results: group → case → implementation or library → seconds per unit.

    Args:
        benchmarks: the list `benchmarks` in the output of pytest-benchmark.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one in benchmarks:
        info = one["extra_info"]
        took = one["stats"]["median"] / info["units"]
        figures = found.setdefault(info["group"], {}).setdefault(info["case"], {})
        # Other processes can only increase the time of a turn, so the least time is the best estimate.
        figures[info["by"]] = min(took, figures.get(info["by"], took))
    return {group: found[group] for group in GROUPS if group in found}


def render(benchmarks: list[dict[str, Any]], stamp: Result) -> str:
    """Return the whole document.

    Args:
        benchmarks: the list `benchmarks` in the output of pytest-benchmark.
        stamp: date, command and machine of the run, from `bench.report.stamp`.
    """
    groups = rows(benchmarks)
    text = HEAD.format(turns=len({one["params"]["turn"] for one in benchmarks}))
    for group, cases in groups.items():
        text += f"\n## {_begin(group)}\n\n{_begin(GROUPS[group])}.\n\n{_table(cases)}"
    text += f"\n## Where a peer is quicker\n\n{_slower(groups)}"
    text += f"\n## On what\n\n- date: {stamp['date']}\n- command: `{stamp['command']}`\n"
    return text + "".join(f"- {name}: {value}\n" for name, value in stamp["machine"].items())


def _begin(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(cases: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(by for figures in cases.values() for by in figures))
    columns.sort(key=lambda by: TWINS.index(by) if by in TWINS else len(TWINS))
    text = "| | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns) + "\n"
    for case, figures in cases.items():
        text += f"| {case} | " + " | ".join(_cell(by, figures) for by in columns) + " |\n"
    return text


def _cell(by: str, figures: dict[str, float]) -> str:
    if by not in figures:
        return "–"
    if by == CYTHON or CYTHON not in figures:
        return _time(figures[by])
    ratio = figures[by] / figures[CYTHON]
    return f"{_time(figures[by])} ({ratio:,.{1 if ratio < 100 else 0}f})"


def _slower(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """Name each peer that is faster than the compiled implementation or its Python counterpart."""
    text = ""
    for twin in (CYTHON, PYTHON):
        found = [
            f"- {group}, {case}: {peer} takes {_time(took)}, {twin} {_time(figures[twin])}\n"
            for group, cases in groups.items()
            for case, figures in cases.items()
            for peer, took in figures.items()
            if peer not in TWINS and twin in figures and took < figures[twin]
        ]
        text += f"Than {twin}:\n\n{''.join(found)}\n" if found else f"Than {twin}: nowhere.\n\n"
    return text.removesuffix("\n")


def _time(seconds: float) -> str:
    for unit, scale in (("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
