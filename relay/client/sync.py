"""Publishes from a program without an event loop.

A thread runs the event loop of the publisher, so that events are delivered while the program does other work.

Owns this thread. Never connects (`relay.client.publish`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from relay.client.publish import IN_FLIGHT_MAX, RESEND_S_MAX, Publisher, publish
from relay.event import Event

T = TypeVar("T")


def publish_sync(
    target: str, events: Event | Sequence[Event], token: str | None = None, *, ca: str | None = None
) -> list[str]:
    """Publish events once and wait until the relay has acknowledged all of them, like `relay.client.publish`.

    Args:
        target: the Unix socket as `unix:/path` or `/path`, or the `http://` or `https://` address of the server.
        events: one event or several. HTTP publishes all or none. A Unix socket publishes each event separately.
        token: bearer token for HTTP.
        ca: PEM file of the authorities to trust for https. None means those of the system.

    Returns:
        The ids of the events, in order.

    Raises:
        EventError: the server rejected an event, or an event is not valid JSON.
        RequestError: the server rejected the request.
        RelayError: the server is unreachable, or did not acknowledge the events.
    """
    return asyncio.run(publish(target, events, token, ca=ca))


class SyncPublisher:
    """A `Publisher` for a program without an event loop. Several threads may use it.

    Use it as a context manager. Its exit waits for the missing acknowledgements.

    Args:
        target, token, ca, in_flight_max, resend_s_max: as for `Publisher`.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        ca: str | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
        resend_s_max: float = RESEND_S_MAX,
    ) -> None:
        self._publisher = Publisher(
            target, token=token, ca=ca, in_flight_max=in_flight_max, resend_s_max=resend_s_max
        )

    def __enter__(self) -> Self:
        """Start the thread and connect.

        Raises:
            LostError: the server cannot be reached.
            RequestError: the server rejects the token.
            RelayError: the server is not a relay.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay-publisher", daemon=True)
        self._thread.start()
        try:
            self._run(self._publisher.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection. Without an error, first wait for the missing acknowledgements."""
        try:
            self._run(self._publisher.__aexit__(kind, error, trace))
        finally:
            self._stop()

    def publish(self, event: Event) -> str:
        """Publish one event and return its id. See `Publisher.publish`."""
        return self._run(self._publisher.publish(event))

    def send(self, event: Event) -> Future[str]:
        """Send one event without waiting for its acknowledgement. Wait while too many events are unacknowledged.

        Returns:
            A future with the id, or with the error that `publish` would raise.

        Raises:
            EventError: the event cannot be encoded as JSON.
            RelayError: the publisher is closed.
        """
        sent = self._run(self._publisher.send(event))
        result: Future[str] = Future()
        result.set_running_or_notify_cancel()  # A sent event cannot be cancelled.

        def copy(answer: asyncio.Future[str]) -> None:
            error = answer.exception()
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(answer.result())

        self._loop.call_soon_threadsafe(sent.add_done_callback, copy)
        return result

    def flush(self) -> None:
        """Wait until the server has acknowledged or rejected each event.

        Raises:
            RelayError: events were not acknowledged in time since the last call of `flush`.
        """
        self._run(self._publisher.flush())

    def _run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for its result."""
        return asyncio.run_coroutine_threadsafe(step, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
