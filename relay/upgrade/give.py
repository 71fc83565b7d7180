"""The upgrade: the old process's part, which starts a new one and hands everything over to it.

Owns the new process until it serves, and the order of the handover. Whatever goes wrong before the new process has said
that it has everything, this one goes on: what it hands over is only described, and its descriptors are copies.

A signal may come to either process at any moment. No moment loses it, but for the last instant of the old process.

    to         when                              SIGTERM, SIGINT              SIGHUP               SIGUSR2
    the old    before it stops (Hello, the log)  the upgrade ends, it drains  both reload          ignored
               after that, until it exits        passed on to the new         passed on            ignored
    the new    before Ready                      it ends, the old goes on     reloads once serving upgrades once serving
               after Ready                       takes over, then drains      reloads once serving upgrades once serving

The old process runs no loop after it has stopped, so it notes these signals and passes them on. If the upgrade fails
then, its loop handles them. The new process is started with SIGHUP and SIGUSR2 held back (`relay.process.startup`).
Before it says Ready, its loop takes over SIGTERM and SIGINT, and runs for the first time after Go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn, TypeVar

from relay.core.hub import Hub
from relay.errors import RelayError
from relay.front.front import Front
from relay.process import startup
from relay.process.systemd import Service
from relay.sources.group import Sources
from relay.store.journal import Journal
from relay.upgrade import messages
from relay.upgrade.messages import FDS_MAX, VARIABLE, Channel

ENTRIES_BYTES = 256 * 1024
"""Entries sent at once, while others have their turn."""

KEYS = 10_000
"""Dedup keys sent at once."""

REST_ENTRIES = 1000
"""Entries that may be left for when this process has stopped; beyond that it goes on sending while it serves."""

ROUNDS_MAX = 100
"""How often it looks whether so few are left: with a feed faster than the handover, there is no end to it."""

SETTLE_S = 1.0
"""How long requests that are under way may take to be answered; those that take longer are cut."""

SETTLE_STEP_S = 0.01

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the new process gets if they come to the old one too late."""

STOPPED_S = 5.0
"""How long one step may take while this process has stopped; it took 0.1 s with 10,000 streams."""

_logger = logging.getLogger("relay.upgrade")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Possessions:
    """All that is handed over.

    Args:
        hub: the log and the streams.
        front: the connections.
        own_token: the token of this process's own.
        listeners: the front's.
        sources: the feeders of the Unix socket, and the one on standard input.
        journal: the way to the file, which only one process can have.
    """

    hub: Hub
    front: Front
    own_token: str
    listeners: Sequence[socket.socket]
    sources: Sources
    journal: Journal | None

    @property
    def data(self) -> str:
        """Path of the file; empty without one."""
        return "" if self.journal is None else self.journal.path


async def upgrade(
    possessions: Possessions,
    service: Service,
    timeout_s: float,
    clock: Callable[[], float],
    signals: set[int],
) -> NoReturn:
    """Start a new process, hand everything over, and exit.

    Args:
        possessions: what is handed over.
        service: the service manager's side, which is told.
        timeout_s: how long the new process may take to start, and again to take the log.
        clock: gives the hub's `now_s`.
        signals: those that the new process must get, because they came to this one during the upgrade.

    Raises:
        RelayError: it failed, and this process goes on.
    """
    stdin = possessions.sources.stdin
    if stdin.form == "sse" and not stdin.closed:
        raise RelayError("an event stream on standard input cannot be handed over in the midst of an event")
    service.reloading()
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    process: subprocess.Popen[bytes] | None = None
    with contextlib.ExitStack() as until_exit:
        try:
            with theirs:
                process = _start(theirs.fileno(), service.inherited())
            await _hello(channel, process, timeout_s)
            async with asyncio.timeout(timeout_s):
                sent = await _send_log(channel, possessions)
                await _settle(possessions.front)
            ours.settimeout(STOPPED_S)
            stopped_s = clock()
            until_exit.enter_context(_noted(signals))
            count = _hand_over(channel, possessions, sent, clock())
            channel.expect(messages.Ready)
            service.tell(f"MAINPID={process.pid}")
            # Before Go: a Ctrl-C has come to the new process as well, and both count as one while they are pending.
            _pass_on(signals, process.pid)
            channel.send(messages.Go())
        except BaseException as error:
            if process is not None:
                process.kill()
                code = process.wait()
                _logger.info("the new process ended with %d", code)
            if possessions.journal is not None:
                possessions.journal.reopen()
            if isinstance(error, TimeoutError):
                raise RelayError(f"the new process took longer than {timeout_s:g} s") from None
            if isinstance(error, OSError):
                raise RelayError(f"the new process cannot be told: {error.strerror}") from None
            raise
        finally:
            channel.close()
        took_ms = 1000 * (clock() - stopped_s)
        _logger.info("handed over %d streams in %.0f ms to process %d", count, took_ms, process.pid)
        logging.shutdown()
        _pass_on(signals, process.pid)
        os._exit(0)  # whatever is closed in the usual way would be closed for both


@contextlib.contextmanager
def _noted(signals: set[int]) -> Iterator[None]:
    """Note signals that come while the loop does not run; it still handles them if it runs again."""
    before = {number: signal.signal(number, lambda number, _: signals.add(number)) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            signal.siginterrupt(number, False)


def _pass_on(signals: set[int], pid: int) -> None:
    while signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signals.pop())


def _start(fd: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start what this process was started as; what is at that place now is the new version."""
    startup.hold_signals()  # The new process inherits that, and so is never without it.
    try:
        return subprocess.Popen(  # noqa: S603 (it is what this process was started as)
            [sys.executable, *sys.orig_argv[1:]], env={**variables, VARIABLE: str(fd)}, pass_fds=[fd]
        )
    except OSError as error:
        raise RelayError(f"a new process cannot be started: {error.strerror}") from None
    finally:
        startup.release_signals()


async def _hello(channel: Channel, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait until the new process has checked itself."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(channel.socket, there.set)
    try:
        async with asyncio.timeout(timeout_s):
            await there.wait()
    finally:
        loop.remove_reader(channel.socket)
    channel.socket.settimeout(STOPPED_S)
    try:
        hello = channel.expect(messages.UpgradeHello)
    except RelayError as error:
        raise RelayError(f"the new process {process.pid} does not start: {error}") from None
    assert isinstance(hello, messages.UpgradeHello)
    if hello.form != messages.FORM:
        raise RelayError(f"relay {hello.version} takes over in form {hello.form}, and this one has {messages.FORM}")
    _logger.info("relay %s, pid %d, is taking over", hello.version, process.pid)


async def _send_log(channel: Channel, possessions: Possessions) -> int:
    """Send the log while this process serves; return the first sequence that is not sent."""
    loop, log = asyncio.get_running_loop(), possessions.hub.log
    channel.socket.setblocking(False)
    sent = -1
    for _ in range(ROUNDS_MAX):
        until = log.head
        while sent < until:
            following, sent = _next(possessions, sent)
            for message in following:
                await loop.sock_sendall(channel.socket, channel.encode(message))
        if log.head - sent <= REST_ENTRIES:
            break
    return sent


def _next(possessions: Possessions, sent: int) -> tuple[list[messages.Message], int]:
    """Return what to send next of the log, and where that ends; it begins anew where what was to come is evicted."""
    log, begin = possessions.hub.log, list[messages.Message]()
    if sent < log.tail:
        sent = log.tail
        begin.append(messages.Start(possessions.own_token, possessions.data, log.epoch, sent, log.evicted_s))
    entries, size = [], 0
    while sent < log.head and size < ENTRIES_BYTES:
        entries.append(log.entry(sent))
        size += len(entries[-1].frame)
        sent += 1
    return [*begin, messages.Entries(entries)], sent


async def _settle(front: Front) -> None:
    """Wait until no request is under way, but not for ever."""
    for _ in range(round(SETTLE_S / SETTLE_STEP_S)):
        # A timer, and not a bare turn of the loop: what was accepted before it fired is known to the front by now.
        await asyncio.sleep(SETTLE_STEP_S)
        if not front.arriving and all(connection.pack() is not None for connection in front.connections):
            return


def _hand_over(channel: Channel, possessions: Possessions, sent: int, now_s: float) -> int:
    """Hand over what there is, within one callback of the loop: nothing changes meanwhile."""
    hub, front, sources = possessions.hub, possessions.front, possessions.sources
    if possessions.journal is not None:
        possessions.journal.release_file()  # what was pending is in the log now, and acknowledged
    unix, stdin = sources.unix, sources.stdin
    subscriptions, streams = hub.pack(now_s)
    while sent < hub.log.head:
        following, sent = _next(possessions, sent)
        for message in following:
            channel.send(message)
    log = hub.log
    channel.send(messages.Evicted(log.tail, log.marks.rest, list(log.evicted()), list(log.ids.evicted())))
    listeners, file = [each.fileno() for each in possessions.listeners], None
    if unix is not None:
        listener, file = unix.pack()
        listeners.append(listener)
    channel.send(messages.Listeners(unix is not None, file), listeners)
    channel.send(messages.Terms(subscriptions))
    for fds, some_streams in _batched(streams):
        channel.send(messages.Streams(some_streams), fds)
    for fds, feeders in _batched([feeder.pack() for feeder in unix.feeders] if unix is not None else []):
        channel.send(messages.Feeders(feeders), fds)
    packed = [connection.pack() for connection in front.connections]
    for fds, connections in _batched([each for each in packed if each is not None]):
        channel.send(messages.Connections(connections), fds)
    for keys in _lists(hub.writer.seen.keys(), KEYS):
        channel.send(messages.DedupKeys(keys))
    channel.send(messages.Rest(None if stdin.closed else stdin.pack(), front.auth.tickets, hub.ended.known()))
    return len(streams)


def _lists(keys: Iterator[T], count: int) -> Iterator[list[T]]:
    """Cut an iterator into lists of at most `count`."""
    while some := list(islice(keys, count)):
        yield some


def _batched(described: Sequence[tuple[int, T]]) -> Iterator[tuple[list[int], list[T]]]:
    """Cut what has descriptors into messages."""
    for place in range(0, len(described), FDS_MAX):
        batch = described[place : place + FDS_MAX]
        yield [fd for fd, _ in batch], [each for _, each in batch]
