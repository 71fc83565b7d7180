"""The upstream: another server's event stream, relayed event by event, each with the id that it came with.

Owns what an event becomes here, and where the first connection resumes. Connecting, waiting and resuming after that are
the client's (`relay.client`). Reading goes on only while publishing may, so that a stream that is too fast waits in its
server's buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from relay.client import subscribe
from relay.config import Config
from relay.errors import EventError, RelayError
from relay.event import Event
from relay.publisher import endpoint
from relay.sources.input_errors import Counter, InputErrors
from relay.sources.intake import Publisher

TURN_EVENTS = 256
"""Events published in a row before everything else that is due runs: a millisecond or two."""

_logger = logging.getLogger(__name__)


class UpstreamSource:
    """Follows one event stream from `start()` until `close()`, its end for good, or a refusal for good.

    Args:
        config: `upstream`, `upstream_timeout_s`, `link_token`, `topic`, `event_bytes_max`.
        hub: takes the events.
        metrics: counts bad input as `upstream`.
        loop: the event loop.
        clock: returns the time as the hub has it.
        last_event_id: where to resume; empty for what only comes.

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
        last_event_id: str,
    ) -> None:
        self.linked = False
        self.breaks = 0
        self.ended = ""  # why it is over for good
        self._config = config
        self._hub = hub
        self._loop = loop
        self._clock = clock
        self._errors = InputErrors("upstream", metrics, loop, _logger)
        self._last_event_id = last_event_id
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

    def stats(self) -> dict[str, Any]:
        """Return what /stats says of it."""
        return {"linked": self.linked, "breaks": self.breaks, "ended": self.ended}

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
        self.linked = False
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
        try:
            self._hub.publish_one(replace(event, topic=topic), self._clock())
        except EventError as error:
            self._errors.report("event", "upstream: left out an event: %s", error)
