"""`relay demo --prove`: checks the promise of relay with thousands of clients, while things go wrong.

The server, the clients and the feed are three processes. The feed publishes all the time. Meanwhile some clients lose
their connections, some stop reading, the server is killed with SIGKILL, and the server is upgraded. At the end, the
clients compare the received events with the published ones.

Owns the order of the faults, the feed and the output. Never opens a stream (`relay.commands.prove_clients`) and never
checks an event (`relay.commands.prove_record`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relay.client.publish import Publisher
from relay.commands.prove_record import Command, Crowd, CrowdState, Sums, event_data, total
from relay.commands.prove_server import ProvedServer
from relay.errors import ConfigError, RelayError
from relay.event import Event
from relay.server.descriptors import raise_descriptor_limit

STREAMS_MAX = 100_000
DESCRIPTORS_RESERVED = 256
"""Descriptors of a process that are not streams."""

EVERYBODY = "all"
"""Topic that all clients follow."""
EVERYBODY_EVENTS = 100
"""After this many events on other topics, one event goes to all clients."""
ROOMS_MAX = 100
"""Number of topics that a part of the clients follows."""

CUT_PART = 10
"""One of this many clients loses its connection."""
STALLED_PART = 50
"""One of this many clients stops reading."""
BUSY = "busy"
"""Topic that only the clients follow that stop reading."""
BUSY_EVENTS = 1500
BUSY_BYTES = 1000
"""Events on that topic while they do not read: more than the kernel's buffers and `BUSY_LAG` hold."""
BUSY_LAG = "64KiB"

STEP_TIMEOUT_S = 120.0
"""Longest time for one step."""
USUAL_S = 60.0
"""Longest time of a run with the default settings on two idle cores."""

PAUSES = 6
"""Number of pauses in a run."""

DISTURBED, STALLED, OTHERS = "disconnected", "stalled", "others"


@dataclass(frozen=True, slots=True)
class Proof:
    """The arguments of a run.

    Args:
        streams: the number of clients, each with one stream.
        rate: events per second.
        pauses_s: time without faults, in seconds.
    """

    streams: int
    rate: float
    pauses_s: float


def check_descriptors(streams: int) -> None:
    """Raise the soft limit of open descriptors to the hard limit, for the processes that this one starts.

    Raises:
        ConfigError: the limit is too low.
    """
    hard = raise_descriptor_limit()
    needed = streams + DESCRIPTORS_RESERVED
    if hard < needed:
        raise ConfigError(
            f"{streams} streams need {needed} descriptors in each process, and the limit is {hard}; "
            f"raise it (ulimit -Hn {needed}), or use --streams {max(1, hard - DESCRIPTORS_RESERVED)}"
        )


async def prove(proof: Proof, host: str, port: int) -> int:
    """Run all faults, print the result, and return the exit code: 0 if the promise was kept, otherwise 1.

    Args:
        proof: the arguments.
        host, port: a free address of this machine.

    Raises:
        RelayError: a step did not succeed in time.
    """
    check_descriptors(proof.streams)
    with tempfile.TemporaryDirectory(prefix="relay-prove-") as folder:
        socket = str(Path(folder, "relay.sock"))
        arguments = (
            *("--listen", f"{host}:{port}", "--unix", socket),
            *("--data", str(Path(folder, "relay.db")), "--durable"),
            *("--policy-for", f"{BUSY}=drop-oldest lag-bytes={BUSY_LAG}"),
            *("--retry-min", "100ms", "--retry-max", "1s"),
        )
        async with ProvedServer(arguments) as server:
            run = _Run(proof, server)
            run.say("start", f"server process {await server.start()}; its history is in a file")
            async with Publisher(socket) as publisher, _clients(host, port, _topics(proof.streams)) as clients:
                feed = _Feed(publisher, proof)
                try:
                    return await run.steps(feed, clients)
                finally:
                    await feed.stop()


def _topics(streams: int) -> dict[str, list[list[str]]]:
    """Return the topics of each client, by group."""
    rooms = _rooms(streams)
    clients = [[f"room.{number % rooms}", EVERYBODY] for number in range(streams)]
    stalled, cut = max(1, streams // STALLED_PART), max(1, streams // CUT_PART)
    return {
        STALLED: [[*topics, BUSY] for topics in clients[:stalled]],
        DISTURBED: clients[stalled : stalled + cut],
        OTHERS: clients[stalled + cut :],
    }


def _rooms(streams: int) -> int:
    return min(ROOMS_MAX, streams)


class _Feed:
    """Publishes events at a steady rate, and counts them.

    Args:
        publisher: sends events again if the server is killed.
        proof: the arguments.
    """

    def __init__(self, publisher: Publisher, proof: Proof) -> None:
        self.published: Counter[str] = Counter()
        self._publisher = publisher
        self._proof = proof
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run())

    async def publish(self, topic: str, padding: str = "") -> None:
        """Publish the next event of a topic. Do not wait for its acknowledgement."""
        self.published[topic] += 1
        data = event_data(topic, self.published[topic], self.published.total(), padding)
        await self._publisher.send(Event(topic=topic, data=data))

    async def stop(self) -> None:
        """Publish no more events."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def end(self) -> None:
        """Stop, and wait until the server has acknowledged all events."""
        await self.stop()
        await self._publisher.flush()

    async def _run(self) -> None:
        rooms = _rooms(self._proof.streams)
        due_s, number = time.monotonic(), 0
        while True:
            await self.publish(f"room.{number % rooms}")
            number += 1
            if number % EVERYBODY_EVENTS == 0:
                await self.publish(EVERYBODY)
            due_s += 1 / self._proof.rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))


class _ClientProcess:
    """The process of the clients.

    Args:
        process: the process.
        streams: the number of clients.
    """

    def __init__(self, process: asyncio.subprocess.Process, streams: int) -> None:
        self.streams = streams
        self.state = CrowdState()
        self._process = process

    async def send(self, message: Crowd | Command) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        await self._process.stdin.drain()

    async def until(self, condition: Callable[[CrowdState], bool], what: str) -> CrowdState:
        """Wait until the state fulfils a condition, and return the state.

        Raises:
            RelayError: it does not in time.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                while True:
                    line = await self._process.stdout.readline()
                    if not line:
                        raise RelayError("the process of the clients ended")
                    self.state = msgspec.json.decode(line, type=CrowdState)
                    if condition(self.state):
                        return self.state
        except TimeoutError:
            raise RelayError(
                f"not within {STEP_TIMEOUT_S:.0f} s: {what}; {self.state.open} of {self.streams} streams are open"
            ) from None

    async def follow(self, seconds: float) -> CrowdState:
        """Read the state for some seconds, and return the last one."""
        end_s = time.monotonic() + seconds
        return await self.until(lambda _: time.monotonic() >= end_s, "a state")


@contextlib.asynccontextmanager
async def _clients(host: str, port: int, topics: dict[str, list[list[str]]]) -> AsyncIterator[_ClientProcess]:
    """Run the process of the clients."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "relay.commands.prove_clients"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,
        env=dict(os.environ),
    )
    try:
        clients = _ClientProcess(process, sum(map(len, topics.values())))
        await clients.send(Crowd(host, port, topics))
        yield clients
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class _Run:
    """The faults, one after the other.

    Args:
        proof: the arguments.
        server: the server.
    """

    def __init__(self, proof: Proof, server: ProvedServer) -> None:
        self._proof = proof
        self._server = server
        self._began_s = time.monotonic()
        print(
            f"relay demo --prove: {proof.streams:,} clients, {proof.rate:g} events per second, and four faults\n",
            flush=True,
        )

    def say(self, fault: str, text: str) -> None:
        """Print a line with the time."""
        print(f"{time.monotonic() - self._began_s:6.1f} s  {fault:<11} {text}", flush=True)

    async def steps(self, feed: _Feed, clients: _ClientProcess) -> int:
        """Run all faults, and return the exit code."""
        await self._wait_for_all(clients)
        self.say("", f"{clients.streams:,} streams are open; the feed begins")
        feed.start()
        for fault in (self._disconnect, self._stall, self._kill):
            await self._pause(clients)
            await fault(feed, clients)
        await self._pause(clients)
        lost = await self._upgrade(clients)
        await self._pause(clients)
        await feed.end()
        count = feed.published.total()
        self.say("end", f"{count:,} events were published; the server has acknowledged all of them")
        await clients.send(Command("end", published=feed.published))
        state = await clients.until(lambda state: bool(state.groups), "the result")
        took_s = time.monotonic() - self._began_s
        if took_s > USUAL_S:
            self.say("slow", explain_time(took_s, os.getloadavg()[0], len(os.sched_getaffinity(0))))
        return report(state.groups, lost)

    async def _pause(self, clients: _ClientProcess) -> None:
        await clients.follow(self._proof.pauses_s / PAUSES)

    async def _wait_for_all(self, clients: _ClientProcess) -> None:
        await clients.until(lambda state: state.open == clients.streams, "all streams are open")

    async def _disconnect(self, _: _Feed, clients: _ClientProcess) -> None:
        count = max(1, clients.streams // CUT_PART)
        resumed = clients.state.resumed
        await clients.send(Command("cut", DISTURBED))
        self.say("disconnect", f"{count:,} clients lose their connection")
        await clients.until(lambda state: state.resumed >= resumed + count, "the disconnected clients resume")
        await self._wait_for_all(clients)
        self.say("", f"{count:,} clients have reconnected and resumed")

    async def _stall(self, feed: _Feed, clients: _ClientProcess) -> None:
        count = max(1, clients.streams // STALLED_PART)
        await clients.send(Command("stall", STALLED))
        self.say("stall", f"{count:,} clients stop reading; {BUSY_EVENTS:,} more events for them follow")
        for _ in range(BUSY_EVENTS):
            await feed.publish(BUSY, "x" * BUSY_BYTES)
        await self._pause(clients)
        await clients.send(Command("resume", STALLED))
        self.say("", f"{count:,} clients read again")

    async def _kill(self, _: _Feed, clients: _ClientProcess) -> None:
        lost, resumed, pid = clients.state.lost, clients.state.resumed, self._server.pid
        await self._server.kill()
        await clients.until(lambda state: state.lost >= lost + clients.streams, "all connections are lost")
        self.say("kill -9", f"server process {pid}; {clients.streams:,} connections are lost")
        self.say("", f"server process {await self._server.start()} has started")
        await clients.until(lambda state: state.resumed >= resumed + clients.streams, "all clients resume")
        await self._wait_for_all(clients)
        self.say("", f"{clients.streams:,} clients have reconnected and resumed")

    async def _upgrade(self, clients: _ClientProcess) -> int:
        """Upgrade the server, and return the number of lost connections."""
        lost, pid = (await clients.follow(0)).lost, self._server.pid
        self.say("upgrade", f"a new process replaces server process {pid}")
        new, count = await self._server.upgrade()
        lost = (await clients.follow(1.0)).lost - lost
        self.say("", f"server process {new} took over {count:,} streams; {lost:,} connections were lost")
        return lost


def explain_time(took_s: float, load: float, cores: int) -> str:
    """Return why a run took longer than usual, and what makes it shorter.

    Args:
        took_s: time of the run.
        load: the load average of the last minute, which includes the processes of the run.
        cores: number of cores that the run may use.
    """
    busy = f"the load average was {load:.1f} with {cores} cores"
    return f"{took_s:.0f} s instead of less than {USUAL_S:.0f}; {busy}; --streams sets fewer clients"


def report(groups: Mapping[str, Sums], lost: int) -> int:
    """Print the result of each group of clients, and whether the promise was kept. Return the exit code.

    Args:
        groups: the results.
        lost: connections that were lost in the upgrade.
    """
    heads = ("clients", "received", "missed", "twice", "disorder", "in gaps")
    print(f"\n{'':14}" + "".join(f"{head:>13}" for head in heads))
    everybody = total(groups.values())
    for name, sums in (*groups.items(), ("all", everybody)):
        figures = (sums.clients, sums.received, sums.unreported, sums.repeated, sums.disordered, sums.reported)
        print(f"{name:14}" + "".join(f"{figure:13,}" for figure in figures))
    print(
        "\nmissed: events that a client did not receive, and that relay did not report to it\n"
        "twice: events that a client received again\n"
        "disorder: events that a client received after a later one\n"
        "in gaps: missed events that relay reported to the client with a relay.gap event\n"
    )
    broken = [
        f"{number:,} {what}"
        for number, what in (
            (everybody.unreported, "events were missed without a report"),
            (everybody.repeated, "events were received twice"),
            (everybody.disordered, "events were received in disorder"),
            (lost, "connections were lost in the upgrade"),
        )
        if number
    ]
    if broken:
        print(f"BROKEN: {'; '.join(broken)}.", flush=True)
        return 1
    print(
        "KEPT: each client received every event of its topics, in order and once, or relay reported the missed events.",
        flush=True,
    )
    return 0
