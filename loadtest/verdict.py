"""Judge a run: the criteria of each scenario, the measured values, and whether they pass.

Contains pure functions of the observations of the load and of the server's watch. Never runs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.plan import Plan
from loadtest.watch import Sample

MIB = 1 << 20
P99_RATIO_MAX = 1.2
P99_NOISE_MS = 2.0
"""Lower bound for the p99 without slow streams; below it, the ratio would measure the kernel's noise."""

HISTORY_TIMES = 2
"""For a `block` stream, entries are retained up to twice the history's bytes."""

CHUNK_CACHE_BYTES = 16 * MIB
STREAM_BYTES_MAX = 16 * 1024
"""Limit for a stream that reads: user and kernel memory, both ends. The figures are in bench/README.md."""

SLOW_STREAM_BYTES_MAX = 512 * 1024
"""Limit for a slow stream: the client-buffer of 64 KiB, doubled by the kernel, its overhead, and the client's end."""

DESCRIPTORS_MAX = 2
"""Tolerance for the descriptors that the counting request itself opens."""

CHURN_BYTES_MAX = 4 * MIB
SLOPE_MIB_PER_H_MAX = 8.0
SLOPE_BYTES_MIN = 2 * MIB
"""In a short run, smaller growth cannot be distinguished from noise."""

FAULTS_SHOWN = 10
SETTLED_SHARE = 0.25
"""The slope of a soak excludes this first share of the run, in which buffers and history fill."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion: its name, the measured value, and whether it passes."""

    name: str
    value: str
    passed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The observations of one run of locust against one server.

    Args:
        plan: the plan of the run.
        code: locust's exit code.
        saw: observations of each part of the load.
        before: the server before the run; after: when all streams were closed; samples: during the run.
        stats: the server's /stats at the end.
    """

    plan: Plan
    code: int
    saw: Sequence[dict[str, Any]]
    before: Sample
    after: Sample
    samples: Sequence[Sample]
    stats: dict[str, Any]

    def parts(self, kind: str) -> list[dict[str, Any]]:
        """Return the observations of the parts of a kind."""
        return [part for part in self.saw if part["part"] == kind]

    def quantile_ms(self, quantile: float) -> float:
        """Return the latency of the healthy streams, without the ramp and the end, in ms."""
        counts: Counter[int] = Counter()
        for part in self.parts("SWARM"):
            if part["healthy"]:
                counts.update(dict(part["delivery"]))
        rank, seen = quantile * counts.total(), 0
        for top_us in sorted(counts):
            seen += counts[top_us]
            if seen > rank:
                return top_us / 1000
        return max(counts, default=0) / 1000


def whole(outcome: Outcome) -> list[Criterion]:
    """Require that every stream saw every event of its topics, in order, once."""
    plan, saw = outcome.plan, outcome.saw
    expected = plan.users + plan.slow_users + len(plan.blocks)
    faults = sum((Counter(part["faults"]) for part in saw), Counter[str]())
    streams = plan.users + plan.slow_users + sum(block.streams for block in plan.blocks)
    deliveries = sum(part["report"]["deliveries"] for part in outcome.parts("SWARM"))
    deliveries += sum(part["seen"] for part in saw if part["part"] != "SWARM")
    return [
        Criterion("all parts of the load have told what they saw", f"{len(saw)} of {expected}", len(saw) == expected),
        Criterion(
            f"no gap, duplicate, wrong order, foreign or missing event at {streams} streams",
            f"{faults.total()} faults in {deliveries} deliveries"
            + "".join(f"; {count} × {fault}" for fault, count in faults.most_common(FAULTS_SHOWN)),
            not faults and deliveries > 0,
        ),
        Criterion("locust counts no failure", f"exit code {outcome.code}", outcome.code == 0),
        Criterion(
            "delivery latency of the swarm, p50, p99, p99.9",
            ", ".join(f"{outcome.quantile_ms(quantile):.1f} ms" for quantile in (0.5, 0.99, 0.999)),
        ),
    ]


def lag_back(outcome: Outcome) -> list[Criterion]:
    """Require that no stream lags at the end."""
    most = max((each.lagging for each in outcome.samples), default=0)
    open_ones = [each for each in outcome.samples if each.streams]
    left = open_ones[-1].lagging if open_ones else -1
    return [Criterion("no stream lags at the end", f"{left} lag, at most {most} did", left == 0)]


def recovered(outcome: Outcome) -> list[Criterion]:
    """Require that all streams reconnected after the storm; report how long it took."""
    storms = [part["storm"] for part in outcome.parts("SWARM")]
    if not storms or None in storms:
        return [Criterion("all streams came back", "some never did", False)]
    streams = sum(storm["streams"] for storm in storms)
    reopen_s = max(storm["reopen_s"] for storm in storms)
    recover_s = max(storm["recover_s"] for storm in storms)
    back = sum(storm["open"] for storm in storms)
    came_back = back == streams and all(part["opened"] > 1 for part in outcome.parts("SSE"))
    return [
        Criterion("all streams came back", f"{streams} dropped, {back} open", came_back),
        Criterion("accept rate", f"{streams / reopen_s:.0f} streams/s, all open again after {reopen_s:.2f} s"),
        Criterion("time to recover", f"every stream has had an event again after {recover_s:.2f} s"),
    ]


def promise_kept(outcome: Outcome, policy: str, history_bytes: int) -> list[Criterion]:
    """Require that slow streams received the events that their policy promises, and that memory is bounded."""
    slow = outcome.parts("SLOW")
    broken = sorted({fault for part in slow for fault in part["faults"]})
    missed, told = sum(part["missed"] for part in slow), sum(part["told"] for part in slow)
    actions = outcome.stats["policy_actions"].get(policy, 0)
    odd = sum(block.slow + block.stalled for block in outcome.plan.blocks) + outcome.plan.slow_users
    streams = outcome.plan.users + sum(block.streams for block in outcome.plan.blocks)
    growth = memory_peak(outcome.samples) - outcome.before.pss_bytes - outcome.before.tcp_bytes
    bound = HISTORY_TIMES * history_bytes + CHUNK_CACHE_BYTES + streams * STREAM_BYTES_MAX + odd * SLOW_STREAM_BYTES_MAX
    return [
        Criterion(
            f"{policy}: each of {len(slow)} slow real streams got what is promised",
            f"{sum(part['seen'] for part in slow)} seen, {missed} missed, {told} told"
            f", {sum(part['opened'] for part in slow) - len(slow)} resumes" + "".join(f"; {text}" for text in broken),
            bool(slow) and not broken,
        ),
        Criterion(f"{policy}: the policy acted", f"{actions} times", actions > 0),
        Criterion(
            f"{policy}: growth of server and TCP memory bounded",
            f"{growth / MIB:.1f} MiB, bound {bound / MIB:.0f} MiB",
            growth <= bound,
        ),
    ]


def cost_of_slow(outcome: Outcome, policy: str, p99_without_ms: float) -> Criterion:
    """Require that slow streams increase the latency of the others little."""
    p99_ms = outcome.quantile_ms(0.99)
    ratio = p99_ms / max(p99_without_ms, P99_NOISE_MS)
    return Criterion(
        f"{policy}: p99 of the healthy within {P99_RATIO_MAX} times",
        f"{ratio:.2f} times: {p99_ms:.1f} ms, without slow ones {p99_without_ms:.1f} ms",
        ratio <= P99_RATIO_MAX,
    )


def memory_peak(samples: Iterable[Sample]) -> int:
    """Return the peak of the server's memory and the kernel's TCP memory together, in bytes."""
    return max((each.pss_bytes + each.tcp_bytes for each in samples), default=0)


def back_again(outcome: Outcome) -> list[Criterion]:
    """Require that descriptors and memory return to their values before the streams opened."""
    before, after = outcome.before, outcome.after
    came = sum(part["report"]["opened"] for part in outcome.parts("SWARM"))
    descriptors, growth = after.descriptors - before.descriptors, after.pss_bytes - before.pss_bytes
    return [
        Criterion("streams that came and went", str(came), came > 0),
        Criterion(
            "descriptors are back",
            f"{before.descriptors} before, {after.descriptors} after",
            abs(descriptors) <= DESCRIPTORS_MAX and after.streams == 0,
        ),
        Criterion(
            f"memory is back within {CHURN_BYTES_MAX / MIB:.0f} MiB",
            f"{before.pss_bytes / MIB:.1f} MiB before, {after.pss_bytes / MIB:.1f} MiB after",
            growth <= CHURN_BYTES_MAX,
        ),
    ]


def slope(samples: Sequence[Sample]) -> tuple[float, float]:
    """Fit a line to the memory of the server after the first part of a run.

    Returns:
        Bytes per second, and the seconds that the fit spans.
    """
    began_s, ended_s = samples[0].time_s, samples[-1].time_s
    settled = [each for each in samples if each.time_s >= began_s + SETTLED_SHARE * (ended_s - began_s)]
    times = [each.time_s for each in settled]
    values = [each.pss_bytes for each in settled]
    mean_s, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time_s - mean_s) ** 2 for time_s in times)
    rise = sum((time_s - mean_s) * (value - mean) for time_s, value in zip(times, values, strict=True))
    return (rise / spread if spread else 0.0), times[-1] - times[0]


def steady_memory(outcome: Outcome) -> list[Criterion]:
    """Require that memory does not grow."""
    bytes_per_s, seconds = slope(outcome.samples)
    limit = max(SLOPE_MIB_PER_H_MAX * MIB / 3600, SLOPE_BYTES_MIN / max(seconds, 1.0))
    return [
        Criterion(
            "slope of the server's memory about zero",
            f"{bytes_per_s * 3600 / MIB:+.1f} MiB/h over {seconds:.0f} s, limit {limit * 3600 / MIB:.1f} MiB/h",
            bytes_per_s <= limit,
        )
    ]
