"""Save results with their date, command and machine, and write those of `bench.limits` to `README.md`.

Owns the files of results, which are lists of results by case, and the generated sections of documents. Every figure in
them comes from a run. `bench.measurements` writes docs/measurements.md from the files.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import HERE

RESULTS = HERE / "results.json"
README = HERE / "README.md"
PACKAGES = ("uvloop", "httptools", "msgspec", "orjson", "Cython")
RECORDS = tuple(f":(top,exclude)*.{suffix}" for suffix in ("json", "md", "svg"))
"""Files that benchmarks write. A change of one does not change the measured code."""

Result = dict[str, Any]


class Spread(msgspec.Struct, frozen=True):
    """Repeated figures: the median, the least and the greatest."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise repeated figures."""
    return Spread(statistics.median(values), min(values), max(values))


def shown(value: Spread, factor: float = 1.0) -> str:
    """Write the median, and the range if the figures differ; each multiplied by the factor."""
    text = number(factor * value.median)
    if value.least != value.greatest:
        text += f" ({number(factor * value.least)} to {number(factor * value.greatest)})"
    return text


TABLE = """\
Each figure is the median of {repeat} runs, with the least and the greatest.

| what | relay | floor | ratio | asked | met |
| --- | --- | --- | --- | --- | --- |
"""


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the environment of the figures: processor, cores, kernel, versions.

    Args:
        packages: packages to include with their versions; those that are not installed are omitted.
    """
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    facts = {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in packages:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts["cc"] = _first_line("cc", "--version")
    facts["commit"] = _first_line("git", "describe", "--always", "--exclude=*")
    if _first_line("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", *RECORDS) != "unknown":
        facts["commit"] += "-dirty"
    return facts


def _first_line(command: str, *arguments: str) -> str:
    """Return the first line that a command prints; `unknown` if it prints none or is not installed."""
    path = shutil.which(command)
    if path is None:
        return "unknown"
    said = subprocess.run([path, *arguments], cwd=HERE, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0] or "unknown"


def stamp(result: Result, command: str, packages: Iterable[str] = PACKAGES) -> Result:
    """Return the result with its date, its command, and the machine with the versions of the packages."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**result, "date": date, "command": command, "machine": machine(packages)}


def kept(path: Path) -> list[Result]:
    """Return the results that a file has; none if there is no file."""
    results: list[Result] = msgspec.json.decode(path.read_bytes()) if path.exists() else []
    return results


def save(path: Path, *results: Result) -> list[Result]:
    """Save stamped results, and replace older results of the same cases; return all results of the file."""
    cases = {result["case"]: result for result in (*kept(path), *results)}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(cases.values())), indent=1) + b"\n")
    return list(cases.values())


def write(results: list[Result]) -> None:
    """Save stamped results of `bench.limits`, and rewrite the table."""
    put(README, "limits", render(save(RESULTS, *results)))


def put(document: Path, section: str, text: str) -> None:
    """Replace the section of a document that two comments enclose.

    Args:
        document: a Markdown file.
        section: the section's name.
        text: the new section, in whole lines.

    Raises:
        ValueError: the document has no such section.
    """
    begin, end = f"<!-- {section}: written by a program; do not edit -->\n", f"<!-- {section}: end -->\n"
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document.name} has no section {section!r}: {begin.strip()} … {end.strip()}")
    document.write_text(f"{before}{begin}{text}{end}{after}")


def render(results: list[Result]) -> str:
    """Return the table, the commands and the environment, as Markdown."""
    repeats = sorted({result["repeat"] for result in results})
    text = TABLE.format(repeat=" or ".join(map(str, repeats)))
    for result in results:
        row = (
            result["what"],
            _spread(result.get("relay"), result["unit"]),
            _spread(result.get("floor"), result["unit"]),
            _ratio(result),
            asked(result),
            {True: "yes", False: "**no**", None: ""}[result.get("met")],
        )
        text += "| " + " | ".join(row) + " |\n"
    missed = [result["what"] for result in results if result.get("met") is False]
    verdict = f"Short of what is asked: {'; '.join(missed)}." if missed else "All that is asked is met."
    text += f"\n{verdict}\n\n### How\n\n"
    text += "| what | command | date | pinned | seconds a feed |\n| --- | --- | --- | --- | --- |\n"
    for result in results:
        pinned = "server on one core, load on the others" if result["pinned"] else "no"
        cells = (result["what"], f"`{result['command']}`", result["date"], pinned, str(result["seconds"]))
        text += "| " + " | ".join(cells) + " |\n"
    text += "\n### On what\n\n"
    seen: list[dict[str, str]] = []
    for result in results:
        if result["machine"] not in seen:
            seen.append(result["machine"])
    for facts in seen:
        text += "".join(f"- {name}: {value}\n" for name, value in facts.items()) + "\n"
    return text.rstrip("\n") + "\n"


def number(value: float | None) -> str:
    """Format a figure with three digits, or from 1000 on as a whole number with separators."""
    if value is None or value != value:
        return "unknown"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def _spread(summary: dict[str, float | None] | None, unit: str) -> str:
    if summary is None:
        return "–"
    spread = f"({number(summary['min'])} to {number(summary['max'])})"
    return " ".join(filter(None, (number(summary["median"]), unit, spread)))


def _ratio(result: Result) -> str:
    if "ratio" not in result:
        return "–"
    return f"{result['ratio']:.2f} ({result['ratio_min']:.2f} to {result['ratio_max']:.2f})"


def asked(result: Result) -> str:
    """Return the limit of a result of `bench.limits`, with its unit."""
    sign = "≥" if result["limit_is"] == "least" else "≤"
    unit = "× floor" if result["limit_for"] == "ratio" else result["unit"]
    return f"{sign} {number(result['limit'])} {unit}".rstrip()
