"""Charts of benchmarks: panels of horizontal bars, and curves over time, as SVG.

Owns the drawing; the figures are those of the caller. A chart has a white background, so that it is readable on a dark
page too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from bench.report import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 8.4
COLUMNS_MAX = 3
BAR_INCHES = 0.24
HEAD_INCHES = 0.8
TITLE_COLUMNS = 34
CURVE_BARS = 9
"""Curves are as high as this number of bars."""

OURS, THEIRS, FLOOR, BEYOND = "#2563eb", "#94a3b8", "#334155", "#c2410c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure of several servers, settings or cases.

    Args:
        title: the figure with its unit.
        bars: a label and a value each, from top to bottom.
        is_log: the scale is logarithmic.
        limit: bars beyond this value have another colour; None without a limit.
    """

    title: str
    bars: Sequence[tuple[str, float]]
    is_log: bool = False
    limit: float | None = None

    def colour(self, label: str, value: float) -> str:
        """Return the colour of a bar: relay's, another server's, or that of a value beyond the limit."""
        if self.limit is not None:
            return OURS if value <= self.limit else BEYOND
        if label == "floor":
            return FLOOR
        is_ours = label.startswith("relay") or not any(each.startswith("relay") for each, _ in self.bars)
        return OURS if is_ours else THEIRS


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Figures over time.

    Args:
        title: the figure with its unit.
        time: the label of the time, with its unit.
        lines: the points of each curve, by name.
    """

    title: str
    time: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def draw(panels: Sequence[Panel | Curves], path: Path) -> None:
    """Draw panels side by side, as SVG with text elements."""
    import matplotlib  # Only here, because the import takes half a second.
    from matplotlib.figure import Figure

    # A fixed hash salt makes the file depend on the figures only.
    with matplotlib.rc_context({"svg.hashsalt": "relay", "svg.fonttype": "none", "font.size": 8}):
        columns = min(len(panels), COLUMNS_MAX)
        rows = -(-len(panels) // columns)
        most = max(len(panel.bars) if isinstance(panel, Panel) else CURVE_BARS for panel in panels)
        height = rows * (HEAD_INCHES + BAR_INCHES * most)
        drawing = Figure((WIDTH_INCHES, height), layout="constrained", facecolor="white")
        for place, panel in enumerate(panels):
            axes = drawing.add_subplot(rows, columns, place + 1)
            axes.set_title("\n".join(fill(line, TITLE_COLUMNS) for line in panel.title.splitlines()))
            if isinstance(panel, Panel):
                _draw_bars(axes, panel)
            else:
                _draw_curves(axes, panel)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _draw_bars(axes: Axes, panel: Panel) -> None:
    bars = panel.bars[::-1]
    labels, values = [label for label, _ in bars], [value for _, value in bars]
    drawn = axes.barh(labels, values, color=[panel.colour(*bar) for bar in bars])
    axes.bar_label(drawn, labels=[number(value) for value in values], padding=2)
    if panel.is_log:
        axes.set_xscale("log")
    if panel.limit is not None:
        axes.axvline(panel.limit, color=FLOOR, linewidth=0.8)
    axes.margins(x=0.3)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_curves(axes: Axes, curves: Curves) -> None:
    for name, points in curves.lines.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel(curves.time)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
