"""`relay.client.subscribe`: a subscriber reconnects, resumes at its position, and stops only at a final response.

Also tests `relay.client.follow` and `relay.client.authorization`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from typing import Any

import httpx
import pytest

from relay.backoff import Backoff
from relay.client.follow import RETRY_S_MIN, Position, StreamOptions, follow
from relay.client.opening import RETRY_AFTER_S_MAX
from relay.client.subscribe import subscribe
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event
from tests.scripted_http import HOLD, answer, scripted

TIMEOUT_S = 30.0
PRIMING = b": relay\nretry: 2000\nid: e-0\n\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


class Waits(list[float]):
    """Replaces sleep and records the waits."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


class EnoughError(Exception):
    """Ends a test that would otherwise reconnect forever."""


async def collect(
    url: str, topics: tuple[str, ...] = (), waits: Waits | None = None, **options: Any
) -> list[Event]:
    """Read the stream until it ends. The random numbers are 0.5."""
    stream = subscribe(
        url, topics, sleep=waits if waits is not None else Waits(), draw=lambda: 0.5, **options
    )
    async with asyncio.timeout(TIMEOUT_S):
        return [event async for event in stream]


async def test_each_event_has_the_last_id_at_that_event() -> None:
    gap = b'event: relay.gap\ndata: {"reason":"epoch"}\n\n'
    body = (
        PRIMING
        + gap
        + b"id: e-1\ndata: a\n\ndata: b\n\nid: e-2\n\ndata: c\n\nid: e-3\nevent: x\ndata: d\ndata: e\n\n"
    )
    async with scripted([answer(body=body)]) as server:
        events = await collect(server.url)
    assert [(event.id, event.event, event.data) for event in events] == [
        ("e-0", "relay.gap", '{"reason":"epoch"}'),
        ("e-1", None, "a"),
        ("e-1", None, "b"),
        ("e-2", None, "c"),
        ("e-3", "x", "d\ne"),
    ]
    assert {event.topic for event in events} == {None}


async def test_an_address_without_path_means_events_and_topics_are_appended() -> None:
    async with scripted() as server:
        await collect(server.url, ("a b", "orders.**"), since="10m")
        await collect(
            server.url + "/edge/events?topic=x&key=1", ("y",), headers={"Authorization": "Bearer ü"}
        )
    assert server.path(0) == "/events?topic=a+b&topic=orders.%2A%2A&since=10m"
    assert server.path(1) == "/edge/events?topic=x&topic=y&key=1"
    assert server.header(0, "Accept") == "application/x-ndjson, text/event-stream;q=0.9"
    assert server.header(0, "Last-Event-ID") is None
    assert server.header(1, "Authorization") == "Bearer ü"


NDJSON = "Content-Type: application/x-ndjson\r\n"


def end_of(topic: str) -> bytes:
    return b'{"id":"e-1","event":"relay.end","topic":"%s","data":"bye"}\n' % topic.encode()


@pytest.mark.parametrize("path", ["/events?topic=a", "/edge/events/a", "/events", ""])
@pytest.mark.parametrize(
    "script", [answer(headers=NDJSON, body=end_of("a")), answer(body=b"event: relay.end\ndata: bye\n\n")]
)
async def test_after_the_end_of_its_only_topic_a_subscription_ends_without_another_request(
    path: str, script: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    waits = Waits()
    async with scripted([script]) as server:
        events = await collect(server.url + path, waits=waits)
    assert [(event.event, event.data) for event in events] == [("relay.end", "bye")]
    assert (len(server.requests), waits, caplog.messages) == (1, [], [])


async def test_a_subscription_to_several_topics_ends_with_the_last_of_them() -> None:
    more = b'{"id":"e-2","topic":"b","data":"x"}\n'
    scripts = [[answer(headers=NDJSON, body=body)] for body in (end_of("a"), more, end_of("b"))]
    async with scripted(*scripts) as server:
        events = await collect(server.url, ("a", "b"))
    assert [(event.topic, event.event) for event in events] == [("a", "relay.end"), ("b", None), ("b", "relay.end")]
    assert len(server.requests) == 3


@pytest.mark.parametrize("path", ["/events?topic=a.*", "/events/**", "/behind-a-proxy"])
async def test_if_other_topics_may_exist_the_server_ends_the_subscription(path: str) -> None:
    async with scripted([answer(headers=NDJSON, body=end_of("a.b"))]) as server:
        await collect(server.url + path)
    assert server.header(1, "Last-Event-ID") == "e-1"
    assert len(server.requests) == 2


async def test_a_lost_stream_is_resumed_after_the_last_whole_event() -> None:
    waits = Waits()
    first = answer(body=PRIMING + b"id: e-1\ndata: a\n\nid: e-2\ndata: to")
    async with scripted([first], [answer(body=b"id: e-2\ndata: torn\n\n")]) as server:
        events = await collect(server.url, waits=waits, since="earliest")
    assert [(event.id, event.data) for event in events] == [("e-1", "a"), ("e-2", "torn")]
    assert [server.header(place, "Last-Event-ID") for place in range(3)] == [None, "e-1", "e-2"]
    assert [server.path(place) for place in range(3)] == ["/events?since=earliest", "/events", "/events"]
    # The server's retry of 2 s, and half of at most 1 s. The second connection sent data, so its wait starts again.
    assert waits == [2.5, 2.5]


async def test_a_stream_cut_before_its_first_event_resumes_from_the_priming_id() -> None:
    async with scripted([answer(body=PRIMING)]) as server:
        await collect(server.url)
    assert server.header(1, "Last-Event-ID") == "e-0"


async def test_the_retry_of_a_drained_stream_applies_even_if_its_block_is_incomplete() -> None:
    waits = Waits()
    async with scripted([answer(body=PRIMING + b"data: a\n\nretry: 9000\n")]) as server:
        await collect(server.url, waits=waits)
    assert waits == [9.5]


async def test_a_subscriber_with_a_last_event_id_starts_after_it() -> None:
    async with scripted() as server:
        await collect(server.url, last_event_id="é-7", since="earliest")
    assert server.header(0, "Last-Event-ID") == "é-7"
    assert server.path(0) == "/events"


@pytest.mark.parametrize("id", [" 7", "7 ", "a\x01b"])
async def test_an_id_that_is_not_a_valid_header_value_is_sent_in_the_query(id: str) -> None:
    async with scripted() as server:
        await collect(server.url, last_event_id=id)
    assert server.header(0, "Last-Event-ID") is None
    assert httpx.URL(server.path(0)).params["lastEventId"] == id


async def test_no_content_ends_the_subscription() -> None:
    waits = Waits()
    async with scripted([answer(204, "")]) as server:
        assert await collect(server.url, waits=waits) == []
    assert len(server.requests) == 1
    assert waits == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
async def test_a_permanent_error_response_is_final(status: int) -> None:
    body = b'{"error": "a pattern has `**` last"}'
    async with scripted([answer(status, "Content-Type: application/json\r\n", body)]) as server:
        with pytest.raises(RequestError, match="a pattern has") as raised:
            await collect(server.url)
    assert raised.value.status == status


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_after_a_temporary_error_response_it_reconnects(status: int) -> None:
    waits = Waits()
    async with scripted([answer(status, "Retry-After: 7\r\n")], [answer(body=b"data: a\n\n")]) as server:
        events = await collect(server.url, waits=waits)
    assert [event.data for event in events] == ["a"]
    assert waits == [7.5, 1.0]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ("Retry-After: Wed, 21 Oct 2015 07:28:20 GMT\r\nDate: Wed, 21 Oct 2015 07:28:00 GMT\r\n", 20.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:20 GMT\r\nDate: Wed, 21 Oct 2015 08:28:00 GMT\r\n", 0.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:20 GMT\r\n", 0.0),
        ("Retry-After: soon\r\n", 0.0),
        ("Retry-After: -5\r\n", 0.0),
        ("Retry-After: 999999999\r\n", RETRY_AFTER_S_MAX),
    ],
)
async def test_retry_after_is_applied_and_limited(headers: str, wait_s: float) -> None:
    waits = Waits()
    async with scripted([answer(503, headers)]) as server:
        await collect(server.url, waits=waits)
    assert waits == [wait_s + 0.5]


@pytest.mark.parametrize(("retry", "asked_s"), [(2147483647, RETRY_AFTER_S_MAX), (0, RETRY_S_MIN), (1500, 1.5)])
async def test_the_retry_of_a_stream_is_limited_too(retry: int, asked_s: float) -> None:
    waits = Waits()
    async with scripted([answer(body=b"retry: %d\n\n" % retry)]) as server:
        await collect(server.url, waits=waits)
    assert waits == [asked_s + 0.5]


@pytest.mark.parametrize("body", [b"", b": hello\n", b"retry: 2000\n\n", b"data: hello\n\n", b"id: 7\ndata: a\n\n"])
async def test_waits_grow_while_a_server_closes_immediately_and_are_reset_by_a_new_id(body: bytes) -> None:
    waits = Waits()
    first = answer(body=b"id: 7\ndata: a\n\n")
    scripts = [[answer(body=body)]] * 3 + [[answer(body=body + b"id: 8\ndata: b\n\n")], [answer(body=b"")]]
    async with scripted([first], *scripts) as server:
        await collect(server.url, waits=waits)
    asked_s = [2.0 if b"retry" in body else 0.0] * 5
    assert waits == [0.5] + [asked + wait_s for asked, wait_s in zip(asked_s, (1, 2, 4, 0.5, 1), strict=True)]


async def test_an_event_that_is_too_large_does_not_reset_the_back_off() -> None:
    waits = Waits()
    scripts = [[answer(body=b"data: " + b"x" * 2000 + b"\n\n")]] * 3
    async with scripted(*scripts) as server:
        options = StreamOptions(headers={}, read_timeout_s=5.0, event_bytes_max=1000, sleep=waits)
        stream = follow(httpx.URL(server.url), Position(""), options, Backoff(1.0, 30.0, lambda: 0.5))
        async with contextlib.aclosing(stream) as items:
            async for item in items:
                if isinstance(item, LostError) and len(waits) == 2:
                    break
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("first", [b"id:\ndata: b\n\n", b"id\n\n", b"retry: 1\nid: \n\ndata: b\n\n"])
async def test_an_empty_id_in_the_first_block_of_a_connection_resets_the_position(first: bytes) -> None:
    scripts = [answer(body=b"id: 7\ndata: a\n\n")], [answer(body=first)], [answer(body=b"data: c\n\n")]
    async with scripted(*scripts) as server:
        events = await collect(server.url, since="earliest")
    assert [server.header(place, "Last-Event-ID") for place in range(4)] == [None, "7", None, None]
    assert [event.id for event in events] == ["7"] + [None] * (len(events) - 1)
    assert server.path(2) == "/events?since=earliest"


async def test_an_id_applies_across_connections_until_the_next_id() -> None:
    scripts = [answer(body=b"id: 7\ndata: a\n\n")], [answer(body=b"data: b\n\n")]
    async with scripted(*scripts) as server:
        events = await collect(server.url)
    assert [event.id for event in events] == ["7", "7"]
    assert server.header(2, "Last-Event-ID") == "7"


async def test_waits_double_up_to_a_limit_while_connecting_fails() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 7:
            raise EnoughError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # The port is bound but does not listen, so every attempt fails.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnoughError):
            async for _ in subscribe(url, sleep=sleep, draw=lambda: 1.0):
                pass
    assert waits == [1, 2, 4, 8, 16, 30, 30]


async def test_the_wait_from_the_server_is_added_to_the_random_wait() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise EnoughError

    refusing = [answer(503, "Retry-After: 3\r\n")]
    async with scripted(refusing, refusing) as server:
        with pytest.raises(EnoughError):
            async for _ in subscribe(server.url, sleep=sleep, draw=lambda: 1.0):
                pass
    assert waits == [4, 5]


async def test_a_silent_stream_counts_as_lost() -> None:
    async with scripted([answer(body=b"id: 1\ndata: a\n\n"), HOLD]) as server:
        events = await collect(server.url, read_timeout_s=0.05)
        await server.hung_up.wait()
    assert [event.data for event in events] == ["a"]
    assert server.header(1, "Last-Event-ID") == "1"


@pytest.mark.parametrize("headers", ["Content-Type: text/html\r\n", ""])
async def test_a_response_that_is_not_an_event_stream_is_final(headers: str) -> None:
    async with scripted([answer(200, headers, b"<p>data: a\n\n")]) as server:
        with pytest.raises(RelayError, match="did not respond with an event stream"):
            await collect(server.url)


async def test_a_redirect_is_followed() -> None:
    async with scripted([answer(307, "Location: /elsewhere\r\n")], [answer(body=b"data: a\n\n")]) as server:
        events = await collect(server.url)
    assert [event.data for event in events] == ["a"]
    assert server.path(1) == "/elsewhere"


async def test_an_event_over_the_limit_is_an_error() -> None:
    async with scripted([answer(body=b"data: " + b"x" * 5000 + b"\n\n")]) as server:
        with pytest.raises(EventError):
            await collect(server.url, event_bytes_max=1000)


async def test_each_request_has_the_credentials_of_that_moment() -> None:
    calls: list[tuple[str, bool]] = []

    def token(rejected: bool) -> str:
        calls.append(("token", rejected))
        return f"token-{len(calls)}"

    async def ticket(rejected: bool) -> str:
        calls.append(("ticket", rejected))
        return f"ticket-{len(calls)}"

    expired = answer(401, "", b"expired")
    async with scripted([answer(body=b"data: a\n\n")], [expired], [answer(body=b"data: b\n\n")]) as server:
        events = await collect(server.url, ("x",), policy="disconnect", token=token, ticket=ticket)
    assert [event.data for event in events] == ["a", "b"]
    assert [rejected for _, rejected in calls] == [False] * 4 + [True] * 2 + [False] * 2
    assert [server.path(place).partition("?")[2] for place in range(4)] == [
        f"topic=x&policy=disconnect&ticket=ticket-{number}" for number in (2, 4, 6, 8)
    ]
    assert [server.header(place, "Authorization") for place in range(4)] == [
        f"Bearer token-{number}" for number in (1, 3, 5, 7)
    ]


@pytest.mark.parametrize(("token", "requests"), [("fixed", 1), (lambda _: "new", 2)])
async def test_credentials_that_stay_rejected_are_a_final_error(token: Any, requests: int) -> None:
    async with scripted(*[[answer(403, "", b"not yours")]] * 2) as server:
        with pytest.raises(RequestError, match="403: not yours"):
            await collect(server.url, token=token)
    assert len(server.requests) == requests


async def test_closing_the_generator_closes_the_connection() -> None:
    async with scripted([answer(body=b"data: a\n\n"), HOLD]) as server:
        async with asyncio.timeout(TIMEOUT_S), contextlib.aclosing(subscribe(server.url)) as events:
            assert (await anext(events)).data == "a"
        await server.hung_up.wait()


async def test_a_client_from_the_caller_is_used_and_stays_open() -> None:
    async with (
        scripted([answer(body=b"data: a\n\n")]) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        client.headers["X-Mine"] = "1"
        await collect(server.url, client=client)
        assert server.header(0, "X-Mine") == "1"
        assert not client.is_closed


async def test_events_are_the_same_at_every_split() -> None:
    body = "id: e-1\r\ndata: ä\r\n\r\nid: e-2\r\rdata: b\r\rdata: c\n\n".encode()
    for size in (1, 2, 3, 5):
        parts = [body[place : place + size] for place in range(0, len(body), size)]
        async with scripted([answer(), *parts]) as server:
            events = await collect(server.url)
        assert [(event.id, event.data) for event in events] == [("e-1", "ä"), ("e-2", "b"), ("e-2", "c")]


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://a", "/run/relay.sock", "http://", "http://[::1"])
async def test_a_malformed_address_is_an_error(url: str) -> None:
    with pytest.raises(RelayError, match="not an address"):
        await collect(url)


async def test_without_httpx_the_error_explains_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RelayError, match=r"pip install 'relay-sse\[client\]'"):
        await collect("http://127.0.0.1:1")


async def test_a_cancelled_subscriber_closes_its_connection() -> None:
    async with scripted([answer(body=b"data: a\n\n"), HOLD]) as server:
        task = asyncio.create_task(collect(server.url))
        while not server.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.hung_up.wait()
