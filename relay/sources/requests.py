"""Publishing on request: publishes all events of a request or none, and calls back once they are confirmed.

Owns the wait for a `block` stream and for the disk, and its time limit. The caller (an HTTP request, or an edge over
its link) is called back exactly once, unless it cancels. The call may come before `publish` returns. Never parses and
never writes a response.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from typing import Protocol

from relay.core.hub import Hub
from relay.errors import RETRY_LATER, RETRY_SOON, RelayError, RequestError
from relay.event import Event

HOLD_GRACE_S = 5.0
"""Time that a request waits, in addition to the time that one `block` stream may hold its topics."""

Done = Callable[[list[str] | RelayError], None]
Cancel = Callable[[], None]

TakeDone = Callable[[float | RelayError], None]
"""Receives 0 if the events are within the rate, the seconds after which to try again if not, or an error."""

TakeRate = Callable[[str, int, TakeDone], Cancel]
"""Takes a number of events from the publish rate of a subject. Calls back once, unless it is cancelled; maybe before it
returns."""

_logger = logging.getLogger("relay.publishing")


class BatchPublisher(Protocol):
    """Publishes batches of events to the hub of this process, or over a link to the hub of another."""

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish all events or none, and call `done` once. Return a function that cancels."""


class Publishing:
    """Publishes to the hub of this process.

    Args:
        hub: publishes the events.
        hold_timeout_s: time that a request waits for held topics, in seconds.
        loop: runs the timers.
        clock: returns the hub's `now_s`.
    """

    def __init__(
        self, hub: Hub, hold_timeout_s: float, loop: AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.hub = hub
        self.hold_timeout_s = hold_timeout_s
        self.loop = loop
        self.clock = clock

    def publish(self, events: Sequence[Event], done: Done) -> Cancel:
        """Publish events as soon as none of their topics is held.

        Args:
            events: each with a topic.
            done: called once, with the ids, or with an error if no event is published; maybe before this returns.

        Returns:
            A function that cancels the request. Events not published by then are never published.
        """
        request = _Request(self, events, done)
        request.look()
        return request.cancel


class _Request:
    """The events of one request, until they are published or the request fails."""

    __slots__ = ("_done", "_events", "_failure", "_over", "_owner", "_timer")

    def __init__(self, owner: Publishing, events: Sequence[Event], done: Done) -> None:
        self._owner = owner
        self._events = events
        self._done = done
        self._over = False
        self._timer: TimerHandle | None = None
        self._failure: RequestError  # the error if the current wait times out

    def look(self) -> None:
        """Publish, or wait until the hub releases a topic."""
        owner = self._owner
        if self._over:
            return
        if owner.hub.refusal:
            self._finish(RequestError(503, owner.hub.refusal, RETRY_LATER))
            return
        if any(owner.hub.held(topic) for topic in {str(event.topic) for event in self._events}):
            self._wait(RequestError(503, "the topic is held up, by a slow stream or by the disk", RETRY_SOON))
            owner.hub.on_release(self._released)
            return
        try:
            ids = owner.hub.publish(self._events, owner.clock())
        except RelayError as error:
            self._finish(error)
        except Exception:
            _logger.exception("a request to publish failed")
            self._finish(RequestError(500, "relay failed"))
        else:
            owner.hub.confirm(lambda: self._finish(ids))
            self._wait(RequestError(503, "not on the disk in time; it may be published yet", RETRY_SOON))

    def _wait(self, failure: RequestError) -> None:
        """Start the time limit, and set the error that it reports. Do nothing if the request is over."""
        if not self._over:
            self._failure = failure
            if self._timer is None:
                self._timer = self._owner.loop.call_later(self._owner.hold_timeout_s + HOLD_GRACE_S, self._give_up)

    def cancel(self) -> None:
        """Stop; publish nothing and do not call back."""
        self._over = True
        self._events = ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _released(self) -> None:
        # The hub calls this while it works; do not publish before it has finished.
        self._owner.loop.call_soon(self.look)

    def _give_up(self) -> None:
        self._finish(self._failure)

    def _finish(self, result: list[str] | RelayError) -> None:
        if not self._over:
            self.cancel()
            self._done(result)


def nothing() -> None:
    """Cancel nothing: the request is already over."""
