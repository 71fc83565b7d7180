"""The runs behind the rows of the table.

Owns the runs of single servers and of servers in turns. Never summarises and never judges.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.request import urlopen

from bench.feed import CATCH_UP_S, Bench, Feed, Figures, Stopwatch, opened, run_duel, run_feed
from loadtest.rig.harness import MeasuredServer, MeasureError, pinned, tcp_memory_bytes
from loadtest.rig.targets import Target

IDLE_S = 10.0
WARM_UP_STREAMS = 100
STALLED_FILL = 2000
ONE_EVENTS = 5
REPLAY_RATE = 5000.0
REPLAY_S = 60.0
SETTLE_S = 0.25
# A run during which other processes used more than this share of a core is repeated, at most AGAIN_MAX times.
OTHERS_CORES_MAX = 0.1
AGAIN_MAX = 2

Run = Callable[[Target, Bench], Figures]
Round = Callable[[Sequence[Target], Bench], dict[str, Figures]]


def apart(run: Run) -> Round:
    """Run each server once, one after the other."""

    def round_of(targets: Sequence[Target], bench: Bench) -> dict[str, Figures]:
        return {target.name: _undisturbed(run, target, bench) for target in targets}

    return round_of


def together(streams: int, rate: float) -> Round:
    """Feed all streams in turns of a fraction of a second; for figures that drift between runs."""

    def round_of(targets: Sequence[Target], bench: Bench) -> dict[str, Figures]:
        return run_duel(targets, Feed(streams=streams, rate=rate, seconds=bench.seconds), bench)

    return round_of


def _undisturbed(run: Run, target: Target, bench: Bench) -> Figures:
    """Run once; repeat at most `AGAIN_MAX` times while other processes disturb the run."""
    for _ in range(AGAIN_MAX):
        figures = run(target, bench)
        if figures.get("others_cores", 0.0) <= OTHERS_CORES_MAX:
            return figures
    return run(target, bench)


def memory(streams: int) -> Run:
    """Measure the growth of memory by idle streams, after a few others have opened and closed."""

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
    """Return the number of objects that the server's garbage collector tracks; NaN if the server does not report it."""
    value = stats.get("gc_objects")
    return float(value) if isinstance(value, int | float) else float("nan")


def accept(streams: int, *, pin: bool = False) -> Run:
    """Open streams as fast as the server accepts them.

    Args:
        streams: streams to open.
        pin: whether all processes of the server share one core. Otherwise, servers with several processes also compete
            with the load.
    """

    def run(target: Target, bench: Bench) -> Figures:
        if pin:
            bench = replace(bench, cores=pinned())
        with bench.server(target) as server:
            before = server.cpu_s()
            with bench.swarm(server, streams, concurrency=1000) as swarm:
                report = opened(swarm, streams)
                cpu = server.cpu_s() - before
        return {
            "streams_per_s": streams / report.connect_s,
            "cpu_us_per_stream": cpu / streams * 1e6,
            "streams_per_cpu_s": streams / cpu,
            "load_cpu_s": report.cpu_s,
        }

    return run


def resume(streams: int, missed: int) -> Run:
    """Open streams as fast as the server accepts them: new ones, then ones whose last id is `missed` events old."""

    def run(target: Target, bench: Bench) -> Figures:
        with bench.server(target) as server:
            with bench.publisher(server, rate=REPLAY_RATE, count=2 * missed, seconds=REPLAY_S) as publisher:
                publisher.done()
            epoch, _, last = _last_id(server).rpartition("-")
            path = f"{target.path.replace('{topic}', 'default')}&lastEventId={epoch}-{int(last) - missed}"
            cpu_us = []
            for each in ("", path):
                before = server.cpu_s()
                with bench.swarm(server, streams, path=each, concurrency=1000) as swarm:
                    opened(swarm, streams)
                    cpu_us.append((server.cpu_s() - before) / streams * 1e6)
            stats = server.stats()
        if stats["resumes"] != {"hit": streams} or stats["deliveries"] != streams * missed:
            raise MeasureError(f"{streams} streams resumed: {stats['resumes']}, {stats['deliveries']} deliveries")
        return {"cpu_us_new": cpu_us[0], "cpu_us_resumed": cpu_us[1], "cpu_ratio": cpu_us[1] / cpu_us[0]}

    return run


def _last_id(server: MeasuredServer) -> str:
    """Return the id that the server gives to a new stream."""
    with urlopen(f"http://127.0.0.1:{server.port}/events?topic=default", timeout=REPLAY_S) as stream:
        for line in stream:
            if line.startswith(b"id: "):
                return str(line[4:].decode().strip())
    raise MeasureError("a new stream has no id")


def ingest(events: int) -> Run:
    """Publish NDJSON as fast as the server reads it, without streams and acknowledgements."""

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
    """Measure the CPU time of a server with idle streams between two heartbeats."""

    def run(target: Target, bench: Bench) -> Figures:
        # Heartbeats stay on, so that the figure includes their timer; none is sent during the measurement.
        with bench.server(target, ("--heartbeat", "60s")) as server, bench.swarm(server, streams) as swarm:
            opened(swarm, streams)
            time.sleep(1.0)
            watch = Stopwatch(server, [swarm.pid])
            time.sleep(IDLE_S)
            times = watch.read()
        return {"cpu_share": times["cpu_s"] / times["wall_s"], **times}

    return run


def stalled_share(streams: int, rate: float) -> Run:
    """Divide the latency of healthy streams beside 5 % stalled streams by their latency without stalled streams."""

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


def fed(streams: int, rate: float, *, overload: bool = False, topics: int = 0) -> Run:
    """Feed all streams; with `topics`, each topic goes to its share of the streams."""

    def run(target: Target, bench: Bench) -> Figures:
        feed = Feed(streams=streams, rate=rate, seconds=bench.seconds, overload=overload, topics=topics)
        return run_feed(target, feed, bench)

    return run


def stalled_memory(streams: int) -> Run:
    """Measure the kernel memory of stalled streams, both ends, as the growth of the machine's TCP memory."""

    def run(target: Target, bench: Bench) -> Figures:
        before = tcp_memory_bytes()
        with bench.server(target) as server, bench.swarm(server, streams, stalled=streams) as swarm:
            opened(swarm, streams)
            with bench.publisher(server, rate=2000, count=8000, seconds=10) as publisher:
                publisher.done()
            time.sleep(SETTLE_S)
            grown = tcp_memory_bytes() - before
        if grown <= 0:
            raise MeasureError("TCP memory did not grow: were the streams fed?")
        return {"kib_per_stream": grown / streams / 1024, "tcp_bytes": grown}

    return run


def one(streams: int) -> Run:
    """Publish single events to idle streams; measure the time until the last stream has received each."""

    def run(target: Target, bench: Bench) -> Figures:
        last_ms: list[float] = []
        with bench.server(target) as server, bench.swarm(server, streams) as swarm:
            opened(swarm, streams)
            watch = Stopwatch(server, [swarm.pid])
            for number in range(1, ONE_EVENTS + 1):
                swarm.reset()
                with bench.publisher(server, rate=1000, count=1, seconds=CATCH_UP_S, first=number) as publisher:
                    publisher.done()
                report = swarm.wait_for(number, CATCH_UP_S)
                last_ms.append(report.max_ms)
            times = watch.read()
            report = swarm.mark()
        return {
            "last_ms": statistics.median(last_ms),
            "cpu_us_per_delivery": times["cpu_s"] / max(1, report.deliveries) * 1e6,
            "delivered": report.deliveries / (streams * ONE_EVENTS),
            "faults": report.faults,
            **times,
        }

    return run


def replay(streams: int, events: int) -> Run:
    """Open streams at once that request all retained events."""

    def run(target: Target, bench: Bench) -> Figures:
        with bench.server(target) as server:
            with bench.publisher(server, rate=REPLAY_RATE, count=events, seconds=REPLAY_S) as publisher:
                published = publisher.done()
            watch = Stopwatch(server, [])
            with bench.swarm(server, streams, path=target.replay_path) as swarm:
                report = swarm.wait_for(published.last, REPLAY_S)
                times = watch.read(report.cpu_s)
                wall_s = max(times["wall_s"], report.connect_s)
        return {
            "whole_s": wall_s,
            "deliveries_per_s": report.deliveries / wall_s,
            "cpu_us_per_delivery": times["cpu_s"] / max(1, report.deliveries) * 1e6,
            "delivered": report.deliveries / (streams * published.sent),
            "faults": report.faults,
            **times,
        }

    return run
