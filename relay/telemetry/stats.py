"""The statistics: what /stats shows of the hub and of the process.

Owns the form of it, and how often what is costly to find out is found out anew. Counts nothing itself.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from importlib import metadata
from typing import Any, cast

from relay.core.audience import Subscription
from relay.core.hub import Hub
from relay.speedups import ENGINE, counters
from relay.topic import JOINT

TOPICS_MAX = 1000
SLOWEST_MAX = 10
SLOWEST_TOPICS_MAX = 10
COSTLY_AGE_S = 1.0
"""How long the list of topics and the count of objects serve: with 100,000 topics they take milliseconds to make."""


class Stats:
    """What is going on in one server.

    Args:
        hub: is looked into.
        input_errors: returns how many inputs were refused.
        started_s: when the server was started, in the time of the hub.
    """

    def __init__(self, hub: Hub, input_errors: Callable[[], int], started_s: float) -> None:
        self._hub = hub
        self._input_errors = input_errors
        self._started_s = started_s
        self._topics: list[dict[str, Any]] = []
        self._gc_objects = 0
        self._costly_s = -math.inf

    def collect(self, now_s: float) -> dict[str, Any]:
        """Return what is going on, as JSON values; topics and slowest streams are bounded."""
        hub = self._hub
        log, engine, journal = hub.log, hub.engine, hub.writer.journal
        self._look_again(now_s)
        return {
            "version": metadata.version("relay"),
            "engine": ENGINE,
            "uptime_s": round(now_s - self._started_s, 3),
            "input_errors": self._input_errors(),
            "gc_objects": self._gc_objects,
            "held": counters(),
            "ready": hub.ready,
            "streams": engine.open,
            "lagging": len(hub.catchup.streams),
            "events": log.head - 1,
            "encodes": hub.writer.encodes,
            "deliveries": engine.deliveries,
            "bytes": engine.bytes,
            "writes": engine.writes,
            "short_writes": engine.short_writes,
            "log": {
                "head": log.head,
                "tail": log.tail,
                "events": len(log),
                "bytes": log.bytes,
                "bytes_max": log.bytes_max,
            },
            "dedup": {"keys": len(hub.writer.seen), "hits": hub.writer.seen.hits},
            "store": None if journal is None else {"pending": journal.pending, "refusal": journal.refusal},
            "policy_actions": dict(hub.catchup.actions),
            "closes": dict(hub.closes),
            "resumes": dict(hub.resumes),
            "topics_total": len(log.topics),
            "topics": self._topics,
            "slowest": self._slowest(now_s),
        }

    def _slowest(self, now_s: float) -> list[dict[str, Any]]:
        engine, slowest = self._hub.engine, []
        for handle, lag in self._hub.catchup.slowest(SLOWEST_MAX, now_s):
            subscription = cast(Subscription, engine.subscription(handle))
            slowest.append(
                {
                    "address": engine.address(handle),
                    "topics": JOINT.join(subscription.terms).split(JOINT)[:SLOWEST_TOPICS_MAX],
                    "policy": str(subscription.rule.policy),
                    "lag_events": lag.events,
                    "lag_bytes": lag.bytes,
                    "lag_s": round(lag.age_s, 3),
                }
            )
        return slowest

    def _look_again(self, now_s: float) -> None:
        if now_s - self._costly_s < COSTLY_AGE_S:
            return
        self._costly_s = now_s
        self._gc_objects = len(gc.get_objects())
        self._topics = [
            {"topic": topic.name, "subscribers": subscribers, "retained": topic.retained}
            for topic, subscribers in self._hub.audiences.most_subscribed(TOPICS_MAX)
        ]
