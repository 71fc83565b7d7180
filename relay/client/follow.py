"""Follows a stream over all of its connections: opens it, reconnects and resumes.

A network may hold streams back, for example with a proxy that buffers responses. After a stream that delivered nothing,
`follow` falls back to long polling.

Owns reconnection: the wait before an attempt, the position to resume from, the end of all topics, and the set of final
errors. Never parses the stream (`relay.sse`, `relay.client.ndjson`), never checks a response (`relay.client.opening`)
and never prints. Requires httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

from relay.backoff import Backoff
from relay.client.authorization import Authorization
from relay.client.ndjson import LineDecoder
from relay.client.opening import NDJSON, RETRY_AFTER_S_MAX, SSE, fetch, listen, no_cookies
from relay.client.poll import JSON, poll_address, read_answer
from relay.client.target import tls_context
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event
from relay.topic import is_pattern

if TYPE_CHECKING:
    import httpx

    from relay.sse import Decoder

CONNECT_TIMEOUT_S = 10.0

RETRY_S_MIN = 0.1
"""Shortest reconnection time that a server can request by `retry`. A random wait is added."""

SERVED_S = 10.0
"""A stream that stays open for this long, or that changes the last event id, resets the back-off. A server that closes
at once after a repeated event or an event without an id does not reset it."""

RESUME_ID_BYTES_MAX = 7 * 1024
"""Longest id to resume from. Most servers and proxies reject a header line of more than 8 KiB."""

START_MARGIN_S = 2.0
"""Time that the request of a first poll may take without the loss of an event. The poll begins this much earlier."""

EMPTY_S_MIN = 1.0
"""Shortest time of a poll without an event. After a shorter one, the client waits before it polls again."""

ANSWER_BYTES = 4 * 1024 * 1024
"""Bytes of the answer to a poll, in addition to those of the largest event. A relay's has at most 1,000 events."""

Transport = Literal["stream", "poll"]

END = "relay.end"
"""Type of the last event of a topic."""

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


class OpenTopics:
    """The topics of a subscription that have not ended.

    A relay closes the stream after the last event of the last topic. Without this record, the client would report a
    lost connection, and make a request that the server answers 204. If the address has a pattern, or is not that of a
    relay's stream, the client makes this request.

    Args:
        address: address of the stream.
    """

    def __init__(self, address: httpx.URL) -> None:
        _, is_relay, path_topic = address.path.partition("/events/")
        terms = {*address.params.get_list("topic"), *filter(None, [path_topic])}
        self._is_one = len(terms) < 2  # Without a term, the server chooses one topic.
        is_known = (is_relay or address.path.endswith("/events")) and not any(map(is_pattern, terms))
        self._open = (terms or {""}) if is_known else None

    def end(self, event: Event) -> None:
        """Record the topic of an event of type `END`."""
        if self._open is not None:
            self._open -= self._open if self._is_one else {event.topic}

    def __bool__(self) -> bool:
        """Return whether another event may follow."""
        return self._open is None or bool(self._open)


class Progress(Enum):
    """The progress that `follow` reports besides events and errors."""

    OPENED = auto()
    """A connection is open; its events follow."""
    READ = auto()
    """Received bytes are processed. They may have changed the position without an event."""
    STREAM = auto()
    """The client has polled for `stream_again_s`, and tries a stream again."""


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
    stream_again_s: float = math.inf
    authorization: Authorization = field(default_factory=Authorization)

    async def authorized(self, address: httpx.URL) -> tuple[httpx.URL, StreamOptions]:
        """Return the address and the options of one request, with its credentials."""
        address, headers = await self.authorization.add(address, self.headers)
        return address, replace(self, headers=headers)


async def follow(
    address: httpx.URL,
    position: Position,
    options: StreamOptions,
    backoff: Backoff,
    *,
    since: str | None = None,
    patient: bool = False,
) -> AsyncGenerator[Item, None]:
    """Follow a stream over all connections and yield items. Return only after 204, or after the end of all topics.

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
        topics = OpenTopics(address)
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
                            options.authorization.accept()
                        elif isinstance(item, Event) and item.event == END:
                            topics.end(item)
                        yield item
                if progress is not Progress.STREAM:
                    return
                position.transport = "stream"
                continue
            except LostError as error:
                lost = error
            except RelayError as error:
                if position.transport == "poll" and progress is None and not _is_denied(error):
                    polls = None  # The server does not support polls.
                elif _is_denied(error) and options.authorization.reject():
                    continue
                elif not patient:
                    raise
                lost = LostError(str(error))
            if not topics:
                return
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

    address, options = await options.authorized(address)
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
    """Poll and yield the items of the answers. Return after 204, or after `Progress.STREAM`."""
    loop = asyncio.get_running_loop()
    stream_s = loop.time() + options.stream_again_s
    address = address.copy_set_param("wait", f"{options.read_timeout_s / 2:g}s")
    answer_s_max, bytes_max = CONNECT_TIMEOUT_S + options.read_timeout_s, options.event_bytes_max + ANSWER_BYTES
    while True:
        began_s = loop.time()
        url, authorized = await options.authorized(address)
        # A server may check the wait only once per second, and a proxy may hold back the head of the response.
        request = _request(client, url, position.resume_id, since, authorized, answer_s_max)
        body = await fetch(client, request, authorized.headers, answer_s_max, JSON, bytes_max)
        if body is None:
            return
        answer, decoder = read_answer(body), LineDecoder(options.event_bytes_max, position.resume_id)
        yield Progress.OPENED
        for line in answer.events:
            for item in position.read(decoder, bytes(line) + b"\n"):
                yield item
        position.move(answer.next)
        yield Progress.READ
        if loop.time() >= stream_s:
            yield Progress.STREAM
            return
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
