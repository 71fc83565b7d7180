"""The membership of a server in a group of processes: as a hub with workers, or as a worker.

Owns the links of this process to its hub or to its workers, and the workers. Never opens a listener for clients and
never serves a stream.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec

from relay.config.model import Config
from relay.core.hub import Hub
from relay.errors import RelayError
from relay.event import Event
from relay.process.listeners import ListenerGroup
from relay.sources.requests import BatchPublisher, Cancel, Done, TakeDone, TakeRate, nothing
from relay.sources.topic_signals import TopicSignals
from relay.telemetry import topics
from relay.telemetry.metrics import Metrics
from relay.telemetry.stats import Stats
from relay.telemetry.stats_schema import ClusterStats, ServerStats, SourceStats, UpstreamStats, to_json
from relay.telemetry.topics import TopicsQuery
from relay.workers import aggregate
from relay.workers.connections import Links, UplinkProtocol
from relay.workers.edge_end import Uplink
from relay.workers.hub_end import Downlink
from relay.workers.messages import Report
from relay.workers.processes import Workers

SETTLE_STEP_S = 0.01
"""Interval at which a draining worker compares its log with its hub's."""

FoundDone = Callable[[int | RelayError | None], None]
Find = Callable[[tuple[str, ...], tuple[str, ...], FoundDone], Cancel]


class Membership:
    """The links of one process, and the handler of its workers' requests.

    Args:
        config: the settings.
        hub: the hub of this process.
        stats: the stats of this process.
        metrics: the metrics of this process.
        publisher: publishes into this process's hub.
        take_rate: takes from the publish rates of this process.
        signals: the feeders of this process.
        loop: the event loop.
        clock: returns the hub's time.
        wall: returns the Unix time in seconds.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        stats: Stats,
        metrics: Metrics,
        publisher: BatchPublisher,
        take_rate: TakeRate,
        signals: TopicSignals,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.publisher = publisher
        self.take_local = take_rate
        self.uplink: Uplink | None = None
        self.workers: Workers | None = None
        self._signals = signals
        self._config = config
        self._hub = hub
        self._stats = stats
        self._metrics = metrics
        self._loop = loop
        self._clock = clock
        self._wall = wall
        self._connection: UplinkProtocol | None = None
        self._links: Links | None = None
        self._event_stream: Callable[[], UpstreamStats] | None = None
        self._sources: Callable[[], list[SourceStats]] | None = None
        self._find_elsewhere: Find | None = None
        self._cluster: Callable[[], ClusterStats] | None = None

    # As a worker

    async def follow(self, link: socket.socket, stop: asyncio.Event, on_gone: Callable[[], None]) -> None:
        """Become a worker; wait until the snapshot is complete or `stop` is set.

        Args:
            link: a non-blocking socket that is connected to the hub.
            stop: set when the server stops.
            on_gone: called when the hub asks this process to drain, and when the link is lost.
        """
        begun = asyncio.Event()
        self.publisher = self.uplink = uplink = Uplink(
            self._config,
            self._hub,
            clock=self._clock,
            on_begun=begun.set,
            on_drain=on_gone,
            answer=self.local_report,
            on_signal=self._spread_signal,
        )
        _, self._connection = await self._loop.create_unix_connection(
            lambda: UplinkProtocol(uplink, self._loop, on_gone), sock=link
        )
        waits = [self._loop.create_task(each.wait()) for each in (begun, stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()

    async def settle(self) -> None:
        """Wait until the worker's log has every event that its hub had acknowledged at the time of the call.

        Returns early if the link is down or breaks.
        """
        answered: asyncio.Future[int | RelayError] = self._loop.create_future()
        cancel = self.head(lambda result: None if answered.done() else answered.set_result(result))
        try:
            head = await answered
            while not isinstance(head, RelayError) and self._is_linked and self._hub.log.head < head:
                await asyncio.sleep(SETTLE_STEP_S)
        finally:
            cancel()

    @property
    def _is_linked(self) -> bool:
        return self.uplink is not None and self.uplink.linked

    # In a cluster

    def join(self, publisher: BatchPublisher, find: Find, state: Callable[[], ClusterStats]) -> None:
        """Publish to a cluster's broker.

        Args:
            publisher: publishes at the broker.
            find: finds a last id that this process does not have.
            state: returns the cluster's part of /stats.
        """
        self.publisher, self._find_elsewhere, self._cluster = publisher, find, state

    def cluster(self) -> ClusterStats | None:
        """Return the state of the cluster; None without one."""
        return None if self._cluster is None else self._cluster()

    # As a hub

    async def lead(self, listeners: list[ListenerGroup], own_token: str, stop: asyncio.Event) -> None:
        """Start one worker for each group of listeners; wait until all are ready or `stop` is set."""
        self._links = Links(self._config, self._hub, self, self._loop, self._clock)
        self.workers = Workers(self._config, self._links, listeners, own_token, self._loop)
        await self.workers.open(stop)

    def leave(self) -> None:
        """Make the workers report that they are not ready; they continue to serve."""
        if self._links is not None:
            self._links.leaving = True

    def stop_starting(self) -> None:
        """Stop starting workers."""
        if self.workers is not None:
            self.workers.stop_starting()

    async def drain(self) -> None:
        """Send the rest of the log to the workers, and wait until they have drained and exited."""
        if self._links is not None:
            self._links.drain()
        if self.workers is not None:
            await self.workers.drain()

    def close(self) -> None:
        """Kill the remaining workers and close all links at once."""
        if self.workers is not None:
            self.workers.close()
        if self._links is not None:
            self._links.close()
        if self._connection is not None:
            self._connection.cut()

    # Requests

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish in this process, or at the hub if this process is a worker."""
        return self.publisher.publish(events, done)

    def take_rate(self, subject: str, count: int, done: TakeDone) -> Cancel:
        """Take events from the publish rate of a subject, if there is one: at the hub if this process is a worker."""
        if self.uplink is None or not self._config.publish_rate:
            return self.take_local(subject, count, done)
        return self.uplink.take_rate(subject, count, done)

    def find(self, terms: tuple[str, ...], ids: tuple[str, ...], done: FoundDone) -> Cancel:
        """Find the sequence of a last id in this process, then at the hub of a worker, or in a cluster."""
        sequence = self._hub.find(terms, ids)
        if sequence is None and self.uplink is not None:
            return self.uplink.find(terms, ids, done)
        if sequence is None and self._find_elsewhere is not None:
            return self._find_elsewhere(terms, ids, done)
        done(sequence)
        return nothing

    def signal(self, topic: str, value: bytes) -> None:
        """Send a signal to the feeders of a topic, in all processes that follow the same hub.

        Raises:
            RequestError: 503, the link to the hub is down.
        """
        if self.uplink is not None:
            self.uplink.signal(topic, value)
        else:
            self._spread_signal(topic, value)

    def _spread_signal(self, topic: str, value: bytes) -> None:
        """Deliver a signal to the feeders of this process and of its edges."""
        self._signals.deliver(topic, value)
        for each in self._links.all if self._links is not None else ():
            each.down.signal(topic, value)

    def head(self, done: Callable[[int | RelayError], None]) -> Cancel:
        """Get the sequence of the next event, from the hub if this process is a worker."""
        if self.uplink is not None:
            return self.uplink.head(done)
        done(self._hub.head)
        return nothing

    def ask(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes], None]) -> None:
        """Build a report of this process and its workers."""
        self.local_report(
            report, query, lambda part: aggregate.gather(report, query, part, self._workers(), self._loop, done)
        )

    def local_report(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes], None]) -> None:
        """Build a report of this process alone, in the form that `aggregate` combines; call back with its body."""
        if report == "stats":
            done(to_json(self.stats(self._clock())))
        elif query is None:
            done(msgspec.json.encode(aggregate.families(self._metrics.registry)))
        else:
            ahead_s = self._wall() - self._clock()
            topics.search(self._hub, query, ahead_s, self._loop, lambda page: done(topics.encode(page)))

    def _workers(self) -> dict[int, Downlink]:
        return {} if self.workers is None else self.workers.links

    def upstream(self) -> UpstreamStats | None:
        """Return the state of the followed event stream; None without one."""
        return None if self._event_stream is None else self._event_stream()

    def report_event_stream(self, state: Callable[[], UpstreamStats]) -> None:
        """Report the state of an event stream as this process's upstream."""
        self._event_stream = state

    def report_sources(self, state: Callable[[], list[SourceStats]]) -> None:
        """Report the state of the sources that read feeds."""
        self._sources = state

    def stats(self, now_s: float) -> ServerStats:
        """Return the /stats of this process, with its links."""
        result = self._stats.collect(now_s)
        cluster, upstream = self.cluster(), self.upstream()
        if self._sources is not None:
            result.sources = self._sources()
        if cluster is not None:
            result.cluster = cluster
        if upstream is not None:
            result.upstream = upstream
        if self.workers is not None:
            result.worker_restarts = self.workers.restarts
        return result
