"""`relay.client.opening`: only an event stream is read, within limits that no server can exceed."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from typing import Any

import httpx
import pytest

from relay.client.opening import INFLATED_PIECE_BYTES, REDIRECTS_MAX, listen, no_cookies
from relay.errors import LostError, RelayError
from tests.scripted_http import HOLD, answer, scripted

STREAM = "Content-Type: text/event-stream\r\n"
PRIVATE = {"X-Api-Key": "s3cret"}


async def read(url: str, open_s_max: float = 5.0, transport: httpx.AsyncBaseTransport | None = None) -> bytes:
    """Read one stream to its end and return its bytes."""
    found: list[bytes] = []
    async with httpx.AsyncClient(trust_env=False, cookies=no_cookies(), transport=transport) as client:
        request = client.build_request("GET", url, headers=PRIVATE | {"Authorization": "Bearer t"}, timeout=open_s_max)
        try:
            async with contextlib.aclosing(listen(client, request, PRIVATE, open_s_max)) as pieces:
                assert await anext(pieces) == "text/event-stream"
                async for data in pieces:
                    assert isinstance(data, bytes)
                    assert len(data) <= INFLATED_PIECE_BYTES
                    found.append(data)
        except LostError as error:
            if "the server closed the stream" not in str(error):
                raise
    return b"".join(found)


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "deflate", "gzip, gzip", "gzip, br", "x" * 500])
async def test_an_unsupported_content_coding_is_rejected_and_named(coding: str) -> None:
    async with scripted([answer(200, f"{STREAM}Content-Encoding: {coding}\r\n", b"\x8b\x02\n\n")]) as server:
        with pytest.raises(RelayError, match=f"content coding '{coding[:100]}'"):
            await read(server.url)


@pytest.mark.parametrize("coding", ["gzip", "X-Gzip"])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_gzip_is_read_at_every_split_and_in_any_number_of_members(coding: str, size: int) -> None:
    text = b"".join(b"id: %d\ndata: %d\n\n" % (number, number * number) for number in range(20_000))
    packed = gzip.compress(text[:1000]) + gzip.compress(text[1000:])
    parts = [packed[place : place + size] for place in range(0, 3000, size)] + [packed[-(-3000 // size) * size :]]
    async with scripted([answer(200, f"{STREAM}Content-Encoding: {coding}\r\n"), *parts]) as server:
        assert await read(server.url) == text


async def test_a_decompression_bomb_is_rejected() -> None:
    bomb = zlib.compress(bytes(1 << 26), level=9, wbits=31)
    async with scripted([answer(200, f"{STREAM}Content-Encoding: gzip\r\n", bomb)]) as server:
        with pytest.raises(LostError, match="expands more than"):
            await read(server.url)


async def test_data_that_is_not_gzip_is_rejected() -> None:
    async with scripted([answer(200, f"{STREAM}Content-Encoding: gzip\r\n", b"data: a\n\n")]) as server:
        with pytest.raises(LostError, match="is not gzip"):
            await read(server.url)


async def test_a_compressed_error_response_is_not_decompressed() -> None:
    bomb = zlib.compress(b" " * (1 << 26), level=9, wbits=31)
    async with scripted([answer(403, "Content-Encoding: gzip\r\n", bomb)]) as server:
        with pytest.raises(RelayError, match="403: Reason"):
            await read(server.url)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(answer(200, "Content-Type: text/html\r\n", b"<p>data: a\n\n"), id="a page"),
        pytest.param(answer(200, "Content-Type: application/json\r\n", b"{}"), id="JSON"),
        pytest.param(answer(200, "", b"data: a\n\n"), id="no type"),
        pytest.param(answer(201, STREAM, b"data: a\n\n"), id="created"),
        pytest.param(answer(206, STREAM, b"data: a\n\n"), id="partial"),
        pytest.param(answer(304, ""), id="not modified"),
        pytest.param(answer(300, ""), id="no location"),
    ],
)
async def test_a_response_that_is_not_an_event_stream_is_rejected(reply: bytes) -> None:
    async with scripted([reply]) as server:
        with pytest.raises(RelayError, match="did not respond with an event stream") as raised:
            await read(f"{server.url}/events?token=s3cret")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"HTTP/9.9 abc\r\n\r\n"], id="version"),
        pytest.param([b"HTTP/1.1 20 OK\r\n\r\n"], id="status"),
        pytest.param([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"], id="another protocol"),
        pytest.param([b"hello\r\n\r\n"], id="no HTTP"),
        pytest.param([b""], id="nothing"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20)], id="endless head"),
        pytest.param([b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, HOLD], id="only interim answers"),
        pytest.param([HOLD], id="silence"),
        pytest.param(
            [f"HTTP/1.1 200 OK\r\n{STREAM}Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n".encode()], id="torn chunk"
        ),
        pytest.param(
            [f"HTTP/1.1 200 OK\r\n{STREAM}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode()], id="bad chunk"
        ),
        pytest.param([f"HTTP/1.1 200 OK\r\n{STREAM}Content-Length: 50\r\n\r\ndata: a\n\n".encode()], id="short body"),
    ],
)
async def test_broken_http_is_a_lost_connection(parts: list[Any]) -> None:
    async with scripted(parts) as server:
        with pytest.raises(LostError):
            await read(server.url, 0.3)


async def test_a_redirect_is_followed_and_another_origin_receives_no_credentials() -> None:
    async with scripted([answer(body=b"data: a\n\n")]) as there:
        steps = [
            [answer(301, "Location: /second\r\nSet-Cookie: a=1\r\n")],
            [answer(302, f"Location: http://u:p@{there.url[7:]}/third\r\n")],
        ]
        async with scripted(*steps) as here:
            assert await read(f"{here.url}/first") == b"data: a\n\n"
    assert [here.path(place) for place in range(2)] == ["/first", "/second"]
    for name, value in {"X-Api-Key": "s3cret", "Authorization": "Bearer t"}.items():
        assert [here.header(place, name) for place in range(2)] == [value, value]
        assert there.header(0, name) is None
    assert here.header(1, "Cookie") is None
    assert there.path(0) == "/third"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://a.example/", "not http or https"),
        ("file:///etc/passwd", "not http or https"),
        ("http://a.example/plain", "from https to http"),
        ("http://[::1", "Invalid URL"),
    ],
)
async def test_a_redirect_to_a_forbidden_address_is_rejected(location: str, reason: str) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(302, headers={"Location": location}))
    with pytest.raises(RelayError, match=reason):
        await read("https://a.example/events", transport=transport)


async def test_endless_redirects_are_rejected() -> None:
    asked = []

    def move(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(302, headers={"Location": "/again"})

    with pytest.raises(RelayError, match=f"more than {REDIRECTS_MAX} redirects"):
        await read("https://a.example/events", transport=httpx.MockTransport(move))
    assert len(asked) == REDIRECTS_MAX + 1
