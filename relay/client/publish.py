"""Publishes from Python, to the Unix socket of a relay or over HTTP.

`Publisher` sends events without waiting for each acknowledgement. After a lost connection, it connects again and sends
the unacknowledged events again, in order. Each event has a `dedup` key, so the server publishes none twice.

Owns the reconnection, the time limit for sending an event again, and the `dedup` keys. Never reads events from an
input. HTTP requires httpx, which the extra `client` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from relay.backoff import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, half_jitter
from relay.client.delivery import HttpDelivery, SocketDelivery, encode
from relay.client.outbox import Outbox
from relay.client.target import unix_path
from relay.errors import LostError, RelayError
from relay.event import Event

if TYPE_CHECKING:
    import httpx

IN_FLIGHT_MAX = 1024
"""Most unacknowledged events of one `Publisher`."""

RESEND_S_MAX = 300.0
"""Longest time to send an event again: half of the default `dedup-window`, so that no event is published twice."""

_logger = logging.getLogger("relay.client")


async def publish(
    target: str,
    events: Event | Sequence[Event],
    token: str | None = None,
    *,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
) -> list[str]:
    """Publish events once and wait until the relay has acknowledged all of them.

    Args:
        target: the Unix socket as `unix:/path` or `/path`, or the `http://` or `https://` address of the server.
        events: one event or several. HTTP publishes all or none. A Unix socket publishes each event separately.
        token: bearer token for HTTP.
        ca: PEM file of the authorities to trust for https. None means those of the system.
        client: HTTP client to use. It stays open. None means a new client.

    Returns:
        The ids of the events, in order.

    Raises:
        EventError: the server rejected an event, or an event is not valid JSON.
        RequestError: the server rejected the request.
        RelayError: the server is unreachable, or did not acknowledge the events.
    """
    events = [events] if isinstance(events, Event) else list(events)
    if unix_path(target) is None:
        if not events:
            return []
        delivery = HttpDelivery(target, token, ca, client, Outbox(0))
        try:
            return await delivery.post(list(map(encode, events)))
        finally:
            await delivery.close()
    async with Publisher(target, resend_s_max=0) as publisher:
        sent = [await publisher.send(event) for event in events]
        await publisher.flush()
    failed = [error for future in sent if (error := future.exception()) is not None]
    if failed:
        raise failed[0]
    return [future.result() for future in sent]


class Publisher:
    """Publishes events in order, and sends unacknowledged events again after a lost connection.

    Use it as an asynchronous context manager. Its exit waits for the missing acknowledgements.

    A Unix socket acknowledges each event. Over HTTP, the events that are sent during one request go together into the
    next.

    Args:
        target: the Unix socket as `unix:/path` or `/path`, or the `http://` or `https://` address of the server.
        token: bearer token for HTTP.
        ca: PEM file of the authorities to trust for https. None means those of the system.
        client: HTTP client to use. It stays open. None means a new client.
        in_flight_max: most unacknowledged events. When they are reached, `send` waits.
        resend_s_max: longest time to send unacknowledged events again, in seconds. It must be shorter than the server's
            `dedup-window`. Events without a `dedup` key receive a generated one. With 0, an event is sent once and
            receives no key.
        on_signal: called with the topic and the value of each signal to a topic that this connection has published to.
            Only a Unix socket receives signals.

    Raises:
        RelayError: `on_signal` was given with an address.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        ca: str | None = None,
        client: httpx.AsyncClient | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
        resend_s_max: float = RESEND_S_MAX,
        on_signal: Callable[[str, Any], None] | None = None,
    ) -> None:
        self._outbox = Outbox(in_flight_max)
        path = unix_path(target)
        if path is None and on_signal is not None:
            raise RelayError(f"on_signal: {target} sends no signals; give the Unix socket of the server (unix:PATH)")
        self._delivery = (
            HttpDelivery(target, token, ca, client, self._outbox)
            if path is None
            else SocketDelivery(path, self._outbox, on_signal)
        )
        self._resend_s_max = resend_s_max
        self._backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        self._run = secrets.token_hex(8)  # makes the generated keys unique
        self._number = 0
        self._failure: RelayError | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            LostError: the server cannot be reached.
            RequestError: the server rejects the token.
            RelayError: the server is not a relay.
        """
        await self._delivery.open()
        self._delivering = asyncio.create_task(self._deliver())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection. Without an error, first wait for the missing acknowledgements."""
        try:
            if kind is None:
                await self.flush()
        finally:
            self._closed = True
            self._delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._delivering
            self._outbox.fail(RelayError("the publisher was closed"))
            await self._delivery.close()

    async def publish(self, event: Event) -> str:
        """Publish one event and return its id.

        Raises:
            EventError: the server rejected the event.
            RelayError: the server did not acknowledge the event. It may have published the event or not.
        """
        return await (await self.send(event))

    async def send(self, event: Event) -> asyncio.Future[str]:
        """Send one event without waiting for its acknowledgement. Wait while too many events are unacknowledged.

        Returns:
            A future with the id, or with the error that `publish` would raise.

        Raises:
            EventError: the event cannot be encoded as JSON.
            RelayError: the publisher is closed.
        """
        number = self._number + 1
        if self._resend_s_max and event.dedup is None:
            event = msgspec.structs.replace(event, dedup=f"{self._run}-{number}")
        line = encode(event)
        self._number = number
        await self._outbox.room()
        if self._closed:
            self._outbox.release()
            raise RelayError("the publisher was closed")
        return self._outbox.put(number, line)

    async def flush(self) -> None:
        """Wait until the server has acknowledged or rejected each event.

        Raises:
            RelayError: events were not acknowledged in time since the last call of `flush`.
        """
        await self._outbox.emptied()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    async def _deliver(self) -> None:
        """Deliver events over all connections."""
        loop = asyncio.get_running_loop()
        settled = 0
        failing_since_s: float | None = None
        while True:
            await self._outbox.unsent()
            try:
                await self._delivery.run()
            except RelayError as error:
                failure = error
            if not self._outbox:
                continue
            if failing_since_s is None or self._outbox.settled > settled:
                settled, failing_since_s = self._outbox.settled, loop.time()
                self._backoff.reset()
            wait_s = self._backoff.next_s()
            if isinstance(failure, LostError):
                wait_s = max(wait_s, failure.asked_s)
            left_s = failing_since_s + self._resend_s_max - loop.time()
            if not isinstance(failure, LostError) or wait_s > left_s:
                self._failure, failing_since_s = failure, None
                self._outbox.fail(failure)
                continue
            count = len(self._outbox)
            unsent = "1 event" if count == 1 else f"{count} events"
            _logger.warning("%s; sending %s again in %.1f s, for up to %.0f s", failure, unsent, wait_s, left_s)
            await asyncio.sleep(wait_s)
            self._outbox.rewind()
