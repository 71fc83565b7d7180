"""The workers: processes that hold the streams, started, watched and started again by the hub's process.

Theory of operation. The hub opens the listeners, one for each worker with SO_REUSEPORT, and keeps them: so connections
to a worker that died wait in its backlog until it is there again, a fraction of a second later, instead of being reset.
A worker is started by itself (never forked: the hub's loop, log and threads are not for it), inherits its listeners and
one end of a socket pair, is told over it what it is, and begins to accept when its snapshot of the log is in.

A worker that ends is started again: at once if it lived for long, else after a pause that doubles. This holds from the
first moment on, because the workers that are ready already serve. Only if a worker ends `STARTS_MAX` times without
having been ready once, while relay starts, relay ends with an error: its settings or its installation are wrong.

A worker whose hub is gone drains and leaves: the ids are those of the hub's log, which is gone with it, and the next
hub opens listeners of its own. So its end of the link is all that it has to watch.

Owns the worker processes. Never serves a stream, never speaks over a link.
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
from relay.workers.connections import DownlinkProtocol, Links
from relay.workers.hub_end import Downlink
from relay.workers.messages import Setup

RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
"""Pause before a worker that died soon after its start is started again: none, then doubled each time."""

STARTS_MAX = 5
"""How often a worker may end at its start before relay gives up; with the pauses between them that takes seconds."""

STEADY_S = 10.0
"""A worker that lived that long did not die of its start."""

SILENT_S = 30.0
"""A worker that has said nothing for so long is killed: its share of the new connections gets no answer."""

WATCH_S = 5.0

LEAVE_S = 3.0
"""What a worker has for its exit beyond the drain."""

_logger = logging.getLogger("relay.workers")


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from its hub.

    Args:
        number: of the worker, from 1 on.
        link: its end of the link.
        listeners: bound to the addresses to serve.
        own_token: the run's own token for publishing.
    """

    number: int
    link: socket.socket
    listeners: list[socket.socket]
    own_token: str


class Workers:
    """The workers of one hub.

    Args:
        config: the hub's settings.
        links: where their links are.
        listeners: for each worker its own.
        own_token: the run's own token for publishing.
        loop: the event loop.
    """

    def __init__(
        self,
        config: Config,
        links: Links,
        listeners: Sequence[Sequence[socket.socket]],
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
        self._failures: Counter[int] = Counter()  # of each worker: starts that failed since it was ready
        self._reloading: set[int] = set()  # workers that are to read their credentials again
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
            link_listen="",
            drain_delay_s=0.0,
            drain_rate=max(1, config.drain_rate // count),
        )
        links.on_heard = self._on_heard

    async def open(self, stop: asyncio.Event) -> None:
        """Start the workers, and wait until all of them are ready, or `stop` is set.

        Raises:
            ConfigError: one ended `STARTS_MAX` times and was never ready.
        """
        self._tasks = [self._loop.create_task(self._keep(1 + place)) for place in range(len(self._listeners))]
        stopped = self._loop.create_task(stop.wait())
        stopped.add_done_callback(lambda _: self._heard.set())
        try:
            while not stop.is_set() and not self.ready:
                for number, count in self._failures.items():
                    if count >= STARTS_MAX:
                        raise ConfigError(f"workers: worker {number} ended {count} times at its start; see the log")
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
        """Have this worker, as long as the hub serves."""
        backoff, pause_s = Backoff(RESTART_MIN_S, RESTART_MAX_S), 0.0
        while not self._ending.is_set():
            began_s = self._loop.time()
            try:
                how = f"ended by {await self._run(number)}"
            except OSError as error:
                self._failures[number] += 1
                how = f"cannot be started: {error.strerror or error}"
            if self._ending.is_set():
                return
            self.restarts += 1
            self._heard.set()
            if self._loop.time() - began_s > STEADY_S:
                backoff.reset()
                pause_s = 0.0
            _logger.error("worker %d %s; it is started again in %.1f s", number, how, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
            pause_s = backoff.next_s()

    async def _run(self, number: int) -> str:
        """Run this worker to its end; return the signal or the code that it ended with.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        listeners = [each.fileno() for each in self._listeners[number - 1]]
        with ours, theirs:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                # -P: modules of the current directory are not relay's.
                *(sys.executable, "-P", "-m", "relay.server.worker", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *listeners],
                start_new_session=True,  # the terminal's interrupt is the hub's alone
            )
            self._processes[number] = process
            theirs.close()
            _, link = await self._loop.create_unix_connection(
                lambda: DownlinkProtocol(self._links, None, worker=number), sock=ours.dup()
            )
        self.links[number] = link.down
        setup = Setup(config=self._config, number=number, listeners=listeners, own_token=self._own_token)
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
        """Wait for a worker's end; kill it where it does not answer any more."""
        heard_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), WATCH_S)
            # Nothing since the last look either, so that it was not this process which slept.
            if self._loop.time() - down.heard_s > SILENT_S and down.heard_s == heard_s:
                _logger.error("worker %d (pid %d) says nothing: it is killed", number, process.pid)
                _kill(process)
            heard_s = down.heard_s

    def reload(self) -> None:
        """Let each worker read its credentials again; one that is starting does so once it has linked."""
        self._reloading.update(self._processes)
        self._reload_linked()

    def _on_heard(self) -> None:
        self._heard.set()
        self._reload_linked()

    def _reload_linked(self) -> None:
        # A process that has just been started does not hold SIGHUP back yet, and would end by it.
        for number in [each for each in self._reloading if each in self.links and self.links[each].linked]:
            self._reloading.discard(number)
            with contextlib.suppress(ProcessLookupError):
                self._processes[number].send_signal(signal.SIGHUP)

    def stop_starting(self) -> None:
        """Start no worker any more; those that run go on."""
        self._ending.set()

    async def drain(self) -> None:
        """Wait until the workers, told over their links, have drained and left; what stays is killed."""
        self.stop_starting()
        for number, process in self._processes.items():
            if number not in self.links or not self.links[number].linked:
                _kill(process)  # It is starting, and has no stream.
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._drain_s)
            if late:
                _logger.warning("%d workers did not leave in time: they are killed", len(late))
            self.close()
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Kill what is left."""
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
    """Open the listeners of all workers: for each worker one at each address.

    Args:
        listen: opens one that may share its address.
        addresses: HOST:PORT; a port of 0 is chosen once for all.
        count: workers.
    """
    first = [listen(address) for address in addresses]
    shared = [first]
    for _ in range(count - 1):
        shared.append([listen(_bound(each)) for each in first])
    return shared


def _bound(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
