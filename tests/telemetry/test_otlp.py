"""Metrics and spans arrive at a collector over OTLP: relay.telemetry.otlp and relay.telemetry.traces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.metrics.export import Gauge, Histogram, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter
from prometheus_client import Gauge as PlainGauge
from prometheus_client import Histogram as PlainHistogram

from relay.config.model import Config
from relay.errors import RelayError, RequestError
from relay.event import Event
from relay.telemetry.otlp import convert
from relay.telemetry.traces import FLUSH_S_MAX, Traces
from tests.running import TOKEN, Stream, eventually, free_port, relay, run
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]

TRACE, SENDER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SENDER}-01", f"00-{TRACE}-{SENDER}-00"


class Collector:
    """A collector that keeps what it receives."""

    def __init__(self) -> None:
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.url = ""

    def latest(self) -> dict[str, Metric]:
        """Return the newest metrics by name."""
        [resource] = self.metrics[-1].resource_metrics
        return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def resource(self) -> dict[str, str]:
        """Return the attributes of the process that sent the newest metrics."""
        [resource] = self.metrics[-1].resource_metrics
        return {each.key: each.value.string_value for each in resource.resource.attributes}

    def spans(self) -> dict[str, Span]:
        """Return all spans by name."""
        resources = (each for request in self.traces for each in request.resource_spans)
        return {span.name: span for each in resources for scope in each.scope_spans for span in scope.spans}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/metrics":
                collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
            else:
                assert self.path == "/v1/traces"
                collector.traces.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_collector_receives_metrics_and_the_spans_of_sampled_requests(workers: str) -> None:
    with (
        collecting() as collector,
        relay("--otlp-url", collector.url, "--workers", workers, environ={"OTEL_SERVICE_NAME": "feeds"}) as server,
    ):
        with Stream(server.port, "topic=a") as stream:
            for traceparent in (UNSAMPLED, SAMPLED):
                answer = server.request(
                    "POST",
                    "/publish?topic=a",
                    b"x",
                    {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain", "traceparent": traceparent},
                )
                assert answer[0] == 200
            stream.take(2)
        assert server.stop() == 0  # relay exports the rest when it exits
        spans = collector.spans()
        assert set(spans) == {"publish", "flush"}
        assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
        assert spans["publish"].parent_span_id.hex() == SENDER
        assert spans["flush"].parent_span_id == spans["publish"].span_id
        assert spans["flush"].status.code == Status.STATUS_CODE_UNSET
        assert collector.resource()["service.name"] == "feeds"
        if workers == "1":
            [point] = collector.latest()["relay_events"].sum.data_points
            assert point.as_double == 2.0
            assert collector.latest()["relay_flush_seconds"].histogram.data_points[0].count >= 1


def test_metrics_are_exported_periodically() -> None:
    with collecting() as collector, relay("--otlp-url", f"{collector.url}/", "--otlp-interval", "1s"):
        eventually(lambda: len(collector.metrics) >= 2, "two exports")


def test_a_missing_collector_delays_neither_streams_nor_the_exit_for_long() -> None:
    with relay("--otlp-url", f"http://127.0.0.1:{free_port()}", "--otlp-interval", "1s") as server:
        with Stream(server.port) as stream:
            server.publish("x")
            assert stream.next().data == "x"
        assert server.stop() == 0


def test_without_the_extra_relay_names_it(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('OpenTelemetry is not installed')")
    done = run("--listen", "127.0.0.1:0", "--otlp-url", "http://127.0.0.1:1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "otlp-url: OpenTelemetry is not installed; run pip install" in done.stderr


def test_counters_gauges_and_histograms_keep_names_labels_and_values() -> None:
    registry = CollectorRegistry()
    Counter("relay_c", "C.", ("kind",), registry=registry).labels("a").inc(3)
    PlainGauge("relay_g", "G.", registry=registry).set(0.5)
    histogram = PlainHistogram("relay_h_seconds", "H.", buckets=(1.0, 10.0), registry=registry)
    for value in (0.5, 5.0, 5.0, 50.0):
        histogram.observe(value)
    counter, gauge, times = convert(registry.collect(), 1, 2)
    assert (counter.name, counter.description) == ("relay_c", "C.")
    assert isinstance(counter.data, Sum)
    assert counter.data.is_monotonic
    [point] = counter.data.data_points
    assert (point.attributes, point.value, point.start_time_unix_nano, point.time_unix_nano) == ({"kind": "a"}, 3, 1, 2)
    assert isinstance(gauge.data, Gauge)
    assert gauge.data.data_points[0].value == 0.5
    assert isinstance(times.data, Histogram)
    [bucket] = times.data.data_points
    assert (bucket.bucket_counts, bucket.explicit_bounds) == ([1, 2, 1], [1.0, 10.0])
    assert (bucket.count, bucket.sum) == (4, 60.5)


class Traced:
    """A simulated hub whose flushes end spans."""

    def __init__(self) -> None:
        self.world = World(Config())
        self.exporter = InMemorySpanExporter()
        self.traces = Traces(self.exporter, Resource.get_empty(), lambda: self.world.now_s)
        self.traces.observe(self.world.hub)
        self.answers: list[list[str] | RelayError] = []

    def publish(self, event: Event, traceparent: str = SAMPLED, error: RelayError | None = None) -> None:
        """Publish an event within a span, or fail to."""

        def answer(events: list[Event], done) -> object:  # type: ignore[no-untyped-def]
            done(error or self.world.hub.publish(events, self.world.now_s))
            return lambda: None

        self.traces.publish({"traceparent": traceparent}, answer, [event], self.answers.append)  # type: ignore[arg-type]

    def ended(self) -> dict[str, ReadableSpan]:
        """Return the ended spans by name."""
        self.traces._provider.force_flush()
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.traces.close()
    made.world.engine._epoll.close()


def test_the_span_of_a_flush_ends_with_the_flush(traced: Traced) -> None:
    traced.world.connect(traced.world.client(("a",), None, 1 << 20))
    while traced.world.step():
        pass
    traced.publish(Event(data="1", topic="a"))
    assert set(traced.ended()) == {"publish"}
    while traced.world.step():
        pass
    traced.traces.tick(traced.world.now_s)
    assert set(traced.ended()) == {"publish", "flush"}
    assert len(traced.answers) == 1


def test_without_streams_the_span_of_a_flush_ends_at_once(traced: Traced) -> None:
    traced.publish(Event(data="1", topic="a", id="own"))
    assert set(traced.ended()) == {"publish", "flush"}


@pytest.mark.parametrize("traceparent", [UNSAMPLED, "", "00-0-0-01", f"{SAMPLED}, {SAMPLED}"])
def test_a_request_without_a_sampled_traceparent_has_no_span(traced: Traced, traceparent: str) -> None:
    traced.publish(Event(data="1", topic="a"), traceparent)
    assert traced.ended() == {}
    assert len(traced.answers) == 1


def test_the_span_of_a_rejected_request_has_the_error(traced: Traced) -> None:
    traced.publish(Event(data="1", topic="a"), error=RequestError(503, "the disk is full"))
    assert traced.ended()["publish"].status.description == "the disk is full"
    assert "flush" not in traced.ended()


def test_the_span_of_a_flush_that_never_comes_ends_with_an_error(traced: Traced) -> None:
    traced.world.connect(traced.world.client(("a",), None, 1 << 20))
    traced.publish(Event(data="1", topic="a"))
    traced.traces.tick(traced.world.now_s + FLUSH_S_MAX)
    assert "not written within" in str(traced.ended()["flush"].status.description)
