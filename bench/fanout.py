"""The cases of the table: relay beside the floor, in turns, in one run.

Owns the cases, their limits and how repeated runs become one result; never starts a process itself. Run it by
`python -m bench`, or `python -m bench CASE…`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench import encode
from bench.feed import Bench, Feed, Figures, Stopwatch, opened, run_feed, stalled_memory
from bench.harness import TARGETS, MeasureError, Target, pinned
from loadtest.swarm import SwarmReport

IDLE_S = 10.0
WARM_UP_STREAMS = 100
INGEST_EVENTS = 1_500_000
STALLED_FILL = 2000
# A run during which others kept this much of a core busy is made again, so many times.
OTHERS_CORES_MAX = 0.1
AGAIN_MAX = 2

Run = Callable[[Target, Bench], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table.

    Args:
        name: what it is called on the command line.
        what: what is measured, for people.
        value: which of a run's figures is the row's.
        unit: of that figure.
        limit: what it has to reach.
        ratio: the limit is for relay's figure divided by the floor's, not for relay's own.
        at_least: the limit is a least, not a most.
        run: makes one run.
        targets: which servers it is for.
        pin: server and load keep to cores of their own. For CPU a delivery: a server that shares its core
            with what it feeds is charged for the caches it lost.
        length: feeds are so many times as long as asked for: the tail of few events' latencies is chance.
    """

    name: str
    what: str
    value: str
    unit: str
    limit: float
    ratio: bool = False
    at_least: bool = False
    run: Run
    targets: tuple[str, ...] = ("floor", "relay")
    pin: bool = False
    length: float = 1.0

    def met(self, value: float) -> bool:
        """Whether the limit is kept."""
        return value >= self.limit if self.at_least else value <= self.limit


def memory(streams: int) -> Run:
    """Growth of memory by idle streams, after a few have come and gone."""

    def run(target: Target, bench: Bench) -> Figures:
        with bench.server(target) as server:
            with bench.swarm(server, WARM_UP_STREAMS) as few:
                opened(few, WARM_UP_STREAMS)
            pss, objects = server.pss_bytes(), _gc_objects(server.stats())
            with bench.swarm(server, streams) as swarm:
                opened(swarm, streams)
                pss_now, objects_now = server.pss_bytes(), _gc_objects(server.stats())
        return {
            "bytes_per_stream": (pss_now - pss) / streams,
            "gc_objects_per_stream": (objects_now - objects) / streams,
            "pss_before": pss,
            "pss_after": pss_now,
        }

    return run


def _gc_objects(stats: dict[str, object]) -> float:
    """Objects that the server's garbage collector tracks; not a number where it does not say."""
    value = stats.get("gc_objects")
    return float(value) if isinstance(value, int | float) else float("nan")


def accept(streams: int) -> Run:
    """Streams opened as fast as they go."""

    def run(target: Target, bench: Bench) -> Figures:
        with bench.server(target) as server:
            before = server.cpu_s()
            with bench.swarm(server, streams, concurrency=1000) as swarm:
                report: SwarmReport = opened(swarm, streams)
                cpu = server.cpu_s() - before
        return {
            "streams_per_s": streams / report.connect_s,
            "cpu_us_per_stream": cpu / streams * 1e6,
            "streams_per_cpu_s": streams / cpu,
            "load_cpu_s": report.cpu_s,
        }

    return run


def ingest(events: int) -> Run:
    """NDJSON as fast as the server takes it, with no streams and no acknowledgements."""

    def run(target: Target, bench: Bench) -> Figures:
        with bench.server(target) as server:
            watch = Stopwatch(server, [])
            with bench.publisher(server, rate=0, count=events, seconds=3 * bench.seconds) as publisher:
                report = publisher.done()
            times = watch.read(report.cpu_s)
        if not report.taken or report.answered_bytes:
            answers = f"{report.answered_bytes} bytes of answers"
            raise MeasureError(f"{target.name} did not take all events ({answers})")
        return {
            "events_per_s": report.sent / report.taken_s,
            "events_per_cpu_s": report.sent / times["cpu_s"],
            "cpu_us_per_event": times["cpu_s"] / report.sent * 1e6,
            "events": report.sent,
            **times,
        }

    return run


def idle(streams: int) -> Run:
    """CPU of a server whose streams are open and silent, between two heartbeats."""

    def run(target: Target, bench: Bench) -> Figures:
        # Heartbeats stay on, so that the timer behind them is in the figure; none falls due meanwhile.
        with bench.server(target, ("--heartbeat", "60s")) as server, bench.swarm(server, streams) as swarm:
            opened(swarm, streams)
            time.sleep(1.0)
            watch = Stopwatch(server, [swarm.pid])
            time.sleep(IDLE_S)
            times = watch.read()
        return {"cpu_share": times["cpu_s"] / times["wall_s"], **times}

    return run


def stalled_share(streams: int, rate: float) -> Run:
    """Healthy streams' latency with one stream in twenty stopped, divided by that without."""

    def run(target: Target, bench: Bench) -> Figures:
        whole = Feed(streams=streams, rate=rate, seconds=bench.seconds, fill=STALLED_FILL)
        odd = replace(whole, stalled=streams // 20)
        without, stopped = run_feed(target, whole, bench), run_feed(target, odd, bench)
        return {
            "p99_ratio": stopped["p99_ms"] / without["p99_ms"],
            "p99_ms_without": without["p99_ms"],
            "p99_ms_with": stopped["p99_ms"],
            "lost": without["lost"] + stopped["lost"],
            "faults": without["faults"] + stopped["faults"],
            "others_cores": max(without["others_cores"], stopped["others_cores"]),
        }

    return run


def fed(streams: int, rate: float, *, overload: bool = False) -> Run:
    """A feed to all streams."""

    def run(target: Target, bench: Bench) -> Figures:
        feed = Feed(streams=streams, rate=rate, seconds=bench.seconds, overload=overload)
        return run_feed(target, feed, bench)

    return run


def _cpu(streams: int, rate: int) -> Case:
    return Case(
        name=f"cpu-{streams}x{rate}",
        what=f"CPU a delivery, {streams:,} streams × {rate}/s",
        value="cpu_us_per_delivery",
        unit="µs",
        limit=1.10,
        ratio=True,
        run=fed(streams, rate),
        pin=True,
    )


def _rate(streams: int, rate: int) -> Case:
    return Case(
        name=f"rate-{streams}x{rate}",
        what=f"deliveries a second, {streams:,} streams × {rate:,}/s",
        value="deliveries_per_s",
        unit="/s",
        limit=0.95,
        ratio=True,
        at_least=True,
        run=fed(streams, rate, overload=True),
    )


_memory = memory(10_000)

CASES = {
    case.name: case
    for case in (
        _cpu(1000, 100),
        _cpu(10_000, 10),
        _cpu(10_000, 100),
        _rate(1000, 1000),
        _rate(10_000, 1000),
        _rate(10_000, 4000),  # where both keep up with the other two, this is more than can be
        Case(
            name="latency-10000x10",
            what="p99 latency, Unix socket to client, 10,000 streams × 10/s",
            value="p99_ms",
            unit="ms",
            limit=1.5,
            ratio=True,
            run=fed(10_000, 10),
            length=2,
        ),
        Case(
            name="memory-10000",
            what="user memory an idle stream, growth of PSS at 10,000",
            value="bytes_per_stream",
            unit="bytes",
            limit=256,
            run=_memory,
        ),
        Case(
            name="gc-10000",
            what="garbage collector's objects an idle stream",
            value="gc_objects_per_stream",
            unit="",
            limit=0.01,  # ten thousand streams may cost a hundred objects in all: tables that grew
            run=_memory,
            targets=("relay",),
        ),
        Case(
            name="stalled-500",
            what="kernel TCP memory of a client that stopped reading, both ends, 500 of them",
            value="kib_per_stream",
            unit="KiB",
            limit=300,
            run=lambda target, bench: stalled_memory(target, 500, bench),
        ),
        Case(
            name="ingest",
            what="NDJSON over the Unix socket into the log, no acknowledgements, no streams",
            value="events_per_s",
            unit="/s",
            limit=200_000,
            at_least=True,
            run=ingest(INGEST_EVENTS),
        ),
        Case(
            name="encode",
            what="encoder, Cython against its Python twin, 150-byte events",
            value="ratio",
            unit="×",
            limit=10,
            at_least=True,
            run=lambda _target, _bench: encode.speed(),
            targets=("relay",),
        ),
        Case(
            name="copies",
            what="payload copies of the encoder, as memory allocated for a 1 MB frame",
            value="copies",
            unit="",
            limit=1.01,
            run=lambda _target, _bench: encode.copies(),
            targets=("relay",),
        ),
        Case(
            name="accept-10000",
            what="10,000 streams opened as fast as they go",
            value="streams_per_s",
            unit="/s",
            limit=5000,
            at_least=True,
            run=accept(10_000),
            pin=True,
        ),
        Case(
            name="stalled-5pct",
            what="healthy clients' p99 while 5 % stop reading, against the same without, 1,000 × 100/s",
            value="p99_ratio",
            unit="×",
            limit=1.1,
            run=stalled_share(1000, 100),
            length=2,
        ),
        Case(
            name="idle-10000",
            what="CPU with 10,000 idle streams between heartbeats, share of a core",
            value="cpu_share",
            unit="",
            limit=0.001,
            run=idle(10_000),
        ),
    )
}


def measure(case: Case, bench: Bench, *, repeat: int, targets: Sequence[str], pin: bool | None) -> dict[str, object]:
    """Run a case for each server in turns, and sum it up.

    Args:
        case: what to run.
        bench: how.
        repeat: runs of each server; the order is turned round from one to the next.
        targets: the servers wanted; of these, those that the case is for.
        pin: whether to pin; None leaves it to the case.

    Returns:
        The result as plain JSON values: for each server `median`, `min`, `max`; `ratio` of the medians with
        the least and greatest of the pairs; `limit`, `met`; and every run's figures.
    """
    pin = case.pin if pin is None else pin
    bench = replace(bench, seconds=bench.seconds * case.length, cores=pinned() if pin else bench.cores)
    names = [name for name in case.targets if name in targets]
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for turn in range(repeat):
        for name in names if turn % 2 == 0 else reversed(names):
            runs[name].append(_undisturbed(case, TARGETS[name], bench))
    result: dict[str, object] = {"case": case.name, "what": case.what, "value": case.value, "unit": case.unit}
    for name in names:
        values = [figures[case.value] for figures in runs[name]]
        result[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    result |= _verdict(case, {name: [figures[case.value] for figures in runs[name]] for name in names})
    return {**result, "pinned": pin, "repeat": repeat, "seconds": bench.seconds, "runs": runs}


def _undisturbed(case: Case, target: Target, bench: Bench) -> Figures:
    """One run; again, a few times at most, while other processes of this machine take part in it."""
    for _ in range(AGAIN_MAX):
        figures = case.run(target, bench)
        if figures.get("others_cores", 0.0) <= OTHERS_CORES_MAX:
            return figures
    return case.run(target, bench)


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
