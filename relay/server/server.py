"""The server: one process, one loop, and the order in which things begin and end.

Owns listeners, timers, signals, the descriptor limit and the drain. Nothing here is on the data path: the loop watches
the engine's descriptor and runs the hub's turns between its other work.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.resources
import logging
import math
import os
import resource
import secrets
import signal
import socket
import sys
import time
from functools import partial
from importlib import metadata

import uvloop
from prometheus_client import CollectorRegistry

from relay.auth.credentials import Credentials
from relay.config.load import worker_count
from relay.config.model import Config, is_event_stream
from relay.core.hub import Hub
from relay.errors import ConfigError, RelayError
from relay.front.acceptor import Acceptor
from relay.front.front import Front
from relay.front.tls import DESCRIPTORS_A_STREAM, Tls
from relay.process import startup
from relay.process.listeners import listen, tune
from relay.process.orphans import reap_orphans
from relay.process.systemd import Service
from relay.server.pulse import Pulse
from relay.sources.group import Sources
from relay.speedups import ENGINE, Engine
from relay.store.journal import Journal
from relay.store.restore import open_journal
from relay.telemetry import logs
from relay.telemetry.metrics import Histograms, Metrics
from relay.telemetry.stats import Stats
from relay.telemetry.stats_schema import to_json
from relay.upgrade import take
from relay.upgrade.give import Possessions, upgrade
from relay.upgrade.messages import Channel, Start
from relay.upgrade.take import Taken
from relay.workers.membership import Cluster
from relay.workers.processes import Inherited, share

DESCRIPTORS_RESERVED = 128
"""Descriptors kept for listeners, feeders, ordinary requests and handshakes, which need two for a moment."""

DESCRIPTORS_MIN = 256
"""Below this the server would refuse nearly everybody, so it refuses to start."""

COLLECTIONS = (700, 10, 1000)
"""Thresholds of the garbage collector. The oldest generation, 0.1 s for a million objects, is left alone until seven
million are new: with the default it delayed all streams a dozen times while 300 streams of 1,000 topics came."""

DRAIN_STEP_S = 0.05
"""Time between two batches of streams that a drain ends."""

EXIT_AT_ONCE = 130

_logger = logging.getLogger("relay.server")


def run(
    config: Config, service: Service, worker: Inherited | None = None, channel: Channel | None = None
) -> None:
    """Serve until a signal, or the end of standard input under `exit_on_eof`.

    Args:
        config: checked settings.
        service: the service manager's side.
        worker: what this process has from its hub's, where it is a worker.
        channel: where an old process hands everything over, if this one takes its place.

    Raises:
        RelayError: the old process goes on.
        ConfigError: an address or a path cannot be used, or there are too few descriptors.
    """
    _logger.info("relay %s, engine %s, pid %d", metadata.version("relay"), ENGINE, os.getpid())
    if os.geteuid() == 0 and worker is None:
        _logger.warning("running as root: run relay as a user of its own, since it needs no right of root")
    descriptors = raise_descriptor_limit()
    if channel is not None:
        # A Ctrl-C that asyncio noted before Ready would end this process at its first await, which comes after Go.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(config, descriptors, service, worker, channel).serve())


def raise_descriptor_limit() -> int:
    """Raise the limit of open descriptors to the hard one, and return it.

    Raises:
        ConfigError: it is below `DESCRIPTORS_MIN`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _logger.info("raised the descriptor limit from %d to %d", soft, hard)
    if hard < DESCRIPTORS_MIN:
        raise ConfigError(f"descriptors: the hard limit is {hard}, and {DESCRIPTORS_MIN} are needed (ulimit -Hn)")
    return hard


class Server:
    """One server on a running loop.

    Args:
        config: checked settings.
        descriptors: how many this process may have open.
        service: the service manager's side.
        worker: what it has from its hub's process, where it is a worker.
        channel: where an old process hands everything over, if this one takes its place.
    """

    def __init__(
        self,
        config: Config,
        descriptors: int,
        service: Service,
        worker: Inherited | None = None,
        channel: Channel | None = None,
    ) -> None:
        self.config = config
        self._channel = channel
        self._upgrading: asyncio.Task[None] | None = None
        self._to_pass_on: set[int] = set()  # signals that a new process must get from this one
        self._service = service
        self._worker = worker
        follows = bool(config.upstream) and not is_event_stream(config.upstream)
        self._fed = worker is not None or follows
        self._is_process_1 = os.getpid() == 1
        self._descriptors = descriptors
        available = descriptors - DESCRIPTORS_RESERVED
        self._tls = Tls(config) if config.tls_cert else None
        if self._tls is not None:
            available //= DESCRIPTORS_A_STREAM
        if config.streams_max > available:
            raise ConfigError(f"streams-max: {config.streams_max} streams need more than {descriptors} descriptors")
        self._streams_available = available
        registry = CollectorRegistry()
        self._histograms = Histograms(registry)
        self.hub = Hub(
            config,
            Engine(config.discard_bytes_max),
            epoch="" if self._fed else secrets.token_hex(4),
            streams_max=config.streams_max or available,
            measures=self._histograms,
            clock=time.monotonic,
            wake=self._wake,
        )
        self.metrics = Metrics(self.hub, registry)
        self._stats = Stats(self.hub, self.metrics.input_errors, time.monotonic())
        self._loop: asyncio.AbstractEventLoop
        self._front: Front
        self._credentials: Credentials
        self._cluster: Cluster
        self._sockets: list[socket.socket] = []
        self._acceptor: Acceptor | None = None
        self._link_listener: socket.socket | None = None
        self._given_unix: socket.socket | None = None
        self._sources: Sources | None = None
        self._journal: Journal | None = None
        self._pinging: asyncio.TimerHandle | None = None
        self._pulse: Pulse
        self._stop: asyncio.Event

    async def serve(self) -> None:
        """Open everything, serve until told to stop, drain, close everything."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._pulse = Pulse(self.hub, self.config.heartbeat_s, self._histograms.stall_s, self._loop, self._tick)
        try:
            await self._open()
            if not self._stop.is_set():
                self._tell_ready()
                await self._stop.wait()
            await self._drain()
        finally:
            self._close()

    async def _open(self) -> None:
        config, loop, worker = self.config, self._loop, self._worker
        workers = worker_count(config)
        own_token = secrets.token_urlsafe(24) if worker is None else worker.own_token
        start: Start | None = None
        if self._channel is None:
            shared = self._bind(workers)
            self._open_data()
        else:
            if self._many:
                raise ConfigError("workers, upstream, link-listen: what has them cannot take over from another process")
            start = take.begin(self._channel, metadata.version("relay"))
            own_token = start.own_token
            if start.data != config.data:
                raise ConfigError(f"data: {config.data!r} cannot take over from {start.data!r}; restart instead")
        self._credentials = Credentials(config, own_token, wall=time.time, changed=self._revoke)
        self._credentials.start(loop)
        page = importlib.resources.files("relay").joinpath("pages/index.html").read_bytes()
        auth = self._credentials.auth
        self._front = Front(self.hub, config, self.metrics, self._statistics, page, auth, loop, time.monotonic)
        self._cluster = Cluster(
            config, self.hub, self._stats, self.metrics, self._front.publisher, loop, time.monotonic
        )
        self.metrics.report_upstream(self._cluster.upstream)
        taken: Taken | None = None
        if self._channel is not None and start is not None:
            before_ready = partial(self._prepare_to_serve, own_token)
            taken = take.take(self._channel, start, self.hub, time.monotonic(), before_ready)
            self._sockets, self._given_unix = taken.listeners, taken.unix
            shared = [self._sockets]
        else:
            self._handle_signals(own_token)
            startup.release_signals()
        self._pulse.start()
        if self._fed:
            await self._follow()
        else:
            self._sources = Sources(config, self.hub, self.metrics, loop, self._on_eof)
            if self._given_unix is not None or (config.unix and taken is None):
                self._sources.listen(self._given_unix, None if taken is None else taken.unix_file)
        if self._stop.is_set():
            return
        if workers > 1 or self._link_listener is not None:
            await self._cluster.lead(self._link_listener, shared if workers > 1 else [], own_token, self._stop)
            if self._stop.is_set():
                return
        self._listen(shared[0], workers)
        if taken is not None and self._sources is not None:
            await taken.go_on(self._front, self.hub, self._sources)
            self._revoke()
            startup.release_signals()
        else:
            if self._worker is None:
                self._credentials.warn_of_old_names()
            self._tell_token(own_token)
            if self._sources is not None:
                self._sources.stdin.start()
                self._sources.follow()
                if self._sources.upstream is not None:
                    self._cluster.report_event_stream(self._sources.upstream.stats)
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)

    def _prepare_to_serve(self, own_token: str) -> None:
        """Take what the old process has let go of. From now on a signal waits for the loop."""
        self._open_data(taken_over=True)
        self._handle_signals(own_token)

    def _handle_signals(self, own_token: str) -> None:
        loop = self._loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, _logger.info, "SIGUSR1 has no meaning for relay and is ignored")
        loop.add_signal_handler(signal.SIGUSR2, self._on_upgrade, own_token)

    def _bind(self, workers: int) -> list[list[socket.socket]]:
        """Take the addresses, so that what is wrong with one is said at once; return the listeners of each worker."""
        config = self.config
        if config.link_listen:
            self._link_listener = listen(config.link_listen, config)
        given, self._given_unix = self._service.listeners()
        if self._worker is not None or given or workers == 1:
            inherited = given if self._worker is None else self._worker.listeners
            self._sockets = inherited or [listen(address, config) for address in config.listen]
            return [self._sockets] * workers
        for address in config.listen:
            listen(address, config).close()  # fails where somebody listens, even one that would share
        shared = share(lambda address: listen(address, config, shared=True), config.listen, workers)
        self._sockets = [each for own in shared for each in own]
        return shared

    async def _follow(self) -> None:
        """Become an edge: wait until the log of the hub is here."""
        worker, config = self._worker, self.config
        if worker is not None:
            await self._cluster.follow(worker.link, f"worker {worker.number}", "", self._stop, self._stop.set)
            ask = self._cluster.uplink.ask if self._cluster.uplink is not None else None
        else:
            ask = None
            name = f"{socket.gethostname()} (pid {os.getpid()})"
            await self._cluster.follow(config.upstream, name, config.link_token, self._stop, self._stop.set)
            _logger.info("following %s", config.upstream)
        self._front.become_edge(self._cluster, self._cluster.find, ask)

    def _open_data(self, taken_over: bool = False) -> None:
        """Take the file, where there is one; what was taken over is in the log already."""
        if self.config.data:
            self._journal = open_journal(
                self.config.data, self.hub, self._histograms.store_s, self._loop, taken_over=taken_over
            )

    def _listen(self, listeners: list[socket.socket], workers: int) -> None:
        """Begin to accept, unless the workers do; say where."""
        for each in listeners:
            tune(each, self.config)
        if workers == 1:
            engine, loop = self.hub.engine, self._loop
            self._acceptor = Acceptor(self._front, self._tls, self._descriptors, lambda: engine.open, loop)
            self._acceptor.open(listeners)
        if self._worker is not None:
            return
        most = self.config.streams_max or self._streams_available * workers
        _logger.info("room for %d streams (%d descriptors per process; ulimit -Hn)", most, self._descriptors)
        for address in self.config.listen:
            if address.startswith(":"):
                _logger.info("%s is every IPv4 address; [::]%s is every IPv4 and IPv6 address", address, address)
        for each in listeners:
            host, port = each.getsockname()[:2]
            scheme = "http" if self._tls is None else "https"
            _logger.info("serving at %s://%s:%d/", scheme, f"[{host}]" if ":" in host else host, port)

    def _tell_token(self, own_token: str) -> None:
        if self._worker is not None or own_token not in self._credentials.auth.tokens:
            return
        if sys.stderr.isatty():
            logs.say(f"token for POST /publish, this run only: {own_token}")
        else:
            # What is not a terminal is a log, which is kept and shipped: no secret goes there.
            _logger.warning("no publish-token is set, so that nobody can publish over HTTP")

    def _statistics(self, now_s: float) -> bytes:
        return to_json(self._cluster.stats(now_s))

    # Upgrades

    @property
    def _many(self) -> bool:
        """Whether this is one process of several."""
        config = self.config
        return self._fed or worker_count(config) > 1 or bool(config.link_listen) or bool(config.upstream)

    def _on_upgrade(self, own_token: str) -> None:
        if self._is_process_1:
            _logger.error("the upgrade failed: a container ends with its process 1, which is this one; restart it")
        elif self._many:
            _logger.error("the upgrade failed: workers and links cannot be handed over; restart, and clients resume")
        elif self._tls is not None:
            _logger.error("the upgrade failed: streams of TLS cannot be handed over; restart, and clients resume")
        elif self._upgrading is None and self._sources is not None and not self._stop.is_set():
            self._to_pass_on.clear()
            given = Possessions(self.hub, self._front, own_token, self._sockets, self._sources, self._journal)
            self._upgrading = self._loop.create_task(self._upgrade(given))

    async def _upgrade(self, given: Possessions) -> None:
        try:
            timeout_s = self.config.upgrade_timeout_s
            await upgrade(given, self._service, timeout_s, time.monotonic, self._to_pass_on)
        except RelayError as error:
            _logger.error("the upgrade failed, this process goes on: %s", error)
        except Exception:
            _logger.exception("the upgrade failed, this process goes on")
        self._service.tell(f"MAINPID={os.getpid()}", "READY=1", self._status())
        self._upgrading = None

    # What the service manager is told

    def _tell_ready(self) -> None:
        self._service.tell("READY=1", self._status())
        if self._service.ping_s is not None:
            self._ping(self._service.ping_s)

    def _status(self) -> str:
        return f"STATUS=serving {self.hub.engine.open} streams"

    def _ping(self, interval_s: float) -> None:
        self._pinging = self._loop.call_later(interval_s, self._ping, interval_s)
        self._service.tell("WATCHDOG=1", self._status())

    def _reload(self) -> None:
        if self._upgrading is not None:
            self._to_pass_on.add(signal.SIGHUP)  # The new process may have read its credentials already.
        self._service.reloading()
        self._credentials.reload()
        if self._tls is not None:
            self._tls.reload()
        if self._cluster.workers is not None:
            self._cluster.workers.reload()
        self._service.tell("READY=1", self._status())

    # What the loop calls

    def _wake(self) -> None:
        self._loop.call_soon(self._pulse.turn)

    def _tick(self, now_s: float) -> None:
        self._credentials.auth.purge()
        if self._journal is not None:
            self._journal.tick(now_s)
        if self._is_process_1:
            reap_orphans([] if self._cluster.workers is None else self._cluster.workers.pids)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _logger.warning("second signal: exiting at once")
            logging.shutdown()
            os._exit(EXIT_AT_ONCE)
        self._end()

    def _end(self) -> None:
        """Begin to end; an upgrade that has not handed anything over ends first."""
        self._stop.set()
        if self._upgrading is not None:
            self._upgrading.cancel()

    def _revoke(self) -> None:
        ended = self.hub.revoke(self._credentials.auth.valid, time.monotonic())
        if ended:
            _logger.info("ended %d streams whose token is revoked", ended)

    def _on_eof(self) -> None:
        if self.config.exit_on_eof:
            self._end()

    # The end

    async def _drain(self) -> None:
        """Deliver every event that was acknowledged, then end the streams.

        The order makes the head of the log final before the first stream ends. A stream ends once it has everything
        up to the head.

        1. Readiness fails; all else goes on for `drain_delay_s`.
        2. No connection is accepted and no worker is started any more. Feeders are read no more; what has been read of
           them is published. Requests to publish are answered 503, here and at each worker.
        3. The journal writes what is pending, which puts it into the log and acknowledges it. An edge waits until it
           has what its hub had acknowledged.
        4. The streams of this process end. Each edge gets the rest of the log: a worker then does all of this for its
           own streams and leaves; an edge on another machine closes its link and looks for a hub.
        """
        if self._upgrading is not None:
            await asyncio.wait([self._upgrading])
        self._front.ready = False
        self._cluster.leave()
        self._service.tell("STOPPING=1", f"STATUS=draining {self.hub.engine.open} streams")
        if self.config.drain_delay_s:
            _logger.info("not ready; draining in %g s", self.config.drain_delay_s)
            await asyncio.sleep(self.config.drain_delay_s)
        _logger.info("draining %d streams", self.hub.engine.open)
        if self._acceptor is not None:
            self._acceptor.close()
        self._cluster.stop_starting()
        if self._sources is not None:
            self._sources.drain()
        self.hub.end_input()
        for each in self._sockets:
            each.close()  # the workers have their own, and close them
        self._front.close_idle()
        try:
            async with asyncio.timeout(self.config.drain_timeout_s / 2):
                if self._journal is not None:
                    await self._journal.settle()
                if self._fed:
                    await self._cluster.settle()
        except TimeoutError:
            _logger.warning("drain: not all events that were taken could be put into the log in time")
        drained = asyncio.Event()
        self.hub.drain(time.monotonic(), drained.set)
        await asyncio.gather(self._end_streams(drained), self._cluster.drain())
        if self.hub.engine.open:
            _logger.warning("drain timed out with %d streams open", self.hub.engine.open)
        self.hub.abort(time.monotonic())
        _logger.info("drained")

    async def _end_streams(self, drained: asyncio.Event) -> None:
        """Let the streams end, evenly, at `drain_rate` or within half of the time that there is, and wait for it."""
        streams = self.hub.engine.open
        takes_s = min(streams / self.config.drain_rate, self.config.drain_timeout_s / 2)
        a_step = math.ceil(streams / max(1, round(takes_s / DRAIN_STEP_S)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_timeout_s):
                while self.hub.end_some(a_step):
                    await asyncio.sleep(DRAIN_STEP_S)
                await drained.wait()

    def _close(self) -> None:
        """Close whatever was opened, however far that came."""
        startup.hold_signals()  # The loop's handlers end with the loop.
        if self._pinging is not None:
            self._pinging.cancel()
        if self._acceptor is not None:
            self._acceptor.abort()
        for each in self._sockets:
            each.close()
        if self._link_listener is not None:
            self._link_listener.close()
        if hasattr(self, "_credentials"):
            self._credentials.close()
        if hasattr(self, "_cluster"):
            self._cluster.close()
        if hasattr(self, "_front"):
            self._front.abort()
        if self._sources is not None:
            self._sources.close()
        if self._journal is not None:
            self._journal.close()
        self._pulse.stop()
