"""The parts of docs/measurements.md that every benchmark has: a section, its requirements and its source.

Owns these types and their Markdown. Never reads a result.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from bench.chart import Curves, Panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A requirement and its measured value.

    Args:
        what: the figure.
        measured: its value, with its unit.
        required: its limit.
        met: whether the value is within the limit.
    """

    what: str
    measured: str
    required: str
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One benchmark of the page.

    Args:
        name: file name of its chart, without a suffix.
        title: its heading.
        about: the load and the meaning of the figures; whole sentences.
        command: the command that measures and saves the figures.
        sources: the date, commit and machine of each saved result; empty if none is saved.
        tables: Markdown.
        panels: the chart; empty if no result is saved.
        demands: the requirements.
        better: cases in which another server is better than relay.
    """

    name: str
    title: str
    about: str
    command: str
    sources: Sequence[str] = ()
    tables: str = ""
    panels: Sequence[Panel | Curves] = ()
    demands: Sequence[Demand] = ()
    better: Sequence[str] = ()


def source(result: dict[str, Any]) -> str:
    """Return the date, the commit, the machine and the options of a stamped result."""
    facts, options = result["machine"], _options(result["command"])
    text = f"{result['date']}, commit {facts['commit']}, {facts['processor']}"
    return f"{text}, with `{options}`" if options else text


def _options(command: str) -> str:
    """Return the options of a command, except those that save its result."""
    words = " ".join(shlex.split(command)).replace("ARGS=", "").split()
    options = dropwhile(lambda word: not word.startswith("--"), words)
    return " ".join(word for word in options if word not in ("--save", "--write"))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
