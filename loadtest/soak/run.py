"""One run of the soak: the groups of servers, their feeds and readers, the actions, and the samples.

Owns the order of a run. Never judges (`loadtest.soak.promise`, `loadtest.soak.report`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtest.rig.harness import MeasureError, raise_descriptor_limit, tcp_memory_bytes
from loadtest.soak.feed import SteadyFeed
from loadtest.soak.readers import BLOCK, KINDS, Kind, SoakReader, SoakState, readers_of
from loadtest.soak.report import HOUR_S, ServerSample, SoakSample
from loadtest.soak.servers import TOKEN, SoakServer, make_certificate, redis
from relay.client import Publisher

ACTION_S = 300.0
ACTION_S_MIN = 5.0
SAMPLE_S = 60.0
SAMPLE_S_MIN = 3.0
SETTLE_S = 300.0
"""Longest time without progress at the end, before a reader that is not complete is a fault."""
SCALE_MIN = 0.02
"""The times of a run of less than an hour are shorter, in proportion to its length, but not shorter than this."""
BLOCK_ALLOWED = tuple(
    f"--policy-request={policy}" for policy in ("drop-oldest", "drop-newest", "conflate", "disconnect", "block")
)
ACTIONS = ("upgrades", "restarts", "upgrades", "reloads")


@dataclass(slots=True)
class Group:
    """Servers with one log, their feed and their readers."""

    servers: list[SoakServer]
    kinds: Sequence[Kind]
    feed: SteadyFeed
    sets: int = 1
    readers: list[SoakReader] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """The size of a run.

    Args:
        hours: the length.
        rate: events per second of each group.
        share: part of the readers that is used.
    """

    hours: float
    rate: float
    share: float


class SoakRun:
    """One run.

    Args:
        options: the size.
        sampled: called with each sample.
    """

    def __init__(self, options: SoakOptions, sampled: Callable[[SoakSample], None]) -> None:
        self._options = options
        self._sampled = sampled
        self._scale = max(SCALE_MIN, min(1.0, options.hours))
        self._groups: list[Group] = []
        self._actions: Counter[str] = Counter(dict.fromkeys(ACTIONS, 0))
        self._cpu: dict[int, float] = {}
        self._faults: Counter[str] = Counter()
        self._sampling = asyncio.Lock()
        """Held by an action and by a sample: during an upgrade, a server has the memory of two processes."""

    async def run(self) -> None:
        """Run until the end, and take the last sample after all readers are checked."""
        raise_descriptor_limit()
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
            certificate = make_certificate(folder)
            contexts = [ssl.create_default_context(cafile=certificate) for _ in range(2)]
            state = SoakState(self._scale, asyncio.Event(), *contexts)
            self._client = await stack.enter_async_context(httpx.AsyncClient(verify=state.trust, trust_env=False))
            broker = await stack.enter_async_context(redis(folder))
            self._groups = await self._start(stack, folder, certificate, broker)
            self._began_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(each) for each in self._background(stack, state)]
                feeds = [tasks.create_task(self._feed(group, state)) for group in self._groups]
                acting = tasks.create_task(self._act(state))
                await asyncio.sleep(self._options.hours * HOUR_S)
                state.settling.set()
                await acting
                await self._settle(feeds)
                async with self._sampling:
                    await self._sample(settled=True)
                for task in background:
                    task.cancel()

    async def _start(
        self, stack: contextlib.AsyncExitStack, folder: Path, certificate: Path, broker: str
    ) -> list[Group]:
        """Start all servers."""
        node = ("--cluster", broker, "--workers", "2")
        file = ("--data", str(folder / "file.data"), "--workers", "2", *BLOCK_ALLOWED)
        single = ("--data", str(folder / "single.data"), *BLOCK_ALLOWED)
        groups = [
            self._group([SoakServer(name, folder, node, certificate) for name in ("node-a", "node-b")], KINDS, sets=2),
            self._group([SoakServer("file", folder, file, certificate)], (*KINDS, BLOCK)),
            self._group([SoakServer("single", folder, single)], (*KINDS, BLOCK)),
        ]
        for group in groups:
            for server in group.servers:
                await stack.enter_async_context(server)
        return groups

    def _group(self, servers: list[SoakServer], kinds: Sequence[Kind], sets: int = 1) -> Group:
        return Group(servers, kinds, SteadyFeed(self._options.rate), sets)

    def _background(self, stack: contextlib.AsyncExitStack, state: SoakState) -> list[Coroutine[Any, Any, None]]:
        """Return the jobs that run beside the feeds and the actions: the samples and the readers."""
        jobs = [self._watch()]
        for group in self._groups:
            urls = [server.url for server in group.servers]
            for _ in range(group.sets):
                for reader, shared in readers_of(group.kinds, urls, group.feed, state, self._options.share):
                    if shared is not None:
                        stack.push_async_callback(shared.aclose)
                    group.readers.append(reader)
                    jobs.append(reader.run())
        return jobs

    async def _feed(self, group: Group, state: SoakState) -> None:
        """Publish over the Unix socket and over HTTP of each server in turn."""
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(httpx.AsyncClient(verify=state.trust, trust_env=False))
            publishers = []
            for server in group.servers:
                for publisher in (Publisher(f"unix:{server.unix}"), Publisher(server.url, token=TOKEN, client=client)):
                    publishers.append(await stack.enter_async_context(publisher))
            await group.feed.run(publishers)

    async def _act(self, state: SoakState) -> None:
        """Upgrade, restart and reload servers in turn."""
        servers = {server.name: server for group in self._groups for server in group.servers}
        for action in itertools.cycle(ACTIONS):
            await state.sleep(max(ACTION_S_MIN / self._scale, ACTION_S))
            if state.settling.is_set():
                return
            try:
                async with self._sampling:
                    if action == "upgrades":
                        await servers["single"].upgrade()
                    elif action == "restarts":
                        await servers["node-b"].restart()
                    else:
                        for server in servers.values():
                            server.reload()
            except MeasureError as error:
                self._faults[f"{action}: {error}"] += 1
            else:
                self._actions[action] += 1

    async def _watch(self) -> None:
        """Take samples."""
        while True:
            await asyncio.sleep(max(SAMPLE_S_MIN, SAMPLE_S * self._scale))
            async with self._sampling:
                await self._sample()

    async def _settle(self, feeds: Sequence[asyncio.Task[None]]) -> None:
        """Wait until all readers have caught up, end the feeds, let the readers read to the end, and check them.

        A reader whose first connection was lost before it had an id begins with the next event. So the feeds continue
        until each reader has received an event.
        """
        await self._wait()
        for group in self._groups:
            group.feed.ended = True
        await asyncio.wait(feeds)
        await self._wait()
        for group in self._groups:
            for reader in group.readers:
                reader.end(group.feed.published)

    async def _wait(self) -> None:
        """Wait until all readers have received the events published so far, or no further one does for a long time."""
        waiting = [(reader.promise, group.feed.published) for group in self._groups for reader in group.readers]
        since_s = time.monotonic()
        while waiting and time.monotonic() < since_s + SETTLE_S:
            await asyncio.sleep(1.0)
            before = len(waiting)
            waiting = [each for each in waiting if not each[0].is_complete(each[1])]
            if len(waiting) < before:
                since_s = time.monotonic()

    async def _sample(self, *, settled: bool = False) -> None:
        """Take one sample."""
        servers, errors = {}, []
        for server in itertools.chain.from_iterable(group.servers for group in self._groups):
            errors += server.errors
            with contextlib.suppress(OSError):  # A process has just ended, in an upgrade or a restart.
                figures = await server.figures(self._client)
                self._cpu.update(figures.cpu_s)
                stats = figures.stats
                servers[server.name] = ServerSample(
                    *(figures.hub_bytes, figures.workers_bytes, figures.descriptors, round(figures.age_s, 1)),
                    *(stats.get(name, 0) for name in ("streams", "lagging", "events")),
                    *(stats.get(name, {}) for name in ("closes", "policy_actions")),
                )
        readers = [reader for group in self._groups for reader in group.readers]
        counts = sum((reader.counts for reader in readers), Counter())
        faults = [*(reader.promise.faults for reader in readers), *(group.feed.faults for group in self._groups)]
        own = resource.getrusage(resource.RUSAGE_SELF)
        self._sampled(
            SoakSample(
                time_s=round(time.monotonic() - self._began_s, 1),
                servers=servers,
                tcp_bytes=tcp_memory_bytes(),
                servers_cpu_s=round(sum(self._cpu.values()), 2),
                readers_cpu_s=round(own.ru_utime + own.ru_stime, 2),
                published=sum(group.feed.published for group in self._groups),
                again=sum(group.feed.again for group in self._groups),
                received=sum(reader.promise.received for reader in readers),
                connections=counts["opened"],
                lost=counts["lost"],
                leaves=counts["leaves"],
                pauses=counts["pauses"],
                gaps=dict(sum((reader.promise.gaps for reader in readers), Counter())),
                reported=sum(reader.promise.reported for reader in readers),
                faults=dict(sum(faults, self._faults)),
                actions=dict(self._actions),
                errors=errors,
                settled=settled,
            )
        )
