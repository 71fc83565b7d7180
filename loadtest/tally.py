"""Hands measurements to locust: one by one, or a histogram at once.

Owns how locust's statistics are written to; what is written so reaches a master like all else that a worker counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from locust.env import Environment
from locust.stats import bucket_response_time

ERRORS_MAX = 1000
"""Failures of one kind that one call writes; more of them tell nobody more."""


def one(
    environment: Environment, kind: str, name: str, seconds: float, size: int = 0, fault: str | None = None
) -> None:
    """Hand over one measurement, in seconds, and its fault if it has one."""
    environment.events.request.fire(  # type: ignore[no-untyped-call]
        request_type=kind,
        name=name,
        response_time=seconds * 1000,
        response_length=size,
        exception=None if fault is None else AssertionError(fault),
        context={},
    )


def many(environment: Environment, kind: str, name: str, histogram: Iterable[tuple[int, int]]) -> None:
    """Hand over a histogram of times: upper ends of buckets in µs, and counts."""
    stats = environment.stats
    for top_us, count in histogram:
        time_ms = top_us / 1000
        # The first of a bucket goes the ordinary way, the others are like it.
        stats.log_request(kind, name, time_ms, 0)  # type: ignore[arg-type]  # it takes fractions
        more, now_s, bucket = count - 1, int(time.time()), bucket_response_time(time_ms)
        for entry in (stats.get(name, kind), stats.total):
            entry.num_requests += more
            entry.num_reqs_per_sec[now_s] += more
            entry.total_response_time += more * time_ms  # type: ignore[assignment]
            entry.response_times[bucket] += more


def faults(environment: Environment, kind: str, name: str, fault: str, count: int) -> None:
    """Hand over failures of one kind."""
    for _ in range(min(count, ERRORS_MAX)):
        environment.stats.log_error(kind, name, fault)
