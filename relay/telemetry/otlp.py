"""OpenTelemetry: exports the metrics, and the traces of publish requests, over OTLP/HTTP.

Needs the extra `otel`; `relay.server.server` imports this module only with `otlp-url`. The libraries read the standard
variables of OpenTelemetry, such as OTEL_EXPORTER_OTLP_HEADERS and OTEL_SERVICE_NAME.

Owns the exporters and the time of each export. Never counts anything itself (`relay.telemetry.metrics`). An export runs
in a thread, so that a slow collector never delays the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from relay import __version__
from relay.telemetry.traces import Traces

EXPORT_S = 3.0
"""Time limit of an export, and so of the exports at the exit of the process."""


class Otlp:
    """The exports of one process.

    Args:
        url: base URL of the collector; `/v1/metrics` and `/v1/traces` are appended.
        interval_s: time between two exports of the metrics.
        registry: the metrics.
        clock: returns the hub's time.
    """

    def __init__(
        self, url: str, interval_s: float, registry: CollectorRegistry, clock: Callable[[], float]
    ) -> None:
        base = url.rstrip("/")
        # Each process is an instance, because the workers of one server export separately.
        instance = f"{socket.gethostname()}:{os.getpid()}"
        attributes = {"service.name": "relay", "service.version": __version__, "service.instance.id": instance}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        self._resource = Resource.create(attributes).merge(OTELResourceDetector().detect())
        self._exporter = OTLPMetricExporter(f"{base}/v1/metrics", timeout=EXPORT_S)
        self.traces = Traces(OTLPSpanExporter(f"{base}/v1/traces", timeout=EXPORT_S), self._resource, clock)
        self._interval_s = interval_s
        self._registry = registry
        self._started_ns = time.time_ns()
        self._closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def exporting(self) -> AsyncIterator[None]:
        """Export the metrics periodically, and everything that is left at the end."""
        task = asyncio.create_task(self._export_all())
        try:
            yield
        finally:
            self._closing.set()
            await task
            await asyncio.to_thread(self._exporter.shutdown)
            await asyncio.to_thread(self.traces.close)

    async def _export_all(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._interval_s)
            # The counts belong to the event loop's thread. The exporter logs its errors.
            data = self._read()
            await asyncio.to_thread(self._exporter.export, data)

    def _read(self) -> MetricsData:
        metrics = list(convert(self._registry.collect(), self._started_ns, time.time_ns()))
        scope = ScopeMetrics(InstrumentationScope("relay", __version__), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def convert(families: Iterable[Family], started_ns: int, now_ns: int) -> Iterator[Metric]:
    """Convert metrics of the Prometheus client to OpenTelemetry's, with the same names and labels.

    Args:
        families: counters and gauges with any labels, and histograms without labels.
        started_ns: Unix time in nanoseconds since which the counters count.
        now_ns: Unix time in nanoseconds of the values.
    """
    for family in families:
        data: Sum | Gauge | Histogram
        if family.type == "counter":
            points = _points(family, "_total", started_ns, now_ns)
            data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        elif family.type == "histogram":
            data = Histogram([_histogram(family.samples, started_ns, now_ns)], AggregationTemporality.CUMULATIVE)
        else:
            data = Gauge(_points(family, "", 0, now_ns))
        yield Metric(family.name, family.documentation, "", data)


def _points(family: Family, suffix: str, started_ns: int, now_ns: int) -> list[NumberDataPoint]:
    """Return the values of a family, without the times of creation that the Prometheus client adds."""
    name = family.name + suffix
    return [
        NumberDataPoint(dict(sample.labels), started_ns, now_ns, float(sample.value))
        for sample in family.samples
        if sample.name == name
    ]


def _histogram(samples: Iterable[Sample], started_ns: int, now_ns: int) -> HistogramDataPoint:
    """Return a histogram. Prometheus counts each value in all larger buckets too, OpenTelemetry in one."""
    buckets, total = [], 0.0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            buckets.append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name.endswith("_sum"):
            total = sample.value
    buckets.sort()
    below = [0, *(count for _, count in buckets[:-1])]
    return HistogramDataPoint(
        attributes={},
        start_time_unix_nano=started_ns,
        time_unix_nano=now_ns,
        count=buckets[-1][1],
        sum=total,
        bucket_counts=[count - less for (_, count), less in zip(buckets, below, strict=True)],
        explicit_bounds=[bound for bound, _ in buckets[:-1]],
        min=None,  # type: ignore[arg-type]  # optional in OTLP, and unknown
        max=None,  # type: ignore[arg-type]
    )
