"""A connection hands its stream over to the hub after all earlier responses.

Covers `relay.front.subscribe`.
"""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from relay.errors import RequestError
from relay.front.connection import WRITE_BUFFER_HIGH
from tests.front.site import LONG_PAGE, Site, get, on_uvloop, serve


@on_uvloop
async def test_the_hub_receives_the_descriptor_of_a_stream_and_the_tcp_connection_stays_open(site: Site) -> None:
    client = await site.client()
    client.send(get("/events?topic=a"))
    await site.lost.get()
    assert not site.front.connections
    reply = await client.head()
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
    assert await client.reader.readexactly(13) == b"data: first\n\n"
    ((stream, subscribe, address),) = site.hub.streams
    assert (subscribe.terms, address) == (("a",), "127.0.0.1")
    stream.send(b"data: second\n\n")
    assert await client.reader.readexactly(14) == b"data: second\n\n"
    stream.close()
    assert await client.rest() == b""


@on_uvloop
async def test_data_after_the_request_for_a_stream_is_ignored(site: Site) -> None:
    client = await site.client()
    client.send(get("/events") + get() + b"\0\0 nonsense")
    await client.head()
    await site.lost.get()
    site.hub.streams[0][0].close()
    assert await client.rest() == b"data: first\n\n"
    assert site.metrics.errors == []


@on_uvloop
async def test_earlier_responses_precede_a_stream(site: Site) -> None:
    client = await site.client()
    client.send(get() + get("/nothing") + get("/events"))
    assert [(await client.reply()).status for _ in range(3)] == [200, 404, 200]
    assert await client.reader.readexactly(13) == b"data: first\n\n"


@pytest.mark.parametrize("page", [LONG_PAGE, bytes(WRITE_BUFFER_HIGH * 3 // 4)], ids=["long", "short"])
@on_uvloop
async def test_a_stream_waits_until_all_earlier_responses_are_sent(page: bytes) -> None:
    async with serve(page) as site:
        client = await site.client()
        client.pause()
        client.send(get("/") + get("/events"))
        assert (await site.ask(get())).status == 200  # The first requests have arrived too.
        assert not site.hub.streams
        client.resume()
        assert (await client.reply()).body == page
        assert (await client.head()).headers["Content-Type"] == "text/event-stream"
        assert len(site.hub.streams) == 1
        assert await client.reader.readexactly(13) == b"data: first\n\n"


@on_uvloop
async def test_the_hub_can_reject_a_stream_and_the_connection_stays_open(site: Site) -> None:
    client = await site.client()
    await client.ask(get())
    before = len(os.listdir("/proc/self/fd"))
    site.hub.refuse = RequestError(429, "too many", (("Retry-After", "5"),))
    reply = await client.ask(get("/events", "Origin: https://a.example"))
    assert (reply.status, reply.json, reply.headers["Retry-After"]) == (429, {"error": "too many"}, "5")
    assert reply.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert reply.headers["Access-Control-Allow-Credentials"] == "true"
    assert reply.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert len(os.listdir("/proc/self/fd")) == before
    site.hub.refuse = None
    assert (await client.ask(get("/events"))).status == 200


@pytest.mark.parametrize("page", [LONG_PAGE, bytes(WRITE_BUFFER_HIGH * 3 // 4)], ids=["long", "short"])
@on_uvloop
async def test_a_rejected_stream_after_a_long_response_is_answered_too(page: bytes) -> None:
    async with serve(page) as site:
        site.hub.refuse = RequestError(503, "full")
        client = await site.client()
        client.send(get("/") + get("/events") + get())
        assert [(await client.reply()).status for _ in range(3)] == [200, 503, 200]
        assert (await client.ask(get())).status == 200


@on_uvloop
async def test_without_a_free_descriptor_a_stream_is_rejected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(fd: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", no_more)
    reply = await site.ask(get("/events"))
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) > 0


@on_uvloop
async def test_an_error_of_the_hub_closes_only_that_connection(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.hub.refuse = OSError(errno.EINVAL, "odd")
    client = await site.client()
    client.send(get("/events"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.head()
    assert "failed to serve a connection" in caplog.text
    assert (await site.ask(get())).status == 200


@on_uvloop
async def test_a_head_request_for_a_stream_receives_its_head_and_a_close(site: Site) -> None:
    client = await site.client()
    reply = await client.ask(get("/events", method="HEAD"))
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert "Content-Length" not in reply.headers
    assert await client.rest() == b""
    assert not site.hub.streams


@on_uvloop
async def test_http_1_0_receives_a_stream_too(site: Site) -> None:
    client = await site.client()
    client.send(b"GET /events HTTP/1.0\r\n\r\n")
    assert (await client.head()).status == 200
    assert len(site.hub.streams) == 1


async def begin_replay(site: Site) -> None:
    """Request a stream, and wait until the hub prepares its replay. The test ends the preparation."""
    site.hub.slow_to_prepare = True
    client = await site.client()
    client.writer.write(get("/events?topic=o.*&since=earliest"))
    while not site.hub.preparing:
        await asyncio.sleep(0)


@on_uvloop
async def test_the_hub_receives_a_stream_when_its_replay_is_ready(site: Site) -> None:
    await begin_replay(site)
    assert site.hub.streams == []
    site.hub.preparing[0](None)
    assert len(site.hub.streams) == 1


@on_uvloop
async def test_a_client_that_disconnects_before_its_replay_is_ready_cancels_it(site: Site) -> None:
    await begin_replay(site)
    [connection] = site.front.connections
    connection.abort()
    assert site.hub.preparing == []
    assert site.hub.streams == []
