"""The limits of relay's figures; most are multiples of the floor's figure, measured in turns in the same run.

Owns the cases, their limits and how repeated runs become one result; never starts a process itself. Run it by
`python -m bench`, or `python -m bench CASE…`. Relay beside other servers is in `bench.fanout`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench import encode
from bench.feed import Bench, Figures
from bench.runs import Round, accept, apart, fed, idle, ingest, memory, resume, stalled_memory, stalled_share, together
from bench.targets import TARGETS
from loadtest.rig.harness import pinned

INGEST_EVENTS = 1_500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table.

    Args:
        name: name on the command line.
        what: description of the figure, for people.
        value: name of the figure.
        unit: unit of the figure.
        limit: limit of the figure.
        ratio: the limit applies to relay's figure divided by the floor's, not to relay's figure.
        at_least: the limit is a minimum, not a maximum.
        run: makes one run of each server.
        targets: the servers to measure.
        pin: server and load run on separate cores. This matters for CPU per delivery: on a shared core, the load
            evicts the server's caches, and the server pays for it.
        length: factor for the length of feeds; with few events, the tail of the latencies is random.
    """

    name: str
    what: str
    value: str
    unit: str
    limit: float
    ratio: bool = False
    at_least: bool = False
    run: Round
    targets: tuple[str, ...] = ("floor", "relay")
    pin: bool = False
    length: float = 1.0

    def met(self, value: float) -> bool:
        """Return whether the value is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


def _cpu(streams: int, rate: int) -> Case:
    return Case(
        name=f"cpu-{streams}x{rate}",
        what=f"CPU per delivery, {streams:,} streams × {rate}/s",
        value="cpu_us_per_delivery",
        unit="µs",
        limit=1.05,
        ratio=True,
        run=together(streams, rate),
        pin=True,
    )


def _rate(streams: int, rate: int, limit: float = 0.95) -> Case:
    return Case(
        name=f"rate-{streams}x{rate}",
        what=f"deliveries per second, {streams:,} streams × {rate:,}/s",
        value="deliveries_per_s",
        unit="/s",
        limit=limit,
        ratio=True,
        at_least=True,
        run=apart(fed(streams, rate, overload=True)),
    )


_memory = apart(memory(10_000))

CASES = {
    case.name: case
    for case in (
        _cpu(1000, 100),
        _cpu(10_000, 10),
        _cpu(10_000, 100),
        _rate(1000, 1000),
        _rate(10_000, 1000),
        _rate(10_000, 4000, 0.9),  # exceeds the capacity of both servers, which keep up with the other two rates
        Case(
            name="latency-10000x10",
            what="p99 latency, Unix socket to client, 10,000 streams × 10/s",
            value="p99_ms",
            unit="ms",
            limit=1.15,
            ratio=True,
            run=together(10_000, 10),
            length=2,
        ),
        Case(
            name="memory-10000",
            what="user memory per idle stream, growth of PSS at 10,000",
            value="bytes_per_stream",
            unit="bytes",
            limit=256,
            run=_memory,
        ),
        Case(
            name="gc-10000",
            what="garbage collector's objects per idle stream",
            value="gc_objects_per_stream",
            unit="",
            limit=0.01,  # a hundred objects for ten thousand streams allow for tables that grow
            run=_memory,
            targets=("relay",),
        ),
        Case(
            name="stalled-500",
            what="kernel TCP memory of a client that stopped reading, both ends, 500 of them",
            value="kib_per_stream",
            unit="KiB",
            limit=300,
            run=apart(stalled_memory(500)),
        ),
        Case(
            name="ingest",
            what="NDJSON over the Unix socket into the log, no acknowledgements, no streams",
            value="events_per_s",
            unit="/s",
            limit=400_000,
            at_least=True,
            run=apart(ingest(INGEST_EVENTS)),
        ),
        Case(
            name="encode",
            what="encoder, Cython against its Python twin, 150-byte events",
            value="ratio",
            unit="×",
            limit=10,
            at_least=True,
            run=apart(lambda _target, _bench: encode.speed()),
            targets=("relay",),
        ),
        Case(
            name="copies",
            what="payload copies of the encoder, as memory allocated for a 1 MB frame",
            value="copies",
            unit="",
            limit=1.01,
            run=apart(lambda _target, _bench: encode.copies()),
            targets=("relay",),
        ),
        Case(
            name="accept-10000",
            what="CPU per stream, 10,000 streams opened as fast as they go",
            value="cpu_us_per_stream",
            unit="µs",
            limit=2.5,
            ratio=True,
            run=apart(accept(10_000)),
            pin=True,
        ),
        Case(
            name="resume-10000",
            what="CPU per stream that resumes with 10 missed events, against a new one, 10,000 of each",
            value="cpu_ratio",
            unit="×",
            limit=1.5,
            run=apart(resume(10_000, 10)),
            targets=("relay",),
            pin=True,
        ),
        Case(
            name="stalled-5pct",
            what="healthy clients' p99 while 5 % stop reading, against the same without, 1,000 × 100/s",
            value="p99_ratio",
            unit="×",
            limit=1.1,
            run=apart(stalled_share(1000, 100)),
            length=2,
        ),
        Case(
            name="idle-10000",
            what="CPU with 10,000 idle streams between heartbeats, share of a core",
            value="cpu_share",
            unit="",
            limit=0.001,
            run=apart(idle(10_000)),
        ),
    )
}


def measure(case: Case, bench: Bench, *, repeat: int, targets: Sequence[str], pin: bool | None) -> dict[str, object]:
    """Run a case for each server in turns and summarise the runs.

    Args:
        case: the case.
        bench: settings of the runs.
        repeat: runs of each server; each run reverses the order.
        targets: the servers; those that the case does not name are skipped.
        pin: whether to pin server and load to cores; None uses the setting of the case.

    Returns:
        The result as plain JSON values: `median`, `min` and `max` for each server; `ratio` of the medians, with the
        least and greatest ratio of the pairs; `limit`, `met`; and the figures of every run.
    """
    pin = case.pin if pin is None else pin
    bench = replace(bench, seconds=bench.seconds * case.length, cores=pinned() if pin else bench.cores)
    names = [name for name in case.targets if name in targets]
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for turn in range(repeat):
        order = names if turn % 2 == 0 else names[::-1]
        for name, figures in case.run([TARGETS[each] for each in order], bench).items():
            runs[name].append(figures)
    result: dict[str, object] = {"case": case.name, "what": case.what, "value": case.value, "unit": case.unit}
    for name in names:
        values = [figures[case.value] for figures in runs[name]]
        result[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    result |= _verdict(case, {name: [figures[case.value] for figures in runs[name]] for name in names})
    return {**result, "pinned": pin, "repeat": repeat, "seconds": bench.seconds, "runs": runs}


def _verdict(case: Case, values: dict[str, list[float]]) -> dict[str, object]:
    verdict: dict[str, object] = {"limit": case.limit, "limit_is": "least" if case.at_least else "most"}
    verdict["limit_for"] = "ratio" if case.ratio else "relay"
    relay, floor = values.get("relay"), values.get("floor")
    if relay and floor and statistics.median(floor) > 0:
        pairs = [mine / other for mine, other in zip(relay, floor, strict=True) if other > 0]
        ratio = statistics.median(relay) / statistics.median(floor)
        verdict |= {"ratio": ratio, "ratio_min": min(pairs), "ratio_max": max(pairs)}
        if case.ratio:
            verdict["met"] = case.met(ratio)
    if relay and not case.ratio:
        verdict["met"] = case.met(statistics.median(relay))
    return verdict
