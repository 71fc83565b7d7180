"""The Python client falls back to long polling behind a proxy that holds streams back (`relay.client.poll`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from relay.client import subscribe
from relay.client.poll import poll_address, read_answer
from relay.errors import LostError, RequestError
from relay.event import Event
from tests.running import TOKEN, Relay, relay

SILENT_S = 0.5
"""Silence after which the client of these tests gives up a stream. It is half a second so that the tests are short."""


class BufferingProxy:
    """A proxy that forwards a response only when it is complete, like a virus scanner.

    Args:
        server: the server.
        buffering: whether to hold responses back; may be changed at any time.
    """

    def __init__(self, server: Relay) -> None:
        self.server = server
        self.port = server.port
        self.buffering = True
        self.paths: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one request and its response."""
        upstream: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            self.paths.append(line.split()[1].decode())
            # A response to such a request of HTTP/1.0 is complete when the connection closes.
            rest = re.sub(rb"(?i)connection: keep-alive", b"Connection: close", rest)
            answer, upstream = await asyncio.open_connection("127.0.0.1", self.port)
            upstream.write(line.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + rest)
            held = b""
            client_left = asyncio.ensure_future(reader.read())
            while not client_left.done():
                more = asyncio.ensure_future(answer.read(65536))
                await asyncio.wait((more, client_left), return_when=asyncio.FIRST_COMPLETED)
                if not more.done():
                    more.cancel()
                    return
                held += more.result()
                if not self.buffering or not more.result():
                    writer.write(held)
                    held = b""
                if not more.result():
                    return
        finally:
            for each in (writer, upstream):
                if each is not None:
                    each.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen, and return the address."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}"
        while (await asyncio.to_thread(self.server.stats))["streams"]:
            await asyncio.sleep(0.01)


async def post(server: Relay, data: str, topic: str = "news") -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{server.url}/publish?topic={topic}", content=data, headers=headers)
        assert response.status_code == 200


async def publish_numbers(server: Relay, count: int, interval_s: float) -> None:
    for number in range(count):
        await post(server, str(number))
        await asyncio.sleep(interval_s)


@pytest.mark.parametrize("since", [None, "earliest"])
async def test_a_stream_that_delivers_nothing_is_replaced_by_polls_without_loss(
    since: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "relay.client")
    with relay() as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            stream = subscribe(url, ["news"], since=since, read_timeout_s=SILENT_S)
            transports = [stream.transport]
            first = asyncio.ensure_future(anext(stream))
            while not proxy.paths:
                await asyncio.sleep(0.01)
            publisher = asyncio.create_task(publish_numbers(server, 30, 0.05))
            async with contextlib.aclosing(stream):
                events = [await asyncio.wait_for(first, 20)]
                transports.append(stream.transport)
                while len(events) < 30:
                    events.append(await asyncio.wait_for(anext(stream), 20))
            await publisher
            assert transports == ["stream", "poll"]
            assert [event.data for event in events] == [str(number) for number in range(30)]
            assert {event.topic for event in events} == {"news"}
        assert proxy.paths[0].startswith("/events?topic=news")
        assert all(path.startswith("/poll?topic=news") for path in proxy.paths[1:])
        [message] = [record.getMessage() for record in caplog.records]
        assert "falling back to long polling" in message


async def test_polls_end_with_the_topic() -> None:
    with relay() as server:
        async with BufferingProxy(server).listening() as url:
            stream = subscribe(url, ["news"], read_timeout_s=SILENT_S)
            first = asyncio.ensure_future(anext(stream))
            await post(server, "1")
            received: list[Event] = [await first]
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient() as client:
                end = {"event": "relay.end", "data": "bye", "topic": "news"}
                await client.post(f"{server.url}/publish", json=end, headers=headers)
            received += [event async for event in stream]
            assert [event.data for event in received] == ["1", "bye"]


async def test_a_failed_poll_leads_back_to_streams() -> None:
    with relay() as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            stream = subscribe(url, ["news"], read_timeout_s=SILENT_S, backoff_least_s=0.01)
            first = asyncio.ensure_future(anext(stream))
            await post(server, "1")
            assert (await first).data == "1"
            assert stream.transport == "poll"
            waiting = asyncio.ensure_future(anext(stream))
            port, proxy.port, proxy.buffering = proxy.port, 9, False  # polls fail for a moment
            while stream.transport == "poll":
                await asyncio.sleep(0.01)
            proxy.port = port
            await post(server, "2")
            assert (await asyncio.wait_for(waiting, 20)).data == "2"
            assert stream.transport == "stream"
            await stream.aclose()


async def test_a_client_that_polls_tries_a_stream_again_without_loss() -> None:
    with relay() as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            stream = subscribe(url, ["news"], read_timeout_s=SILENT_S, stream_again_s=0.1)
            first = asyncio.ensure_future(anext(stream))
            while not proxy.paths:
                await asyncio.sleep(0.01)
            publisher = asyncio.create_task(publish_numbers(server, 40, 0.05))
            async with stream:
                events = [await asyncio.wait_for(first, 20)]
                transports = [stream.transport]
                while len(events) < 40:
                    proxy.buffering = len(events) < 10
                    events.append(await asyncio.wait_for(anext(stream), 20))
                    transports.append(stream.transport)
            await publisher
            assert [event.data for event in events] == [str(number) for number in range(40)]
            assert (transports[0], transports[-1]) == ("poll", "stream")


async def test_a_server_without_polls_is_not_polled_twice() -> None:
    paths: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
        paths.append(line.split()[1].decode().partition("?")[0])
        if paths[-1] == "/poll":
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        stream = subscribe(f"http://127.0.0.1:{port}", read_timeout_s=0.05, backoff_least_s=0.01)
        waiting = asyncio.ensure_future(anext(stream))
        while len(paths) < 5:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await stream.aclose()
    assert paths[:5] == ["/events", "/poll", "/events", "/events", "/events"]


async def test_a_poll_without_rights_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
        if b"/poll" in line:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RequestError, match="403"):
            await anext(subscribe(f"http://127.0.0.1:{port}", read_timeout_s=0.05))


@pytest.mark.parametrize(
    ("stream", "polls"),
    [
        ("http://a/events?topic=x", "http://a/poll?topic=x"),
        ("http://a/events/x%2Fy?topic=z", "http://a/poll?topic=z&topic=x%2Fy"),
        ("http://a/base/events", "http://a/base/poll"),
        ("http://a/feed", None),
        ("http://a/events-of/x", None),
    ],
)
def test_the_address_of_polls_follows_from_that_of_the_stream(stream: str, polls: str | None) -> None:
    found = poll_address(httpx.URL(stream))
    assert (None if found is None else str(found)) == polls


@pytest.mark.parametrize("body", [b"", b"{", b'{"events":[]}', b'{"events":1,"next":""}', b"\xff"])
def test_other_answers_are_rejected(body: bytes) -> None:
    with pytest.raises(LostError, match="malformed"):
        read_answer(body)
