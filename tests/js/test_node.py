"""The JavaScript client in Node, against a real server: every event once, in order, through every fault."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import time

import pytest

from loadtest.rig.cable import Cable
from tests.auth.test_access import JWT, token
from tests.client.test_poll import BufferingProxy
from tests.js.harness import DIST, NodeSource, need_built
from tests.running import Relay, Stream, free_port, relay
from tests.scripted_http import answer, scripted

SIZE_MAX = 4096
FAST_RETRY = ("--retry-min", "50ms", "--retry-max", "100ms")
END = '{"event": "relay.end", "data": "bye"}'
NUMBERS = '{"n": 12345678901234567890, "s": "{\\"data\\":[", "n": 1.0}'


def end(server: Relay, topic: str = "news") -> None:
    server.publish(END, topic, "application/json")


@pytest.mark.parametrize("name", ["index.js", "worker.js"])
def test_the_package_is_small(name: str) -> None:
    need_built()
    assert len(gzip.compress((DIST / name).read_bytes(), 9)) <= SIZE_MAX


def test_events_have_the_members_of_an_event_source() -> None:
    published: list[dict[str, object]] = [
        {"data": "plain"},
        {"data": "line 1\nline 2\n\nü 🚀 \u2028"},
        {"event": "price", "id": "an id, {", "data": NUMBERS},
        {"data": ""},
        {"data": "12"},
    ]
    with relay() as server, NodeSource(server.url) as source:
        source.wait_open()
        ids = [server.publish(json.dumps(event), "news", "application/x-ndjson")[0] for event in published]
        source.wait_data(*(str(event["data"]) for event in published))
        kinds = ["message", "message", "price", "message", "message"]
        assert [(each["type"], each["id"], each["topic"]) for each in source.events()] == [
            (kind, id, "news") for kind, id in zip(kinds, ids, strict=True)
        ]
        assert source.states() == [{"state": "open", "transport": "stream"}]


def test_a_source_begins_at_the_requested_position() -> None:
    with relay() as server:
        first, _ = server.publish("1", "news.eu"), server.publish("2", "news.us")
        with (
            NodeSource(server.url, topics=["news.*"], since="earliest") as all_events,
            NodeSource(f"{server.url}/events/news.us", topics=["news.eu"], lastEventId=first[0]) as rest,
        ):
            all_events.wait_data("1", "2")
            rest.wait_data("2")


async def test_the_stream_is_decoded_at_every_split() -> None:
    lines = (
        '\n{"id":"0","retry":100}\n{"id":"ü🚀","topic":"news","data":"x\\n🚀"}\n\n'
        '{"id":"2","data":{"data":"}"}}\n{"data":"torn'
    )
    script = [b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"]
    script += [bytes([byte]) for byte in lines.encode()]
    async with scripted(script) as server:
        with NodeSource(server.url) as source:
            await asyncio.to_thread(source.wait_closed)
            found = [(each["id"], each["data"]) for each in source.events()]
            assert found == [("ü🚀", "x\n🚀"), ("2", '{"data":"}"}')]
        assert server.path(1) == "/events?topic=news&lastEventId=2"


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_a_cut_in_an_event_neither_loses_nor_repeats_it(reset: bool) -> None:
    large = "x" * 100_000
    with relay(*FAST_RETRY) as server:
        cable = Cable(server.port)
        try:
            with NodeSource(f"http://127.0.0.1:{cable.port}") as source:
                source.wait_open()
                server.publish("first", "news")
                source.wait_data("first")
                cable.cut_after(20_000, reset=reset)
                server.publish(large, "news")
                server.publish("last", "news")
                source.wait_data("first", large, "last")
                assert [each["state"] for each in source.states()] == ["open", "connecting", "open"]
        finally:
            cable.close()


def test_an_upgrade_is_not_noticed() -> None:
    with relay() as server, NodeSource(server.url) as source:
        source.wait_open()
        server.publish("before", "news")
        server.upgrade()
        server.publish("after", "news")
        source.wait_data("before", "after")
        assert [each["state"] for each in source.states()] == ["open"]


def test_a_restart_without_history_is_reported_as_a_gap() -> None:
    address = f"127.0.0.1:{free_port()}"  # in addition to the address that each relay of a test has
    flags = (*FAST_RETRY, "--listen", address)
    with relay(*flags) as server, NodeSource(f"http://{address}") as source:
        source.wait_open()
        server.publish("before", "news")
        source.wait_data("before")
        server.stop(signal.SIGKILL)
        with relay(*flags) as restarted:
            source.wait_open(2)
            restarted.publish("after", "news")
            source.wait(lambda it: it.data()[-1] == "after", "has resumed")
            before, gap, after = source.events()
            assert gap["type"] == "relay.gap"
            assert json.loads(gap["data"])["reason"] == "unknown"
            assert "topic" not in gap
            assert gap["id"] == before["id"] != after["id"]
            source.close()


def test_a_source_closes_when_all_its_topics_have_ended() -> None:
    with relay(*FAST_RETRY) as server, NodeSource(server.url, topics=["news", "sport"]) as source:
        source.wait_open()
        end(server, "news")
        server.publish("goal", "sport")
        source.wait_data("bye", "goal")
        end(server, "sport")
        assert source.wait_closed()["status"] == 204
        assert [each["type"] for each in source.events()] == ["relay.end", "message", "relay.end"]


@pytest.mark.parametrize(("flag", "status"), [("--streams-max", 503), ("--streams-per-address-max", 429)])
def test_a_refused_source_waits_as_the_server_requests(flag: str, status: int) -> None:
    with relay(flag, "1") as server, Stream(server.port) as other, NodeSource(server.url) as source:
        source.wait(lambda it: len(it.states()) == 1, "is refused")
        began_s = time.monotonic()
        other.close()
        source.wait_open()
        assert time.monotonic() - began_s > 0.8, "Retry-After is at least a second"
        assert source.states()[0]["status"] == status
        assert f"{status}: " in source.states()[0]["message"]


async def test_other_responses_are_final() -> None:
    page = answer(200, "Content-Type: text/html\r\n", b"<!doctype html>")
    for script, status in ((page, 200), (answer(404, "", b'{"error":"no such path"}'), 404)):
        async with scripted([script]) as server:
            with NodeSource(server.url) as source:
                closed = await asyncio.to_thread(source.wait_closed)
                assert closed["status"] == status
        assert len(server.requests) == 1


def test_a_token_is_renewed_when_it_expires_and_when_it_is_rejected() -> None:
    def own(seconds: float) -> str:
        return token(exp=time.time() + seconds, relay={"subscribe": ["news"]})

    with relay(*JWT, *FAST_RETRY) as server:
        with NodeSource(server.url, tokens=[own(2), "rejected", own(60)]) as source:
            source.wait_open()
            server.publish("first", "news")
            source.wait_open(2)
            server.publish("second", "news")
            source.wait_data("first", "second")
            assert [each["asked"] for each in source.records if "asked" in each] == [False, False, True]
        with NodeSource(server.url, token="constant") as source:
            assert source.wait_closed()["status"] == 401
        with NodeSource(server.url, topics=["other"], tokens=[own(60)]) as source:
            assert source.wait_closed()["status"] == 403
            assert [each["asked"] for each in source.records if "asked" in each] == [False, True]


def test_each_connection_has_a_ticket_of_its_own() -> None:
    with relay(*JWT, *FAST_RETRY) as server:
        cable = Cable(server.port)
        try:
            secret = token(relay={"subscribe": ["news"]})
            with NodeSource(f"http://127.0.0.1:{cable.port}", ticketToken=secret) as source:
                source.wait_open()
                cable.cut()
                source.wait_open(2)
                server.publish("first", "news")
                source.wait_data("first")
                assert [each["asked"] for each in source.records if "asked" in each] == [False, False]
        finally:
            cable.close()


async def test_a_source_polls_behind_a_proxy_that_buffers() -> None:
    with relay(*FAST_RETRY) as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            with NodeSource(url, openTimeoutMs=500, readTimeoutMs=2000) as source:
                while not proxy.paths:
                    await asyncio.sleep(0.01)
                data = [str(number) for number in range(20)] + [NUMBERS]
                for each in data:
                    await asyncio.to_thread(server.publish, each, "news")
                    await asyncio.sleep(0.05)  # the pace of a quiet stream
                await asyncio.to_thread(source.wait_data, *data)
                assert source.states() == [{"state": "open", "transport": "poll"}]
                await asyncio.to_thread(end, server)
                assert (await asyncio.to_thread(source.wait_closed))["status"] == 204
                assert source.data() == [*data, "bye"]
        assert proxy.paths[0].startswith("/events?topic=news")
        assert all(path.startswith("/poll?topic=news") for path in proxy.paths[1:])


async def test_a_source_that_polls_tries_a_stream_again() -> None:
    with relay(*FAST_RETRY) as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            with NodeSource(url, openTimeoutMs=1500, readTimeoutMs=1000, streamAgainMs=700) as source:
                await asyncio.to_thread(source.wait_open)
                await asyncio.to_thread(server.publish, "1", "news")
                await asyncio.to_thread(source.wait_data, "1")
                proxy.buffering = False
                tried = len(proxy.paths)
                while not any(path.startswith("/events") for path in proxy.paths[tried:]):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(server.publish, "2", "news")
                await asyncio.to_thread(source.wait_data, "1", "2")
                assert [each["transport"] for each in source.events()] == ["poll", "stream"]
                assert source.states() == [{"state": "open", "transport": "poll"}]


async def test_a_failed_poll_leads_back_to_a_stream() -> None:
    with relay(*FAST_RETRY) as server:
        proxy = BufferingProxy(server)
        async with proxy.listening() as url:
            with NodeSource(url, openTimeoutMs=500, readTimeoutMs=2000) as source:
                await asyncio.to_thread(source.wait_open)
                await asyncio.to_thread(server.publish, "1", "news")
                await asyncio.to_thread(source.wait_data, "1")
                port, proxy.port, proxy.buffering = proxy.port, 9, False  # polls fail for a moment
                await asyncio.to_thread(server.publish, "2", "news")
                await asyncio.to_thread(source.wait, lambda it: it.states()[-1]["state"] == "connecting", "lost a poll")
                proxy.port = port
                await asyncio.to_thread(source.wait_open, 2)
                await asyncio.to_thread(server.publish, "3", "news")
                await asyncio.to_thread(source.wait_data, "1", "2", "3")
                assert source.states()[-1]["transport"] == "stream"
