"""The source that reads a feed: connects, publishes its messages, and stores the position.

    connect ──► read ──► publish ──► confirmed: on the disk, or at the broker ──► store ──► read …
       ▲                   │ held: waits                                           │
       └──── back-off ◄────┴──── BrokerError ◄─────────────────────────────────────┘

While a topic is held, the source reads nothing, so that the messages wait in their server.

Owns this order and the count of each result. Never converts a message (`relay.sources.mapping`) and never knows a
protocol (`relay.sources.feed`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from relay.backoff import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, half_jitter
from relay.config.source_address import SourceAddress
from relay.errors import BrokerError, EventError, RelayError
from relay.sources.feed import FeedMessage, SourceFeed
from relay.sources.mapping import MessageMapping
from relay.sources.sink import EventSink, Receipt
from relay.telemetry.input_errors import Counter, InputErrors
from relay.telemetry.stats_schema import SourceStats

_logger = logging.getLogger("relay.sources.feed")


class FeedSource:
    """Reads one feed from `start()` until `stop()` or `close()`, or until a message stops it.

    Args:
        address: the address of the feed, for logs and /stats.
        feed: the feed.
        mapping: converts its messages.
        sink: publishes the events.
        metrics: counts the messages that cannot be published.
        loop: the event loop.
        clock: returns the sink's time.
        stops: whether a message that cannot be published stops the source.
    """

    def __init__(
        self,
        address: SourceAddress,
        feed: SourceFeed,
        mapping: MessageMapping,
        sink: EventSink,
        metrics: Counter,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        stops: bool,
    ) -> None:
        self._shown = address.shown
        self._feed = feed
        self._mapping = mapping
        self._sink = sink
        self._errors = InputErrors(address.kind, metrics, loop, _logger)
        self._loop = loop
        self._clock = clock
        self._stops = stops
        self._stats = SourceStats(source=address.shown)
        self._task: asyncio.Task[None] | None = None
        self._publishing = False
        self._stopping = False

    def start(self) -> None:
        """Begin to read."""
        self._task = self._loop.create_task(self._run())

    def stop(self) -> None:
        """Stop reading. Messages that are being published are finished, and their position is stored."""
        self._stopping = True
        if self._task is not None and not self._publishing:
            self._task.cancel()

    def close(self) -> None:
        """Stop at once. The server delivers messages again whose position is not stored."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
        self._errors.close()

    def stats(self) -> SourceStats:
        """Return the source's part of /stats."""
        self._stats.lost = self._feed.lost
        return self._stats

    async def _run(self) -> None:
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        stats = self._stats
        try:
            while True:
                began_s = self._clock()
                failure = await self._read()
                if failure is None or self._stopping:
                    break
                if self._clock() - began_s > RECONNECT_MAX_S:
                    backoff.reset()
                self._note_failure(str(failure))
                await asyncio.sleep(backoff.next_s())
        except Exception:
            _logger.exception("source %s: stopped after an internal error", self._shown)
            stats.ended = "internal error"
        stats.connected = False

    async def _read(self) -> BrokerError | None:
        """Read until the source stops or the connection fails; return the failure."""
        try:
            await self._feed.connect()
            self._note_connection()
            while not self._stopping and not self._stats.ended:
                messages = await self._feed.read()
                if messages:
                    self._publishing = True
                    await self._publish(messages)
                    self._publishing = False
                    await asyncio.sleep(0)
        except BrokerError as error:
            return error
        finally:
            self._publishing = False
            await self._feed.close()
        return None

    def _note_connection(self) -> None:
        _logger.info("source %s: connected", self._shown)
        self._stats.connected, self._stats.error = True, ""

    def _note_failure(self, reason: str) -> None:
        if not self._stats.error:
            event = "lost the connection" if self._stats.connected else "cannot connect"
            _logger.error("source %s: %s: %s; relay tries again", self._shown, event, reason)
        self._stats.breaks += self._stats.connected
        self._stats.connected, self._stats.error = False, reason

    async def _publish(self, messages: Sequence[FeedMessage]) -> None:
        """Publish messages, and store the position after the last one that is published or skipped."""
        results: list[str | Receipt | EventError] = []
        for message in messages:
            try:
                event = self._mapping.event(message)
                await self._wait(str(event.topic))
                results.append(self._sink.publish_one(event, self._clock()))
            except EventError as error:
                results.append(error)
                if self._stops:
                    break
        confirmed = self._loop.create_future()
        self._sink.confirm_stored(lambda: None if confirmed.done() else confirmed.set_result(None))
        await confirmed
        finished: list[FeedMessage] = []
        for message, result in zip(messages, results, strict=False):
            failure = result.error if isinstance(result, Receipt) else result
            if isinstance(failure, EventError):
                self._reject(message, failure)
                if self._stops:
                    break
            elif isinstance(failure, RelayError):
                raise BrokerError(str(failure))
            else:
                self._stats.events += 1
            finished.append(message)
        if finished:
            await self._feed.store(finished)

    def _reject(self, message: FeedMessage, error: EventError) -> None:
        self._stats.errors += 1
        place = f"{message.name!r}, position {message.position or 'unknown'}"
        self._errors.report("event", "source %s: rejected a message of %s: %s", self._shown, place, error)
        if self._stops:
            self._stats.ended = f"cannot publish a message of {place}: {error}"
            _logger.error("source %s: stopped: %s", self._shown, self._stats.ended)

    async def _wait(self, topic: str) -> None:
        """Wait until the topic is not held."""
        while self._sink.held(topic):
            released = asyncio.Event()
            self._sink.on_release(released.set)
            await released.wait()
