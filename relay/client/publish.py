"""Publishes from Python. A Unix socket acknowledges each event; HTTP publishes all events of a request or none.

Owns the parsing of targets and the matching of acknowledgements to events. Never reads events from an input. HTTP
requires httpx, which the extra `client` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from relay.client.opening import refusal
from relay.errors import EventError, LostError, RelayError
from relay.event import Event
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

PUBLISH_TIMEOUT_S = 30.0
"""Time limit of an HTTP request. It exceeds the time that a `block` stream may hold a publisher, 10 s by default."""
IN_FLIGHT_MAX = 1024
"""Most unacknowledged events of one `Publisher`."""
ANSWER_LINE_BYTES_MAX = 1024 * 1024
"""Longest line of a response on the Unix socket."""
_FIELDS = frozenset(Event.__struct_fields__)


def tls_context(ca: str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities of a PEM file. Without a file, it trusts those of the system.

    Raises:
        OSError: the file cannot be read, or contains no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise OSError(0, "the file contains no PEM certificate", ca) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, ca) from None


def endpoint(url: str, path: str) -> httpx.URL:
    """Parse an address. If it has no path, add `path`.

    Raises:
        RelayError: httpx is missing, or the address is neither http nor https.
    """
    need_httpx("client")
    import httpx

    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RelayError(f"{url!r} is not an address: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise RelayError(f"{url!r} is not an address such as http://127.0.0.1:8080")
    if address.path in ("", "/"):
        address = address.copy_with(path=path)
    return address


def unix_path(target: str) -> str | None:
    """Return the path if the target is a Unix socket (`unix:/path`, `/path` or `./path`), else None."""
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("///") else path
    return target if target.startswith(("/", ".")) else None


async def publish(
    target: str,
    events: Event | Sequence[Event],
    token: str | None = None,
    *,
    ca: str | None = None,
    client: httpx.AsyncClient | None = None,
) -> list[str]:
    """Publish events and wait until the relay has acknowledged all of them.

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
    path = unix_path(target)
    if path is None:
        return await _publish_http(target, events, token, ca, client) if events else []
    async with Publisher(path) as publisher:
        sent = [await publisher.send(event) for event in events]
        await publisher.flush()
    failed = [error for future in sent if (error := future.exception()) is not None]
    if failed:
        raise failed[0]
    return [future.result() for future in sent]


async def _publish_http(
    url: str, events: Sequence[Event], token: str | None, ca: str | None, client: httpx.AsyncClient | None
) -> list[str]:
    """Publish with one request."""
    need_httpx("client")
    import httpx

    address = endpoint(url, "/publish")
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body = b"[" + b",".join(map(encode, events)) + b"]"
    async with contextlib.AsyncExitStack() as stack:
        if client is None:
            client = httpx.AsyncClient(verify=tls_context(ca))
            await stack.enter_async_context(client)
        try:
            response = await client.post(address, content=body, headers=headers, timeout=PUBLISH_TIMEOUT_S)
            if response.status_code != 200:
                raise await refusal(response)
            return _ids(response.content, len(events))
        except httpx.HTTPError as error:
            is_lost = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
            raise (LostError if is_lost else RelayError)(
                f"{url}: {type(error).__name__}: {error}".removesuffix(": ")
            ) from error
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise RelayError(f"{url}: the response is not from a relay") from None


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


def encode(event: Event) -> bytes:
    """Encode an event as one line of JSON, without the line end.

    Raises:
        EventError: the data is not a JSON value, or text in it is not Unicode.
    """
    try:
        return msgspec.json.encode(event)
    except (TypeError, ValueError, RecursionError) as error:
        raise EventError("data", f"cannot be encoded as JSON: {error}") from None


class Publisher:
    """A connection to the Unix socket of a relay, which acknowledges each event.

    Use it as an asynchronous context manager. Its exit waits for the missing acknowledgements.

    Args:
        target: `unix:/path` or `/path`.
        in_flight_max: most unacknowledged events. When they are reached, `send` waits.
        on_signal: called with the topic and the value of each signal to a topic that this connection has published to.
    """

    def __init__(
        self,
        target: str,
        *,
        in_flight_max: int = IN_FLIGHT_MAX,
        on_signal: Callable[[str, Any], None] | None = None,
    ) -> None:
        self._on_signal = on_signal
        self._path = unix_path(target) or target
        self._room = asyncio.Semaphore(in_flight_max)
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._lines = 0
        self._lost: RelayError | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            LostError: the socket does not accept the connection.
        """
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=ANSWER_LINE_BYTES_MAX)
        except OSError as error:
            raise LostError(f"cannot connect to {self._path}: {error.strerror or error}") from None
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection. Without an error, first wait for the missing acknowledgements."""
        try:
            if kind is None:
                await self.flush()
        finally:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
            self._lose(RelayError("the publisher was closed"))
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def publish(self, event: Event) -> str:
        """Publish one event and return its id.

        Raises:
            EventError: the server rejected the event.
            RelayError: the connection is lost. The server may have published the event or not.
        """
        return await (await self.send(event))

    async def send(self, event: Event) -> asyncio.Future[str]:
        """Send one event without waiting for its acknowledgement.

        Returns:
            A future with the id, or with the error that `publish` would raise.

        Raises:
            EventError: the event cannot be encoded as JSON.
            RelayError: the connection is lost.
        """
        line = encode(event)
        await self._room.acquire()
        if self._lost is not None:
            self._room.release()
            raise self._lost
        self._lines += 1
        number = self._lines
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._idle.clear()
        rest = line[1:] if line == b"{}" else b"," + line[1:]
        self._writer.write(b'{"ack":%d' % number + rest + b"\n")
        # `_listen` detects a lost connection and fails all waiting events.
        with contextlib.suppress(OSError):
            await self._writer.drain()
        return future

    async def flush(self) -> None:
        """Wait until the server has acknowledged or rejected each event.

        Raises:
            RelayError: the connection is lost.
        """
        await self._idle.wait()
        if self._lost is not None:
            raise self._lost

    async def _listen(self) -> None:
        """Read responses until the connection ends."""
        kind: type[RelayError] = LostError
        reason = "the relay closed the connection"
        try:
            while line := await self._reader.readline():
                self._take(msgspec.json.decode(line, type=dict[str, Any]))
        except OSError as error:
            reason = f"the connection is lost: {error.strerror or error}"
        except (ValueError, LookupError, TypeError, RecursionError):
            kind, reason = RelayError, "the response is not from a relay"
        self._lose(kind(f"{self._path}: {reason}"))

    def _take(self, answer: dict[str, Any]) -> None:
        """Complete the future of the event that a response belongs to. The `ack` of an event is its line number."""
        if "signal" in answer:
            if self._on_signal is not None:
                self._on_signal(str(answer["topic"]), answer["signal"])
            return
        number = answer.get("ack", answer.get("line"))
        if number not in self._waiting:
            return
        error = _refused(str(answer["error"])) if "error" in answer else None
        id = "" if error else str(answer["id"])
        future = self._waiting.pop(number)
        self._room.release()
        if not self._waiting:
            self._idle.set()
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(id)

    def _lose(self, error: RelayError) -> None:
        """Fail all waiting events."""
        self._lost = self._lost or error
        for future in self._waiting.values():
            self._room.release()
            if not future.done():
                future.set_exception(error)
                future.exception()  # Marks the exception as retrieved; `flush` raises the same one.
        self._waiting.clear()
        self._idle.set()


def _refused(text: str) -> EventError:
    """Convert the error text for a rejected line into an EventError."""
    field, colon, reason = text.partition(": ")
    return EventError(field, reason) if colon and field in _FIELDS else EventError("event", text)
