"""A connection authorises, limits and answers publish requests.

Covers `relay.front.handlers`.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from relay.errors import RequestError
from relay.sources.requests import Cancel, TakeDone
from tests.front.site import TOKEN, Site, get, on_uvloop, post, serve
from tests.sources.fakes import value


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b'{"data": {"a": 1}}', "application/json", [{"a": 1}]),
        (b'[{"data": 1}, {"data": 2}]', "application/json", [1, 2]),
        (b'{"data": 1}\n{"data": 2}\n', "application/x-ndjson", [1, 2]),
        (b"some text", "text/plain", ["some text"]),
        (b"[]", "application/json", []),
    ],
)
@on_uvloop
async def test_events_are_published_and_their_ids_returned(
    site: Site, body: bytes, content_type: str, data: list[object]
) -> None:
    reply = await site.ask(post(body, "/publish?topic=t", content_type))
    assert (reply.status, reply.json) == (200, {"ids": [f"e-{place}" for place in range(len(data))]})
    assert [value(event.data) for event in site.hub.events] == data
    assert {event.topic for event in site.hub.events} <= {"t"}


@on_uvloop
async def test_a_chunked_body_is_published(site: Site) -> None:
    head = get("/publish", f"Authorization: bearer {TOKEN}", "Content-Type: text/plain",
               "Transfer-Encoding: chunked", method="POST")  # fmt: skip
    client = await site.client()
    assert (await client.ask(head + b"3\r\nabc\r\n0\r\n\r\n")).status == 200
    assert (await client.ask(get())).status == 200
    assert site.hub.events[0].data == "abc"


@pytest.mark.parametrize(
    "line", ["X: y", "Authorization: Bearer wrong", "Authorization: Basic sesame", "Authorization: Bearer"]
)
@on_uvloop
async def test_publishing_needs_the_token(site: Site, line: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reply = await site.ask(
        get("/publish?token=sesame", line, "Content-Type: text/plain", "Content-Length: 1", method="POST") + b"x"
    )
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert site.hub.events == []
    assert site.metrics.errors == [("http", "token")]
    assert "wrong" not in caplog.text
    assert TOKEN not in caplog.text


@on_uvloop
async def test_a_rejection_reaches_a_client_that_is_still_sending(site: Site) -> None:
    client = await site.client()
    client.send(post(b"x" * 5_000_000, token="wrong"))
    assert (await client.reply()).status == 401
    assert await client.rest() == b""


@on_uvloop
async def test_a_body_over_the_limit_is_rejected_before_it_arrives(site: Site) -> None:
    length = site.front.config.body_bytes_max + 1
    fields = (f"Authorization: Bearer {TOKEN}", f"Content-Length: {length}", "Expect: 100-continue")
    reply = await site.ask(get("/publish", *fields, method="POST"))
    assert reply.status == 413


@on_uvloop
async def test_a_client_that_expects_100_continue_receives_it_if_the_body_is_accepted(site: Site) -> None:
    data = post(b"{}", "/publish", "application/json", TOKEN, "Expect: 100-continue")
    client = await site.client()
    assert (await client.ask(data[:-2])).status == 100
    assert (await client.ask(data[-2:])).status == 200
    assert (await site.ask(data.replace(TOKEN.encode(), b"wrong")[:-2])).status == 401


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field_name"),
    [
        (b"{", "application/json", 400, "event"),
        (b'[{"data": 1}, {"data": 1, "id": "bad"}]', "application/json", 400, "id"),
        (b'{"data": 1}\n{"retry": "x"}', "application/x-ndjson", 400, "retry"),
        (b"a=b", "application/x-www-form-urlencoded", 415, None),
    ],
)
@on_uvloop
async def test_bad_events_reject_the_request_and_the_connection_stays_open(
    site: Site, body: bytes, content_type: str, status: int, field_name: str | None
) -> None:
    client = await site.client()
    reply = await client.ask(post(body, content_type=content_type))
    assert (reply.status, reply.json.get("field")) == (status, field_name)
    assert site.hub.events == []
    assert len(site.metrics.errors) == 1
    assert (await client.ask(get())).status == 200


@on_uvloop
async def test_a_publisher_waits_while_its_topic_is_held(site: Site) -> None:
    site.hub.holding = True
    client = await site.client()
    client.send(post(b'{"data": 1, "topic": "held"}') + get())
    assert (await site.ask(post(b'{"data": 2}'))).status == 200  # The first request has arrived too.
    assert [value(event.data) for event in site.hub.events] == [2]
    site.hub.release(holding=True)
    assert [value(event.data) for event in site.hub.events] == [2]
    site.hub.release()
    assert (await client.reply()).json == {"ids": ["e-1"]}
    assert (await client.reply()).status == 200
    assert (await client.ask(get())).status == 200
    assert [value(event.data) for event in site.hub.events] == [2, 1]


@on_uvloop
async def test_a_publisher_waits_only_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.sources.requests.HOLD_GRACE_S", 0.05)
    async with serve(block_timeout_s=0) as site:
        site.hub.holding = True
        client = await site.client()
        reply = await client.ask(post(b'{"data": 1, "topic": "held"}') + get())
        assert reply.status == 503
        assert int(reply.headers["Retry-After"]) > 0
        assert (await client.reply()).status == 200
        site.hub.release()
        assert site.hub.events == []


@on_uvloop
async def test_a_closed_publisher_publishes_nothing(site: Site) -> None:
    site.hub.holding = True
    client = await site.client()
    client.send(post(b'{"data": 1, "topic": "held"}'))
    assert (await site.ask(get())).status == 200
    site.front.abort()
    await site.lost.get()
    site.hub.release()
    assert site.hub.events == []


@on_uvloop
async def test_a_request_waits_for_a_rate_that_another_process_counts() -> None:
    async with serve(publish_rate=1) as site:
        waiting = list[TakeDone]()

        def take_rate(subject: str, count: int, done: TakeDone) -> Cancel:
            waiting.append(done)
            return lambda: waiting.remove(done)

        site.front.take_rate = take_rate
        client = await site.client()
        for result, status in ((0.0, 200), (1.2, 429), (RequestError(503, "the broker is unavailable"), 503)):
            client.send(post(b"x", "/publish?topic=t", "text/plain"))
            while not waiting:
                await asyncio.sleep(0.001)
            waiting.pop()(result)
            reply = await client.reply()
            assert reply.status == status
            assert reply.headers.get("Retry-After") == ("2" if status == 429 else None)
        client.send(post(b"x", "/publish?topic=t", "text/plain"))
        while not waiting:
            await asyncio.sleep(0.001)
        [connection] = site.front.connections
        connection.abort()
        assert waiting == []
        assert len(site.hub.events) == 1


@on_uvloop
async def test_a_request_within_its_rate_is_cancelled_while_its_topic_is_held() -> None:
    async with serve(publish_rate=10) as site:
        site.hub.holding = True
        client = await site.client()
        client.send(post(b"x", "/publish?topic=held", "text/plain"))
        while not site.hub.releases:
            await asyncio.sleep(0.001)
        [connection] = site.front.connections
        connection.abort()
        site.hub.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert site.hub.events == []
