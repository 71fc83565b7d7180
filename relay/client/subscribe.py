"""Subscribing from Python: open an event stream and stay subscribed.

Owns reconnection: when, how long to wait, where to resume, and which answers are final. Never parses the stream
(`relay.sse`), never judges an answer (`relay.client.opening`) and never prints. HTTP needs httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

from msgspec.structs import replace

from relay.backoff import Backoff
from relay.client.opening import RETRY_AFTER_S_MAX, listen, no_cookies
from relay.client.publish import endpoint, tls_context
from relay.errors import EventError, LostError, RelayError
from relay.event import Event
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

    from relay.sse import Decoder

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""Largest event that is taken; the server's own limit is 1 MiB by default."""
READ_TIMEOUT_S = 45.0
"""A stream that says nothing for so long is dead: three heartbeats of the default 15 s."""
CONNECT_TIMEOUT_S = 10.0

RETRY_S_MIN = 0.1
"""Shortest reconnection time that a server can ask for by `retry`; a random wait comes on top."""

SERVED_S = 10.0
"""A stream that was open for this long, or brought a new last event id, was served: the back-off starts again from its
first wait. A server that repeats an event, or sends one without an id, and closes at once does not reset it."""

RESUME_ID_BYTES_MAX = 7 * 1024
"""Longest id to resume from. Most servers and proxies refuse a header line of more than 8 KiB."""

PIECE_BYTES = 16 * 1024
"""Bytes decoded before other tasks run: at most 5 ms, even if each byte is a line."""

# What RFC 9110 section 5.5 lets a header's value be; any other last id travels in the query.
_HEADER_VALUE = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")

_logger = logging.getLogger("relay.client")


class Position:
    """Where in the stream the subscriber is, over all connections.

    Args:
        last_event_id: the last event id so far; empty for none.
    """

    def __init__(self, last_event_id: str) -> None:
        self.last_event_id = last_event_id
        self.resume_id = last_event_id  # the newest one that fits into a request
        self.retry_s = 0.0

    def read(self, decoder: Decoder, data: bytes) -> Iterator[Event | EventError]:
        """Decode line by line, so that the last event id is that of the very event."""
        for line in data.splitlines(keepends=True):
            items: Sequence[Event | EventError]
            try:
                items = decoder.feed(line)
            except EventError as error:
                items = (error,)
            if decoder.last_event_id != self.last_event_id:
                self.last_event_id = decoder.last_event_id
                if len(self.last_event_id.encode()) <= RESUME_ID_BYTES_MAX:
                    self.resume_id = self.last_event_id
            if decoder.retry_ms is not None:
                self.retry_s = min(max(decoder.retry_ms / 1000, RETRY_S_MIN), RETRY_AFTER_S_MAX)
            yield from items


class Progress(Enum):
    """What `follow` reports besides events."""

    OPENED = auto()
    """A connection serves the stream; its events follow."""
    READ = auto()
    """The bytes at hand are processed. The position may have moved without an event."""


Item = Event | EventError | LostError | Progress
"""An event as it came, an event that is too large, the end of a connection, or progress."""


async def subscribe(
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
) -> AsyncGenerator[Event, None]:
    """Subscribe, and reconnect and resume for as long as the caller reads.

    A stream that is lost or silent, 408, 429 and 5xx are tried again. 204 ends the iteration; any other answer is
    an error. An event named `relay.gap` reports missed events. To leave early, close the generator
    (`contextlib.aclosing`), which closes the connection.

    Args:
        url: address of the server, or of its `/events`, which is the default path.
        topics: topics and patterns, added to those in the address.
        last_event_id: resume after this event.
        since: where to begin without one: `earliest`, `latest`, a time like `10m`, a date-time, or a known id.
        headers: sent with each request, but not to another origin after a redirect.
        read_timeout_s: silence after which the stream counts as lost; above the server's heartbeat.
        backoff_least_s: upper end of the first random wait; the server's `retry` comes on top.
        backoff_most_s: upper end of all random waits.
        event_bytes_max: largest event that is accepted.
        ca: PEM file of the authorities to trust with https; those of the system if None.
        client: HTTP client to use, left open; one of its own if None.
        sleep: waits that many seconds.
        draw: gives random numbers from 0 to 1.

    Yields:
        Each event; its `id` is the last event id as of that event; its topic None.

    Raises:
        RequestError: the server refused for good.
        EventError: an event is too large.
        RelayError: httpx is missing, the address is malformed, or the answer is no event stream.
    """
    need_httpx("client")
    address = endpoint(url, "/events")
    for topic in topics:
        address = address.copy_add_param("topic", topic)
    position = Position(last_event_id or "")
    stream = follow(
        address,
        position,
        since=since,
        headers=headers or {},
        read_timeout_s=read_timeout_s,
        backoff=Backoff(backoff_least_s, backoff_most_s, draw),
        event_bytes_max=event_bytes_max,
        ca=ca,
        client=client,
        sleep=sleep,
    )
    async with contextlib.aclosing(stream) as items:
        async for item in items:
            if isinstance(item, Event):
                yield replace(item, id=position.last_event_id or None)
            elif isinstance(item, EventError):
                raise item


async def follow(
    address: httpx.URL,
    position: Position,
    *,
    since: str | None = None,
    headers: Mapping[str, str],
    read_timeout_s: float,
    backoff: Backoff,
    event_bytes_max: int,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    patient: bool = False,
) -> AsyncGenerator[Item, None]:
    """Follow a stream over all connections, and yield what happens; return only after 204.

    Args:
        address: of the stream.
        position: where to begin; moves with each event before that event is yielded.
        since: where to begin without a position.
        headers: as for `subscribe`.
        read_timeout_s: as for `subscribe`.
        backoff: random wait between attempts; the time that the server asked for comes on top.
        event_bytes_max: largest event that is accepted.
        ca: as for `subscribe`.
        client: as for `subscribe`.
        sleep: waits that many seconds.
        patient: try again after any answer but 204, also after those that are final for `subscribe`.

    Raises:
        RelayError: the server refused for good, and not `patient`.
    """
    import httpx

    from relay.sse import Decoder  # Only here, so that a command that needs no codec runs without one.

    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=read_timeout_s)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        if client is None:
            client = httpx.AsyncClient(verify=tls_context(ca), cookies=no_cookies())
            await stack.enter_async_context(client)
        while True:
            request = _request(client, address, position.resume_id, since, headers, timeout)
            opened_s, began_at = loop.time(), position.last_event_id
            decoder = Decoder(event_bytes_max, position.resume_id)
            stream = listen(client, request, headers, CONNECT_TIMEOUT_S + read_timeout_s)
            try:
                async with contextlib.aclosing(stream) as pieces:
                    async for data in pieces:
                        if not data:
                            opened_s = loop.time()
                            yield Progress.OPENED
                        for place in range(0, len(data), PIECE_BYTES):
                            for item in position.read(decoder, data[place : place + PIECE_BYTES]):
                                yield item
                            yield Progress.READ
                return
            except LostError as error:
                lost = error
            except RelayError as error:
                if not patient:
                    raise
                lost = LostError(str(error))
            if position.last_event_id != began_at or loop.time() - opened_s >= SERVED_S:
                backoff.reset()
            wait_s = max(lost.asked_s, position.retry_s) + backoff.next_s()
            _logger.warning("%s; reconnecting in %.1f s", lost, wait_s)
            yield lost
            await sleep(wait_s)


def _request(
    client: httpx.AsyncClient,
    address: httpx.URL,
    last_event_id: str,
    since: str | None,
    headers: Mapping[str, str],
    timeout: httpx.Timeout,
) -> httpx.Request:
    """Build the request that begins where the subscriber is."""
    fields = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    fields.update(headers)
    if last_event_id and _HEADER_VALUE.fullmatch(last_event_id):
        fields["Last-Event-ID"] = last_event_id
    elif last_event_id:
        address = address.copy_set_param("lastEventId", last_event_id)
    elif since:
        address = address.copy_set_param("since", since)
    encoded = [(name.encode("ascii"), value.encode()) for name, value in fields.items()]
    return client.build_request("GET", address, headers=encoded, timeout=timeout)
