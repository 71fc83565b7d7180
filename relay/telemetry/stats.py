"""Collection of the statistics that /stats shows.

Owns the bounds of the lists, and the age up to which costly values are reused. Never counts anything itself.
`relay.telemetry.stats_schema` defines the fields.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

from relay import __version__
from relay.core.audience import Subscription
from relay.core.hub import Hub
from relay.speedups import ENGINE, counters
from relay.telemetry.stats_schema import DedupStats, LogStats, ServerStats, SlowStream, StoreStats, TopicStats
from relay.topic import JOINT

TOPICS_MAX = 1000
SLOWEST_MAX = 10
SLOWEST_TOPICS_MAX = 10
COSTLY_AGE_S = 1.0
"""Age up to which the list of topics and the count of objects are reused. Listing 100,000 topics takes milliseconds."""


class Stats:
    """Collects the statistics of one server.

    Args:
        hub: the source of most values.
        input_errors: returns the number of rejected inputs.
        started_s: start time of the server, on the hub's clock.
    """

    def __init__(self, hub: Hub, input_errors: Callable[[], int], started_s: float) -> None:
        self._hub = hub
        self._input_errors = input_errors
        self._started_s = started_s
        self._topics: list[TopicStats] = []
        self._gc_objects = 0
        self._costly_s = -math.inf

    def collect(self, now_s: float) -> ServerStats:
        """Return the current statistics. The lists of topics and of slowest streams are bounded."""
        hub = self._hub
        log, engine, journal = hub.log, hub.engine, hub.writer.journal
        self._refresh_costly(now_s)
        seen = hub.writer.seen
        return ServerStats(
            version=__version__,
            engine=ENGINE,
            uptime_s=round(now_s - self._started_s, 3),
            input_errors=self._input_errors(),
            gc_objects=self._gc_objects,
            held=counters(),
            ready=hub.ready,
            streams=engine.open,
            forms={form: count for form, count in hub.audiences.forms.items() if count},
            lagging=len(hub.catchup.streams),
            events=log.head - 1,
            encodes=hub.writer.encodes,
            deliveries=engine.deliveries,
            bytes=engine.bytes,
            writes=engine.writes,
            short_writes=engine.short_writes,
            log=LogStats(log.head, log.tail, len(log), log.bytes, log.bytes_max, log.expired),
            dedup=DedupStats(len(seen), seen.hits),
            store=None if journal is None else StoreStats(journal.pending, journal.refusal),
            policy_actions={str(policy): count for policy, count in hub.catchup.actions.items()},
            closes=dict(hub.closes),
            resumes=dict(hub.resumes),
            topics_total=len(log.topics),
            topics=self._topics,
            slowest=self._slowest(now_s),
        )

    def _slowest(self, now_s: float) -> list[SlowStream]:
        engine, slowest = self._hub.engine, []
        for handle, lag in self._hub.catchup.slowest(SLOWEST_MAX, now_s):
            subscription: Subscription = engine.subscription(handle)
            slowest.append(
                SlowStream(
                    address=str(engine.address(handle)),
                    topics=JOINT.join(subscription.terms).split(JOINT)[:SLOWEST_TOPICS_MAX],
                    policy=str(subscription.rule.policy),
                    lag_events=lag.events,
                    lag_bytes=lag.bytes,
                    lag_s=round(lag.age_s, 3),
                )
            )
        return slowest

    def _refresh_costly(self, now_s: float) -> None:
        if now_s - self._costly_s < COSTLY_AGE_S:
            return
        self._costly_s = now_s
        self._gc_objects = len(gc.get_objects())
        self._topics = [
            TopicStats(topic.name, subscribers, topic.retained, topic.appended)
            for topic, subscribers in self._hub.audiences.most_subscribed(TOPICS_MAX)
        ]
