"""Make one measured run of a server, its streams and a feed; or of several servers, fed in turns.

Owns the order of events in a run (connect, fill, feed, wait, read); never judges a figure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.rig.harness import Cores, MeasuredServer, MeasureError, busy_s, cpu_s
from loadtest.rig.publisher import PublisherProgram
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.rig.targets import Target

Figures = dict[str, float]

SIZE = 150
CATCH_UP_S = 30.0
WARM_UP_S = 1.5
SWARM_S = 180.0
FILL_RATE = 500.0
# A duel: the length of a turn; the share of a core that other processes may use in an undisturbed turn (coarse, because
# it counts clock ticks); and the maximum number of turns, as a multiple of the requested undisturbed turns.
TURN_S = 0.5
TURN_OTHERS_CORES_MAX = 0.2
TURNS_MORE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A feed and the streams that receive it.

    Args:
        streams: open streams.
        rate: events a second.
        seconds: length of the feed.
        stalled: number of streams that stop reading.
        fill: events sent before the measurement, so that stalled streams have stalled when it begins.
        overload: the feed may exceed the server's capacity, so measure a window of time and await no last event.
        topics: number of topics; events go to them in turn, and each stream follows one. 0 means one topic for all.
    """

    streams: int
    rate: float
    seconds: float
    stalled: int = 0
    fill: int = 0
    overload: bool = False
    topics: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The settings of all runs.

    Args:
        cores: the cores of the server and of the load.
        seconds: length of each feed.
        extra: more arguments for relay.
    """

    cores: Cores = field(default_factory=Cores)
    seconds: float = 5.0
    extra: tuple[str, ...] = ()

    def server(self, target: Target, extra: tuple[str, ...] = ()) -> MeasuredServer:
        """Start a server and wait until it is ready."""
        return MeasuredServer(target, cpus=self.cores.server, extra=(*self.extra, *extra))

    def swarm(
        self,
        server: MeasuredServer,
        streams: int,
        *,
        path: str = "",
        stalled: int = 0,
        concurrency: int = 256,
        topics: int = 0,
    ) -> Swarm:
        """Begin to open streams; `path` defaults to the target's path."""
        topic = "t.{}" if topics else "default"
        return Swarm(
            server.port,
            streams,
            path=(path or server.target.path).replace("{topic}", topic),
            stalled=stalled,
            concurrency=min(concurrency, server.target.concurrency),
            topics=topics,
            seconds=SWARM_S,
            cpus=self.cores.load,
        )

    def publisher(
        self, server: MeasuredServer, *, rate: float, count: int, seconds: float, first: int = 1, topics: int = 0
    ) -> PublisherProgram:
        """Begin to publish."""
        return server.publisher(
            rate=rate, count=count, seconds=seconds, size=SIZE, first=first, topics=topics, cpus=self.cores.load
        )


def opened(swarm: Swarm, streams: int, timeout_s: float = CATCH_UP_S) -> SwarmReport:
    """Wait until all streams are open.

    Raises:
        MeasureError: some streams did not open.
    """
    report = swarm.ready(timeout_s)
    if report.opened != streams:
        raise MeasureError(f"{report.opened} of {streams} streams open, {report.refused} refused")
    return report


class Timed(Protocol):
    """One server, or several together."""

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""


class Stopwatch:
    """Measures the CPU time of the server, of the load and of all other processes from its creation on."""

    def __init__(self, server: Timed, load: Sequence[int]) -> None:
        self._server = server
        self._load = load
        self._began = (time.monotonic(), server.cpu_s(), sum(map(cpu_s, load)), busy_s())

    def read(self, ended_load_s: float = 0.0) -> Figures:
        """Return the seconds since the beginning.

        Args:
            ended_load_s: CPU seconds of load processes that started and ended since then.

        Returns:
            `wall_s`; `cpu_s` of the server; `load_cpu_s`; `others_cores`, the mean number of cores that all other
            processes used. Do not trust a figure if `others_cores` exceeds a few hundredths.
        """
        wall, server, load, busy = self._began
        now = time.monotonic()
        server_s = self._server.cpu_s() - server
        load_s = sum(map(cpu_s, self._load)) - load + ended_load_s
        others_s = max(0.0, busy_s() - busy - server_s - load_s)
        return {
            "wall_s": now - wall,
            "cpu_s": server_s,
            "load_cpu_s": load_s,
            "others_cores": others_s / (now - wall),
        }


def run_feed(target: Target, feed: Feed, bench: Bench) -> Figures:
    """Feed a fresh server's streams and measure.

    Returns:
        `deliveries`, `deliveries_per_s`, `cpu_us_per_delivery`, `bytes_per_delivery`, `joined` (events per read; a
        late server joins more events and saves CPU), latencies `p50_ms` to `max_ms`, `delivered` (share of the
        published events), `lost` (not received), `faults` (duplicates, wrong order, torn, closed), and the figures of
        the stopwatch.

    Raises:
        MeasureError: some streams did not open.
    """
    with (
        bench.server(target) as server,
        bench.swarm(server, feed.streams, stalled=feed.stalled, topics=feed.topics) as swarm,
    ):
        opened(swarm, feed.streams)
        if feed.fill:
            with bench.publisher(server, rate=FILL_RATE, count=feed.fill, seconds=CATCH_UP_S) as publisher:
                publisher.done()
            swarm.wait_for(feed.fill, CATCH_UP_S)
            swarm.reset()
        return _overload(server, swarm, feed, bench) if feed.overload else _steady(server, swarm, feed, bench)


def _steady(server: MeasuredServer, swarm: Swarm, feed: Feed, bench: Bench) -> Figures:
    """Await all deliveries, so that the server's CPU time covers exactly these."""
    before = swarm.mark()
    count = round(feed.rate * feed.seconds)
    first = feed.fill + 1
    watch = Stopwatch(server, [swarm.pid])
    # A delayed publisher has twice the time to send everything.
    seconds = 2 * feed.seconds
    with bench.publisher(
        server, rate=feed.rate, count=count, seconds=seconds, first=first, topics=feed.topics
    ) as publisher:
        published = publisher.done()
    reached = swarm.wait_for(published.last, CATCH_UP_S)
    times = watch.read(published.cpu_s)
    after = swarm.finish(published.last, 1.0 if reached.last_min < published.last else CATCH_UP_S)
    expected = published.sent * (feed.streams - feed.stalled) // (feed.topics or 1)
    return {
        **_figures(before, after, times),
        "published": published.sent,
        "delivered": (after.deliveries - before.deliveries) / expected,
        "lost": expected - (after.deliveries - before.deliveries),
        "behind_max_ms": published.behind_max_ms,
    }


def _overload(server: MeasuredServer, swarm: Swarm, feed: Feed, bench: Bench) -> Figures:
    count = round(feed.rate * (feed.seconds + WARM_UP_S + 1))
    seconds = feed.seconds + WARM_UP_S + 1
    with bench.publisher(server, rate=feed.rate, count=count, seconds=seconds) as publisher:
        time.sleep(WARM_UP_S)
        watch = Stopwatch(server, [swarm.pid, publisher.pid])
        before = swarm.mark()
        time.sleep(feed.seconds)
        after = swarm.mark()
        times = watch.read()
    figures = _figures(before, after, times)
    fed = feed.rate * feed.streams
    return {
        **figures,
        # A rate above that of the feed is a backlog from before the window, so it does not count.
        "deliveries_per_s": min(figures["deliveries_per_s"], fed),
        "delivered": min(1.0, figures["deliveries_per_s"] / fed),
        "lost": max(0, after.missed - after.told_missed),
    }


def _figures(before: SwarmReport, after: SwarmReport, times: Figures) -> Figures:
    deliveries = after.deliveries - before.deliveries
    seconds = (after.time_ns - before.time_ns) / 1e9
    return {
        "deliveries": deliveries,
        "deliveries_per_s": deliveries / seconds,
        "cpu_us_per_delivery": times["cpu_s"] / max(1, deliveries) * 1e6,
        "bytes_per_delivery": (after.bytes - before.bytes) / max(1, deliveries),
        "joined": deliveries / max(1, after.reads - before.reads),
        **_latencies(after),
        "faults": after.duplicates + after.wrong_order + after.torn + after.closed,
        **times,
    }


def _latencies(report: SwarmReport) -> Figures:
    return {
        "p50_ms": report.p50_ms,
        "p90_ms": report.p90_ms,
        "p99_ms": report.p99_ms,
        "p999_ms": report.p999_ms,
        "max_ms": report.max_ms,
    }


class _Contender:
    """One server of a duel, with its streams and the figures of its turns."""

    def __init__(self, target: Target, feed: Feed, bench: Bench, stack: ExitStack) -> None:
        self._bench = bench
        self._server = stack.enter_context(bench.server(target))
        self._swarm = stack.enter_context(bench.swarm(self._server, feed.streams))
        opened(self._swarm, feed.streams)
        self.name = target.name
        self._published = 0
        self._turns: list[Figures] = []

    def turn(self, rate: float) -> None:
        """Feed for one turn and await all deliveries."""
        before = self._swarm.mark()
        watch = Stopwatch(self._server, [self._swarm.pid])
        count, first = round(rate * TURN_S), self._published + 1
        with self._bench.publisher(self._server, rate=rate, count=count, seconds=CATCH_UP_S, first=first) as publisher:
            published = publisher.done()
        after = self._swarm.wait_for(published.last, CATCH_UP_S)
        if after.last_min < published.last:
            raise MeasureError(f"{self.name}: event {published.last} did not reach every stream")
        self._published = published.last
        self._turns.append(_figures(before, after, watch.read(published.cpu_s)))

    def warm_up(self, rate: float) -> None:
        """Run one turn that does not count, because it includes the cost of first access to memory."""
        self.turn(rate)
        self._turns.clear()
        self._swarm.reset()

    def undisturbed(self) -> list[Figures]:
        """Return the turns in which other processes used little CPU."""
        return [turn for turn in self._turns if turn["others_cores"] <= TURN_OTHERS_CORES_MAX]

    def sum(self) -> Figures:
        """Combine the undisturbed turns, or all turns if there are none; the latencies always cover all turns."""
        last, counted = self._swarm.mark(), self.undisturbed() or self._turns
        sums = {name: sum(turn[name] for turn in counted) for name in ("deliveries", "wall_s", "cpu_s", "load_cpu_s")}
        return {
            **sums,
            "deliveries_per_s": sums["deliveries"] / sums["wall_s"],
            "cpu_us_per_delivery": sums["cpu_s"] / sums["deliveries"] * 1e6,
            **{name: _mean(counted, name) for name in ("bytes_per_delivery", "joined", "others_cores")},
            **_latencies(last),
            "faults": last.faults,
            "turns": len(self._turns),
            "disturbed": len(self._turns) - len(self.undisturbed()),
        }


def _mean(turns: Sequence[Figures], name: str) -> float:
    return sum(turn[name] for turn in turns) / len(turns)


def run_duel(targets: Sequence[Target], feed: Feed, bench: Bench) -> dict[str, Figures]:
    """Feed several servers in turns; all servers run at the same time with their streams open.

    The cost of a send varies by a fifth within seconds, for every server. Turns of half a second spread this variation
    evenly over the servers. Turns that other processes disturbed are repeated, up to the limit `TURNS_MORE`.

    Returns:
        The figures of `run_feed` for each server, without `lost`, because an incomplete turn is an error.

    Raises:
        MeasureError: some streams did not open, or an event did not reach all of them.
    """
    turns = max(1, round(feed.seconds / TURN_S))
    with ExitStack() as stack:
        contenders = [_Contender(target, feed, bench, stack) for target in targets]
        for contender in contenders:
            contender.warm_up(feed.rate)
        for number in range(turns * TURNS_MORE):
            for contender in contenders if number % 2 == 0 else contenders[::-1]:
                contender.turn(feed.rate)
            if all(len(contender.undisturbed()) >= turns for contender in contenders):
                break
        return {contender.name: contender.sum() for contender in contenders}
