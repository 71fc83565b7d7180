"""Delivers the events of a publisher: over a Unix socket, which acknowledges each event, or in HTTP requests.

Over HTTP, the events that are sent during a request go together into the next request. A request publishes all of its
events or none. If the server rejects one, the delivery halves the request until only the rejected event fails.

Owns one connection, the encoding of events, and the assignment of answers to events. Never waits before a new attempt
(`relay.client.publish`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from relay.client.authorization import bearer
from relay.client.opening import certificate_fault, is_temporary, refusal, retry_after_s, shown
from relay.client.outbox import Outbox, Outgoing
from relay.client.target import endpoint, tls_context
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

PUBLISH_TIMEOUT_S = 30.0
"""Time limit of an HTTP request. It exceeds the time that a `block` stream may hold a publisher, 10 s by default."""
ANSWER_LINE_BYTES_MAX = 1024 * 1024
"""Longest line of a response on the Unix socket."""

BATCH_EVENTS_MAX = 10_000
"""Most events of a request: the default of the server's `batch-events-max`. A 413 reduces the number."""
BATCH_BYTES_MAX = 1024 * 1024
"""Most bytes of a request, except for one larger event. A larger request would delay its first events."""

TOO_LARGE = 413
OF_ONE_EVENT = (400, 403, 410, TOO_LARGE, 422)
"""Statuses that one event of a request may cause."""

_FIELDS = frozenset(Event.__struct_fields__)


def encode(event: Event) -> bytes:
    """Encode an event as one line of JSON, without the line end.

    Raises:
        EventError: the data is not a JSON value, text in it is not Unicode, or the `ttl` is not finite.
    """
    if event.ttl is not None and not math.isfinite(event.ttl):  # It would become null, and so no `ttl` at all.
        raise EventError("ttl", f"must be a number of seconds, not {event.ttl}")
    try:
        return msgspec.json.encode(event)
    except (TypeError, ValueError, RecursionError) as error:
        raise EventError("data", f"cannot be encoded as JSON: {error}") from None


class SocketDelivery:
    """Delivers events over a Unix socket.

    Args:
        path: the path of the socket.
        outbox: the events.
        on_signal: called with the topic and the value of each signal.
    """

    def __init__(self, path: str, outbox: Outbox, on_signal: Callable[[str, Any], None] | None) -> None:
        self._path = path
        self._outbox = outbox
        self._on_signal = on_signal
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._numbers: dict[int, int] = {}  # the number of each event by its line, which a rejection may name

    async def open(self) -> None:
        """Connect.

        Raises:
            LostError: the socket does not accept the connection.
        """
        try:
            self._streams = await asyncio.open_unix_connection(self._path, limit=ANSWER_LINE_BYTES_MAX)
        except OSError as error:
            raise LostError(f"cannot connect to {self._path}: {error.strerror or error}") from None

    async def run(self) -> None:
        """Deliver events until the connection is lost. Connect first if there is no connection.

        Raises:
            LostError: the connection is lost.
            RelayError: the server is not a relay.
        """
        if self._streams is None:
            await self.open()
        assert self._streams is not None
        reader, writer = self._streams
        self._numbers.clear()
        tasks = [asyncio.create_task(self._write(writer)), asyncio.create_task(self._read(reader))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            (_, writer), self._streams = self._streams, None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        line = 0
        while not writer.is_closing():
            await self._outbox.unsent()
            lines = []
            for event in self._outbox.take(BATCH_EVENTS_MAX, BATCH_BYTES_MAX):
                line += 1
                self._numbers[line] = event.number
                rest = event.line[1:] if event.line == b"{}" else b"," + event.line[1:]
                lines.append(b'{"ack":%d' % line + rest + b"\n")
            writer.write(b"".join(lines))
            with contextlib.suppress(OSError):  # `_read` reports the lost connection.
                await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read responses until the connection ends."""
        kind: type[RelayError] = LostError
        reason = "the relay closed the connection"
        try:
            while line := await reader.readline():
                self._take(msgspec.json.decode(line, type=dict[str, Any]))
        except OSError as error:
            reason = f"the connection is lost: {error.strerror or error}"
        except (ValueError, LookupError, TypeError, RecursionError):
            kind, reason = RelayError, "the response is not from a relay"
        raise kind(f"{self._path}: {reason}")

    def _take(self, answer: dict[str, Any]) -> None:
        """Settle the event that a response belongs to. The `ack` of an event is the number of its line."""
        if "signal" in answer:
            if self._on_signal is not None:
                # Called later, so that an error in the callback is not one of the connection.
                asyncio.get_running_loop().call_soon(self._on_signal, str(answer["topic"]), answer["signal"])
            return
        line = answer.get("ack", answer.get("line"))
        if line not in self._numbers:
            return
        number = self._numbers.pop(line)
        self._outbox.settle(number, _refused(str(answer["error"])) if "error" in answer else str(answer["id"]))


def _refused(text: str) -> EventError:
    """Convert the error text for a rejected line into an EventError."""
    field, colon, reason = text.partition(": ")
    return EventError(field, reason) if colon and field in _FIELDS else EventError("event", text)


class HttpDelivery:
    """Delivers events in HTTP requests, one after the other.

    Args:
        url: the address of the server.
        token: bearer token.
        ca: PEM file of the authorities to trust for https. None means those of the system.
        client: HTTP client to use. It stays open. None means a new client.
        outbox: the events.
    """

    def __init__(
        self, url: str, token: str | None, ca: str | None, client: httpx.AsyncClient | None, outbox: Outbox
    ) -> None:
        self._address = endpoint(url, "/publish")
        self._shown = shown(self._address)
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = bearer(token)
        self._ca = ca
        self._own: httpx.AsyncClient | None = None
        self._given = client
        self._outbox = outbox
        self._events_max = BATCH_EVENTS_MAX

    async def open(self) -> None:
        """Check the address and the token with a request that publishes no event.

        Raises:
            LostError: the server cannot be reached.
            RequestError: the server rejects the request.
            RelayError: the server is not a relay.
        """
        try:
            await self.post([])
        except BaseException as error:
            if isinstance(error, RequestError) and is_temporary(error.status):
                return  # The server is there, but busy.
            await self.close()
            raise

    async def run(self) -> None:
        """Deliver events until a request fails.

        Raises:
            LostError: a new attempt may succeed.
            RelayError: the server rejects all requests.
        """
        while True:
            await self._outbox.unsent()
            await self._deliver(self._outbox.take(self._events_max, BATCH_BYTES_MAX))

    async def close(self) -> None:
        """Close the HTTP client, unless the caller gave it."""
        if self._own is not None:
            own, self._own = self._own, None
            await own.aclose()

    async def _deliver(self, events: Sequence[Outgoing]) -> None:
        """Publish events and settle each one. Halve the request if the server rejects an event of it."""
        try:
            ids = await self.post([event.line for event in events])
        except (EventError, RequestError) as error:
            status = error.status
            if isinstance(error, RequestError) and is_temporary(status):
                raise LostError(str(error), retry_after_s(dict(error.headers))) from None
            if status not in OF_ONE_EVENT:
                raise
            if len(events) == 1:
                self._outbox.settle(events[0].number, error)
                return
            half = len(events) // 2
            if status == TOO_LARGE:
                self._events_max = half
            await self._deliver(events[:half])
            await self._deliver(events[half:])
        else:
            for event, id in zip(events, ids, strict=True):
                self._outbox.settle(event.number, id)

    async def post(self, lines: Sequence[bytes]) -> list[str]:
        """Publish events, each a JSON object, with one request. Return their ids.

        Raises:
            EventError: the server rejects an event. It publishes none.
            RequestError: the server rejects the request.
            LostError: the server cannot be reached.
            RelayError: the server is not a relay.
        """
        need_httpx("client")
        import httpx

        client = self._given or self._own
        if client is None:
            client = self._own = httpx.AsyncClient(verify=tls_context(self._ca))
        body = b"[" + b",".join(lines) + b"]"
        try:
            response = await client.post(
                self._address, content=body, headers=self._headers, timeout=PUBLISH_TIMEOUT_S
            )
            if response.status_code != 200:
                raise await refusal(response)
            return _ids(response.content, len(lines))
        except httpx.HTTPError as error:
            if fault := certificate_fault(error):
                raise RelayError(f"{self._shown}: {'; '.join(fault)}") from None
            is_lost = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
            raise (LostError if is_lost else RelayError)(
                f"{self._shown}: {type(error).__name__}: {error}".removesuffix(": ")
            ) from error
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise RelayError(f"{self._shown}: the response is not from a relay") from None


class _Acknowledgement(msgspec.Struct):
    """The body of a successful response to a publish request."""

    ids: list[str]


def _ids(text: bytes, count: int) -> list[str]:
    """Parse the ids of published events.

    Raises:
        DecodeError, ValueError, RecursionError: the response does not acknowledge `count` events.
    """
    ids = msgspec.json.decode(text, type=_Acknowledgement).ids
    if len(ids) != count:
        raise ValueError(f"{len(ids)} ids for {count} events")
    return ids
