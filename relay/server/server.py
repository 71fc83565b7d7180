"""The server: one process, one loop, and the order in which its parts open and close.

Owns the parts of the server, and one start function for each mode: alone, hub, node of a cluster, worker, and takeover
from an old process. Never handles a signal (`relay.server.signals`) and never drains (`relay.server.drain`). Nothing
here is on the data path: the loop watches the engine's descriptor and runs the hub's turns between its other work.

The module is longer than 400 lines because each mode has a start function.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from relay import __version__
from relay.auth.credentials import Credentials
from relay.config.load import worker_count
from relay.config.model import Config
from relay.core.hub import Hub
from relay.errors import ConfigError
from relay.extras import missing_extra
from relay.front.acceptor import Acceptor
from relay.front.front import Front
from relay.front.page import read_page
from relay.front.rate import BURST_S
from relay.front.tls import Tls
from relay.process import startup
from relay.process.listeners import ListenerGroup, tune
from relay.process.orphans import reap_orphans
from relay.process.systemd import Service
from relay.server.addresses import bind, log_addresses
from relay.server.descriptors import log_room, raise_descriptor_limit, streams_available
from relay.server.drain import drain
from relay.server.parts import Parts, is_linked, leads
from relay.server.pulse import Pulse
from relay.server.signals import Signals
from relay.sources.group import Sources
from relay.sources.sink import EventSink
from relay.sources.validation import Validation
from relay.speedups import ENGINE, Engine
from relay.store.journal import Journal
from relay.store.restore import open_journal
from relay.telemetry import logs
from relay.telemetry.metrics import Histograms, Metrics
from relay.telemetry.stats import Stats
from relay.telemetry.stats_schema import to_json
from relay.upgrade import take
from relay.upgrade.messages import Channel
from relay.workers.membership import Membership
from relay.workers.processes import Inherited

if TYPE_CHECKING:
    from relay.telemetry.otlp import Otlp

COLLECTIONS = (700, 10, 1000)
"""Thresholds of the garbage collector. It collects the oldest generation only after seven million new objects, because
a collection takes 0.1 s for a million objects. The default delayed all streams a dozen times while 300 streams of 1,000
topics were opened."""

_logger = logging.getLogger("relay.server")


def run(config: Config, service: Service, worker: Inherited | None = None, channel: Channel | None = None) -> None:
    """Serve until a signal arrives, or until standard input ends with `exit_on_eof`.

    Args:
        config: checked settings.
        service: the connection to the service manager.
        worker: the link and the listeners from the hub, if this process is a worker.
        channel: the channel to the old process, if this process replaces one.

    Raises:
        RelayError: the takeover failed, and the old process continues.
        ConfigError: an address or a path cannot be used, or there are too few descriptors.
    """
    _logger.info("relay %s, engine %s, pid %d", __version__, ENGINE, os.getpid())
    if os.geteuid() == 0 and worker is None:
        _logger.warning("running as root: run relay as an unprivileged user, since it needs no root privileges")
    descriptors = raise_descriptor_limit()
    if channel is not None:
        # A Ctrl-C that asyncio noted before Ready would end this process at its first await, which comes after Go.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(config, descriptors, service, worker, channel).serve())


class Server:
    """One server on a running loop.

    Args:
        config: checked settings.
        descriptors: this process's limit of open descriptors.
        service: the connection to the service manager.
        worker: the link and the listeners from the hub, if this process is a worker.
        channel: the channel to the old process, if this process replaces one.
    """

    def __init__(
        self,
        config: Config,
        descriptors: int,
        service: Service,
        worker: Inherited | None = None,
        channel: Channel | None = None,
    ) -> None:
        self._config = config
        self._service = service
        self._worker = worker
        self._channel = channel
        self._is_edge = worker is not None
        self._worker_count = worker_count(config)
        self._is_process_1 = os.getpid() == 1
        self._descriptors = descriptors
        self._tls = Tls(config) if config.tls_cert else None
        self._streams_available = streams_available(config, descriptors)
        registry = CollectorRegistry()
        self._histograms = Histograms(registry)
        self._otlp = _load_otlp(config, registry)
        self._hub = Hub(
            config,
            Engine(config.discard_bytes_max),
            epoch="" if self._is_edge or config.cluster else secrets.token_hex(4),
            streams_max=config.streams_max or self._streams_available,
            measures=self._histograms if self._otlp is None else self._otlp.traces.measures(self._histograms),
            clock=time.monotonic,
            wake=self._wake,
        )
        if self._otlp is not None:
            self._otlp.traces.observe(self._hub)
        if config.validate:
            self._hub.writer.use_validation(Validation(config.validate).check)
        self._metrics = Metrics(self._hub, registry, time.monotonic)
        if self._tls is not None:
            tls = self._tls
            self._metrics.report_certificate(lambda: tls.expires_s)
        self._stats = Stats(self._hub, self._metrics.input_errors, time.monotonic())
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._stack: contextlib.AsyncExitStack
        self._data_stack: contextlib.ExitStack
        self._pulse: Pulse
        self._parts: Parts
        self._signals: Signals

    async def serve(self) -> None:
        """Open all parts, serve until the server must stop, drain, and close all parts."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._pulse = Pulse(self._hub, self._config.heartbeat_s, self._histograms.stall_s, self._loop, self._tick)
        async with contextlib.AsyncExitStack() as self._stack:
            self._stack.callback(self._pulse.stop)
            # A takeover opens the file late. The file must still close after the parts that use it.
            self._data_stack = self._stack.enter_context(contextlib.ExitStack())
            await self._start()
            if self._otlp is not None:
                await self._stack.enter_async_context(self._otlp.exporting())
            if not self._stop.is_set():
                gc.freeze()
                gc.set_threshold(*COLLECTIONS)
                self._signals.tell_ready()
                await self._stop.wait()
            await self._signals.upgrade_ended()
            await drain(self._parts)

    # One start function for each mode. Each returns early if the server must stop before it accepts clients.

    async def _start(self) -> None:
        if self._channel is not None:
            await self._start_takeover(self._channel)
        elif self._worker is not None:
            await self._start_worker(self._worker)
        elif self._config.cluster:
            await self._start_cluster()
        elif leads(self._config):
            await self._start_hub()
        else:
            self._start_alone()

    def _start_alone(self) -> None:
        """Start one process that serves all clients."""
        shared, given_unix = self._bind()
        self._open_parts(secrets.token_urlsafe(24), shared, self._read_data())
        self._handle_signals()
        sources = self._open_sources(given_unix)
        self._accept(shared[0])
        self._start_sources(sources)

    async def _start_hub(self) -> None:
        """Start a server with workers."""
        shared, given_unix = self._bind()
        self._open_parts(secrets.token_urlsafe(24), shared, self._read_data())
        self._handle_signals()
        sources = self._open_sources(given_unix)
        await self._parts.membership.lead(shared, self._parts.own_token, self._stop)
        if not self._stop.is_set():
            self._accept(shared[0])
            self._start_sources(sources)

    async def _start_cluster(self) -> None:
        """Start a node of a cluster; it may have workers."""
        from relay.cluster.cluster import Cluster  # Only here, so that a relay without a cluster starts faster.

        config = self._config
        shared, given_unix = self._bind()
        self._open_parts(secrets.token_urlsafe(24), shared)
        cluster = Cluster(config, self._hub, self._metrics, self._histograms.broker_s, self._loop, time.monotonic)
        self._parts.cluster = cluster
        self._stack.push_async_callback(cluster.close)
        self._handle_signals()
        await cluster.start(self._stop)
        membership = self._parts.membership
        membership.join(cluster.publisher, cluster.find, cluster.stats)
        self._metrics.report_cluster(membership.cluster)
        self._parts.front.become_edge(membership, membership.find)
        self._share_rates()
        sources = self._open_sources(given_unix, sink=cluster.publisher)
        if leads(config) and not self._stop.is_set():
            await self._parts.membership.lead(shared, self._parts.own_token, self._stop)
        if not self._stop.is_set():
            self._accept(shared[0])
            self._start_sources(sources)

    async def _start_worker(self, worker: Inherited) -> None:
        """Start a worker: it follows its hub and accepts clients at the hub's addresses."""
        self._close_at_end([worker.listeners])
        self._open_parts(worker.own_token, [worker.listeners])
        self._handle_signals()
        membership = self._parts.membership
        await membership.follow(worker.link, self._stop, self._stop.set)
        assert membership.uplink is not None
        self._parts.front.become_edge(membership, membership.find, membership.uplink.ask)
        if not self._stop.is_set():
            self._accept(worker.listeners)

    async def _start_takeover(self, channel: Channel) -> None:
        """Take over the clients and the sources of an old process, and then serve them."""
        config = self._config
        if is_linked(config):
            raise ConfigError(
                "workers, upstream, cluster, source: a relay with one of these settings cannot take over from another "
                "process; restart it instead"
            )
        start = take.begin(channel, __version__)
        if start.data != config.data:
            raise ConfigError(f"data: {config.data!r} cannot take over from {start.data!r}; restart instead")
        self._open_parts(start.own_token, [])

        def before_ready() -> None:
            # The old process has released the file. From now on a signal waits for the loop.
            self._parts.journal = self._read_data(taken_over=True)
            self._signals.handle()

        taken = take.take(channel, start, self._hub, time.monotonic(), before_ready)
        self._close_at_end([taken.listeners])
        self._parts.listeners = [taken.listeners]
        self._pulse.start()
        sources = self._open_sources(taken.unix, taken.unix_file, at_path=False)
        self._accept(taken.listeners)
        await taken.go_on(self._parts.front, self._hub, sources)
        self._revoke()
        startup.release_signals()

    # Steps that several modes share

    def _bind(self) -> tuple[list[ListenerGroup], socket.socket | None]:
        shared, given_unix = bind(self._config, self._service, self._worker_count)
        self._close_at_end(shared)
        return shared, given_unix

    def _close_at_end(self, shared: list[ListenerGroup]) -> None:
        for listeners in shared:
            for listener in listeners.all:
                self._stack.callback(listener.close)

    def _read_data(self, taken_over: bool = False) -> Journal | None:
        """Open the data file, if there is one; after a takeover the log already holds its events."""
        if not self._config.data:
            return None
        journal = open_journal(
            self._config.data, self._hub, self._histograms.store_s, self._loop, taken_over=taken_over
        )
        self._data_stack.callback(journal.close)
        return journal

    def _open_parts(self, own_token: str, shared: list[ListenerGroup], journal: Journal | None = None) -> None:
        """Open the parts that every mode has: credentials, front and membership."""
        config, hub, loop = self._config, self._hub, self._loop
        credentials = Credentials(config, own_token, wall=time.time, changed=self._revoke)
        self._stack.callback(credentials.close)
        credentials.start(loop)
        self._metrics.report_keys(lambda: credentials.keys_expire_s, lambda: credentials.fetched_s)
        page, traces = read_page(), None if self._otlp is None else self._otlp.traces
        front = Front(
            hub, config, self._metrics, self._collect_stats, page, credentials.auth, loop, time.monotonic, traces
        )
        self._stack.callback(front.abort)
        membership = Membership(
            config,
            hub,
            self._stats,
            self._metrics,
            front.publisher,
            front.take_rate,
            front.signals,
            loop,
            clock=time.monotonic,
            wall=time.time,
        )
        front.signal, front.take_rate = membership.signal, membership.take_rate
        self._stack.callback(membership.close)
        self._metrics.report_upstream(membership.upstream)
        self._parts = Parts(
            config,
            hub,
            self._service,
            loop,
            self._stop,
            own_token,
            credentials,
            front,
            membership,
            self._tls,
            self._is_edge,
            listeners=shared,
            journal=journal,
        )
        self._signals = Signals(self._parts, self._is_process_1)
        self._stack.callback(self._signals.close)

    def _share_rates(self) -> None:
        """Share the publish rates with all nodes, if the broker of the cluster can count them."""
        from relay.cluster.broker_factory import make_shared_rates

        rates = make_shared_rates(self._config, BURST_S)
        if rates is not None:
            rates.start(self._loop)
            self._stack.push_async_callback(rates.close)
            self._parts.membership.take_local = rates.take

    def _handle_signals(self) -> None:
        """Handle signals, and start the hub's turns."""
        self._signals.handle()
        startup.release_signals()
        self._pulse.start()

    def _open_sources(
        self,
        unix: socket.socket | None,
        unix_file: tuple[int, int] | None = None,
        at_path: bool = True,
        sink: EventSink | None = None,
    ) -> Sources:
        """Open standard input, the Unix socket and the feeds; none is read before `_start_sources`.

        Args:
            unix: a listener from the service manager or from the old process.
            unix_file: the device and inode of the listener's file, if this process must remove it.
            at_path: whether to listen at the path of the setting, if there is no listener.
            sink: publishes the events; None for the hub.
        """
        sources = Sources(
            self._config,
            self._hub,
            sink or self._hub,
            self._metrics,
            self._loop,
            self._parts.front.signals,
            self._on_eof,
        )
        self._parts.sources = sources
        if sources.feeds:
            self._metrics.report_sources(sources.feed_stats)
            self._parts.membership.report_sources(sources.feed_stats)
        self._stack.callback(sources.close)
        if unix is not None or (self._config.unix and at_path):
            sources.listen(unix, unix_file)
        return sources

    def _start_sources(self, sources: Sources) -> None:
        self._warn_operator()
        sources.stdin.start()
        sources.follow()
        if sources.upstream is not None:
            self._parts.membership.report_event_stream(sources.upstream.stats)
        sources.read_feeds()

    def _accept(self, listeners: ListenerGroup) -> None:
        """Accept clients, unless the workers do, and log the addresses."""
        for listener in listeners.all:
            tune(listener, self._config)
        if self._worker_count == 1:
            engine = self._hub.engine
            acceptor = Acceptor(self._parts.front, self._tls, self._descriptors, lambda: engine.open, self._loop)
            self._parts.acceptor = acceptor
            self._stack.callback(acceptor.abort)
            acceptor.open(listeners)
        if self._worker is not None:
            return
        most = self._config.streams_max or self._streams_available * self._worker_count
        log_room(self._config, self._descriptors, most)
        log_addresses(self._config, listeners)

    def _warn_operator(self) -> None:
        """Log renamed settings, and show the publish token of this run if the settings name none."""
        credentials, own_token = self._parts.credentials, self._parts.own_token
        credentials.warn_of_old_names()
        if own_token not in credentials.auth.tokens:
            return
        if sys.stderr.isatty():
            logs.say(f"token for POST /publish, this run only: {own_token}")
        else:
            # Without a terminal, standard error is a log that is stored and shipped. It must not contain a secret.
            who = "only signed webhooks" if any(credentials.auth.webhook_secrets.values()) else "nobody"
            _logger.warning("no publish-token is set, so that %s can publish over HTTP", who)

    # Callbacks

    def _collect_stats(self, now_s: float) -> bytes:
        return to_json(self._parts.membership.stats(now_s))

    def _wake(self) -> None:
        self._loop.call_soon(self._pulse.turn)

    def _tick(self, now_s: float) -> None:
        parts = self._parts
        parts.credentials.auth.purge()
        if self._otlp is not None:
            self._otlp.traces.tick(now_s)
        if parts.journal is not None:
            parts.journal.tick(now_s)
        if parts.cluster is not None:
            parts.cluster.tick(now_s)
        if self._is_process_1:
            reap_orphans([] if parts.membership.workers is None else parts.membership.workers.pids)

    def _revoke(self) -> None:
        ended = self._hub.revoke(self._parts.credentials.auth.valid, time.monotonic())
        if ended:
            _logger.info("ended %d streams whose token is revoked", ended)

    def _on_eof(self) -> None:
        if self._config.exit_on_eof:
            self._signals.end()


def _load_otlp(config: Config, registry: CollectorRegistry) -> Otlp | None:
    """Return the exports to a collector of OpenTelemetry; None without one.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not config.otlp_url:
        return None
    try:
        from relay.telemetry.otlp import Otlp
    except ImportError as error:
        raise ConfigError(f"otlp-url: {error}; {missing_extra('otel')}") from None
    return Otlp(config.otlp_url, config.otlp_interval_s, registry, time.monotonic)
