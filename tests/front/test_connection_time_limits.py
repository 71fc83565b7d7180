"""A connection that exceeds a time limit is closed."""

from __future__ import annotations

import asyncio

import pytest

from relay.front import front as front_module
from relay.front.connection import WRITE_BUFFER_HIGH
from tests.front.site import get, on_uvloop, post, serve


@on_uvloop
async def test_a_connection_that_sends_nothing_is_closed() -> None:
    async with serve(head_timeout_s=0.05) as site:
        assert await (await site.client()).rest() == b""


@pytest.mark.parametrize("data", [b"G", get()[:-1], post(b"{}")[:-1]])
@on_uvloop
async def test_a_request_that_takes_too_long_is_rejected(data: bytes) -> None:
    async with serve(head_timeout_s=0.05, body_bytes_max=100) as site:
        client = await site.client()
        assert (await client.ask(data)).status == 408
        assert await client.rest() == b""


@on_uvloop
async def test_single_bytes_do_not_extend_the_time_limit() -> None:
    async with serve(head_timeout_s=0.05) as site:
        client = await site.client()
        client.send(b"GET / HTTP/1.1\r\nX: ")
        while not client.reader.at_eof():
            client.send(b"x")
            try:
                await asyncio.wait_for(client.reader.read(1000), 0.01)
            except TimeoutError:
                continue
        assert client.reader.at_eof()


@on_uvloop
async def test_a_connection_that_is_idle_too_long_is_closed_without_a_response() -> None:
    async with serve(keepalive_timeout_s=0.05) as site:
        client = await site.client()
        assert (await client.ask(get())).status == 200
        assert await client.rest() == b""


@on_uvloop
async def test_the_first_byte_of_the_next_request_starts_the_time_limit_of_the_head() -> None:
    async with serve(keepalive_timeout_s=30, head_timeout_s=0.05) as site:
        client = await site.client()
        assert (await client.ask(get())).status == 200
        assert (await client.ask(b"G")).status == 408


@pytest.mark.parametrize("data", [get("/") * 100, get("/") + get("/events"), get("/", "Connection: close")])
@on_uvloop
async def test_a_client_that_does_not_read_its_responses_is_closed(data: bytes) -> None:
    async with serve(bytes(WRITE_BUFFER_HIGH * 3 // 4), head_timeout_s=0.05) as site:
        client = await site.client()
        client.pause()
        client.send(data)
        await site.lost.get()
        assert not site.front.connections
        assert not site.hub.streams


@on_uvloop
async def test_a_body_can_take_longer_than_a_head() -> None:
    async with serve(head_timeout_s=0.05) as site:
        client, data = await site.client(), post(b"{}")
        client.send(data[:-1])
        assert await (await site.client()).rest() == b""  # The first connection has exceeded the time limit of a head.
        assert (await client.ask(data[-1:])).status == 200


@on_uvloop
async def test_a_client_that_does_not_close_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "LINGER_S", 0.05)
    async with serve() as site:
        client = await site.client()
        assert (await client.ask(get(version="1.0"))).status == 200
        await site.lost.get()
