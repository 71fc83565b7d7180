"""Tests of relay.workers.aggregate: the combined /stats and /metrics of a hub and its workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import orjson
from prometheus_client import CollectorRegistry, Counter

from relay.telemetry.stats_schema import DedupStats, LogStats
from relay.workers import aggregate
from relay.workers.hub_end import Downlink

COUNTS = (
    "streams",
    "lagging",
    "encodes",
    "deliveries",
    "bytes",
    "writes",
    "short_writes",
    "input_errors",
    "gc_objects",
)

LOG, DEDUP = LogStats.__struct_fields__, DedupStats.__struct_fields__


def part(count: int, lag_events: int, **topics: int) -> bytes:
    """Return the /stats of one process: each count has the same value."""
    stats: dict[str, Any] = dict.fromkeys(COUNTS, count)
    stats |= {"version": "1", "engine": "native", "ready": True, "events": 0, "topics_total": 0, "store": None}
    stats |= {"log": dict.fromkeys(LOG, 0), "dedup": dict.fromkeys(DEDUP, 0)}
    stats |= {"uptime_s": 1.0, "policy_actions": {"drop": count}, "closes": {}, "resumes": {}, "held": {}}
    stats["forms"] = {"sse": count}
    stats["topics"] = [{"topic": name, "subscribers": n, "retained": n} for name, n in topics.items()]
    slow = {"address": "127.0.0.1", "topics": ["a"], "policy": "block", "lag_bytes": 1, "lag_s": 1.0}
    stats["slowest"] = [slow | {"lag_events": lag_events}]
    return orjson.dumps(stats)


def link(lag_events: int) -> Downlink:
    """Return the state of a ready worker's link."""
    return cast(Downlink, SimpleNamespace(status=SimpleNamespace(ready=True), lag_events=lag_events))


def test_stats_add_counts_merge_topics_and_mark_a_worker_that_did_not_answer() -> None:
    total = orjson.loads(aggregate.stats(part(1, 5), {1: part(2, 9, a=2, b=1)}, {1: link(0), 2: link(7)}))
    assert {total[name] for name in COUNTS} == {3}
    assert total["policy_actions"] == {"drop": 3}
    assert total["forms"] == {"sse": 3}
    assert [topic["topic"] for topic in total["topics"]] == ["a", "b"]
    assert [stream["lag_events"] for stream in total["slowest"]] == [9, 5]
    assert [(each["worker"], each["answered"], each["link_lag_events"]) for each in total["workers"]] == [
        (1, True, 0),
        (2, False, 7),
    ]


def test_metrics_have_the_label_worker_and_show_a_worker_that_did_not_answer() -> None:
    registry = CollectorRegistry()
    Counter("sent", "Sent.", registry=registry).inc(3)
    encoded = msgspec.json.encode(aggregate.families(registry))
    text = aggregate.metrics(encoded, {1: encoded}, {1: link(0), 2: link(7)}).decode()
    for line in (
        'sent_total{worker="hub"} 3.0',
        'sent_total{worker="1"} 3.0',
        'relay_worker_up{worker="1"} 1.0',
        'relay_worker_up{worker="2"} 0.0',
        'relay_link_lag_events{worker="2"} 7.0',
    ):
        assert line in text.splitlines()
