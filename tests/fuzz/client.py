"""The client: for any response, `subscribe` returns events or raises a RelayError, and never waits forever."""

from __future__ import annotations

import asyncio

import httpx

from relay.client.opening import RETRY_AFTER_S_MAX
from relay.client.subscribe import subscribe
from relay.errors import RelayError
from tests.fuzz.pieces import cut

WORDS = (
    b"data:",
    b"id:",
    b"retry:",
    b"\n\n",
    b"\r",
    b"\0",
    b"text/event-stream",
    b"\n",
    b"Mon, 01 Jan 2029 00:00:00 GMT",
    b"9" * 30,
    b"\xff",
)
STATUSES = (200, 200, 200, 204, 301, 404, 429, 503)
BYTES_MAX = 100


async def follow(data: bytes) -> None:
    """Subscribe to a server that answers with the data: status, Retry-After, LF, cuts, body. Later answers are 204."""
    answers = 0

    async def body(pieces: list[bytes]):  # type: ignore[no-untyped-def]
        for piece in pieces:
            yield piece

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal answers
        answers += 1
        assert answers < 10
        if answers > 2:
            return httpx.Response(204)
        status = STATUSES[data[0] % len(STATUSES)] if data else 200
        retry_after, _, rest = data[1:].partition(b"\n")
        fields = [(b"Content-Type", b"text/event-stream"), (b"Retry-After", retry_after)]
        return httpx.Response(status, headers=fields, content=body(cut(rest)))

    async def sleep(wait_s: float) -> None:
        assert 0 <= wait_s <= RETRY_AFTER_S_MAX + 30

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), trust_env=False) as client:
        try:
            async for event in subscribe("http://a", client=client, sleep=sleep, event_bytes_max=BYTES_MAX):
                assert isinstance(event.data, str)
        except RelayError as error:
            assert str(error)


def check(data: bytes) -> None:
    """Check one input."""
    asyncio.run(follow(data))
