"""The upstream: another server's event stream, followed and published event by event.

Theory of operation. Each event keeps its type and data. It keeps its id too, if every client can send that id back;
otherwise its id is a digest of the upstream's, so that the event has the same id after a restart. The position to
resume from at the upstream is the upstream's own last event id. It is stored with the events (`relay.store.journal`),
so that a restart neither skips nor repeats.

Some servers begin further back than they were asked to. After each resume, events that repeat what came before, in the
same order and with the same ids and content, are left out until the first event that is new. An event without an id of
its own counts as repeated only between such events, since a server without ids may well send the same text twice.

An event that cannot be published, and events that may have been missed because there is no id to resume from, are
published as a `relay.gap` event in their place.

Owns what an event becomes here, and which events have come already. Connecting, waiting and resuming belong to the
client (`relay.client.subscribe`). Reading continues only while publishing may, so that a stream that is too fast waits
in its server's buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from relay.backoff import Backoff
from relay.client.opening import shown
from relay.client.publish import endpoint
from relay.client.subscribe import Item, Position, Progress, follow
from relay.config.model import Config
from relay.core.ended import END
from relay.core.hub import Hub
from relay.core.notice import gap_event
from relay.errors import EventError, LostError, RelayError
from relay.event import Event
from relay.sources.lines import HEARTBEAT
from relay.sse import Decoder
from relay.telemetry.input_errors import Counter, InputErrors

TURN_EVENTS = 256
"""Events published in a row before other tasks run: a millisecond or two."""

KNOWN_MAX = 10_000
"""Newest events that are recognised when they come again; 400 KB."""

BACKOFF_LEAST_S = 1.0
BACKOFF_MOST_S = 30.0
"""Upper ends of the random waits between attempts; the server's own `retry` comes on top."""

UPSTREAM_END = "upstream.end"
"""Type of an upstream's `relay.end` here, where all of its topics are one, which does not end with one of them."""

_logger = logging.getLogger("relay.sources.upstream")


class UpstreamSource:
    """Follows one event stream from `start()` until `close()`, or until the server answers 204.

    Args:
        config: `upstream`, `upstream_timeout_s`, `link_token`, `topic`, `event_bytes_max`.
        hub: takes the events.
        metrics: counts bad input as `upstream`.
        loop: the event loop.
        clock: returns the time as the hub has it.
        may_keep: says whether an event may keep the id that it came with.
        retained: own id, if any, and frame of the events on the topic, the newest first.
        position: where to resume at the upstream; None if it was not followed before.
        note: called with each new position, in the same turn of the loop as the event before it is published.

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
        self.repeats = 0  # events left out, since they had come already
        self.refused = 0  # events that could not be published
        self.error = ""  # why the last attempt failed; empty while linked
        self.ended = ""  # why it is over for good
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
        self._gap_at = -1  # `events` when the last gap for want of a position was published
        self._repeats = _Repeats(retained)
        self._address = endpoint(config.upstream, "/events")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._task = self._loop.create_task(self._follow())

    def close(self) -> None:
        """Stop following. What was read and not published is not lost: its server still has it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._errors.close()

    def stats(self) -> Mapping[str, Any]:
        """Return the upstream's part of /stats."""
        return {
            "linked": self.linked,
            "breaks": self.breaks,
            "events": self.events,
            "repeats": self.repeats,
            "refused": self.refused,
            "error": self.error,
            "ended": self.ended,
        }

    async def _follow(self) -> None:
        config = self._config
        stream = follow(
            self._address,
            self._position,
            headers={"Authorization": f"Bearer {config.link_token}"} if config.link_token else {},
            read_timeout_s=config.upstream_timeout_s,
            backoff=Backoff(BACKOFF_LEAST_S, BACKOFF_MOST_S, random.random),
            event_bytes_max=config.event_bytes_max,
            patient=True,
        )
        _logger.info("following %s", shown(self._address))
        try:
            async with contextlib.aclosing(stream) as items:
                count = 0
                async for item in items:
                    await self._take(item)
                    count += 1
                    if item is Progress.READ or count % TURN_EVENTS == 0:
                        await asyncio.sleep(0)
            self.ended = "its server has ended it for good (204)"
        except RelayError as error:
            self.ended = str(error)
        except Exception:
            _logger.exception("upstream: ended by an error in relay")
            self.ended = "an error in relay"
        self.linked = False
        _logger.error("upstream: %s is not followed any longer: %s", shown(self._address), self.ended)

    async def _take(self, item: Item) -> None:
        """Do what one item of the stream asks for."""
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
        """Begin to read a connection."""
        self.linked, self.error = True, ""
        _logger.info("upstream: linked")
        self._repeats.resume()
        if self._followed and not self._position.resume_id and self.events != self._gap_at:
            _logger.warning("upstream: gave no id to resume from; events may have been missed")
            await self._publish(gap_event("unknown", None, topic=self._config.topic))
            self._gap_at = self.events
        self._followed = True

    def _note_position(self) -> None:
        if self._position.resume_id != self._noted and self._followed:
            self._noted = self._position.resume_id
            self._note(self._noted)

    def _adapt(self, event: Event) -> Event:
        """Return an event as it is published here: without `retry`, which is meant for relay."""
        id = event.id
        if id is not None and not self._may_keep(id):
            id = "sha256:" + hashlib.sha256(id.encode()).hexdigest()[:32]
        kind = UPSTREAM_END if event.event == END else event.event
        return replace(event, id=id, event=kind, retry=None, topic=self._config.topic)

    async def _publish(self, event: Event) -> None:
        """Publish one event as soon as its topic is free, unless it has come already."""
        if self._repeats.has_come(event):
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
        """Report an event that cannot be published, here and to the subscribers of the topic."""
        self.refused += 1
        after = self._position.last_event_id[:100]
        self._errors.report("event", "upstream: refused an event (last event id %r): %s", after, error)
        gap = gap_event("refused", 1, topic=self._config.topic)
        if self._repeats.has_come(gap):
            return
        await self._wait()
        try:
            self._hub.publish_one(gap, self._clock(), foreign=True)
        except EventError as failure:
            # The topic has ended: its subscribers were told that nothing follows.
            self._errors.report("gap", "upstream: the gap cannot be published either: %s", failure)

    async def _wait(self) -> None:
        """Wait until the topic is free."""
        while self._hub.held(self._config.topic):
            released = asyncio.Event()
            self._hub.on_release(released.set)
            await released.wait()


class _Repeats:
    """Which events have come already, so that a server that begins further back than it was asked to doubles none.

    Args:
        retained: own id, if any, and frame of events that came before, the newest first.
    """

    def __init__(self, retained: Iterable[tuple[str | None, bytes]]) -> None:
        self._known: deque[int] = deque(maxlen=KNOWN_MAX)
        self._last_id: str | None = None
        self._ahead: list[int] = []  # what may still be repeated on this connection, in order
        self._place = 0
        for id, frame in reversed(list(islice(retained, KNOWN_MAX))):
            for event in Decoder(len(frame)).feed(frame):
                self._known.append(self._hash(replace(event, id=id)))

    def resume(self) -> None:
        """Begin a connection: from here on, events may be repeats until the first one that is new."""
        self._ahead, self._place, self._last_id = list(self._known), 0, None

    def has_come(self, event: Event) -> bool:
        """Say whether an event is a repeat; if not, remember it."""
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
        """Return what stands for an event: its type and data, and the last id as of this event."""
        self._last_id = event.id or self._last_id
        return hash((self._last_id, event.event, event.data))
