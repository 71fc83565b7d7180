"""The old process's part of an upgrade: it starts a new process and hands everything over to it.

Owns the new process until it serves, and the order of the handover. If anything fails before the new process reports
Ready, the old process continues: it has sent only descriptions and copies of its descriptors.

A signal may arrive at either process at any moment. It is lost only in the last instant of the old process.

    to         when                              SIGTERM, SIGINT              SIGHUP               SIGUSR2
    the old    before it stops (Hello, the log)  the upgrade ends, it drains  both reload          ignored
               after that, until it exits        passed on to the new         passed on            ignored
    the new    before Ready                      it ends, the old continues   reloads once serving upgrades once serving
               after Ready                       takes over, then drains      reloads once serving upgrades once serving

The old process runs no loop after it has stopped, so it records these signals and passes them on. If the upgrade then
fails, its loop handles them. The new process starts with SIGHUP and SIGUSR2 blocked (`relay.process.startup`).
Before it reports Ready, its loop takes over SIGTERM and SIGINT. The loop runs for the first time after Go.
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
from relay.process.listeners import ListenerGroup
from relay.process.systemd import Service
from relay.sources.group import Sources
from relay.store.journal import Journal
from relay.upgrade import messages
from relay.upgrade.messages import FDS_MAX, VARIABLE, Channel

ENTRIES_BYTES = 256 * 1024
"""Size of one message of entries; the loop serves the streams between two messages."""

KEYS = 10_000
"""Dedup keys in one message."""

REST_ENTRIES = 1000
"""This process stops serving only when at most this many entries are unsent."""

ROUNDS_MAX = 100
"""Maximum number of rounds of sending, because sources may publish faster than the handover sends."""

SETTLE_S = 1.0
"""Time for pending requests to finish; the connections of slower requests are closed."""

SETTLE_STEP_S = 0.01

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the old process passes on if they arrive after it has stopped."""

STOPPED_S = 5.0
"""Time limit of one step after this process has stopped; a step took 0.1 s with 10,000 streams."""

_logger = logging.getLogger("relay.upgrade")

_KEEPS = "upgrade"
"""The reader for which the log evicts no entry before its turn during an upgrade."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Possessions:
    """Everything that the old process hands over.

    Args:
        hub: the log and the streams.
        front: the clients' connections.
        own_token: the publish token of this run.
        listeners: the clients' listeners.
        sources: the feeders of the Unix socket and the feeder on standard input.
        journal: the writer of the data file, which only one process can have open; None without a file.
    """

    hub: Hub
    front: Front
    own_token: str
    listeners: ListenerGroup
    sources: Sources
    journal: Journal | None

    @property
    def data(self) -> str:
        """Path of the data file; empty without a file."""
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
        possessions: everything to hand over.
        service: the connection to the service manager.
        timeout_s: time limit for the start of the new process, and again for the log.
        clock: returns the hub's `now_s`.
        signals: signals that arrived during the upgrade and that the new process must receive.

    Raises:
        RelayError: the upgrade failed, and this process continues.
    """
    stdin = possessions.sources.stdin
    if stdin.form == "sse" and not stdin.closed:
        raise RelayError("an event stream on standard input cannot be handed over: it may be in the middle of an event")
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
            # Before Go: the new process has received a Ctrl-C too, and two pending SIGINT count as one.
            _pass_on(signals, process.pid)
            channel.send(messages.Go())
        except BaseException as error:
            _take_back(possessions, process)
            possessions.front.takes_http2 = possessions.front.takes_uploads = True
            if isinstance(error, TimeoutError):
                raise RelayError(f"the new process took longer than {timeout_s:g} s") from None
            if isinstance(error, OSError):
                raise RelayError(f"cannot send to the new process: {error.strerror}") from None
            raise
        finally:
            channel.close()
        took_ms = 1000 * (clock() - stopped_s)
        _logger.info("handed over %d streams in %.0f ms to process %d", count, took_ms, process.pid)
        logging.shutdown()
        _pass_on(signals, process.pid)
        os._exit(0)  # An ordinary exit would close sockets for the new process too.


def _take_back(possessions: Possessions, process: subprocess.Popen[bytes] | None) -> None:
    """End the new process, and open the data file again."""
    if process is not None:
        process.kill()
        code = process.wait()
        _logger.info("the new process ended with %d", code)
    possessions.hub.log.needed.pop(_KEEPS, None)
    if possessions.journal is not None:
        possessions.journal.reopen()


@contextlib.contextmanager
def _noted(signals: set[int]) -> Iterator[None]:
    """Record signals that arrive while the loop does not run; the loop handles them too if it runs again."""
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
    """Start the command line of this process again, which runs the new version."""
    startup.hold_signals()  # The new process inherits the mask, so no signal can end it early.
    try:
        return subprocess.Popen(  # noqa: S603 (this process's own command line)
            [sys.executable, *sys.orig_argv[1:]], env={**variables, VARIABLE: str(fd)}, pass_fds=[fd]
        )
    except OSError as error:
        raise RelayError(f"cannot start the new process: {error.strerror}") from None
    finally:
        startup.release_signals()


async def _hello(channel: Channel, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait until the new process has checked its settings."""
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
        raise RelayError(f"relay {hello.version} uses message version {hello.form}, and this process {messages.FORM}")
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
    """Return the next messages of the log and the sequence after them; start again at the tail after an eviction."""
    log, begin = possessions.hub.log, list[messages.Message]()
    if sent < log.tail:
        sent = log.tail
        log.needed[_KEEPS] = 0  # The new process must have the same entries, so that both count alike.
        begin.append(messages.Start(possessions.own_token, possessions.data, log.epoch, sent, log.evicted_s))
    entries, size = [], 0
    while (sent := log.following(sent)) < log.head and size < ENTRIES_BYTES:
        entries.append(log.entry(sent))
        size += len(entries[-1].frame)
        sent += 1
    return [*begin, messages.Entries(entries)], sent


async def _settle(front: Front) -> None:
    """End the uploads and close the connections of HTTP/2, whose state cannot be handed over; wait for other requests.

    The wait takes at most `SETTLE_S`.
    """
    front.end_uploads()
    front.cut_http2()
    for _ in range(round(SETTLE_S / SETTLE_STEP_S)):
        # After a timer, unlike after one turn of the loop, the front knows every connection accepted before.
        await asyncio.sleep(SETTLE_STEP_S)
        settled = all(connection.pack() is not None for connection in front.connections)
        if settled and not front.arriving and not front.http2:
            return


def _hand_over(channel: Channel, possessions: Possessions, sent: int, now_s: float) -> int:
    """Hand over everything within one callback of the loop, so that nothing changes meanwhile."""
    hub, front, sources = possessions.hub, possessions.front, possessions.sources
    if possessions.journal is not None:
        possessions.journal.release_file()  # Its pending events are now in the log and acknowledged.
    unix, stdin = sources.unix, sources.stdin
    subscriptions, streams = hub.pack(now_s)
    while sent < hub.log.head:
        following, sent = _next(possessions, sent)
        for message in following:
            channel.send(message)
    log = hub.log
    channel.send(messages.Evicted(log.tail, log.head, log.marks.rest, list(log.evicted()), list(log.ids.evicted())))
    listeners, file = [each.fileno() for each in possessions.listeners.all], None
    if unix is not None:
        listener, file = unix.pack()
        listeners.append(listener)
    channel.send(messages.Listeners(unix is not None, file, len(possessions.listeners.admin)), listeners)
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
    """Split an iterator into lists of at most `count` items."""
    while some := list(islice(keys, count)):
        yield some


def _batched(described: Sequence[tuple[int, T]]) -> Iterator[tuple[list[int], list[T]]]:
    """Split descriptors and their descriptions into batches for one message each."""
    for place in range(0, len(described), FDS_MAX):
        batch = described[place : place + FDS_MAX]
        yield [fd for fd, _ in batch], [each for _, each in batch]
