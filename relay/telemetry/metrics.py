"""The metrics: counters, gauges and histograms in the Prometheus format.

Owns their names and buckets. Each collection reads the counts that the hub and the engine keep. On the data path, only
the histograms are updated, once per flush. Never uses a topic as a label.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay import __version__
from relay.core.close_reason import CloseReason
from relay.core.gaps import GapReason
from relay.core.hub import RESUMES, Hub
from relay.core.policy import Policy
from relay.limits import Limit
from relay.speedups import ENGINE
from relay.telemetry import logs
from relay.telemetry.stats_schema import ClusterStats, SourceStats, UpstreamStats

FLUSH_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LAG_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


K = TypeVar("K", bound=str)


class Histograms:
    """The times that the hub and the event loop measure, in seconds.

    Args:
        registry: receives the histograms.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.flush_s = Histogram(
            "relay_flush_seconds",
            "Time from the beginning to the end of a flush to the live streams.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self.written_s = Histogram(
            "relay_publish_to_write_seconds",
            "Time from publishing the oldest event of a flush to the last write of the flush, for live streams.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self.lag_s = Histogram(
            "relay_lag_seconds",
            "Age of the next event that a lagging stream needs: a sample of them, four times a second.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.store_s = Histogram(
            "relay_store_seconds",
            "Time to write a batch of events to the disk.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self.broker_s = Histogram(
            "relay_cluster_publish_seconds",
            "Time of a call that publishes events to the broker.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self.stall_s = Histogram(
            "relay_loop_stall_seconds",
            "Delay of a timer of the event loop, which fires every second, or every 0.25 s if streams lag.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )


class Metrics(Collector):
    """All metrics of one server.

    Args:
        hub: each collection reads its counts.
        registry: receives the metrics. It may contain others.
        clock: returns the hub's time.
    """

    def __init__(self, hub: Hub, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._upstream: Callable[[], UpstreamStats | None] = lambda: None
        self.opened = {"direct": 0, "connection": 0}  # opened streams by path; the front counts them
        self.uploads = 0  # open publish requests; the front counts them and their lines
        self.upload_lines = {"published": 0, "rejected": 0}
        self._cluster: Callable[[], ClusterStats | None] = lambda: None
        self._sources: Callable[[], Sequence[SourceStats]] = lambda: ()
        self._certificate_expires_s: Callable[[], float | None] = _no_time
        self._keys_expire_s: Callable[[], float | None] = _no_time
        self._keys_fetched_s: Callable[[], float | None] = _no_time
        self._clock = clock
        self.polls = {"waiting": 0, "at-once": 0, "history": 0}  # polls by kind; the front counts them
        self.signals = {"delivered": 0, "dropped": 0}  # lines for feeders; `relay.sources.topic_signals` counts them
        self._hub = hub
        self.registry = registry
        self._input_errors = Counter(
            "relay_input_errors",
            "Input that was not published, by source and kind.",
            ("source", "kind"),
            registry=registry,
        )
        self._limited = Counter(
            "relay_limited", "Times that a limit was applied, by limit.", ("limit",), registry=registry
        )
        for limit in Limit:  # Each starts at 0, so that a rate includes the first increment.
            self._limited.labels(limit)
        registry.register(self)
        ProcessCollector(registry=registry)

    def report_upstream(self, state: Callable[[], UpstreamStats | None]) -> None:
        """Add the upstream's metrics to each collection; `state` returns None while this server has no upstream."""
        self._upstream = state

    def report_cluster(self, state: Callable[[], ClusterStats | None]) -> None:
        """Add the cluster's metrics to each collection; `state` returns None without a cluster."""
        self._cluster = state

    def report_sources(self, state: Callable[[], Sequence[SourceStats]]) -> None:
        """Add the metrics of the sources to each collection."""
        self._sources = state

    def report_certificate(self, expires_s: Callable[[], float | None]) -> None:
        """Add the expiry of the certificate, in Unix time, to each collection; None if it is unknown."""
        self._certificate_expires_s = expires_s

    def report_keys(
        self, expire_s: Callable[[], float | None], fetched_s: Callable[[], float | None]
    ) -> None:
        """Add the times of the keys that verify JWTs to each collection, in Unix time; None if one is unknown.

        Args:
            expire_s: returns the time at which the last key expires.
            fetched_s: returns the time of the last successful fetch of the JWKS.
        """
        self._keys_expire_s, self._keys_fetched_s = expire_s, fetched_s

    def input_error(self, source: str, kind: str) -> None:
        """Count a rejected input.

        Args:
            source: the source, such as `http`, `stdin` or `unix`.
            kind: the type of error, from a small fixed set.
        """
        self._input_errors.labels(source, kind).inc()

    def limited(self, limit: Limit) -> None:
        """Count one application of a limit."""
        self._limited.labels(limit).inc()

    def input_errors(self) -> int:
        """Return the total number of rejected inputs."""
        samples = (sample for metric in self._input_errors.collect() for sample in metric.samples)
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the counts of the hub and the engine. The registry calls this method."""
        hub = self._hub
        engine, log = hub.engine, hub.log
        build = {"version": __version__, "engine": ENGINE, "python": platform.python_version()}
        info = GaugeMetricFamily("relay_build_info", "1, with the build as labels.", labels=tuple(build))
        info.add_metric(tuple(build.values()), 1)
        yield info
        streams = GaugeMetricFamily("relay_streams", "Open streams, by form.", labels=("form",))
        for form in hub.forms:
            streams.add_metric((form,), hub.audiences.forms[form])
        yield streams
        yield _gauge("relay_streams_max", "Largest number of open streams.", hub.admission.streams_max)
        yield _gauge("relay_streams_lagging", "Open streams that lag or replay.", len(hub.catchup.streams))
        yield _gauge("relay_topics", "Topics that have retained events or streams.", len(log.topics))
        yield _gauge("relay_topics_ended", "Ended topics that are remembered.", len(hub.ended.topics))
        yield _gauge("relay_topics_held", "Terms that a `block` stream holds.", len(hub.holds.audiences))
        yield _gauge("relay_log_events", "Retained events.", len(log))
        age_s = self._clock() - log.time_s(log.tail) if len(log) else 0.0
        yield _gauge("relay_log_age_seconds", "Age of the oldest retained event; 0 without events.", age_s)
        yield _gauge("relay_log_bytes", "Bytes of retained events.", log.bytes)
        yield _gauge("relay_log_bytes_max", "Largest number of bytes of retained events.", log.bytes_max)
        yield _counter("relay_expired", "Events evicted by their `ttl` or by `history-for`.", log.expired)
        yield _gauge("relay_draining", "1 while draining.", float(hub.draining))
        yield _counter("relay_events", "Events published.", 0 if hub.fed else log.head - 1)
        yield _counter("relay_events_invalid", "Events rejected by a rule of `validate`.", hub.writer.invalid)
        yield _counter("relay_encodes", "Events encoded, each once for all streams.", hub.writer.encodes)
        yield _counter("relay_deliveries", "Events handed to the kernel for a stream.", engine.deliveries)
        yield _counter("relay_sent_bytes", "Bytes handed to the kernel.", engine.bytes)
        yield _counter("relay_writes", "Calls of send().", engine.writes)
        yield _counter("relay_short_writes", "Calls of send() that wrote less than was asked.", engine.short_writes)
        yield _gauge("relay_compressors", "Topics and patterns compressed once for all streams.", len(hub.compression))
        yield _counter("relay_unshared", "Flushes sent uncompressed to streams until a key frame.", engine.unshared)
        writer, journal = hub.writer, hub.writer.journal
        yield _counter("relay_dedup_hits", "Events left out as repeats, by their `dedup` key.", writer.seen.hits)
        yield _counter("relay_dedup_pushed_out", "Dedup keys forgotten too early.", writer.seen.pushed_out)
        yield _gauge("relay_dedup_keys", "Dedup keys that are remembered.", len(writer.seen))
        yield _gauge("relay_store_pending", "Events waiting for the disk.", journal.pending if journal else 0)
        yield _gauge("relay_store_failing", "1 while events cannot be stored.", float(bool(writer.refusal)))
        yield _counter("relay_store_failures", "Writes to the file that failed.", journal.failures if journal else 0)
        yield _counter("relay_log_dropped", "Log lines dropped, because the reader of the log stalled.", logs.dropped())
        yield _gauge("relay_uploads", "Open publish requests, whose lines are published as they arrive.", self.uploads)
        yield from _of_upstream(self._upstream())
        yield from _of_sources(self._sources())
        yield from _of_cluster(self._cluster())
        yield from self._expiries()
        yield from self._of_labels()

    def _of_labels(self) -> Iterator[Metric]:
        """Yield the counters that have a label."""
        hub, gaps = self._hub, self._hub.catchup.gaps
        # A counter that exists from the start has a rate at its first increment.
        actions = _from_start(Policy, hub.catchup.actions)
        yield _labelled("relay_policy_actions", "Actions of policies on slow streams, by policy.", "policy", actions)
        yield _labelled("relay_gaps", "Gaps sent to streams, by reason.", "reason", _from_start(GapReason, gaps.sent))
        missed = "Missed events that gaps counted, by reason."
        yield _labelled("relay_gap_events", missed, "reason", _from_start(GapReason, gaps.missed))
        lines = "Lines of open publish requests, by result."
        yield _labelled("relay_upload_lines", lines, "result", self.upload_lines)
        yield _labelled("relay_polls", "Requests for events as one document, by kind.", "kind", self.polls)
        yield _labelled("relay_signals", "Signals for feeders, one per feeder, by result.", "result", self.signals)
        yield _labelled("relay_opens", "Streams opened, by path.", "path", self.opened)
        yield _labelled("relay_closes", "Streams closed, by reason.", "reason", _from_start(CloseReason, hub.closes))
        resumes = _from_start(RESUMES, hub.resumes)
        yield _labelled("relay_resumes", "Streams opened with a last id, by result.", "result", resumes)

    def _expiries(self) -> Iterator[Metric]:
        """Yield the known times, as Unix times."""
        for name, help, read in (
            ("certificate_expiry", "Unix time at which the certificate expires.", self._certificate_expires_s),
            ("keys_expiry", "Unix time at which the last key that verifies JWTs expires.", self._keys_expire_s),
            ("keys_fetched", "Unix time of the last successful fetch of the JWKS.", self._keys_fetched_s),
        ):
            time_s = read()
            if time_s is not None:
                yield _gauge(f"relay_{name}_timestamp_seconds", help, time_s)


def _of_upstream(upstream: UpstreamStats | None) -> Iterator[Metric]:
    """Yield the metrics of the upstream, if there is one."""
    if upstream is None:
        return
    yield _gauge("relay_upstream_linked", "1 while connected to the upstream.", float(upstream.linked))
    yield _counter("relay_upstream_breaks", "Upstream connections that were lost.", upstream.breaks)
    yield _counter("relay_upstream_events", "Upstream events that were published.", upstream.events)
    yield _counter("relay_upstream_repeats", "Upstream events left out as repeats.", upstream.repeats)
    yield _counter("relay_upstream_refused", "Upstream events that were refused.", upstream.refused)


def _of_cluster(cluster: ClusterStats | None) -> Iterator[Metric]:
    """Yield the metrics of the cluster, if there is one."""
    if cluster is None:
        return
    yield _gauge("relay_cluster_connected", "1 while following the broker.", float(cluster.connected))
    yield _gauge("relay_cluster_lag_events", "Events of the broker that are missing.", cluster.lag_events)
    yield _counter("relay_cluster_reconnects", "Connections to the broker lost.", cluster.reconnects)
    yield _counter("relay_cluster_lapped", "Times that the broker trimmed missing events.", cluster.lapped)
    yield _counter("relay_cluster_renewals", "Epochs renewed after a loss in the broker.", cluster.renewals)
    yield _counter("relay_cluster_published", "Events published to the broker.", cluster.published)
    yield _counter("relay_cluster_repeats", "Events left out as repeats by the broker.", cluster.repeats)
    yield _gauge("relay_cluster_pending", "Events waiting for the broker.", cluster.pending)


def _of_sources(sources: Sequence[SourceStats]) -> Iterator[Metric]:
    """Yield the metrics of the sources, each with one sample for each source."""
    connected = GaugeMetricFamily("relay_source_connected", "1 while connected to the source.", labels=("source",))
    for each in sources:
        connected.add_metric((each.source,), float(each.connected and not each.ended))
    if sources:
        yield connected
        for name, help in (
            ("breaks", "Connections to the source that were lost."),
            ("events", "Messages of the source that were published, and repeats."),
            ("errors", "Messages of the source that could not be published."),
            ("lost", "Messages of the source that relay dropped, because too many waited."),
        ):
            counts = {each.source: getattr(each, name) for each in sources}
            yield _labelled(f"relay_source_{name}", help, "source", counts)


def _no_time() -> None:
    """Return None: the time is unknown."""


def _from_start(labels: Iterable[K], counts: Mapping[K, int]) -> dict[str, int]:
    """Return the counts with a 0 for each label that has not been counted yet."""
    return {str(label): counts.get(label, 0) for label in (*labels, *counts)}


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)


def _labelled(name: str, help: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, help, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key),), value)
    return family
