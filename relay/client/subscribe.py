"""Subscribes from Python: opens an event stream, reconnects and resumes.

A network may hold streams back, for example with a proxy that buffers responses. After a stream that delivered nothing,
`subscribe` falls back to long polling.

`subscribe` prefers NDJSON, which has the topic of each event. A server that does not support NDJSON sends an event
stream, which the client reads as well.

Owns reconnection: the wait before an attempt, the position to resume from, and the set of final errors. Never parses
the stream (`relay.sse`, `relay.client.ndjson`), never checks a response (`relay.client.opening`) and never prints.
Requires httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from relay.backoff import Backoff
from relay.client.ndjson import LineDecoder
from relay.client.opening import NDJSON, RETRY_AFTER_S_MAX, SSE, fetch, listen, no_cookies
from relay.client.poll import JSON, poll_address, read_answer
from relay.client.publish import endpoint, tls_context
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

    from relay.sse import Decoder

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""Largest event that is accepted. The default limit of a relay is 1 MiB."""
READ_TIMEOUT_S = 45.0
"""Silence after which a stream is considered lost: three heartbeats of the default 15 s."""
CONNECT_TIMEOUT_S = 10.0

RETRY_S_MIN = 0.1
"""Shortest reconnection time that a server can request by `retry`. A random wait is added."""

SERVED_S = 10.0
"""A stream that stays open for this long, or that changes the last event id, resets the back-off. A server that closes
at once after a repeated event or an event without an id does not reset it."""

RESUME_ID_BYTES_MAX = 7 * 1024
"""Longest id to resume from. Most servers and proxies reject a header line of more than 8 KiB."""

PREFER_NDJSON = f"{NDJSON}, {SSE};q=0.9"
"""The value of Accept for which a relay sends NDJSON, and any other server an event stream."""

START_MARGIN_S = 2.0
"""Time that the request of a first poll may take without the loss of an event. The poll begins this much earlier."""

EMPTY_S_MIN = 1.0
"""Shortest time of a poll without an event. After a shorter one, the client waits before it polls again."""

ANSWER_BYTES = 4 * 1024 * 1024
"""Bytes of the answer to a poll, in addition to those of the largest event. A relay's has at most 1,000 events."""

Transport = Literal["stream", "poll"]

PIECE_BYTES = 16 * 1024
"""Bytes that are decoded before other tasks run. They take at most 5 ms, even if each byte is a line."""

# A header value according to RFC 9110 section 5.5. Any other last event id is sent in the query.
_HEADER_VALUE = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")

_logger = logging.getLogger("relay.client")


class Position:
    """The position of the subscriber in the stream, across all connections.

    Args:
        last_event_id: the last event id, or an empty text.
    """

    def __init__(self, last_event_id: str) -> None:
        self.last_event_id = last_event_id
        self.resume_id = last_event_id  # the newest id that fits into a request
        self.retry_s = 0.0
        self.transport: Transport = "stream"

    def read(self, decoder: Decoder | LineDecoder, data: bytes) -> Iterator[Event | EventError]:
        """Decode line by line, so that the last event id always belongs to the event that was just yielded."""
        for line in data.splitlines(keepends=True):
            items: Sequence[Event | EventError]
            try:
                items = decoder.feed(line)
            except EventError as error:
                items = (error,)
            self.move(decoder.last_event_id)
            if decoder.retry_ms is not None:
                self.retry_s = min(max(decoder.retry_ms / 1000, RETRY_S_MIN), RETRY_AFTER_S_MAX)
            yield from items


    def move(self, last_event_id: str) -> None:
        """Set the last event id."""
        if last_event_id != self.last_event_id:
            self.last_event_id = last_event_id
            if len(last_event_id.encode()) <= RESUME_ID_BYTES_MAX:
                self.resume_id = last_event_id


class Progress(Enum):
    """The progress that `follow` reports besides events and errors."""

    OPENED = auto()
    """A connection is open; its events follow."""
    READ = auto()
    """Received bytes are processed. They may have changed the position without an event."""


Item = Event | EventError | LostError | Progress
"""An event, the error for an event that is too large, the loss of a connection, or progress."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of every connection of a stream. The arguments of `subscribe` with these names explain them.

    `accept` is the value of the header Accept, unless `headers` has another. `falls_back` states whether to poll
    after a stream that delivered nothing.
    """

    headers: Mapping[str, str]
    read_timeout_s: float
    event_bytes_max: int
    ca: str | None = None
    client: httpx.AsyncClient | None = None
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    accept: str = SSE
    falls_back: bool = False


class SubscribedEvents:
    """The events of a subscription, as an asynchronous iterator. `aclose` closes the connection.

    Args:
        events: yields the events.
        position: the position of the subscriber.
    """

    def __init__(self, events: AsyncGenerator[Event, None], position: Position) -> None:
        self._events = events
        self._position = position

    @property
    def transport(self) -> Transport:
        """`stream`, or `poll` while the events arrive by long polling, because a stream delivered nothing."""
        return self._position.transport

    def __aiter__(self) -> SubscribedEvents:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def aclose(self) -> None:
        """Close the connection and end the iteration."""
        await self._events.aclose()


def subscribe(
    url: str,
    topics: Sequence[str] = (),
    *,
    last_event_id: str | None = None,
    since: str | None = None,
    headers: Mapping[str, str] | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
    backoff_least_s: float = 1.0,
    backoff_most_s: float = 30.0,
    event_bytes_max: int = EVENT_BYTES_MAX,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> SubscribedEvents:
    """Subscribe, and reconnect and resume while the caller reads.

    It reconnects after a lost or silent stream and after 408, 429 or 5xx. 204 ends the iteration. Any other response is
    an error. An event of type `relay.gap` reports missed events. To stop early, close the iterator
    (`contextlib.aclosing`), which closes the connection.

    If a stream delivers neither an event nor a heartbeat for `read_timeout_s`, the client falls back to long polling,
    if the server supports it. It then logs a warning, and `transport` of the iterator is `poll`.

    Args:
        url: address of the server. The default path is `/events`.
        topics: topics and patterns, in addition to those in the address.
        last_event_id: resume after this event.
        since: start of a stream without `last_event_id`: `earliest`, `latest`, `last` (the newest event of each topic
            and key), a time such as `10m`, a date-time, or a known id.
        headers: headers of each request, except after a redirect to another origin.
        read_timeout_s: silence after which the stream is considered lost. It must exceed the server's heartbeat.
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
        `EventError` for an event that is too large, and `RelayError` if the response is not a stream.

    Raises:
        RelayError: httpx is missing, or the address is malformed.
    """
    need_httpx("client")
    address = endpoint(url, "/events")
    for topic in topics:
        address = address.copy_add_param("topic", topic)
    options = StreamOptions(
        headers or {}, read_timeout_s, event_bytes_max, ca, client, sleep, PREFER_NDJSON, falls_back=True
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
                yield replace(item, id=position.last_event_id or None)
            elif isinstance(item, EventError):
                raise item


async def follow(
    address: httpx.URL,
    position: Position,
    options: StreamOptions,
    backoff: Backoff,
    *,
    since: str | None = None,
    patient: bool = False,
) -> AsyncGenerator[Item, None]:
    """Follow a stream over all connections and yield items. Return only after 204.

    Args:
        address: address of the stream.
        position: start position. `follow` updates it before it yields an event.
        options: options of every connection.
        backoff: random wait between attempts. `follow` adds the server's reconnection time.
        since: start if the position is empty.
        patient: reconnect after any response except 204, even one that is final for `subscribe`.

    Raises:
        RelayError: the server rejected the request permanently, and `patient` is false.
    """
    import httpx

    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        client = options.client
        if client is None:
            client = httpx.AsyncClient(verify=tls_context(options.ca), cookies=no_cookies())
            await stack.enter_async_context(client)
        polls = poll_address(address) if options.falls_back else None
        subscribed_s = loop.time()
        while True:
            began_s = opened_s = loop.time()
            began_at, progress = position.last_event_id, None
            if position.transport == "poll" and polls is not None:
                # Without an id, the first poll covers the time in which the stream delivered nothing.
                silent_s = began_s - subscribed_s + START_MARGIN_S
                start = f"{math.ceil(1000 * silent_s)}ms" if since in (None, "latest") else since
                attempt = _poll(client, polls, position, options, start)
            else:
                attempt = _stream(client, address, position, options, since)
            try:
                async with contextlib.aclosing(attempt) as items:
                    async for item in items:
                        progress = item
                        if item is Progress.OPENED:
                            opened_s = loop.time()
                        yield item
                return
            except LostError as error:
                lost = error
            except RelayError as error:
                if position.transport == "poll" and progress is None and not _is_denied(error):
                    polls = None  # The server does not support polls.
                elif not patient:
                    raise
                lost = LostError(str(error))
            is_silent = progress in (None, Progress.OPENED) and loop.time() - began_s >= options.read_timeout_s
            if position.transport == "stream" and is_silent and polls is not None:
                position.transport = "poll"
                _logger.warning("the stream delivered nothing (%s); falling back to long polling", lost)
                yield lost
                continue
            position.transport = "stream"
            if position.last_event_id != began_at or loop.time() - opened_s >= SERVED_S:
                backoff.reset()
            wait_s = max(lost.asked_s, position.retry_s) + backoff.next_s()
            _logger.warning("%s; reconnecting in %.1f s", lost, wait_s)
            yield lost
            await options.sleep(wait_s)


async def _stream(
    client: httpx.AsyncClient, address: httpx.URL, position: Position, options: StreamOptions, since: str | None
) -> AsyncGenerator[Item, None]:
    """Open one stream and yield its items. Return only after 204."""
    from relay.sse import Decoder  # Imported here, because some commands run without the codec.

    request = _request(client, address, position.resume_id, since, options, options.read_timeout_s)
    decoder: Decoder | LineDecoder = Decoder(options.event_bytes_max, position.resume_id)
    stream = listen(client, request, options.headers, CONNECT_TIMEOUT_S + options.read_timeout_s)
    async with contextlib.aclosing(stream) as pieces:
        async for data in pieces:
            if isinstance(data, str):
                if data == NDJSON:
                    decoder = LineDecoder(options.event_bytes_max, position.resume_id)
                yield Progress.OPENED
                continue
            for item in _items(position, decoder, data):
                yield item


async def _poll(
    client: httpx.AsyncClient, address: httpx.URL, position: Position, options: StreamOptions, since: str
) -> AsyncGenerator[Item, None]:
    """Poll and yield the items of the answers. Return only after 204."""
    loop = asyncio.get_running_loop()
    address = address.copy_set_param("wait", f"{options.read_timeout_s / 2:g}s")
    answer_s_max, bytes_max = CONNECT_TIMEOUT_S + options.read_timeout_s, options.event_bytes_max + ANSWER_BYTES
    while True:
        began_s = loop.time()
        # A server may check the wait only once per second, and a proxy may hold back the head of the response.
        request = _request(client, address, position.resume_id, since, options, answer_s_max)
        body = await fetch(client, request, options.headers, answer_s_max, JSON, bytes_max)
        if body is None:
            return
        answer, decoder = read_answer(body), LineDecoder(options.event_bytes_max, position.resume_id)
        yield Progress.OPENED
        for line in answer.events:
            for item in position.read(decoder, bytes(line) + b"\n"):
                yield item
        position.move(answer.next)
        yield Progress.READ
        if not answer.events and loop.time() - began_s < EMPTY_S_MIN:
            await options.sleep(EMPTY_S_MIN)


def _is_denied(error: RelayError) -> bool:
    return isinstance(error, RequestError) and error.status in (401, 403)


def _items(position: Position, decoder: Decoder | LineDecoder, data: bytes) -> Iterator[Item]:
    """Decode received bytes. Report progress after each piece."""
    for place in range(0, len(data), PIECE_BYTES):
        yield from position.read(decoder, data[place : place + PIECE_BYTES])
        yield Progress.READ


def _request(
    client: httpx.AsyncClient,
    address: httpx.URL,
    last_event_id: str,
    since: str | None,
    options: StreamOptions,
    read_timeout_s: float,
) -> httpx.Request:
    """Build the request that resumes at the subscriber's position."""
    import httpx

    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=read_timeout_s)
    fields = {"Accept": options.accept, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    fields.update(options.headers)
    if last_event_id and _HEADER_VALUE.fullmatch(last_event_id):
        fields["Last-Event-ID"] = last_event_id
    elif last_event_id:
        address = address.copy_set_param("lastEventId", last_event_id)
    elif since:
        address = address.copy_set_param("since", since)
    encoded = [(name.encode("ascii"), value.encode()) for name, value in fields.items()]
    return client.build_request("GET", address, headers=encoded, timeout=timeout)
