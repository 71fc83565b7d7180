"""The samples of a soak, and its result: the slope of the memory of each server, the counts, and the verdict.

Owns the format of the saved file. Never measures.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

WARM_UP_S = 1800.0
"""Memory before this time is not part of the slope, because the caches of chunks (`relay.core.catchup`) still grow. A
run of less than two hours excludes its first quarter."""
AGE_S = 60.0
"""Ages of processes are compared in steps of this size."""
SLOPE_MIB_PER_HOUR_MAX = 4.0
"""Bound of the slope of the memory of a server, in a run of at least an hour."""
HOUR_S = 3600.0
MIB = 1024 * 1024


class ServerSample(msgspec.Struct):
    """One server at one moment.

    Args:
        hub_bytes, workers_bytes: memory (PSS) of the first process, and of all workers.
        descriptors: open descriptors of all processes.
        age_s: seconds since the first process started.
        streams, lagging, events, closes, policy_actions: as in /stats; counts begin at zero in a new process.
    """

    hub_bytes: int
    workers_bytes: int
    descriptors: int
    age_s: float
    streams: int = 0
    lagging: int = 0
    events: int = 0
    closes: dict[str, int] = {}
    policy_actions: dict[str, int] = {}


class SoakSample(msgspec.Struct):
    """The whole run at one moment. Counts are totals since the start.

    Args:
        time_s: seconds since the start.
        servers: the servers by name.
        tcp_bytes: kernel memory of all TCP sockets of this machine.
        servers_cpu_s, readers_cpu_s: CPU seconds of all servers (without Redis), and of this program.
        published, again: events, and batches that were sent again.
        received: events that the readers received.
        connections, lost: connections that were opened, and that ended without the reader leaving.
        leaves, pauses: times that a reader left, and that a slow reader stopped reading.
        gaps: gaps by reason.
        reported: missed events that gaps reported.
        faults: broken promises.
        actions: upgrades, restarts and reloads.
        errors: the servers' log lines of level ERROR.
        settled: whether the run has ended, and each reader was checked up to the last event.
    """

    time_s: float
    servers: dict[str, ServerSample]
    tcp_bytes: int
    servers_cpu_s: float
    readers_cpu_s: float
    published: int
    again: int
    received: int
    connections: int
    lost: int
    leaves: int
    pauses: int
    gaps: dict[str, int]
    reported: int
    faults: dict[str, int]
    actions: dict[str, int]
    errors: list[str]
    settled: bool = False


class Slope(msgspec.Struct):
    """The memory of one server after the warm-up.

    Args:
        mib_per_hour, standard_error: the slope by least squares.
        samples: the number of samples.
        first_mib, last_mib, peak_mib: memory in the first and the last of them, and the largest.
        first_descriptors, last_descriptors: the same for descriptors.
    """

    mib_per_hour: float
    standard_error: float
    samples: int
    first_mib: float
    last_mib: float
    peak_mib: float
    first_descriptors: int
    last_descriptors: int


class SoakResult(msgspec.Struct):
    """The result.

    Args:
        passed: whether the run has ended, no promise was broken, no error was logged and no slope exceeds its bound.
        memory: the slopes by server.
        cores: CPU seconds per second, of all processes.
        last: the last sample, with the totals.
        twice, unreported: events that a reader received again or out of order, and that it missed without a gap.
    """

    passed: bool
    memory: dict[str, Slope]
    cores: float
    last: SoakSample
    twice: int
    unreported: int


class SoakStart(msgspec.Struct):
    """The first line of the file of samples.

    Args:
        commit: the commit of relay.
        started: the time of the start, ISO 8601.
        hours: the planned length.
    """

    commit: str
    started: str
    hours: float


class SavedSoak(SoakStart):
    """The saved file.

    Args:
        samples: the samples, in order.
        result: the result.
    """

    samples: list[SoakSample]
    result: SoakResult


def least_squares(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Return the common slope of groups of points, and its standard error; each group has a level of its own.

    The error is 0 if there are too few points to estimate it.
    """
    offsets = []
    for group in groups:
        x_mean, y_mean = (sum(values) / len(group) for values in zip(*group, strict=True))
        offsets += [(x - x_mean, y - y_mean) for x, y in group]
    spread = sum(x * x for x, _ in offsets)
    if not spread:
        return 0.0, 0.0
    slope = sum(x * y for x, y in offsets) / spread
    freedom = len(offsets) - len(groups) - 1
    rest = sum((y - slope * x) ** 2 for x, y in offsets)
    return slope, math.sqrt(rest / freedom / spread) if freedom > 0 else 0.0


def memory_of(name: str, samples: Sequence[SoakSample]) -> Slope:
    """Return the slope of the memory of a server.

    The memory of a server that is replaced depends on the age of its process. Its samples of the same age are compared.
    """
    warm_s = min(WARM_UP_S, samples[-1].time_s / 4)
    settled = [
        (sample.time_s, sample.servers[name])
        for sample in samples
        if name in sample.servers and sample.time_s >= warm_s
    ]
    if not settled:
        return Slope(0.0, 0.0, 0, 0.0, 0.0, 0.0, 0, 0)
    is_replaced = any(each.age_s < time_s - AGE_S for time_s, each in settled)
    groups: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for time_s, each in settled:
        size = (each.hub_bytes + each.workers_bytes) / MIB
        groups[round(each.age_s / AGE_S) if is_replaced else 0].append((time_s / HOUR_S, size))
    slope, error = least_squares(list(groups.values()))
    points = sorted(itertools.chain.from_iterable(groups.values()))
    sizes = [round(size, 1) for _, size in points]
    return Slope(
        mib_per_hour=round(slope, 2),
        standard_error=round(error, 2),
        samples=len(points),
        first_mib=sizes[0],
        last_mib=sizes[-1],
        peak_mib=max(sizes),
        first_descriptors=settled[0][1].descriptors,
        last_descriptors=settled[-1][1].descriptors,
    )


def result_of(samples: Sequence[SoakSample]) -> SoakResult:
    """Return the result of a run."""
    last = samples[-1]
    memory = {name: memory_of(name, samples) for name in last.servers}
    is_long = last.time_s >= HOUR_S
    grows = is_long and any(each.mib_per_hour > SLOPE_MIB_PER_HOUR_MAX for each in memory.values())
    faults = Counter(last.faults)
    return SoakResult(
        passed=last.settled and not grows and not last.faults and not last.errors,
        memory=memory,
        cores=round((last.servers_cpu_s + last.readers_cpu_s) / last.time_s, 3),
        last=last,
        twice=faults["an event twice, or out of order"],
        unreported=faults["a missed event that no gap reported"],
    )


def text_of(result: SoakResult) -> str:
    """Return the result as Markdown, for the documentation."""
    last = result.last
    rows = [
        f"| {name} | {each.first_mib} | {each.last_mib} | {each.peak_mib} | {each.mib_per_hour:+.2f} ± "
        f"{each.standard_error:.2f} | {each.first_descriptors} | {each.last_descriptors} |"
        for name, each in result.memory.items()
    ]
    facts = [
        ("hours", f"{last.time_s / HOUR_S:.2f}"),
        ("events published", f"{last.published:,}"),
        ("events received by all readers", f"{last.received:,}"),
        ("connections opened", f"{last.connections:,}"),
        *((f"{name} of servers", f"{count}") for name, count in last.actions.items()),
        ("pauses of slow readers", f"{last.pauses:,}"),
        ("gaps", ", ".join(f"{count:,} {reason}" for reason, count in sorted(last.gaps.items())) or "0"),
        ("missed events that gaps reported", f"{last.reported:,}"),
        ("missed events that no gap reported", f"{result.unreported}"),
        ("events received twice or out of order", f"{result.twice}"),
        ("other faults", f"{sum(last.faults.values()) - result.unreported - result.twice}"),
        ("log lines of level ERROR", f"{len(last.errors)}"),
        ("CPU of all processes", f"{100 * result.cores:.0f} % of one core"),
    ]
    return "\n".join(
        [
            "| server | MiB after warm-up | at the end | peak | slope, MiB/h | descriptors | at the end |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in facts),
        ]
    )
