"""The Python client: `subscribe` to a stream and stay subscribed; `publish` and `Publisher` are here too.

Owns reconnection: when, how long to wait, from where to resume, and what is final. Never parses the stream
(`relay.sse`) and never prints. HTTP needs httpx, which the extra `client` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from relay.errors import EventError, RelayError
from relay.event import Event
from relay.publisher import Publisher, endpoint, need_httpx, publish, refusal, tls_context
from relay.sse import Decoder

if TYPE_CHECKING:
    import httpx

__all__ = ["Publisher", "publish", "subscribe"]

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""Largest event that is taken; the server's own limit is 1 MiB by default."""
READ_TIMEOUT_S = 45.0
"""A stream that says nothing for so long is dead: three heartbeats of the default 15 s."""
CONNECT_TIMEOUT_S = 10.0
RETRY_AFTER_S_MAX = 300.0
"""No server sends a client away for longer than this."""

# What RFC 9110 section 5.5 lets a header's value be; any other last id travels in the query.
_HEADER_VALUE = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")

_logger = logging.getLogger(__name__)


class Backoff:
    """How long to wait before the next try: doubling with each failure, full jitter, above what was asked.

    Args:
        least_s: upper end of the first wait.
        most_s: upper end of every wait.
        draw: gives numbers from 0 to 1.
    """

    def __init__(self, least_s: float, most_s: float, draw: Callable[[], float]) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        """Begin anew, since the stream spoke."""
        self._failures = 0

    def wait_s(self, asked_s: float) -> float:
        """Count a failure and return the wait: what the server asked for and a share of the doubling."""
        most_s = min(self._most_s, self._least_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return asked_s + self._draw() * most_s


class _Position:
    """Where in the stream the subscriber is, over all connections."""

    def __init__(self, last_event_id: str) -> None:
        self.last_event_id = last_event_id
        self.retry_s = 0.0

    def read(
        self, decoder: Decoder, data: bytes, on_refused: Callable[[EventError], None] | None
    ) -> Iterator[Event]:
        """Decode, line by line, since only so the last id is that of the very event; events have their own ids."""
        for line in data.splitlines(keepends=True):
            before = decoder.last_event_id
            try:
                events = decoder.feed(line)
            except EventError as error:
                if on_refused is None:
                    raise
                on_refused(error)
                continue
            if decoder.last_event_id != before:
                self.last_event_id = decoder.last_event_id
            if decoder.retry_ms is not None:
                self.retry_s = min(decoder.retry_ms / 1000, RETRY_AFTER_S_MAX)
            yield from events


class _LostError(RelayError):
    """The stream is lost, or could not be had now; `asked_s` is the wait that the answer asked for."""

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


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
    on_data: Callable[[], None] = lambda: None,
    on_refused: Callable[[EventError], None] | None = None,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    draw: Callable[[], float] = random.random,
    own_ids: bool = False,
) -> AsyncGenerator[Event, None]:
    """Subscribe, and reconnect and resume for as long as the caller reads.

    A lost stream, a silent one, 408, 429 and 5xx are tried again; 204 ends the iteration, any other answer is
    an error. What was missed is told by an event named `relay.gap`. To leave early, close the generator
    (`contextlib.aclosing`), which closes the connection.

    Args:
        url: address of the server, or of its `/events`, which a bare address stands for.
        topics: topics and patterns, added to those in the address.
        last_event_id: resume after this event.
        since: where to begin without one: `earliest`, `latest`, a time like `10m`, a date-time, or a known id.
        headers: sent with each request.
        read_timeout_s: silence after which the stream is taken for dead; above the server's heartbeat.
        backoff_least_s: upper end of the first random wait; the server's `retry` comes on top.
        backoff_most_s: upper end of all random waits.
        event_bytes_max: largest event that is taken.
        on_data: called whenever the stream says something, be it a comment.
        on_refused: called with why an event is left out, because it is too large; None makes it an error.
        ca: PEM file of the authorities to trust with https; those of the system if None.
        client: HTTP client to use, left open; one of its own if None.
        sleep: waits that many seconds.
        draw: gives random numbers from 0 to 1.
        own_ids: give each event the id that it came with, if any, instead of the last one as of that event.

    Yields:
        Each event; its `id` is the last event id as of that event, unless `own_ids`; its topic None.

    Raises:
        RequestError: the server refused for good.
        EventError: an event is too large, and `on_refused` is None.
        RelayError: httpx is missing, the address is malformed, or the answer is no event stream.
    """
    need_httpx()
    import httpx

    address = endpoint(url, "/events")
    for topic in topics:
        address = address.copy_add_param("topic", topic)
    position = _Position(last_event_id or "")
    backoff = Backoff(backoff_least_s, backoff_most_s, draw)
    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=read_timeout_s)
    async with contextlib.AsyncExitStack() as stack:
        if client is None:
            client = httpx.AsyncClient(follow_redirects=True, verify=tls_context(ca))
            await stack.enter_async_context(client)
        while True:
            request = _request(client, address, position.last_event_id, since, headers or {}, timeout)
            try:
                async with contextlib.aclosing(_listen(client, request, event_bytes_max)) as stream:
                    async for decoder, data in stream:
                        backoff.reset()
                        on_data()
                        for event in position.read(decoder, data, on_refused):
                            yield event if own_ids else replace(event, id=position.last_event_id or None)
                return
            except _LostError as lost:
                wait_s = backoff.wait_s(max(lost.asked_s, position.retry_s))
                _logger.warning("%s; reconnecting in %.1f s", lost, wait_s)
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


async def _listen(
    client: httpx.AsyncClient, request: httpx.Request, event_bytes_max: int
) -> AsyncGenerator[tuple[Decoder, bytes], None]:
    """Open one stream and hand on what it says, with its decoder; return only if it is over for good.

    Raises:
        _LostError: try again.
        RelayError: do not.
    """
    import httpx

    try:
        async with contextlib.aclosing(await client.send(request, stream=True)) as response:
            if response.status_code == 204:
                return
            await _judge(response)
            decoder = Decoder(bytes_max=event_bytes_max)
            async for data in response.aiter_bytes():
                yield decoder, data
        raise _LostError("the server closed the stream")
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        raise RelayError(f"{request.url}: {error}") from error
    except httpx.TransportError as error:
        raise _LostError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
    except httpx.HTTPError as error:
        raise RelayError(f"{request.url}: {error}") from error


async def _judge(response: httpx.Response) -> None:
    """Let an event stream through; tell a refusal for now from one for good."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise _LostError(str(await refusal(response)), _retry_after_s(response))
    if status >= 400:
        raise await refusal(response)
    media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status != 200 or media != "text/event-stream":
        raise RelayError(f"{response.url} is no event stream: status {status}, content type {media or None}")


def _retry_after_s(response: httpx.Response) -> float:
    """Read Retry-After (RFC 9110 section 10.2.3): seconds, or a date, held against the answer's own Date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        then = email.utils.parsedate_to_datetime(text)
        wait = then - email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
    except (TypeError, ValueError):
        return 0.0
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_S_MAX)
