"""`python -m bench.compression`: relay without and with gzip, and nginx and Caddy with gzip in front of relay.

Every run starts fresh servers. The arrangements take turns, and the order is reversed from one turn to the next. A run
is described by `bench.chain.measure`: bytes on the wire, CPU of all server processes, memory of all server processes.

The requirements compare arrangements within one turn:

- Bytes: relay with gzip against relay without, for JSON. Each event is a flush of its own, so no events are joined.
- CPU: all server processes together, per delivery; that is relay alone, or relay and the proxy.
- Additional memory: memory per stream of relay with gzip, minus that of relay without, before the feed: the feed leaves
  free memory in the allocator, which differs from run to run. The compressor (256 KiB) is shared by all streams, and
  part of `shared_bytes`.
- Less memory than nginx: memory per stream after the feed of relay and nginx together, divided by that of relay with
  gzip. This counts all of relay's memory per stream, not only what compression adds.

Owns the loads, the requirements and `compression.json`; writes a section of `README.md`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from bench import HERE, report
from bench.chain import SETTLE_EVENTS, WARM_UP_EVENTS, Arrangement, measure
from bench.contents import fragments, quotes, tokens
from bench.feed import Figures
from bench.proxies import caddy, nginx, program, versions
from bench.report import Spread, shown, spread
from loadtest.rig.harness import MeasureError, raise_descriptor_limit
from loadtest.rig.native import ProgramError

RESULTS = HERE / "compression.json"
SECTION = "compression"

ARRANGEMENTS = {
    each.name: each
    for each in (
        Arrangement(name="relay", title="relay, no compression", coded=False),
        Arrangement(name="relay-gzip", title="relay, `--compress gzip`", relay=("--compress", "gzip")),
        Arrangement(name="nginx", title="nginx `gzip on`, relay", proxy=nginx, program="nginx", streams_max=18_000),
        Arrangement(name="caddy", title="Caddy `encode gzip`, relay", proxy=caddy, program="caddy", streams_max=9_900),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One load.

    Args:
        kind: kind of content.
        contents: makes so many events.
        streams: open streams.
        rate: events per second.
    """

    kind: str
    contents: Callable[[int], Iterator[str]]
    streams: int
    rate: float

    @property
    def name(self) -> str:
        """Return the name on the command line."""
        return f"{self.kind}-{self.streams}x{self.rate:g}"


LOADS = {
    load.name: load
    for load in (
        Traffic(kind="json", contents=quotes, streams=1000, rate=10),
        Traffic(kind="json", contents=quotes, streams=10_000, rate=10),
        # A rate that the proxies can carry: one that is late joins events and saves CPU by it.
        Traffic(kind="json", contents=quotes, streams=10_000, rate=2),
        # 50 tokens per second to 10,000 streams are more than two cores can write.
        Traffic(kind="tokens", contents=tokens, streams=1000, rate=50),
        Traffic(kind="tokens", contents=tokens, streams=10_000, rate=10),
        Traffic(kind="html", contents=fragments, streams=1000, rate=10),
        Traffic(kind="html", contents=fragments, streams=10_000, rate=10),
    )
}

COLUMNS = {
    "streams": "streams",
    "bytes_per_delivery": "bytes per delivery",
    "cpu_us_per_delivery": "CPU per delivery, µs",
    "relay_us_per_delivery": "of it relay, µs",
    "idle_bytes_per_stream": "memory per stream before the feed, bytes",
    "memory_bytes_per_stream": "after it, bytes",
    "joined": "events per read",
    "p50_ms": "p50, ms",
    "taken_s": "time until all had all, s",
    "others_cores": "cores busy with other work",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A figure that compares two arrangements.

    Args:
        what: for readers.
        figure: of a run.
        of, to: the arrangements.
        bound: limit of the comparison.
        suits: whether a load is measured against it.
        difference: compare by `of - to` instead of `of / to`.
        at_least: the bound is a minimum.
    """

    what: str
    figure: str
    of: str
    to: str
    bound: float
    suits: Callable[[Traffic], bool]
    difference: bool = False
    at_least: bool = False


def _json(load: Traffic) -> bool:
    return load.kind == "json"


def _many(load: Traffic) -> bool:
    return load.streams >= 10_000


REQUIREMENTS = (
    Requirement(
        what="bytes with gzip, relative to without",
        figure="bytes_per_delivery",
        of="relay-gzip",
        to="relay",
        bound=1 / 3,
        suits=_json,
    ),
    Requirement(
        what="CPU with gzip, relative to without",
        figure="cpu_us_per_delivery",
        of="relay-gzip",
        to="relay",
        bound=1.15,
        suits=_many,
    ),
    Requirement(
        what="additional memory per stream with gzip, bytes",
        figure="idle_bytes_per_stream",
        of="relay-gzip",
        to="relay",
        bound=32,
        suits=_many,
        difference=True,
    ),
    Requirement(
        what="CPU of nginx and relay, relative to relay with gzip",
        figure="cpu_us_per_delivery",
        of="nginx",
        to="relay-gzip",
        bound=5,
        suits=_many,
        at_least=True,
    ),
    Requirement(
        what="memory of nginx and relay, relative to relay with gzip",
        figure="memory_bytes_per_stream",
        of="nginx",
        to="relay-gzip",
        bound=100,
        suits=_many,
        at_least=True,
    ),
)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A requirement and its measured value."""

    load: str
    what: str
    value: Spread
    required: str
    met: bool


class LoadRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one load.

    Args:
        load: its name.
        what: for readers.
        load_average: of the machine over one minute, before the first run and after the last one.
        runs: the figures of each run, by arrangement.
        errors: why runs failed, by arrangement; no further run follows one that failed.
    """

    load: str
    what: str
    load_average: tuple[float, float]
    runs: dict[str, list[Figures]]
    errors: dict[str, str]


def main() -> int:
    """Measure the loads that are named, or all; return 1 if a requirement is not met, 2 if relay failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compression", description=main.__doc__)
    parser.add_argument("--list", action="store_true", help="print the loads and the arrangements")
    parser.add_argument("--only", default="", metavar="LOAD,…", help="only these loads; nothing is written")
    parser.add_argument("--arrangements", default="", metavar="NAME,…", help="only these; nothing is written")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each load (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each feed (5)")
    parser.add_argument("--short", action="store_true", help="50 streams, 1 second, 1 turn; nothing is written")
    parser.add_argument("--write", action="store_true", help="write the results in spite of --only")
    options = parser.parse_args()
    if options.list:
        for load in LOADS.values():
            print(f"{load.name:14} {describe(load)}")
        for arrangement in ARRANGEMENTS.values():
            print(f"{arrangement.name:14} {arrangement.title}")
        return 0
    names = options.only.split(",") if options.only else list(LOADS)
    chosen = options.arrangements.split(",") if options.arrangements else list(ARRANGEMENTS)
    if unknown := sorted({*names} - {*LOADS} | {*chosen} - {*ARRANGEMENTS}):
        parser.error(f"unknown: {', '.join(unknown)}; see --list")
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    raise_descriptor_limit()
    arrangements = [each for name in chosen if _installed(each := ARRANGEMENTS[name])]
    streams_max, seconds, repeat = (50, 1.0, 1) if options.short else (sys.maxsize, options.seconds, options.repeat)
    command = shlex.join(["python", "-m", "bench.compression", *sys.argv[1:]])
    keep = not options.short and (options.write or not (options.only or options.arrangements))
    outcomes, verdicts = [], []
    for name in names:
        outcome = run(LOADS[name], arrangements, seconds=seconds, repeat=repeat, streams_max=streams_max)
        outcomes.append(outcome)
        verdicts += judge(LOADS[name], outcome)
        print(table(outcome), flush=True)
        if keep:
            write(outcomes, verdicts, command, seconds)
    print(verdict_table(verdicts), end="")
    if any(name.startswith("relay") for outcome in outcomes for name in outcome.errors):
        return 2
    return int(not options.short and not all(verdict.met for verdict in verdicts))


def _installed(arrangement: Arrangement) -> bool:
    """Return whether the programs of an arrangement are installed; say so if not."""
    if not arrangement.program or program(arrangement.program):
        return True
    print(f"{arrangement.name}: {arrangement.program} is not installed", file=sys.stderr)
    return False


def describe(load: Traffic) -> str:
    """Describe a load for readers."""
    size = statistics.mean(len(text) for text in load.contents(100))
    return f"{load.kind}, {size:,.0f} bytes on average, {load.streams:,} streams × {load.rate:g} events/s"


def run(
    load: Traffic, arrangements: Sequence[Arrangement], *, seconds: float, repeat: int, streams_max: int
) -> LoadRuns:
    """Measure each arrangement under a load, in turns.

    Args:
        load: the load.
        arrangements: in the order of the first turn; the order is reversed from one turn to the next.
        seconds: length of each feed.
        repeat: number of turns.
        streams_max: limit of the number of streams.
    """
    texts = list(load.contents(WARM_UP_EVENTS + SETTLE_EVENTS + max(1, round(load.rate * seconds))))
    runs: dict[str, list[Figures]] = {each.name: [] for each in arrangements}
    errors: dict[str, str] = {}
    before = os.getloadavg()[0]
    for turn in range(repeat):
        for each in arrangements if turn % 2 == 0 else arrangements[::-1]:
            if each.name in errors:
                continue
            streams = min(load.streams, each.streams_max, streams_max)
            try:
                runs[each.name].append(measure(each, streams, texts, load.rate))
            except (MeasureError, ProgramError) as error:
                errors[each.name] = str(error).strip()
                print(f"{load.name}: {each.name}: {error}", file=sys.stderr, flush=True)
    averages = (before, os.getloadavg()[0])
    return LoadRuns(load=load.name, what=describe(load), load_average=averages, runs=runs, errors=errors)


def judge(load: Traffic, outcome: LoadRuns) -> list[Verdict]:
    """Compare the runs of a load with the requirements; runs of one turn are compared with each other."""
    verdicts = []
    for each in REQUIREMENTS:
        pairs = list(zip(outcome.runs.get(each.of, []), outcome.runs.get(each.to, []), strict=False))
        if not each.suits(load) or not pairs:
            continue
        values = [
            of[each.figure] - to[each.figure] if each.difference else of[each.figure] / to[each.figure]
            for of, to in pairs
        ]
        value = spread(values)
        met = value.median >= each.bound if each.at_least else value.median <= each.bound
        required = f"{'≥' if each.at_least else '≤'} {report.number(each.bound)}"
        verdicts.append(Verdict(load=load.name, what=each.what, value=value, required=required, met=met))
    return verdicts


def table(outcome: LoadRuns) -> str:
    """Return the figures of a load as Markdown."""
    lines = [f"**{outcome.what}**", "", _row(["", *COLUMNS.values()]), _row(["---"] * (len(COLUMNS) + 1))]
    for name, figures in outcome.runs.items():
        if figures:
            cells = [shown(spread([each[column] for each in figures])) for column in COLUMNS]
        else:
            cells = ["failed", *[""] * (len(COLUMNS) - 1)]
        lines.append(_row([ARRANGEMENTS[name].title, *cells]))
    before, after = outcome.load_average
    lines += ["", f"Load average of the machine before and after: {before:.2f}, {after:.2f}."]
    return "\n".join([*lines, *(f"\nFailed: {name}: {error}" for name, error in outcome.errors.items())]) + "\n"


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Return the requirements and their measured values as Markdown."""
    lines = [_row(["load", "figure", "measured", "required", "met"]), _row(["---"] * 5)]
    for each in verdicts:
        lines.append(_row([each.load, each.what, shown(each.value), each.required, "yes" if each.met else "**no**"]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(outcomes: Sequence[LoadRuns], verdicts: Sequence[Verdict], command: str, seconds: float) -> None:
    """Write `compression.json` and the section of `README.md`."""
    stamped = report.stamp({"seconds": seconds, "outcomes": outcomes, "requirements": verdicts}, command)
    facts = stamped["machine"]
    facts |= versions()
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(stamped), indent=1) + b"\n")
    text = (
        f"`{command}`, {stamped['date']}, {seconds:g} s per feed; commit {facts['commit']}, {facts['processor']}, "
        f"nginx {facts.get('nginx', 'is not installed')}, Caddy {facts.get('caddy', 'is not installed')}.\n\n"
    )
    text += "".join(table(outcome) + "\n" for outcome in outcomes) + verdict_table(verdicts)
    report.put(report.README, SECTION, text)


if __name__ == "__main__":
    sys.exit(main())
