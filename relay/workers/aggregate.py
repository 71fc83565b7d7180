"""Combines the reports of a hub and its workers: /stats, /metrics and /topics.

Owns the rules for combining them. Counts in /stats are added. Samples in /metrics get a label `worker`, so that queries
can sum them. `relay.telemetry.topics` combines pages of /topics. A worker that does not answer in time is omitted and
marked as unanswered. Never counts anything itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.errors import RelayError
from relay.telemetry import topics
from relay.telemetry.stats import SLOWEST_MAX, TOPICS_MAX
from relay.telemetry.stats_schema import WorkerStats, from_json, to_json
from relay.telemetry.topics import TopicsQuery
from relay.workers.hub_end import Downlink
from relay.workers.messages import Report

ANSWER_S = 1.0
"""Time limit for the answers of the workers."""

_ADDED = (
    *("streams", "lagging", "encodes", "deliveries", "bytes", "writes", "short_writes", "input_errors", "gc_objects"),
)
_COUNTED = ("forms", "policy_actions", "closes", "resumes", "held")
_OF_A_WORKER = ("uptime_s", "streams", "lagging", "deliveries", "bytes", "writes", "short_writes", "encodes")

Sample = tuple[str, dict[str, str], float]
Family = tuple[str, str, str, list[Sample]]


def families(registry: CollectorRegistry) -> list[Family]:
    """Return the metric families of a process as tuples of name, help, type and samples."""
    return [
        (each.name, each.documentation, each.type, [(s.name, dict(s.labels), s.value) for s in each.samples])
        for each in registry.collect()
    ]


def gather(
    report: Report,
    query: TopicsQuery | None,
    hub_part: bytes,
    workers: Mapping[int, Downlink],
    loop: asyncio.AbstractEventLoop,
    done: Callable[[bytes], None],
) -> None:
    """Request the workers' parts and combine them, after `ANSWER_S` at the latest.

    Args:
        report: the report.
        query: the query of `topics`.
        hub_part: the hub's part.
        workers: links of the running workers.
        loop: runs the timer.
        done: called once with the body.
    """
    parts: dict[int, bytes] = {}
    waiting = set(workers)

    def finish() -> None:
        timer.cancel()
        waiting.clear()
        if report == "stats":
            done(stats(hub_part, parts, workers))
        elif query is None:
            done(metrics(hub_part, parts, workers))
        else:
            pages = map(topics.decode, (hub_part, *parts.values()))
            done(topics.encode(topics.combine(pages, query.limit)))

    def take(number: int, part: bytes | RelayError) -> None:
        if number in waiting:
            waiting.discard(number)
            if isinstance(part, bytes):
                parts[number] = part
            if not waiting:
                finish()

    timer = loop.call_later(ANSWER_S, finish)
    for number, link in workers.items():
        link.ask(report, query, lambda part, number=number: take(number, part))  # type: ignore[misc]
    if not workers:
        finish()


def stats(hub_part: bytes, parts: Mapping[int, bytes], workers: Mapping[int, Downlink]) -> bytes:
    """Combine the /stats of the hub and its workers."""
    total = from_json(hub_part)
    each = {number: from_json(part) for number, part in sorted(parts.items())}
    for name in _ADDED:
        setattr(total, name, getattr(total, name) + sum(getattr(part, name) for part in each.values()))
    for name in _COUNTED:
        counts: dict[str, int] = getattr(total, name)
        for part in each.values():
            for key, count in getattr(part, name).items():
                counts[key] = counts.get(key, 0) + count
    listed = {topic.topic: topic for topic in total.topics}
    for part in each.values():
        for topic in part.topics:
            known = listed.setdefault(topic.topic, topic)
            if known is not topic:
                known.subscribers += topic.subscribers
                known.retained = max(known.retained, topic.retained)
                known.events = max(known.events, topic.events)
    total.topics = sorted(listed.values(), key=lambda topic: (-topic.subscribers, topic.topic))[:TOPICS_MAX]
    slowest = [stream for part in (total, *each.values()) for stream in part.slowest]
    total.slowest = sorted(slowest, key=lambda stream: -stream.lag_events)[:SLOWEST_MAX]
    total.workers = [
        WorkerStats(
            number,
            link.status.ready,
            number in each,
            link.lag_events,
            **{name: getattr(each[number], name) for name in _OF_A_WORKER if number in each},
        )
        for number, link in sorted(workers.items())
    ]
    return to_json(total)


class _Families(Collector):
    """Metric families whose samples have the label `worker`."""

    def __init__(self, found: Mapping[str, Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from self._found.values()


def metrics(hub_part: bytes, parts: Mapping[int, bytes], workers: Mapping[int, Downlink]) -> bytes:
    """Combine the /metrics of the hub and its workers, in the text format of Prometheus."""
    found: dict[str, Metric] = {}
    for worker, part in (("hub", hub_part), *((str(number), part) for number, part in sorted(parts.items()))):
        for name, help, kind, samples in msgspec.json.decode(part, type=list[Family]):
            family = found.setdefault(name, Metric(name, help, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, {**labels, "worker": worker}, value)
    answered = GaugeMetricFamily("relay_worker_up", "1 for a worker that answers.", labels=("worker",))
    help = "Entries that a worker has yet to acknowledge."
    lag = GaugeMetricFamily("relay_link_lag_events", help, labels=("worker",))
    for number, link in sorted(workers.items()):
        answered.add_metric((str(number),), float(number in parts))
        lag.add_metric((str(number),), link.lag_events)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families({**found, answered.name: answered, lag.name: lag}))
    return generate_latest(registry)
