"""Keys are fetched periodically, after any response. An unknown key triggers a fetch, within a rate limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from relay.auth import jwks
from relay.auth.jwks import Jwks
from relay.auth.keys import FILE_BYTES_MAX, Keys
from relay.errors import ConfigError
from tests.running import TIMEOUT_S
from tests.scripted_http import HOLD, Part, answer, scripted

ENTRY = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
JSON = "Content-Type: application/json\r\n"


def good(id: str = "1") -> bytes:
    return answer(headers=JSON, body=json.dumps({"keys": [ENTRY | {"kid": id}]}).encode())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value_s in (("AGAIN_S", 0.01), ("TIMEOUT_S", 0.3), ("ASKED_EVERY_S", 0.5)):
        monkeypatch.setattr(jwks, name, value_s)


@contextlib.contextmanager
def fetching(url: str, refresh_s: float = 1000.0) -> Iterator[tuple[Jwks, asyncio.Queue[Keys]]]:
    """Fetch during the test. The fetched keys go into the queue."""
    taken: asyncio.Queue[Keys] = asyncio.Queue()
    fetched = Jwks(url, refresh_s, taken.put_nowait)
    fetched.start(asyncio.get_running_loop())
    try:
        yield fetched, taken
    finally:
        fetched.close()


async def next_of(taken: asyncio.Queue[Keys]) -> list[str]:
    async with asyncio.timeout(TIMEOUT_S):
        return list((await taken.get()).by_id)


BROKEN: dict[str, tuple[Part, ...]] = {
    "no HTTP": (b"oops\r\n\r\n",),
    "nothing": (b"",),
    "a truncated head": (b"HTTP/1.1 200 OK\r\nContent-Le",),
    "a truncated chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"k",),
    "a chunk without a size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
    "a truncated body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{",),
    "a long header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",),
    "an invalid length": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",),
    "another version": (b"HTTP/9.9 200 OK\r\n\r\n",),
    "silence": (HOLD,),
    "silence after the head": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", HOLD),
    "status 500": (answer(500),),
    "status 404 with keys": (answer(404, JSON, json.dumps({"keys": [ENTRY]}).encode()),),
    "status 204": (answer(204, ""),),
    "a redirect": (answer(302, "Location: /keys\r\n"),),
    "a redirect elsewhere": (answer(307, "Location: file:///etc/passwd\r\n"),),
    "a redirect to a malformed address": (answer(301, "Location: http://[\r\n"),),
    "a page": (answer(200, "Content-Type: text/html\r\n", b"<html><title>Back soon</title></html>"),),
    "an empty body": (answer(200, JSON),),
    "no UTF-8": (answer(200, JSON, b'{"keys": "\xff"}'),),
    "a byte order mark": (answer(200, JSON, b"\xef\xbb\xbf{}"),),
    "nested JSON": (answer(200, JSON, b"[" * 100_000),),
    "a symmetric key": (answer(200, JSON, b'{"keys": [{"kty": "oct", "k": "' + b"A" * 64 + b'"}]}'),),
    "a key outside a set": (answer(200, JSON, json.dumps(ENTRY).encode()),),
    "a coding": (answer(200, JSON + "Content-Encoding: gzip\r\n", b"\x1f\x8b"),),
    "too much": (answer(200, JSON, b" " * (FILE_BYTES_MAX + 1)),),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_after_an_invalid_response_the_keys_remain_and_are_fetched_again(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted((good("old"),), BROKEN[name], (good("new"),)) as server:
        with fetching(f"{server.url}/keys", refresh_s=0.01) as (_, taken):
            assert await next_of(taken) == ["old"]
            assert await next_of(taken) == ["new"]
        assert [server.path(place) for place in range(3)] == ["/keys"] * 3
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the JWKS: " in errors[0].message
    assert "kept the current keys" in errors[1].message
    assert not any(record.exc_info for record in errors)


async def test_an_unreachable_address_and_a_failed_handshake_are_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    async def reply_without_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(reply_without_tls, "127.0.0.1", 0) as server:
        plain = server.sockets[0].getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{plain}/"):
            caplog.clear()
            with fetching(url) as (_, taken):
                async with asyncio.timeout(TIMEOUT_S):
                    while sum("kept the current keys" in record.message for record in caplog.records) < 2:
                        await asyncio.sleep(0.01)
            assert taken.empty()
            assert not any(record.exc_info for record in caplog.records)


async def test_the_pause_grows_with_each_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(*((answer(500),) for _ in range(5)), (good(),)) as server:
        with fetching(server.url) as (_, taken):
            await next_of(taken)
    pauses = [record.args for record in caplog.records if "next fetch" in record.message]
    least_s = [0.005 * 2**count for count in range(5)]
    assert all(
        isinstance(args, tuple) and least <= float(str(args[0])) <= 2 * least
        for args, least in zip(pauses, least_s, strict=True)
    )


async def test_unknown_keys_trigger_a_fetch_but_not_too_often() -> None:
    async with scripted(*((good(str(number)),) for number in range(9))) as server:
        with fetching(server.url) as (fetched, taken):
            assert await next_of(taken) == ["0"]
            await asyncio.sleep(0)
            assert fetched.ask()
            assert fetched.ask()
            assert await next_of(taken) == ["1"]
            await asyncio.sleep(0)
            assert [fetched.ask() for _ in range(100)] == [False] * 100
            async with asyncio.timeout(TIMEOUT_S):
                while not fetched.ask():
                    await asyncio.sleep(0.01)
            assert await next_of(taken) == ["2"]
            assert len(server.requests) == 3


async def test_a_signal_ends_the_pause_after_a_failure_and_an_unknown_key_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jwks, "AGAIN_S", 1000.0)
    monkeypatch.setattr(jwks, "AGAIN_S_MAX", 1000.0)
    async with scripted((answer(500),), (good(),)) as server:
        with fetching(server.url) as (fetched, taken):
            async with asyncio.timeout(TIMEOUT_S):
                while not any("next fetch" in record.message for record in caplog.records):
                    await asyncio.sleep(0.01)
            assert not fetched.ask()
            assert len(server.requests) == 1
            fetched.refresh()
            assert await next_of(taken) == ["1"]


@pytest.mark.parametrize("url", ["https://a:port/", "https://a\0/"])
def test_a_malformed_address_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^jwt-jwks-url: "):
        Jwks(url, 1.0, lambda _: None)
