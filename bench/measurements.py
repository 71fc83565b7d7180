"""`make measurements`: write docs/measurements.md, its charts, and the tables of fan-out from the saved results.

Owns the page. A benchmark without a saved result has a section that says so. Never measures anything.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from bench import HERE, delivery_sections, operation_sections, standings
from bench.chart import draw
from bench.section import Section, table

DOCS = HERE.parent / "docs"
PAGE = DOCS / "measurements.md"
CHARTS = DOCS / "measurements"

HEAD = """\
<!-- Written by `make measurements` from the results in bench/; do not edit. -->

# Measurements

Clients, servers and brokers run on one machine and communicate over loopback. Each section states its command, and the
date, the commit and the machine of its figures. A commit with `-dirty` had changes that were not committed. The same
commands measure on any machine with two cores:

```
make bench-all                             # all benchmarks in order, and this page; an hour and a half
make measurements                          # only this page, from the saved results
```

[Profiles and experiments](architecture/measurements.md) explains the figures and describes the check in CI.

## What falls short

"""


def sections() -> list[Section]:
    """Return all sections in the order of the page."""
    return [
        delivery_sections.limits(),
        delivery_sections.fanout(),
        delivery_sections.compressed(),
        delivery_sections.pumps(),
        delivery_sections.conversations(),
        operation_sections.scaled(),
        operation_sections.storm(),
        operation_sections.started(),
        operation_sections.upgraded(),
        operation_sections.clusters(),
        operation_sections.cluster_peers(),
        operation_sections.soaked(),
    ]


def render(parts: list[Section]) -> str:
    """Return the page as Markdown."""
    return HEAD + shortfalls(parts) + "".join(f"\n{_section(part)}" for part in parts)


def shortfalls(parts: list[Section]) -> str:
    """Return the requirements that are not met, the cases in which another server is better, and missing results."""
    demands = [(part, demand) for part in parts for demand in part.demands]
    short = [(part, demand) for part, demand in demands if not demand.met]
    text = f"{len(demands) - len(short)} of {len(demands)} requirements are met."
    if short:
        heads = ("requirement", "measured", "required", "benchmark")
        rows = [(each.what, each.measured, each.required, _link(part)) for part, each in short]
        text += f" These are not:\n\n{table(heads, rows)}"
    else:
        text += "\n"
    better = [f"- {_link(part)}: {line}\n" for part in parts for line in part.better]
    if better:
        text += f"\nAnother server is better by more than a tenth in these cases:\n\n{''.join(better)}"
    missing = [_link(part) for part in parts if not part.sources]
    return text + (f"\nNo result is saved yet: {', '.join(missing)}.\n" if missing else "")


def _link(part: Section) -> str:
    return f"[{part.title.partition(':')[0]}](#{_anchor(part.title)})"


def _anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-")


def _section(part: Section) -> str:
    text = f"## {part.title}\n\n{textwrap.fill(part.about, 120)}\n\n```\n{part.command}\n```\n\n"
    if not part.sources:
        return text + "No result is saved yet.\n"
    text += "".join(f"{each}\n" for each in _sources(part)) + f"\n{part.tables}"
    return text + f"\n![{part.title}](measurements/{part.name}.svg)\n"


def _sources(part: Section) -> list[str]:
    if len(part.sources) == 1:
        return [f"Figures of {part.sources[0]}."]
    return ["Figures of:\n", *(f"- {each}" for each in part.sources)]


def write_charts(parts: list[Section], folder: Path) -> None:
    """Draw the chart of each section that has figures."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        if part.panels:
            draw(part.panels, folder / f"{part.name}.svg")


def main() -> None:
    """Write the page, the charts and the tables of fan-out."""
    parts = sections()
    PAGE.write_text(render(parts))
    write_charts(parts, CHARTS)
    standings.write_tables(standings.kept())


if __name__ == "__main__":
    main()
