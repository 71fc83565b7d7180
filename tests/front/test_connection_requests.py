"""A connection serves requests in order, a limited number in each turn of the loop.

Covers `relay.front.documents`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from relay.front.connection import REQUESTS_A_TURN
from relay.front.deadlines import Waiting
from relay.front.pace import Pace
from tests.front.site import PAGE, Site, get, on_uvloop, post


@on_uvloop
async def test_the_documents_are_served_on_one_connection(site: Site) -> None:
    client = await site.client()
    page = await client.ask(get("/"))
    assert (page.body, page.headers["Content-Type"]) == (PAGE, "text/html; charset=utf-8")
    assert "sha256-" in page.headers["Content-Security-Policy"]
    assert (await client.ask(get("/healthz"))).json == {"status": "ok"}
    assert (await client.ask(get("/readyz"))).json == {"status": "ready"}
    assert (await client.ask(get("/metrics"))).body == b"relay_streams 0\n"
    assert (await client.ask(get("/stats"))).json == {"streams": 0, "now_s": 7.0}
    assert (await client.ask(get("/", method="HEAD"), bodyless=True)).headers["Content-Length"] == str(len(PAGE))
    assert (await client.ask(get("/nothing"))).json == {"error": "no such path"}
    wrong = await client.ask(get("/events", method="DELETE"))
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await client.ask(get("/publish", method="OPTIONS"))).status == 204
    assert len(site.front.connections) == 1


@on_uvloop
async def test_a_preflight_response_has_each_header_once(site: Site) -> None:
    ask = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
    reply = await site.ask(get("/publish", *ask, method="OPTIONS"))
    assert reply.status == 204
    assert reply.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert reply.headers["Vary"] == "Origin"


@on_uvloop
async def test_requests_that_arrive_together_are_answered_in_order(site: Site) -> None:
    client = await site.client()
    count = REQUESTS_A_TURN * 3 + 1
    client.send(b"".join(get(f"/{number}" if number % 2 else "/stats") for number in range(count)))
    assert [(await client.reply()).status for _ in range(count)] == [200, 404] * (count // 2) + [200] * (count % 2)


@on_uvloop
async def test_a_request_can_arrive_byte_by_byte(site: Site) -> None:
    client = await site.client()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(b'{"data": 1}'):
        client.send(bytes((byte,)))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.reply()).json == {"ids": ["e-0"]}


@pytest.mark.parametrize(
    "data", [get(version="1.0"), get("/healthz", "Connection: close"), get("/x", "Connection: close")]
)
@on_uvloop
async def test_a_connection_without_keep_alive_is_closed(site: Site, data: bytes) -> None:
    client = await site.client()
    client.send(data + get())
    assert (await client.reply()).headers["Connection"] == "close"
    assert await client.rest() == b""
    client.writer.close()
    await site.lost.get()


@on_uvloop
async def test_http_1_0_stays_open_with_keep_alive(site: Site) -> None:
    client = await site.client()
    for _ in range(2):
        assert (await client.ask(get("/healthz", "Connection: keep-alive", version="1.0"))).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (get(method="BREW"), 501),
        (b"GET /" + b"a" * 20_000, 414),
        (get("/", "X: " + "a" * 20_000), 431),
        (get("/", "Content-Length: 1"), 413),
        (get("/events", "Transfer-Encoding: chunked") + b"1\r\n", 413),
    ],
)
@on_uvloop
async def test_an_invalid_request_is_answered_counted_and_closed(site: Site, data: bytes, status: int) -> None:
    client = await site.client()
    reply = await client.ask(data)
    assert (reply.status, reply.headers["Connection"]) == (status, "close")
    assert await client.rest() == b""
    assert site.metrics.errors == [("http", "request")]


@on_uvloop
async def test_a_client_that_shuts_down_sending_receives_its_responses(site: Site) -> None:
    client = await site.client()
    client.send(get() + get("/x"))
    client.writer.write_eof()
    assert [(await client.reply()).status for _ in range(2)] == [200, 404]
    assert await client.rest() == b""


@pytest.mark.parametrize("data", [get()[:-1], post(b"{}")[:-1]])
@on_uvloop
async def test_a_truncated_request_is_rejected(site: Site, data: bytes) -> None:
    client = await site.client()
    client.send(data)
    client.writer.write_eof()
    assert (await client.reply()).status == 400
    assert await client.rest() == b""
    assert site.hub.events == []


@on_uvloop
async def test_an_exception_closes_one_connection_and_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.metrics.broken = True
    client = await site.client()
    client.send(get("/metrics"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.head()
    assert "no metrics" in caplog.text
    assert (await site.ask(get())).status == 200


@on_uvloop
async def test_reset_connections_leave_nothing(site: Site) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"", b"GET", get(), post(b"{}")[:-1], get("/events"), get("/events") + get()):
        for _ in range(10):
            client = await site.client()
            client.send(data)
            await client.writer.drain()
            client.reset()
            await client.writer.wait_closed()
            await site.lost.get()
    for stream, _, _ in site.hub.streams:
        stream.close()
    assert not site.front.connections
    assert len(site.front.deadlines) == 0
    assert len(os.listdir("/proc/self/fd")) == before


@on_uvloop
async def test_a_draining_server_rejects_new_streams_and_events(site: Site) -> None:
    resting = await site.client()
    assert (await resting.ask(get())).status == 200
    site.hub.draining = True
    site.front.ready = False
    for data in (get("/events"), post(b"{}"), get("/readyz")):
        client = await site.client()
        reply = await client.ask(data)
        assert (reply.status, reply.headers["Connection"]) == (503, "close")
    assert (await site.ask(get("/healthz"))).status == 200
    assert site.hub.events == []
    site.front.close_idle()
    assert await resting.rest() == b""


def large(*lines: str) -> bytes:
    """Make a large request that waits for its turn and is rejected."""
    return get("/none?" + "&".join(["topic=a"] * 400), *lines)


@on_uvloop
async def test_large_requests_beyond_the_share_of_a_turn_are_served_in_later_turns(site: Site) -> None:
    """Each request takes longer than its turn's share. Requests on one connection keep their order."""
    ticks = itertools.count()
    site.front.pace = Pace(site.front.loop.call_soon, lambda: float(next(ticks)))
    clients = [await site.client() for _ in range(10)]
    for client in clients:
        client.writer.write(get("/healthz") + large() + get("/healthz") + large("Connection: close"))
    for client in clients:
        answered = await client.reader.read()
        assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"200", b"404", b"200", b"404"]


@on_uvloop
async def test_small_requests_are_served_while_large_ones_wait_for_their_turn(site: Site) -> None:
    turns: list[Callable[[], None]] = []
    ticks = itertools.count()
    site.front.pace = Pace(turns.append, lambda: float(next(ticks)))
    first, second = await site.client(), await site.client()
    assert (await first.ask(large())).status == 404
    second.writer.write(large())
    assert (await site.ask(get("/healthz"))).status == 200
    [turn] = turns
    turn()
    assert (await second.reply()).status == 404


@on_uvloop
async def test_a_long_request_in_pieces_waits_for_its_turn_and_has_one_time_limit(site: Site) -> None:
    deadlines: list[Waiting] = []
    real = site.front.deadlines.set

    def noted(connection: Any, waiting: Waiting) -> None:
        deadlines.append(waiting)
        real(connection, waiting)

    site.front.deadlines.set = noted  # type: ignore[method-assign]
    client = await site.client()
    request = large("Connection: close")
    for start in range(0, len(request), 500):
        client.writer.write(request[start : start + 500])
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.reply()).status == 404
    assert deadlines.count(Waiting.HEAD) == 1
