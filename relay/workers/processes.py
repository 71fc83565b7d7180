"""The worker processes, which serve the streams: the hub starts, watches and restarts them.

Theory of operation. The hub opens one listener per worker and address with SO_REUSEPORT, and keeps them open. So
connections to a dead worker wait in the backlog until the worker restarts, a fraction of a second later, and are not
reset. A worker is a new process, never a fork: it must not share the hub's loop, log and threads. It inherits its
listeners and one end of a socket pair, receives its Setup over that link, and accepts connections once it has the
snapshot of the log.

A worker that exits is restarted: at once if it ran for `STEADY_S`, otherwise after a pause that doubles. This also
applies while relay starts, because ready workers already serve. If a worker exits `STARTS_MAX` times during the start
and was never ready, relay exits with an error, because its settings or its installation are wrong.

A worker that loses its hub drains and exits. The ids belong to the log of that hub, and the next hub opens its own
listeners. So a worker monitors only its end of the link.

Owns the worker processes. Never serves a stream and never encodes messages of a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.backoff import Backoff
from relay.config.model import Config
from relay.errors import ConfigError
from relay.process.listeners import ListenerGroup
from relay.workers.connections import DownlinkProtocol, Links
from relay.workers.hub_end import Downlink
from relay.workers.messages import Setup

RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
"""Limits of the pause before the restart of a worker that exited early. The first restart has no pause."""

STARTS_MAX = 5
"""Failed starts of one worker after which relay exits; with the pauses this takes seconds."""

STEADY_S = 10.0
"""A worker that ran for this time started successfully; its next restart has no pause."""

SILENT_S = 30.0
"""A worker without output for this time is killed, because its share of the new connections receives no response."""

WATCH_S = 5.0

LEAVE_S = 3.0
"""Time that a worker has to exit after its drain timeout."""

_logger = logging.getLogger("relay.workers")


@dataclass(frozen=True, slots=True)
class Inherited:
    """The sockets and the token that a worker inherits from its hub.

    Args:
        link: the worker's end of the link.
        listeners: the listeners.
        own_token: the publish token that this run generated.
    """

    link: socket.socket
    listeners: ListenerGroup
    own_token: str


class Workers:
    """The workers of one hub.

    Args:
        config: the hub's settings.
        links: the hub's links; the workers' links are added to them.
        listeners: one group for each worker.
        own_token: the publish token that this run generated.
        loop: the event loop.
    """

    def __init__(
        self,
        config: Config,
        links: Links,
        listeners: Sequence[ListenerGroup],
        own_token: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.links: dict[int, Downlink] = {}
        self.restarts = 0
        self._links = links
        self._listeners = listeners
        self._own_token = own_token
        self._loop = loop
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()
        self._failures: Counter[int] = Counter()  # failed starts of each worker since it was last ready
        self._reloading: set[int] = set()  # workers that must reload their credentials
        self._ending = asyncio.Event()
        self._drain_s = config.drain_timeout_s + LEAVE_S
        count = len(listeners)
        self._config = dataclasses.replace(
            config,
            workers="1",
            streams_max=-(-config.streams_max // count),
            unix="",
            stdin="off",
            exit_on_eof=False,
            upstream="",
            data="",
            durable=False,
            validate=(),
            cluster="",
            cluster_password_file="",
            cluster_tls_ca="",
            cluster_tls_cert="",
            cluster_tls_key="",
            drain_delay_s=0.0,
            drain_rate=max(1, config.drain_rate // count),
        )

    async def open(self, stop: asyncio.Event) -> None:
        """Start the workers and wait until all are ready or `stop` is set.

        Raises:
            ConfigError: a worker exited `STARTS_MAX` times and was never ready.
        """
        self._tasks = [self._loop.create_task(self._keep(1 + place)) for place in range(len(self._listeners))]
        stopped = self._loop.create_task(stop.wait())
        stopped.add_done_callback(lambda _: self._heard.set())
        try:
            while not stop.is_set() and not self.ready:
                for number, count in self._failures.items():
                    if count >= STARTS_MAX:
                        raise ConfigError(f"workers: worker {number} failed to start {count} times; see the log")
                self._heard.clear()
                await self._heard.wait()
        finally:
            stopped.cancel()

    @property
    def ready(self) -> bool:
        """Whether every worker accepts connections."""
        return len(self.links) == len(self._listeners) and all(link.status.ready for link in self.links.values())

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes.values()]

    async def _keep(self, number: int) -> None:
        """Run this worker and restart it until the hub stops."""
        backoff, pause_s = Backoff(RESTART_MIN_S, RESTART_MAX_S), 0.0
        while not self._ending.is_set():
            began_s = self._loop.time()
            try:
                outcome = f"ended by {await self._run(number)}"
            except OSError as error:
                self._failures[number] += 1
                outcome = f"cannot be started: {error.strerror or error}"
            if self._ending.is_set():
                return
            self.restarts += 1
            self._heard.set()
            if self._loop.time() - began_s > STEADY_S:
                backoff.reset()
                pause_s = 0.0
            _logger.error("worker %d %s; restarting it in %.1f s", number, outcome, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
            pause_s = backoff.next_s()

    async def _run(self, number: int) -> str:
        """Run this worker until it exits; return its exit code or signal as text.

        Raises:
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        group = self._listeners[number - 1]
        with ours, theirs:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                # -P keeps modules of the current directory from replacing relay's.
                *(sys.executable, "-P", "-m", "relay.server.worker", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *(each.fileno() for each in group.all)],
                start_new_session=True,  # only the hub receives the terminal's interrupt
            )
            self._processes[number] = process
            theirs.close()
            _, link = await self._loop.create_unix_connection(
                lambda: DownlinkProtocol(self._links, f"worker {number}", self._on_heard), sock=ours.dup()
            )
        self.links[number] = link.down
        public, admin = ([each.fileno() for each in some] for some in (group.public, group.admin))
        setup = Setup(config=self._config, listeners=public, admin_listeners=admin, own_token=self._own_token)
        link.down.send(setup)
        try:
            code = await self._watch(number, process, link.down)
        finally:
            del self.links[number], self._processes[number]
            self._reloading.discard(number)
            link.cut()
        self._failures[number] = 0 if link.down.status.ready else self._failures[number] + 1
        return f"code {code}" if code >= 0 else _signal_name(-code)

    async def _watch(self, number: int, process: asyncio.subprocess.Process, down: Downlink) -> int:
        """Wait until a worker exits; kill it if it stops responding."""
        heard_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), WATCH_S)
            # No input since the previous check either, so the hub itself was not suspended in the meantime.
            if self._loop.time() - down.heard_s > SILENT_S and down.heard_s == heard_s:
                _logger.error("killing worker %d (pid %d): it does not respond", number, process.pid)
                _kill(process)
            heard_s = down.heard_s

    def reload(self) -> None:
        """Make each worker reload its credentials; a worker that is starting reloads after it has linked."""
        self._reloading.update(self._processes)
        self._reload_linked()

    def _on_heard(self) -> None:
        self._heard.set()
        self._reload_linked()

    def _reload_linked(self) -> None:
        # A new process does not handle SIGHUP yet, and the signal would terminate it.
        for number in [each for each in self._reloading if each in self.links and self.links[each].linked]:
            self._reloading.discard(number)
            with contextlib.suppress(ProcessLookupError):
                self._processes[number].send_signal(signal.SIGHUP)

    def stop_starting(self) -> None:
        """Stop starting workers; running ones continue."""
        self._ending.set()

    async def drain(self) -> None:
        """Wait until the workers have drained and exited; kill those that have not exited in time.

        `Links.drain` tells the workers to drain.
        """
        self.stop_starting()
        for number, process in self._processes.items():
            if number not in self.links or not self.links[number].linked:
                _kill(process)  # It is starting and has no streams.
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._drain_s)
            if late:
                _logger.warning("killing %d workers that did not exit in time", len(late))
            self.close()
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Kill the remaining workers."""
        self.stop_starting()
        for process in self._processes.values():
            _kill(process)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Most real-time signals have no name.
        return f"signal {number}"


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def share(listen: Callable[[str], socket.socket], addresses: Sequence[str], count: int) -> list[list[socket.socket]]:
    """Open the listeners of all workers: one for each worker at each address.

    Args:
        listen: opens a listener that can share its address.
        addresses: HOST:PORT; for port 0, one free port is chosen for all workers.
        count: number of workers.
    """
    first = [listen(address) for address in addresses]
    shared = [first]
    for _ in range(count - 1):
        shared.append([listen(_bound(each)) for each in first])
    return shared


def _bound(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
