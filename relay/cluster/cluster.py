"""The cluster: the part of a node that follows the broker's log and publishes to it.

Owns the follower, the publisher and their tasks, the state that /readyz depends on, and the requests that wait until
this node has the events that the broker has. Never serves a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from relay.cluster.broker_factory import make_broker
from relay.cluster.follower import LogFollower
from relay.cluster.publisher import ClusterPublisher
from relay.config.model import Config
from relay.core.histogram_protocols import Observer
from relay.core.hub import Hub
from relay.errors import RelayError
from relay.ids import default_sequence
from relay.sources.requests import Cancel
from relay.telemetry.input_errors import Counter, InputErrors
from relay.telemetry.stats_schema import ClusterStats

FIND_S = 5.0
"""Time that a client with an unknown id waits until this node has the events that the broker has."""

FINDS_MAX = 100_000
"""Clients that may wait at the same time; above this limit, relay looks the id up at once."""

AHEAD_MAX = 2**32
"""Events by which a trusted id may be ahead of this node."""

SETTLE_STEP_S = 0.01

FoundDone = Callable[[int | RelayError | None], None]

_logger = logging.getLogger("relay.cluster")


class Cluster:
    """The membership of one node in a cluster.

    Args:
        config: the settings; `cluster` is set.
        hub: the hub of this node.
        metrics: counts entries that cannot be relayed.
        call_s: observes the duration of each call of the publisher.
        loop: the event loop.
        clock: returns the hub's time.

    Raises:
        ConfigError: the address is malformed, a file cannot be read, or the client library is not installed.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        metrics: Counter,
        call_s: Observer,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._hub = hub
        self._loop = loop
        self._clock = clock
        self._begun = asyncio.Event()
        self._lost = ""  # the reason why the follower is not connected; empty while it is
        self._waiting: list[_Find] = []
        self._asking = False
        self._tasks: list[asyncio.Task[None]] = []
        self._errors = InputErrors("cluster", metrics, loop, _logger)
        self._broker, self._shown = make_broker(config)
        self.publisher = ClusterPublisher(config, hub, self._broker, self._errors, call_s, loop, clock)
        self.follower = LogFollower(
            config,
            hub,
            self._broker,
            clock,
            self._errors,
            on_connected=self._on_connected,
            on_lost=self._on_lost,
            on_advance=self._on_advance,
        )
        hub.feed(lambda: None)

    async def start(self, stop: asyncio.Event) -> None:
        """Start to follow and to publish.

        Wait until this node has the retained events of the broker and has tried to connect its publisher, or until
        `stop` is set.
        """
        _logger.info("cluster: following %s", self._shown)
        self._tasks = [self._loop.create_task(each.run()) for each in (self.follower, self.publisher)]
        waits = [self._loop.create_task(each) for each in (self._wait_begun(), stop.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()

    async def _wait_begun(self) -> None:
        await self._begun.wait()
        await self.publisher.wait_connected()

    async def close(self) -> None:
        """Stop following and publishing, and close the connections."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._broker.close()
        self._errors.close()

    async def settle(self) -> None:
        """Wait until the broker has all accepted events, and this node has those that were published here."""
        await self.publisher.settle()
        while self._hub.log.head < self._hub.acknowledged:
            await asyncio.sleep(SETTLE_STEP_S)

    def tick(self, now_s: float) -> None:
        """Let /readyz fail if this node has not been current for too long. Called each second."""
        current = now_s - self.follower.current_s <= self._config.cluster_timeout_s
        if self._hub.linked and not current:
            reason = self._lost or f"{self.follower.lag_events} events are missing, and the follower does not advance"
            _logger.error("cluster: not ready: %s", reason)
            self._hub.set_linked(False)
        elif not self._hub.linked and current and self._hub.begun:
            self._hub.set_linked(True)
        for each in self._remove(lambda each: now_s >= each.deadline_s):
            each.done(self._trust(each.terms, each.ids))

    # Callbacks of the follower

    def _on_connected(self) -> None:
        if self._lost:
            _logger.info("cluster: following %s again", self._shown)
        self._lost = ""
        self.publisher.set_following(True)

    def _on_lost(self, reason: str) -> None:
        if not self._lost:
            event = "lost" if self.follower.connected else "cannot reach"
            _logger.error("cluster: %s %s: %s; relay tries again", event, self._shown, reason)
        self._lost = reason
        self.publisher.set_following(False)

    def _on_advance(self) -> None:
        hub = self._hub
        if not hub.begun and hub.end_snapshot():
            hub.set_linked(True)
            self._begun.set()
        if self._waiting and hub.begun:
            for each in self._remove(lambda each: 0 < each.head <= hub.log.head):
                each.done(hub.find(each.terms, each.ids))

    # Last ids

    def find(self, terms: tuple[str, ...], ids: tuple[str, ...], done: FoundDone) -> Cancel:
        """Find the sequence of a last id that this node does not have; the client may come from a node that is ahead.

        The request waits until this node has every event that the broker has now.
        """
        find = _Find(terms, ids, done, self._clock() + FIND_S)
        if not self.publisher.available or len(self._waiting) >= FINDS_MAX:
            done(self._trust(terms, ids))
        else:
            self._waiting.append(find)
            self._ask()
        return find.cancel

    def _ask(self) -> None:
        """Ask the broker for its head, once for all requests of one turn."""
        if not self._asking:
            self._asking = True
            self._loop.call_soon(self._ask_head)

    def _ask_head(self) -> None:
        self._asking = False
        asked = {each for each in self._waiting if not each.head}

        def answer(head: int | RelayError) -> None:
            if isinstance(head, RelayError):
                for each in self._remove(asked.__contains__):
                    each.done(self._trust(each.terms, each.ids))
                return
            for each in asked:
                each.head = head
            self._on_advance()

        self.publisher.head(answer)

    def _remove(self, condition: Callable[[_Find], bool]) -> list[_Find]:
        """Remove and return the clients that meet a condition."""
        removed: list[_Find] = []
        waiting: list[_Find] = []
        for each in self._waiting:
            (removed if condition(each) else waiting).append(each)
        self._waiting = waiting
        return removed

    def _trust(self, terms: tuple[str, ...], ids: tuple[str, ...]) -> int | None:
        """Return the sequence of a last id while the broker cannot be asked.

        A default id of this epoch that is ahead of this node is trusted, because only another node can have sent it.
        """
        sequence = self._hub.find(terms, ids)
        if sequence is None:
            sequence = default_sequence(ids, self._hub.log.epoch)
        return None if sequence is None or sequence > self._hub.log.head + AHEAD_MAX else sequence

    def stats(self) -> ClusterStats:
        """Return the cluster's part of /stats."""
        follower, publisher = self.follower, self.publisher
        return ClusterStats(
            broker=self._shown,
            connected=follower.connected,
            current=self._hub.linked,
            lag_events=follower.lag_events,
            reconnects=follower.reconnects,
            lapped=follower.lapped,
            renewals=follower.renewals,
            published=publisher.events,
            repeats=publisher.repeats,
            pending=publisher.pending,
            error=self._lost,
        )


class _Find:
    """A client with an unknown id. `head` is the broker's; 0 until the broker has answered."""

    __slots__ = ("deadline_s", "done", "head", "ids", "terms")

    def __init__(self, terms: tuple[str, ...], ids: tuple[str, ...], done: FoundDone, deadline_s: float) -> None:
        self.terms = terms
        self.ids = ids
        self.done = done
        self.deadline_s = deadline_s
        self.head = 0

    def cancel(self) -> None:
        """Do not call back."""
        self.done = lambda _: None
