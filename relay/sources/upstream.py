"""The upstream: another server's event stream, relayed event by event, each with the id that it came with.

Theory of operation. Where to resume, here and at the server, is told by ids: so an event has the id that it came with,
or one of ours where it came with none, but never that of an event before it, as a browser's `lastEventId` is. Some
servers begin further back than they were asked to. Therefore, from a resume on until the first event that is new,
those are left out that have come already: with the same id, and the same in every other field.

Owns what an event becomes here, and what has come already. Connecting, waiting and resuming are the client's
(`relay.client`). Reading goes on only while publishing may, so that a stream that is too fast waits in its server's
buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from relay.client import subscribe
from relay.config import Config
from relay.ended import END
from relay.errors import EventError, RelayError
from relay.event import Event
from relay.publisher import endpoint
from relay.sources.input_errors import Counter, InputErrors
from relay.sources.intake import Publisher
from relay.sse import encode

TURN_EVENTS = 256
"""Events published in a row before everything else that is due runs: a millisecond or two."""

KNOWN_MAX = 10_000
"""Events that are known again when they come twice, the newest: 2 MB with ids of 40 characters."""

UPSTREAM_END = "upstream.end"
"""What a `relay.end` from upstream is here: all of its topics become one, which goes on when one of them ends."""

_logger = logging.getLogger(__name__)


class UpstreamSource:
    """Follows one event stream from `start()` until `close()`, its end for good, or a refusal for good.

    Args:
        config: `upstream`, `upstream_timeout_s`, `link_token`, `topic`, `event_bytes_max`.
        hub: takes the events.
        metrics: counts bad input as `upstream`.
        loop: the event loop.
        clock: returns the time as the hub has it.
        known: ids and frames of what has come already, the newest first; resumes after it, or with what only comes.

    Raises:
        RelayError: httpx is not installed, or the address is none.
    """

    def __init__(
        self,
        config: Config,
        hub: Publisher,
        metrics: Counter,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        known: Iterable[tuple[str, bytes]],
    ) -> None:
        self.linked = False
        self.breaks = 0
        self.events = 0
        self.repeats = 0  # events left out, as they had come already
        self.ended = ""  # why it is over for good
        self._config = config
        self._hub = hub
        self._loop = loop
        self._clock = clock
        self._errors = InputErrors("upstream", metrics, loop, _logger)
        newest = list(islice(known, KNOWN_MAX))
        self._last_event_id = newest[0][0] if newest else ""
        self._known = {id: hash(frame) for id, frame in reversed(newest)}
        self._resuming = True
        self._address = endpoint(config.upstream, "/events")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._task = self._loop.create_task(self._follow())

    def close(self) -> None:
        """Follow no longer; what was read and not published is not lost, as its server still has it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._errors.close()

    def stats(self) -> Mapping[str, Any]:
        """Return what /stats says of it."""
        return {
            "linked": self.linked,
            "breaks": self.breaks,
            "events": self.events,
            "repeats": self.repeats,
            "ended": self.ended,
        }

    async def _follow(self) -> None:
        config = self._config
        headers = {"Authorization": f"Bearer {config.link_token}"} if config.link_token else {}
        stream = subscribe(
            str(self._address),
            last_event_id=self._last_event_id,
            headers=headers,
            read_timeout_s=config.upstream_timeout_s,
            event_bytes_max=config.event_bytes_max,
            on_data=self._on_data,
            on_refused=lambda error: self._errors.report("event", "upstream: left out an event: %s", error),
            sleep=self._sleep,
            own_ids=True,
        )
        _logger.info("following %s", self._shown())
        try:
            async with contextlib.aclosing(stream) as events:
                count = 0
                async for event in events:
                    await self._publish(event)
                    count += 1
                    if count % TURN_EVENTS == 0:
                        await asyncio.sleep(0)
            self.ended = "its server has ended it for good (204)"
        except RelayError as error:
            self.ended = str(error)
        except Exception:
            _logger.exception("upstream: ended by an error in relay")
            self.ended = "an error in relay"
        self.linked = False
        _logger.error("upstream: %s is followed no longer: %s", self._shown(), self.ended)

    def _shown(self) -> str:
        """The address as the log may have it: its query may carry a token."""
        return str(self._address.copy_with(query=None, userinfo=b""))

    def _on_data(self) -> None:
        if not self.linked:
            self.linked = True
            _logger.info("upstream: linked")

    async def _sleep(self, wait_s: float) -> None:
        """Wait before the next try."""
        self.breaks += self.linked
        self.linked, self._resuming = False, True
        await asyncio.sleep(wait_s)

    async def _publish(self, event: Event) -> None:
        """Publish one event as soon as its topic is free."""
        if event.event == "relay.heartbeat":
            return
        topic = self._config.topic
        while self._hub.held(topic):
            released = asyncio.Event()
            self._hub.on_release(released.set)
            await released.wait()
        kind = UPSTREAM_END if event.event == END else event.event
        event = replace(event, topic=topic, id=event.id or None, event=kind)
        try:
            if event.id is not None and self._has_come(event.id, encode(event, None, self._config.event_bytes_max)):
                self.repeats += 1
                return
            self._hub.publish_one(event, self._clock(), foreign=True)
        except EventError as error:
            self._errors.report("event", "upstream: left out an event: %s", error)
        else:
            self.events += 1

    def _has_come(self, id: str, frame: bytes) -> bool:
        """Say whether an event after a resume has come before it already; know it from now on."""
        now = hash(frame)
        before = self._known.pop(id, None)
        self._known[id] = now
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._resuming = self._resuming and before == now
        return self._resuming
