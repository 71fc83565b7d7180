"""Traces: each publish request with a sampled `traceparent` continues the trace of its sender (W3C Trace Context).

A request has two spans. `publish` ends when the events are acknowledged. Its child `flush` ends when the last event is
written to the live streams of this process. Streams that lag receive it later.

Owns the open spans. Never decides to sample a request: its sender does, in `traceparent`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from relay import __version__
from relay.core.histogram_protocols import Measures, Observer
from relay.core.hub import Hub
from relay.errors import RelayError
from relay.event import Event
from relay.ids import default_sequence

FLUSHES_MAX = 1000
"""Maximum number of open spans that wait for a flush; above it, requests have no such span."""

TOPICS_SHOWN = 10
"""Maximum number of topics in the attributes of a span."""

FLUSH_S_MAX = 30.0
"""Time after which a span that waits for a flush ends with an error."""


Done = Callable[[list[str] | RelayError], None]
Publish = Callable[[list[Event], Done], Callable[[], None]]
"""Publishes events, calls back once, and returns a function that cancels."""


@dataclass(frozen=True, slots=True)
class _OpenFlush:
    """A span that ends when the entries up to a sequence are written."""

    span: Span
    sequence: int
    ends_s: float


@dataclass(frozen=True, slots=True)
class _FlushTime:
    """A histogram that is followed by a call at the end of each flush."""

    histogram: Observer
    flushed: Callable[[], None]

    def observe(self, amount: float, /) -> None:
        """Count one value, and report the flush."""
        self.histogram.observe(amount)
        self.flushed()


@dataclass(frozen=True, slots=True)
class TracedMeasures:
    """The histograms of a hub whose flushes end spans."""

    flush_s: Observer
    written_s: Observer
    lag_s: Observer


class Traces:
    """The spans of one process.

    Args:
        exporter: sends the spans.
        resource: describes the process.
        clock: returns the hub's time.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource, clock: Callable[[], float]) -> None:
        self._provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("relay", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._clock = clock
        self._hub: Hub | None = None
        self._waiting: deque[_OpenFlush] = deque()

    def measures(self, histograms: Measures) -> Measures:
        """Return the histograms for the hub, which report the end of each flush."""
        return TracedMeasures(histograms.flush_s, _FlushTime(histograms.written_s, self._flushed), histograms.lag_s)

    def observe(self, hub: Hub) -> None:
        """Set the hub whose flushes end the spans."""
        self._hub = hub

    def publish(
        self, headers: Mapping[str, str], publish: Publish, events: list[Event], done: Done
    ) -> Callable[[], None]:
        """Publish the events of a request, within a span if the sender samples the request.

        Args:
            headers: the fields of the request, with names in lower case.
            publish: publishes the events.
            events: the first argument of `publish`.
            done: the second argument of `publish`.

        Returns:
            a function that cancels.
        """
        context = self._propagator.extract(headers)
        span = self._tracer.start_span("publish", context, SpanKind.SERVER)
        if not span.is_recording():
            return publish(events, done)
        span.set_attribute("relay.events", len(events))
        span.set_attribute("relay.topics", sorted({str(event.topic) for event in events})[:TOPICS_SHOWN])

        def finish(result: list[str] | RelayError) -> None:
            self._published(span, result)
            done(result)

        cancel = publish(events, finish)

        def stop() -> None:
            if span.is_recording():
                span.set_status(Status(StatusCode.ERROR, "the publisher disconnected"))
                span.end()
            cancel()

        return stop

    def _published(self, span: Span, result: list[str] | RelayError) -> None:
        """End the span of a request, and begin that of the flush."""
        if isinstance(result, RelayError):
            span.set_status(Status(StatusCode.ERROR, str(result)))
        elif len(self._waiting) < FLUSHES_MAX:
            assert self._hub is not None
            epoch = self._hub.log.epoch
            sequences = [default_sequence((id,), epoch) for id in result]
            # An id of the publisher has no sequence. The entry is then before the head.
            last = max((each for each in sequences if each is not None), default=self._hub.head - 1)
            flush = self._tracer.start_span("flush", trace.set_span_in_context(span))
            self._waiting.append(_OpenFlush(flush, last, self._clock() + FLUSH_S_MAX))
        span.end()
        self._flushed()  # Without streams of the topics, no flush follows.

    def _flushed(self) -> None:
        """End the spans whose entries are written."""
        assert self._hub is not None
        while self._waiting and self._waiting[0].sequence < self._hub.flushed:
            self._waiting.popleft().span.end()

    def tick(self, now_s: float) -> None:
        """End the spans whose entries are written, and those that have waited too long."""
        self._flushed()
        while self._waiting and self._waiting[0].ends_s <= now_s:
            span = self._waiting.popleft().span
            span.set_status(Status(StatusCode.ERROR, f"not written within {FLUSH_S_MAX:.0f} s"))
            span.end()

    def close(self) -> None:
        """End all spans, export them and stop the exporter's thread. This waits for the export."""
        while self._waiting:
            self._waiting.popleft().span.end()
        self._provider.shutdown()
