"""Subscribes from Python, with `async for` or `for`.

`subscribe` prefers NDJSON, which has the topic of each event. A server that does not support NDJSON sends an event
stream, which the client reads as well.

Owns the arguments of a subscription, and the iteration with and without an event loop. Never connects
(`relay.client.follow`). Requires httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from relay.backoff import Backoff
from relay.client.authorization import Authorization, Provider
from relay.client.follow import Position, StreamOptions, Transport, follow
from relay.client.opening import NDJSON, SSE
from relay.client.target import endpoint
from relay.errors import EventError, RelayError
from relay.event import Event
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""Largest event that is accepted. The default limit of a relay is 1 MiB."""
READ_TIMEOUT_S = 45.0
"""Silence after which a stream is considered lost: three heartbeats of the default 15 s."""

STREAM_AGAIN_S = 600.0
"""Time after which a client that polls tries a stream again. If the stream is silent, its events are late by the read
timeout."""

PREFER_NDJSON = f"{NDJSON}, {SSE};q=0.9"
"""The value of Accept for which a relay sends NDJSON, and any other server an event stream."""

GAP = "relay.gap"
"""Type of the event that reports missed events."""

T = TypeVar("T")


class Gap(msgspec.Struct, frozen=True, rename={"from_id": "from", "to_id": "to"}):
    """The missed events that a `relay.gap` reports.

    Args:
        reason: the cause: `slow`, `conflated`, `history`, `unknown` or `refused`.
        missed: the number of missed events; None if it is not known.
        from_id: the id of the first missed event; None if it is not known.
        to_id: the id of the last missed event; None if it is not known.
    """

    reason: str
    missed: int | None = None
    from_id: str | None = None
    to_id: str | None = None


def read_gap(event: Event) -> Gap | None:
    """Return the gap that an event reports; None if the event is not a `relay.gap`.

    Raises:
        EventError: the data of the event is malformed.
    """
    if event.event != GAP:
        return None
    try:
        return msgspec.json.decode(str(event.data), type=Gap)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EventError("data", f"not the data of a gap: {error}") from None


class SubscribedEvents:
    """The events of a subscription, for `async for` or `for`.

    `async with` or `with` closes the connection at its end. Without `with`, a `for` loop closes the connection when it
    ends.

    Args:
        events: yields the events.
        position: the position of the subscriber.
    """

    def __init__(self, events: AsyncGenerator[Event, None], position: Position) -> None:
        self._events = events
        self._position = position
        self._runner: asyncio.Runner | None = None
        self._entered = False

    @property
    def transport(self) -> Transport:
        """`stream`, or `poll` while the events arrive by long polling, because a stream delivered nothing."""
        return self._position.transport

    @property
    def last_event_id(self) -> str:
        """The id from which a later subscription resumes after the last event of the iteration; it may be empty."""
        return self._position.last_event_id

    def __aiter__(self) -> SubscribedEvents:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection and end the iteration."""
        await self._events.aclose()

    def __iter__(self) -> Iterator[Event]:
        """Iterate in a program without an event loop. Each step blocks until an event arrives.

        Raises:
            RelayError: this thread runs an event loop.
        """
        try:
            while True:
                try:
                    event = self._run(self._events.__anext__)
                except StopAsyncIteration:
                    return
                yield event
        finally:
            if not self._entered:
                self.close()

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the iteration, in a program without an event loop."""
        if self._runner is not None:
            try:
                self._run(self._events.aclose)
            finally:
                runner, self._runner = self._runner, None
                runner.close()

    def _run(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run one step of the iteration on an event loop of its own."""

        async def run() -> T:
            return await step()

        if _runs_loop():
            raise RelayError("this thread runs an event loop: use `async for` or `async with` for the subscription")
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(run())


def _runs_loop() -> bool:
    """Return whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def subscribe(
    url: str,
    topics: Sequence[str] = (),
    *,
    last_event_id: str | None = None,
    since: str | None = None,
    policy: str | None = None,
    token: str | Provider | None = None,
    ticket: Provider | None = None,
    headers: Mapping[str, str] | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
    stream_again_s: float = STREAM_AGAIN_S,
    backoff_least_s: float = 1.0,
    backoff_most_s: float = 30.0,
    event_bytes_max: int = EVENT_BYTES_MAX,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> SubscribedEvents:
    """Subscribe, and reconnect and resume while the caller reads.

    It reconnects after a lost or silent stream and after 408, 429 or 5xx. The iteration ends when all topics have ended
    (`relay.end`, or the status 204). Any other response is an error. An event of type `relay.gap` reports missed events
    (`read_gap`). To stop early, use the subscription as a context manager, which closes the connection.

    If a stream delivers neither an event nor a heartbeat for `read_timeout_s`, the client falls back to long polling,
    if the server supports it. It then logs a warning, and `transport` of the iterator is `poll`.

    Args:
        url: address of the server. The default path is `/events`.
        topics: topics and patterns, in addition to those in the address.
        last_event_id: resume after this event.
        since: start of a stream without `last_event_id`: `earliest`, `latest`, `last` (the newest event of each topic
            and key), a time such as `10m`, a date-time, or a known id.
        policy: action of a relay if this subscriber is slow: `drop-oldest`, `drop-newest`, `conflate` or `disconnect`.
            None lets the server choose.
        token: bearer token, or a function that returns one for each request. After 401 or 403, the client calls the
            function with True and tries once more.
        ticket: function that returns a ticket for each request, like `token`.
        headers: headers of each request, except after a redirect to another origin.
        read_timeout_s: silence after which the stream is considered lost. It must exceed the server's heartbeat.
        stream_again_s: time after which a client that polls tries a stream again.
        backoff_least_s: longest first random wait. The server's `retry` is added to each wait.
        backoff_most_s: longest random wait.
        event_bytes_max: size of the largest accepted event.
        ca: PEM file of the authorities to trust for https. None means those of the system.
        client: HTTP client to use. It stays open. None means a new client.
        sleep: waits for a number of seconds.
        draw: returns random numbers from 0 to 1.

    Returns:
        An iterator of the events. The `id` of an event is the last event id after the event. Its `topic` is None for
        events of relay itself, for example gaps, and for all events of a server that sends an event stream. Data that
        is a JSON object or array has a space for each line end. For the exact text, send the header
        `Accept: text/event-stream`. The iterator raises `RequestError` if the server rejects the request permanently,
        `EventError` for an event that is too large, and `RelayError` if the response is not a stream, or if the
        certificate of the server cannot be verified.

    Raises:
        RelayError: httpx is missing, or the address is malformed.
    """
    need_httpx("client")
    address = endpoint(url, "/events")
    for topic in topics:
        address = address.copy_add_param("topic", topic)
    if policy is not None:
        address = address.copy_set_param("policy", policy)
    options = StreamOptions(
        headers or {},
        read_timeout_s,
        event_bytes_max,
        ca,
        client,
        sleep,
        PREFER_NDJSON,
        falls_back=True,
        stream_again_s=stream_again_s,
        authorization=Authorization(token, ticket),
    )
    position, backoff = Position(last_event_id or ""), Backoff(backoff_least_s, backoff_most_s, draw)
    return SubscribedEvents(_events(address, position, options, backoff, since), position)


async def _events(
    address: httpx.URL, position: Position, options: StreamOptions, backoff: Backoff, since: str | None
) -> AsyncGenerator[Event, None]:
    """Yield the events of `follow`, each with the last event id."""
    async with contextlib.aclosing(follow(address, position, options, backoff, since=since)) as items:
        async for item in items:
            if isinstance(item, Event):
                yield msgspec.structs.replace(item, id=position.last_event_id or None)
            elif isinstance(item, EventError):
                raise item
