"""Report measurements to locust, one at a time or as a histogram.

Owns every write to locust's statistics. A worker sends these to its master with its other counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from locust.env import Environment
from locust.stats import bucket_response_time

ERRORS_MAX = 1000
"""Maximum number of failures of one kind that one call writes."""


def one(
    environment: Environment, kind: str, name: str, seconds: float, size: int = 0, fault: str | None = None
) -> None:
    """Report one measurement, in seconds, with its fault if there is one."""
    environment.events.request.fire(  # type: ignore[no-untyped-call]
        request_type=kind,
        name=name,
        response_time=seconds * 1000,
        response_length=size,
        exception=None if fault is None else AssertionError(fault),
        context={},
    )


def many(environment: Environment, kind: str, name: str, histogram: Iterable[tuple[int, int]]) -> None:
    """Report a histogram of times: upper ends of buckets in µs, and counts."""
    stats = environment.stats
    for top_us, count in histogram:
        time_ms = top_us / 1000
        # Locust records the first time of a bucket; the others are added to the same counters.
        stats.log_request(kind, name, time_ms, 0)  # type: ignore[arg-type]  # it takes fractions
        more, now_s, bucket = count - 1, int(time.time()), bucket_response_time(time_ms)
        for entry in (stats.get(name, kind), stats.total):
            entry.num_requests += more
            entry.num_reqs_per_sec[now_s] += more
            entry.total_response_time += more * time_ms  # type: ignore[assignment]
            entry.response_times[bucket] += more


def faults(environment: Environment, kind: str, name: str, fault: str, count: int) -> None:
    """Report failures of one kind."""
    for _ in range(min(count, ERRORS_MAX)):
        environment.stats.log_error(kind, name, fault)
