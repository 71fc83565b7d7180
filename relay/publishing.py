"""Publishing on request: all events or none, once their topics are free.

Owns the wait for a `block` stream, and its end. What asks (a request over HTTP, an edge over its link) is called back
exactly once, at once or later, unless it cancels. Never parses, never answers itself.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from typing import Protocol

from relay.errors import RETRY_SOON, RelayError, RequestError
from relay.event import Event

HOLD_GRACE_S = 5.0
"""What a request waits beyond the time that one `block` stream may hold it up."""

Done = Callable[[list[str] | RelayError], None]
Cancel = Callable[[], None]

_logger = logging.getLogger(__name__)


class Hub(Protocol):
    """What publishing needs of the hub."""

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        """Publish all events or, with an EventError, none; give their ids."""

    def held(self, topic: str) -> bool:
        """Tell whether a `block` stream of the topic is in arrears."""

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once when some hold ends."""


class Publishing:
    """Publishes into the hub of this process.

    Args:
        hub: takes the events.
        hold_timeout_s: how long a request waits for its topics.
        loop: calls back after that.
        clock: gives the hub's `now_s`.
    """

    def __init__(
        self, hub: Hub, hold_timeout_s: float, loop: AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.hub = hub
        self.hold_timeout_s = hold_timeout_s
        self.loop = loop
        self.clock = clock

    def publish(self, events: Sequence[Event], done: Done) -> Cancel:
        """Publish events, as soon as none of their topics is held.

        Args:
            events: each with a topic.
            done: called with their ids, or with why none of them is published; maybe within this call.

        Returns:
            what to call when nobody waits any more; what is not published by then never is.
        """
        request = _Request(self, events, done)
        request.look()
        return request.cancel


class _Request:
    """Events that are to be published."""

    __slots__ = ("_done", "_events", "_over", "_owner", "_timer")

    def __init__(self, owner: Publishing, events: Sequence[Event], done: Done) -> None:
        self._owner = owner
        self._events = events
        self._done = done
        self._over = False
        self._timer: TimerHandle | None = None

    def look(self) -> None:
        """Publish, or wait until the hub releases some topic."""
        owner = self._owner
        if self._over:
            return
        if any(owner.hub.held(topic) for topic in {str(event.topic) for event in self._events}):
            if self._timer is None:
                self._timer = owner.loop.call_later(owner.hold_timeout_s + HOLD_GRACE_S, self._give_up)
            owner.hub.on_release(self._released)
            return
        result: list[str] | RelayError
        try:
            result = owner.hub.publish(self._events, owner.clock())
        except RelayError as error:
            result = error
        except Exception:
            _logger.exception("a request to publish failed")
            result = RequestError(500, "relay failed")
        self._finish(result)

    def cancel(self) -> None:
        """Publish nothing any more."""
        self._over = True
        self._events = ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _released(self) -> None:
        # The hub is in the midst of its own work: publishing has to wait for the next turn.
        self._owner.loop.call_soon(self.look)

    def _give_up(self) -> None:
        self._finish(RequestError(503, "a slow stream holds up the topic", RETRY_SOON))

    def _finish(self, result: list[str] | RelayError) -> None:
        self.cancel()
        self._done(result)


def nothing() -> None:
    """Cancel what is over already."""
