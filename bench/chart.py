"""The chart of a run of `bench.fanout`: one panel per figure, one bar per server.

Owns the drawing; the figures are `bench.standings`'s.
"""

from __future__ import annotations

from pathlib import Path

from bench.standings import COLUMNS, SUMMARY, FanoutRun

PANEL_INCHES = (3.2, 3.4)
OURS, THEIRS, FLOOR = "#2563eb", "#94a3b8", "#334155"


def draw(run: FanoutRun, path: Path) -> None:
    """Draw the figures of the summary on logarithmic scales, as SVG."""
    import matplotlib  # Only here, because the import takes half a second.
    from matplotlib.figure import Figure

    results = {result.load: result for result in run.results}
    panels = [
        (results[load], figure)
        for load, figure in SUMMARY
        if load in results and any(results[load].median(server, figure) for server in run.servers)
    ]
    # A fixed hash salt makes the file depend on the figures only.
    with matplotlib.rc_context({"svg.hashsalt": "relay", "font.size": 8}):
        columns = (len(panels) + 1) // 2
        figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * 2), layout="constrained")
        for place, (result, name) in enumerate(panels):
            axes = figure.add_subplot(2, columns, place + 1)
            bars = [(server, result.median(server, name)) for server in reversed(run.servers)]
            known = [(server, value) for server, value in bars if value]
            colours = [{"relay": OURS, "floor": FLOOR}.get(server, THEIRS) for server, _ in known]
            drawn = axes.barh([server for server, _ in known], [value for _, value in known], color=colours)
            axes.bar_label(drawn, fmt=lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", padding=2)
            axes.set_xscale("log")
            axes.margins(x=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            title, unit = COLUMNS[name]
            axes.set_title(f"{result.what}\n{title} {unit}".rstrip())
        figure.savefig(path, format="svg", metadata={"Date": None})
