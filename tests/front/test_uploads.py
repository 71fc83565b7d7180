"""Uploads over a connection have answers, limits, back-pressure, and a report at every end.

Covers `relay.front.upload_response`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from typing import Any

import pytest

from relay.core.grant import Grant
from relay.errors import RelayError, RequestError
from relay.front.deadlines import Waiting
from relay.sources.requests import Cancel, TakeDone
from tests.front.site import TOKEN, Client, Site, get, on_uvloop, post, serve

NDJSON = "application/x-ndjson"


def head(*lines: str, target: str = "/publish?topic=t", media: str = NDJSON, answering: bool = False) -> bytes:
    """Return the head of an upload."""
    fields = [f"Authorization: Bearer {TOKEN}", f"Content-Type: {media}", "Transfer-Encoding: chunked", *lines]
    return get(target, *fields, *([f"Accept: {NDJSON}"] if answering else []), method="POST")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def line(data: object, **fields: object) -> bytes:
    return json.dumps({"data": data, **fields}).encode() + b"\n"


async def published(site: Site, count: int) -> None:
    while len(site.hub.events) < count:
        await asyncio.sleep(0.001)


async def answer(client: Client) -> list[dict[str, Any]]:
    """Read one chunk of answers."""
    size = int(await client.reader.readline(), 16)
    data = await client.reader.readexactly(size + 2)
    return [json.loads(each) for each in data.splitlines() if each]


@on_uvloop
async def test_each_line_is_published_as_it_arrives_and_the_response_is_a_report() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head())
        for number in (1, 2, 3):
            client.send(chunk(line(f"line {number}")))
            await published(site, number)
        assert site.metrics.uploads == 1
        client.send(b"0\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.headers["Connection"]) == (200, "keep-alive")
        assert reply.json == {"complete": True, "lines": 3, "published": 3, "rejected": 0, "last_id": "e-2"}
        assert (site.metrics.uploads, site.metrics.upload_lines) == (0, {"published": 3, "rejected": 0})
        assert (await client.ask(get())).status == 200


@on_uvloop
async def test_each_line_is_answered_on_request() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head(answering=True))
        reply = await client.head()
        assert (reply.status, reply.headers["Content-Type"]) == (200, NDJSON)
        client.send(chunk(line("a")))
        assert await answer(client) == [{"line": 1, "id": "e-0"}]
        client.send(chunk(line("b", id="bad") + line("c")))
        assert await answer(client) == [{"line": 2, "error": "id: is bad"}, {"line": 3, "id": "e-1"}]
        client.send(b"0\r\n\r\n")
        assert await answer(client) == [
            {"complete": True, "lines": 3, "published": 2, "rejected": 1, "last_id": "e-1"}
        ]
        assert await client.rest() == b"0\r\n\r\n"


@on_uvloop
async def test_a_body_with_a_length_is_an_upload_if_its_lines_are_to_be_answered() -> None:
    async with serve(body_bytes_max=10) as site:
        client = await site.client()
        body = line("a") + line("b")
        client.send(post(body, "/publish?topic=t", NDJSON, TOKEN, f"Accept: {NDJSON}"))
        await client.head()
        assert [each.get("id") for each in await answer(client)] == ["e-0", "e-1"]
        assert (await answer(client))[0]["complete"]
        assert (await site.ask(post(body, "/publish?topic=t", NDJSON))).status == 413


@on_uvloop
async def test_http_1_0_receives_answers_without_chunks() -> None:
    async with serve() as site:
        body = line("a")
        fields = (f"Authorization: Bearer {TOKEN}", f"Content-Type: {NDJSON}", f"Accept: {NDJSON}")
        request = get("/publish", *fields, f"Content-Length: {len(body)}", version="1.0", method="POST")
        client = await site.client()
        client.send(request + body)
        assert "Transfer-Encoding" not in (await client.head()).headers
        first, report = map(json.loads, (await client.rest()).splitlines())
        assert (first, report["complete"]) == ({"line": 1, "id": "e-0"}, True)


@on_uvloop
async def test_lines_of_text_and_event_streams_are_uploads() -> None:
    async with serve() as site:
        for target, media, body in (
            ("/publish/t?lines=1", "text/plain", b"a\nb\n"),
            ("/publish/t", "text/event-stream", b"data: c\n\n"),
            ("/publish/t", NDJSON, b'"d"\n'),
        ):
            reply = await site.ask(head(target=target, media=media) + chunk(body) + b"0\r\n\r\n")
            assert reply.json["complete"]
        assert [event.data for event in site.hub.events] == ["a", "b", "c", "d"]
        reply = await site.ask(head(target="/publish/t", media="text/plain") + chunk(b"one\ntwo") + b"0\r\n\r\n")
        assert (reply.json, site.hub.events[-1].data) == ({"ids": ["e-4"]}, "one\ntwo")


@on_uvloop
async def test_the_client_is_told_to_continue() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head("Expect: 100-continue"))
        assert (await client.head()).status == 100
        client.send(chunk(line("a")) + b"0\r\n\r\n")
        assert (await client.reply()).json["published"] == 1


@on_uvloop
async def test_a_compressed_upload_is_published_as_it_arrives() -> None:
    async with serve() as site:
        body = gzip.compress(line("a") + line("b"))
        client = await site.client()
        client.send(head("Content-Encoding: gzip") + chunk(body[:-1]))
        await published(site, 2)
        client.send(b"0\r\n\r\n")
        reply = await client.reply()
        assert reply.status == 400
        assert (reply.json["published"], reply.json["complete"]) == (2, False)


@on_uvloop
async def test_an_upload_without_a_line_ends_after_the_time_limit() -> None:
    async with serve(line_timeout_s=0.05) as site:
        client = await site.client()
        client.send(head() + chunk(line("a") + b'{"da'))
        reply = await client.reply()
        assert reply.status == 408
        assert reply.json["published"] == 1
        assert "timed out waiting for a line; the lines after line 1 are not published" in reply.json["error"]
        assert site.metrics.limits == ["line-timeout"]


@on_uvloop
async def test_an_empty_line_keeps_an_upload_open_but_a_part_of_a_line_does_not() -> None:
    async with serve() as site:

        def waited_s() -> float:
            found = site.front.deadlines.oldest(Waiting.LINE)
            return 0.0 if found is None else found[1]

        client = await site.client()
        client.send(head() + chunk(b" "))
        while waited_s() < 0.05:
            await asyncio.sleep(0.01)
        client.send(chunk(b" "))
        await asyncio.sleep(0.05)
        assert waited_s() > 0.09
        client.send(chunk(b"\n"))
        while waited_s() > 0.05:
            await asyncio.sleep(0.001)


@on_uvloop
async def test_a_held_topic_stops_the_upload_until_it_is_released() -> None:
    async with serve() as site:
        site.hub.holding = True
        client = await site.client()
        client.send(head(target="/publish?topic=held") + chunk(line("a")))
        while not site.hub.releases:
            await asyncio.sleep(0.001)
        for _ in range(100):  # much more than the buffers of both sockets
            client.send(chunk(line("x" * 50_000)))
        await asyncio.sleep(0.05)
        assert client.writer.transport.get_write_buffer_size() > 1_000_000
        assert site.hub.events == []
        site.hub.release()
        client.send(b"0\r\n\r\n")
        assert (await client.reply()).json["published"] == 101


@on_uvloop
async def test_a_topic_that_stays_held_ends_the_upload() -> None:
    async with serve(block_timeout_s=0.001) as site:
        site.front.publisher.hold_timeout_s = -4.95  # type: ignore[attr-defined]
        site.hub.holding = True
        client = await site.client()
        client.send(head() + chunk(line("a") + line("b", topic="held")))
        reply = await client.reply()
        assert (reply.status, reply.json["published"]) == (503, 0)
        assert "held up" in reply.json["error"]


@on_uvloop
async def test_a_client_that_disconnects_is_counted_and_its_lines_stay_published() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head() + chunk(line("a") + b'{"data": "unfin'))
        await published(site, 1)
        connection = client.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await site.lost.get()
        assert ("http", "unpublished") in site.metrics.errors
        assert site.metrics.uploads == 0


@on_uvloop
async def test_an_upload_whose_client_stops_sending_ends_with_a_report() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head() + chunk(line("a") + b'{"data": "unfin'))
        await published(site, 1)
        client.writer.write_eof()
        reply = await client.reply()
        assert (reply.status, reply.json["published"]) == (400, 1)


@on_uvloop
async def test_malformed_chunks_end_an_upload_with_a_report() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head(answering=True) + chunk(line("a")))
        await client.head()
        await answer(client)
        client.send(b"nonsense\r\n")
        [report] = await answer(client)
        assert report["error"].startswith("malformed chunk size")


@on_uvloop
async def test_a_drain_ends_uploads_with_a_report_and_rejects_new_ones() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head() + chunk(line("a")))
        await published(site, 1)
        site.front.close_idle()
        reply = await client.reply()
        assert (reply.status, reply.json["published"], reply.headers["Retry-After"]) == (503, 1, "2")
        assert (await site.ask(head() + chunk(line("b")) + b"0\r\n\r\n")).status == 503


@on_uvloop
async def test_a_drain_lets_a_batch_finish() -> None:
    async with serve() as site:
        site.hub.unconfirmed = []
        client = await site.client()
        client.send(head() + chunk(line("a")))
        await published(site, 1)
        site.front.close_idle()
        site.hub.unconfirmed[0]()
        reply = await client.reply()
        assert (reply.status, reply.json["published"], reply.json["last_id"]) == (503, 1, "e-0")


@on_uvloop
async def test_a_token_is_checked_for_each_batch() -> None:
    async with serve() as site:
        client = await site.client()
        client.send(head() + chunk(line("a")))
        await published(site, 1)
        site.front.auth.tokens = frozenset({"another"})
        client.send(chunk(line("b")))
        reply = await client.reply()
        assert (reply.status, reply.json["published"]) == (401, 1)


@on_uvloop
async def test_a_topic_that_is_not_granted_rejects_only_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as site:
        monkeypatch.setattr(site.front.auth, "publisher", lambda _: Grant(subject="ann", publish=("t",)))
        body = line("a") + line("b", topic="other") + line("c")
        reply = await site.ask(head() + chunk(body) + b"0\r\n\r\n")
        assert (reply.json["published"], reply.json["errors"][0]["line"]) == (2, 2)


@on_uvloop
async def test_an_upload_is_slowed_down_to_the_rate() -> None:
    async with serve(publish_rate=1000) as site:
        site.front.clock = site.front.loop.time
        began_s = site.front.loop.time()
        body = line("a") * 10_100
        reply = await site.ask(head() + chunk(body) + b"0\r\n\r\n")
        assert reply.json["published"] == 10_100
        assert site.front.loop.time() - began_s > 0.05


@on_uvloop
async def test_a_drain_ends_an_upload_that_waits_for_its_rate() -> None:
    async with serve(publish_rate=1) as site:
        client = await site.client()
        client.send(head() + chunk(line("a") * 10))
        await published(site, 10)
        client.send(chunk(line("b")))
        while site.front.deadlines.count(Waiting.LINE):
            await asyncio.sleep(0.001)
        site.front.close_idle()
        reply = await client.reply()
        assert (reply.status, reply.json["published"], reply.json["lines"]) == (503, 10, 10)


@on_uvloop
async def test_an_upload_waits_for_a_rate_that_another_process_counts() -> None:
    async with serve(publish_rate=1) as site:
        results: list[float | RelayError] = [0.001, 0.0, 0.0, RequestError(503, "the broker is unavailable")]
        taken = list[tuple[str, int]]()

        def take_rate(subject: str, count: int, done: TakeDone) -> Cancel:
            taken.append((subject, count))
            return site.front.loop.call_soon(done, results.pop(0)).cancel

        site.front.take_rate = take_rate
        client = await site.client()
        client.send(head() + chunk(line("a") + line("b")))
        await published(site, 2)
        client.send(chunk(line("c")))
        await published(site, 3)
        client.send(chunk(b"\n" + line("d")))
        reply = await client.reply()
        assert (reply.status, reply.json["published"], reply.json["lines"]) == (503, 3, 4)
        assert [count for _, count in taken] == [2, 2, 1, 1]
        assert {subject[:6] for subject, _ in taken} == {"token "}


@on_uvloop
async def test_a_drain_ends_an_upload_whose_rate_is_not_known_yet() -> None:
    async with serve(publish_rate=1) as site:
        asked, cancelled = asyncio.Event(), list[bool]()

        def take_rate(subject: str, count: int, done: TakeDone) -> Cancel:
            asked.set()
            return lambda: cancelled.append(True)

        site.front.take_rate = take_rate
        client = await site.client()
        client.send(head() + chunk(line("a")))
        await asked.wait()
        await asyncio.sleep(0)
        site.front.close_idle()
        reply = await client.reply()
        assert (reply.status, reply.json["published"], cancelled) == (503, 0, [True])


@on_uvloop
async def test_an_upload_with_an_idempotency_key_numbers_it() -> None:
    async with serve() as site:
        await site.ask(head('Idempotency-Key: "k"') + chunk(line("a") + line("b")) + b"0\r\n\r\n")
        assert [event.dedup for event in site.hub.events] == ["k:1", "k:2"]


@on_uvloop
async def test_lines_is_0_or_1() -> None:
    async with serve() as site:
        assert (await site.ask(head(target="/publish/t?lines=yes"))).status == 400
