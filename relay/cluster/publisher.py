"""The publisher: passes the events of this node's publishers to the broker.

Theory of operation. Events wait in a queue. One call at a time takes the next ones to the broker; meanwhile the queue
fills again, so that a slower broker gets larger calls. The events that are published in one turn of the loop go out in
one call. Their publishers are answered when the broker has them. This node delivers them when they come back through
the follower, so that all nodes have the same order.

    publish ── check ──► queue ── one call at a time ──► broker ──► ids, acknowledgements
                           │                                │
                           └─ full: publishers wait         └─ lost: the same call again, after a reconnect

If a connection breaks during a call, the publisher does not know whether the broker has the events. It repeats the call
with the same number, and the broker does not append the events again. It makes no call before the follower is connected
and has compared this node's log with the broker's. While the queue is full, requests and feeders wait. While the broker
is unavailable, requests are rejected with 503, and feeders wait.

Owns the queue and the calls. Never delivers an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator

from relay.backoff import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, half_jitter
from relay.cluster.broker import Broker, NewEntry, Result
from relay.cluster.entry import encode_payload
from relay.cluster.publication import UNAVAILABLE, Publication, WaitingRequest, rejection
from relay.config.model import Config
from relay.core.ended import END
from relay.core.histogram_protocols import Observer
from relay.core.hub import Hub
from relay.core.writer import dedup_key
from relay.errors import RETRY_LATER, BrokerError, RelayError, RequestError
from relay.event import Event
from relay.sources.requests import HOLD_GRACE_S, Cancel, Done, nothing
from relay.sources.sink import Receipt
from relay.telemetry.input_errors import InputErrors

CALL_EVENTS_MAX = 1000
CALL_BYTES_MAX = 1024 * 1024
"""Limits of one call, so that it occupies the broker for a few milliseconds; a larger request is one call."""

QUEUE_EVENTS_MAX = 16 * 1024
QUEUE_BYTES_MAX = 16 * 1024 * 1024
"""Events, and bytes of them, in the queue, above which feeders and requests wait for room."""

HeadDone = Callable[[int | RelayError], None]
"""Receives the sequence of the next entry, or an error."""

_logger = logging.getLogger("relay.cluster")


class ClusterPublisher:
    """The publisher of one node: for HTTP requests, for workers and for sources.

    Args:
        config: the settings.
        hub: checks the events.
        broker: appends the events.
        errors: counts events that are rejected after their source has passed them on.
        call_s: observes the duration of each call.
        loop: runs the timers.
        clock: returns the hub's time.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        broker: Broker,
        errors: InputErrors,
        call_s: Observer,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.connected = False
        self.following = False  # the follower is connected; set by the owner
        self.events = 0  # events that the broker has appended
        self.repeats = 0  # events that were left out because of their dedup key
        self.pending = 0  # events in the queue and in the call
        self._hub = hub
        self._broker = broker
        self._errors = errors
        self._call_s = call_s
        self.loop = loop
        self._clock = clock
        self._timeout_s = config.block_timeout_s + HOLD_GRACE_S
        self._dedup = config.dedup_window_s > 0
        self._queue: deque[Publication] = deque()
        self._bytes = 0  # of the events in the queue
        self._call: list[Publication] = []  # sent, and not answered
        self._number = 0  # of the call
        self._heads: list[HeadDone] = []
        self._stale = False  # the connection must be replaced
        self._due = asyncio.Event()
        self._confirms: deque[tuple[int, Callable[[], None]]] = deque()
        self._put = self._finished = 0  # publications of all time
        self._tried = asyncio.Event()
        self._on_release: list[Callable[[], None]] = []
        self._held = False

    # Requests

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish all events or none; call `done` once, with their ids or with an error."""
        refusal = self._hub.refusal or ("" if self.available else UNAVAILABLE)
        if refusal:
            done(RequestError(503, refusal, RETRY_LATER))
            return nothing
        try:
            entries = [self._entry(event, foreign=False) for event in events]
        except RelayError as error:
            done(error)
            return nothing
        if not entries:
            done([])
            return nothing
        request = WaitingRequest(self, entries, done, self._timeout_s)
        request.enter()
        return request.cancel

    def head(self, done: HeadDone) -> None:
        """Ask the broker for the sequence of the next entry; call `done` once."""
        if not self.available:
            done(RequestError(503, UNAVAILABLE, RETRY_LATER))
        else:
            self._heads.append(done)
            self._due.set()

    # Sources

    def publish_one(self, event: Event, now_s: float, *, foreign: bool = False) -> Receipt:
        """Publish an event of a source, and return its receipt.

        Raises:
            EventError: the event is rejected.
        """
        receipt = Receipt()

        def done(result: list[str] | RelayError) -> None:
            if isinstance(result, RelayError):
                receipt.error = result
                self._errors.report("event", "cluster: an event was rejected: %s", result)
            else:
                receipt.id = result[0]

        self.append(Publication([self._entry(event, foreign=foreign)], done))
        return receipt

    def held(self, topic: str) -> bool:
        """Return whether publishers have to wait: the broker is unavailable, or the queue is full."""
        if not self.available or self._full:
            self._held = True
            return True
        return False

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, when publishers may continue."""
        self._on_release.append(callback)

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once, when the broker has everything published so far; possibly within this call."""
        if self._finished == self._put:
            callback()
        else:
            self._confirms.append((self._put, callback))

    confirm_stored = confirm

    # State

    @property
    def available(self) -> bool:
        """Whether the last attempts to reach the broker succeeded, those of the follower and those of the publisher."""
        return self.connected and self.following

    @property
    def _full(self) -> bool:
        return self.pending >= QUEUE_EVENTS_MAX or self._bytes >= QUEUE_BYTES_MAX

    def set_following(self, following: bool) -> None:
        """Record whether the follower is connected. If it is not, reject the requests that wait."""
        self.following = following
        if following:
            self._due.set()
            self._release()
        else:
            # An idle connection does not report that the broker is gone, so it is replaced.
            self._stale, self.connected = True, False
            self._tried.clear()
            self._due.set()
            self._reject()

    async def wait_connected(self) -> None:
        """Wait until the publisher is connected, or an attempt has failed although the follower is connected."""
        await self._tried.wait()

    async def settle(self) -> None:
        """Wait until the broker has everything published so far."""
        settled = asyncio.Event()
        self.confirm(settled.set)
        await settled.wait()

    # The queue

    def _entry(self, event: Event, *, foreign: bool) -> NewEntry:
        dedup = None if event.dedup is None or not self._dedup else dedup_key(event)
        event = self._hub.writer.check(event, foreign=foreign)
        return NewEntry(str(event.topic), encode_payload(event), event.id, dedup, event.event == END)

    def append(self, publication: Publication) -> None:
        """Put a publication into the queue."""
        self._queue.append(publication)
        self._put += 1
        self.pending += len(publication.entries)
        self._bytes += publication.size
        # The task that waits for it runs in the next turn of the loop, after everything else that this turn publishes.
        self._due.set()

    def withdraw(self, publication: Publication) -> bool:
        """Withdraw a publication that has not been sent; return whether it was withdrawn."""
        if publication.sent:
            return False
        self.pending -= len(publication.entries)
        self._bytes -= publication.size
        publication.entries, publication.size = (), 0
        return True

    def _reject(self) -> None:
        """Fail the requests for positions, and the publish requests that have not been sent or wait for the queue."""
        error = RequestError(503, UNAVAILABLE, RETRY_LATER)
        heads, self._heads = self._heads, []
        for done in heads:
            done(error)
        for publication in self._queue:
            if isinstance(publication.done, WaitingRequest) and publication.entries:
                self.withdraw(publication)
                publication.done(error)
        self._call_back()

    # The calls

    async def run(self) -> None:
        """Publish until the task is cancelled; reconnect after each error."""
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        reason = ""
        try:
            while True:
                try:
                    await self._broker.connect()
                    self.connected, self._stale = True, False
                    self._tried.set()
                    self._release()
                    if reason:
                        _logger.info("cluster: publishing to the broker works again")
                        reason = ""
                    await self._serve(backoff)
                except BrokerError as error:
                    if not reason:
                        _logger.error("cluster: cannot publish to the broker: %s", error)
                    reason = str(error)
                except Exception:
                    _logger.exception("cluster: the publisher failed")
                    reason = "internal error"
                self.connected = False
                if self.following:
                    self._tried.set()
                self._reject()
                await self._broker.close_publisher()
                await asyncio.sleep(backoff.next_s())
        finally:
            await self._broker.close_publisher()

    async def _serve(self, backoff: Backoff) -> None:
        while True:
            # Until the follower has compared the logs, the ids of new events might belong to events that were lost.
            while not self._stale and not (self.following and (self._call or self._queue or self._heads)):
                self._due.clear()
                await self._due.wait()
            if self._stale:
                raise BrokerError("the follower has lost its connection")
            if self._call or self._queue:
                await self._publish_some()
                backoff.reset()
            if self._heads:
                heads, self._heads = self._heads, []
                try:
                    head: int | RelayError = await self._broker.head()
                except BrokerError:
                    self._heads = heads + self._heads
                    raise
                for done in heads:
                    done(head)

    async def _publish_some(self) -> None:
        """Make one call: the one that was not answered, or the next one."""
        if not self._call:
            self._fill()
        began_s = self._clock()
        requests = [publication.entries for publication in self._call]
        epoch, results = await self._broker.publish(self._number, requests)
        self._call_s.observe(self._clock() - began_s)
        call, self._call = self._call, []
        self._answer(call, epoch, iter(results))

    def _fill(self) -> None:
        self._number += 1
        events = size = 0
        while self._queue:
            events += len(self._queue[0].entries)
            size += self._queue[0].size
            if self._call and (events > CALL_EVENTS_MAX or size > CALL_BYTES_MAX):
                return
            publication = self._queue.popleft()
            publication.sent = True
            self._call.append(publication)

    def _answer(self, call: list[Publication], epoch: str, results: Iterator[Result]) -> None:
        """Answer the publications of a call."""
        hub, is_current = self._hub, epoch == self._hub.log.epoch
        for publication in call:
            entries = publication.entries
            self.pending -= len(entries)
            self._bytes -= publication.size
            ids: list[str] = []
            rejected: dict[int, RelayError] | None = None  # number of an event in its request → why it was rejected
            for number, entry in enumerate(entries, 1):
                result = next(results)
                if isinstance(result, int):
                    self.events += 1
                    if is_current and result >= hub.acknowledged:
                        hub.acknowledged = result + 1
                    ids.append(f"{epoch}-{result}" if entry.id is None else entry.id)
                elif isinstance(result, str):
                    self.repeats += 1
                    ids.append(result)
                else:
                    rejected = rejected or {}
                    rejected[number] = result
            publication.done(ids if rejected is None else rejection(rejected, len(entries)))
        self._finish(len(call))

    def _finish(self, count: int) -> None:
        self._finished += count
        while self._confirms and self._confirms[0][0] <= self._finished:
            self._confirms.popleft()[1]()
        self._release()

    def _release(self) -> None:
        """Call back the publishers that wait, if they may continue."""
        if self._held and self.available and not self._full:
            self._held = False
            self._call_back()

    def _call_back(self) -> None:
        waiting, self._on_release = self._on_release, []
        for callback in waiting:
            callback()
