"""The upstream: another server's event stream, followed and published event by event.

Theory of operation. Each event keeps its type and data. It keeps its id too, if every client can send that id back;
otherwise its id becomes a digest of the upstream's id, so that the event has the same id after a restart. The position
to resume from is the last event id of the upstream. It is stored with the events (`relay.store.journal`), so that a
restart neither skips nor repeats events.

Some servers resume at an earlier event than requested. After each resume, events that repeat earlier events, in the
same order and with the same ids and content, are dropped until the first new event. An event without an id counts as
repeated only if it follows a repeated event, since a server without ids may send the same text twice.

A `relay.gap` event replaces an event that cannot be published. It also reports that events may have been missed
because the upstream gave no id to resume from.

Owns the conversion of events and the detection of repeats. The client (`relay.client.follow`) connects, waits and
resumes. Never reads while its topic is held, so that a stream that is too fast waits in its server's buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from msgspec.structs import replace

from relay.backoff import Backoff
from relay.client.follow import Item, Position, Progress, StreamOptions, follow
from relay.client.opening import shown
from relay.client.target import endpoint
from relay.config.model import Config
from relay.core.ended import END
from relay.core.hub import Hub
from relay.core.notice import gap_event
from relay.errors import EventError, LostError, RelayError
from relay.event import Event
from relay.sources.lines import HEARTBEAT
from relay.sse import Decoder
from relay.telemetry.input_errors import Counter, InputErrors
from relay.telemetry.stats_schema import UpstreamStats

TURN_EVENTS = 256
"""Events published before other tasks run: 1 to 2 ms."""

KNOWN_MAX = 10_000
"""Newest events that are recognised as repeats; 400 KB."""

BACKOFF_LEAST_S = 1.0
BACKOFF_MOST_S = 30.0
"""Limits of the random waits between attempts. The server's `retry` is added."""

UPSTREAM_END = "upstream.end"
"""Type that an upstream's `relay.end` gets here. It ends one topic of the upstream, not the topic that is fed here."""

_logger = logging.getLogger("relay.sources.upstream")


class UpstreamSource:
    """Follows one event stream from `start()` until `close()`, or until the server answers 204.

    Args:
        config: `upstream`, `upstream_timeout_s`, `upstream_token`, `topic`, `event_bytes_max`.
        hub: publishes the events.
        metrics: counts bad input as `upstream`.
        loop: the event loop.
        clock: returns the hub's `now_s`.
        may_keep: returns whether an event may keep an id of the upstream.
        retained: id (or None) and frame of each event retained on the topic, newest first.
        position: last event id to resume from; None if the upstream was never followed before.
        note: called with each new position, in the same turn of the loop in which the event before it is published.

    Raises:
        RelayError: httpx is not installed, or the address is malformed.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        metrics: Counter,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        may_keep: Callable[[str], bool],
        retained: Iterable[tuple[str | None, bytes]],
        position: str | None,
        note: Callable[[str], None],
    ) -> None:
        self.linked = False
        self.breaks = 0
        self.events = 0
        self.repeats = 0  # events dropped as repeats
        self.refused = 0  # events that could not be published
        self.error = ""  # reason of the last failure; empty while linked
        self.ended = ""  # reason of the end; empty while the stream is followed
        self._config = config
        self._hub = hub
        self._loop = loop
        self._clock = clock
        self._may_keep = may_keep
        self._note = note
        self._errors = InputErrors("upstream", metrics, loop, _logger)
        self._position = Position(position or "")
        self._followed = position is not None
        self._noted = position
        self._gap_at = -1  # `events` when the last gap was published because there was no position
        self._repeats = _Repeats(retained)
        self._address = endpoint(config.upstream, "/events")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._task = self._loop.create_task(self._follow())

    def close(self) -> None:
        """Stop following. Events that were read but not published can be read from the server again."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._errors.close()

    def stats(self) -> UpstreamStats:
        """Return the upstream's part of /stats."""
        return UpstreamStats(
            linked=self.linked,
            breaks=self.breaks,
            events=self.events,
            repeats=self.repeats,
            refused=self.refused,
            error=self.error,
            ended=self.ended,
        )

    async def _follow(self) -> None:
        config = self._config
        options = StreamOptions(
            headers={"Authorization": f"Bearer {config.upstream_token}"} if config.upstream_token else {},
            read_timeout_s=config.upstream_timeout_s,
            event_bytes_max=config.event_bytes_max,
        )
        backoff = Backoff(BACKOFF_LEAST_S, BACKOFF_MOST_S, random.random)
        stream = follow(self._address, self._position, options, backoff, patient=True)
        _logger.info("following %s", shown(self._address))
        try:
            async with contextlib.aclosing(stream) as items:
                count = 0
                async for item in items:
                    await self._take(item)
                    count += 1
                    if item is Progress.READ or count % TURN_EVENTS == 0:
                        await asyncio.sleep(0)
            self.ended = "the server ended the stream (relay.end or status 204)"
        except RelayError as error:
            self.ended = str(error)
        except Exception:
            _logger.exception("upstream: stopped after an internal error")
            self.ended = "internal error"
        self.linked = False
        _logger.error("upstream: stopped following %s: %s", shown(self._address), self.ended)

    async def _take(self, item: Item) -> None:
        """Handle one item of the stream."""
        if isinstance(item, Event):
            if item.event != HEARTBEAT:
                await self._publish(self._adapt(item))
        elif isinstance(item, EventError):
            await self._refuse(item)
        elif isinstance(item, LostError):
            self.breaks += self.linked
            self.linked, self.error = False, str(item)
        elif item is Progress.OPENED:
            await self._begin()
        self._note_position()

    async def _begin(self) -> None:
        """Handle the start of a connection."""
        self.linked, self.error = True, ""
        _logger.info("upstream: connected")
        self._repeats.resume()
        if self._followed and not self._position.resume_id and self.events != self._gap_at:
            _logger.warning("upstream: no id to resume from; events may have been missed")
            await self._publish(gap_event("unknown", None, topic=self._config.topic))
            self._gap_at = self.events
        self._followed = True

    def _note_position(self) -> None:
        if self._position.resume_id != self._noted and self._followed:
            self._noted = self._position.resume_id
            self._note(self._noted)

    def _adapt(self, event: Event) -> Event:
        """Return the event to publish: without `retry`, which is meant for relay itself."""
        id = event.id
        if id is not None and not self._may_keep(id):
            id = "sha256:" + hashlib.sha256(id.encode()).hexdigest()[:32]
        kind = UPSTREAM_END if event.event == END else event.event
        return replace(event, id=id, event=kind, retry=None, topic=self._config.topic)

    async def _publish(self, event: Event) -> None:
        """Publish one event once its topic is not held, unless the event is a repeat."""
        if self._repeats.is_repeat(event):
            self.repeats += 1
            return
        await self._wait()
        try:
            self._hub.publish_one(event, self._clock(), foreign=True)
        except EventError as error:
            await self._refuse(error)
        else:
            self.events += 1

    async def _refuse(self, error: EventError) -> None:
        """Report an event that cannot be published, in the log and to the subscribers of the topic."""
        self.refused += 1
        after = self._position.last_event_id[:100]
        self._errors.report("event", "upstream: rejected an event (last event id %r): %s", after, error)
        gap = gap_event("refused", 1, topic=self._config.topic)
        if self._repeats.is_repeat(gap):
            return
        await self._wait()
        try:
            self._hub.publish_one(gap, self._clock(), foreign=True)
        except EventError as failure:
            # The topic has ended, so no subscriber expects more events.
            self._errors.report("gap", "upstream: cannot publish the gap: %s", failure)

    async def _wait(self) -> None:
        """Wait until the topic is not held."""
        while self._hub.held(self._config.topic):
            released = asyncio.Event()
            self._hub.on_release(released.set)
            await released.wait()


class _Repeats:
    """Detects events that a server repeats because it resumes at an earlier event than requested.

    Args:
        retained: id (or None) and frame of each earlier event, newest first.
    """

    def __init__(self, retained: Iterable[tuple[str | None, bytes]]) -> None:
        self._known: deque[int] = deque(maxlen=KNOWN_MAX)
        self._last_id: str | None = None
        self._ahead: list[int] = []  # events that may still be repeated on this connection, in order
        self._place = 0
        for id, frame in reversed(list(islice(retained, KNOWN_MAX))):
            for event in Decoder(len(frame)).feed(frame):
                self._known.append(self._hash(replace(event, id=id)))

    def resume(self) -> None:
        """Begin a connection: events may be repeats until the first new event."""
        self._ahead, self._place, self._last_id = list(self._known), 0, None

    def is_repeat(self, event: Event) -> bool:
        """Return whether an event is a repeat; if it is not, record it."""
        key = self._hash(event)
        if event.id is not None or self._place:
            try:
                self._place = self._ahead.index(key, self._place) + 1
            except ValueError:
                self._ahead, self._place = [], 0
            else:
                return True
        self._known.append(key)
        return False

    def _hash(self, event: Event) -> int:
        """Return a hash of the event's type, its data and the last id after it."""
        self._last_id = event.id or self._last_id
        return hash((self._last_id, event.event, event.data))
