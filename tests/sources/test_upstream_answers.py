"""`relay.sources.upstream`: relay reports each failed attempt, waits longer each time, and resumes when it succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from relay.client.follow import RESUME_ID_BYTES_MAX
from relay.config.model import Config
from relay.core.hub import Hub
from relay.event import Event
from relay.ids import may_keep
from relay.sources import upstream
from relay.sources.upstream import UpstreamSource
from tests.scripted_http import HOLD, Scripted, answer, scripted
from tests.sources.fakes import FakeHub, FakeMetrics

STREAM = "Content-Type: text/event-stream\r\n"
GAP = "relay.gap"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(upstream, "BACKOFF_LEAST_S", 0.001)
    monkeypatch.setattr(upstream, "BACKOFF_MOST_S", 0.1)
    monkeypatch.setattr("random.random", lambda: 1.0)


class Followed:
    """A source, its hub, and the positions that it noted."""

    def __init__(self, url: str, position: str | None = None, **settings: Any) -> None:
        self.hub = FakeHub()
        self.metrics = FakeMetrics()
        self.positions: list[str] = []
        self.source = UpstreamSource(
            Config(upstream=url, **settings),
            cast(Hub, self.hub),
            self.metrics,
            asyncio.get_running_loop(),
            lambda: 0.0,
            may_keep=lambda id: may_keep(id, "0badcafe"),
            retained=(),
            position=position,
            note=self.positions.append,
        )

    @property
    def seen(self) -> list[tuple[str | None, str]]:
        """The ids and data of the events, and the reasons of gaps."""
        return [(e.id, json.loads(e.data)["reason"] if e.event == GAP else e.data) for e in self.hub.events]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            await self.hub.until(condition)

    async def until_events(self, count: int) -> None:
        await self.until(lambda: len(self.hub.events) >= count)


@contextlib.asynccontextmanager
async def following(server: Scripted, **settings: Any) -> AsyncIterator[Followed]:
    followed = Followed(server.url + "/events?token=s3cret", **settings)
    followed.source.start()
    task = followed.source._task
    assert task is not None
    try:
        yield followed
    finally:
        followed.source.close()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(401, "", b'{"error": "no\\ntoken"}'), "401: no token"),
        (answer(403, "", b"<html>" + b"x" * 9999), "403: an HTML page of another server"),
        (answer(404, ""), "404"),
        (answer(410, ""), "410"),
        (answer(503, ""), "503"),
        (answer(503, "", b"[" * 4096), "503: [["),
        (answer(200, "Content-Type: text/html\r\n", b"<p>data: a\n\n"), "content type text/html"),
        (answer(200, ""), "content type missing"),
        (answer(200, f"{STREAM}Content-Encoding: br\r\n", b"\x8b\n\n"), "content coding 'br'"),
        (answer(302, "Location: ftp://a/\r\n"), "not http or https"),
        (b"HTTP/1.1 abc\r\n\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
async def test_an_error_response_is_logged_and_the_stream_is_followed_once_it_is_served(
    reply: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        scripted([reply], [reply], [answer(body=b"id: 1\ndata: a\n\n"), HOLD]) as server,
        following(server) as followed,
    ):
        await followed.until_events(1)
        assert followed.source.stats().linked
        assert followed.source.stats().error == ""
    warnings = [record.getMessage() for record in caplog.records if record.name == "relay.client"]
    assert [reason in line and "reconnecting in" in line and len(line) < 600 for line in warnings] == [True] * 2
    assert "s3cret" not in caplog.text


async def test_the_stats_show_the_error_of_the_last_attempt() -> None:
    async with scripted(*[[answer(404, "")]] * 50) as server, following(server) as followed:
        async with asyncio.timeout(10):
            while not followed.source.error:
                await asyncio.sleep(0.001)
        assert str(followed.source.stats().error).startswith("404")
        assert not followed.source.stats().linked


async def test_only_204_stops_following() -> None:
    async with scripted([answer(204, "")]) as server, following(server) as followed:
        async with asyncio.timeout(10):
            while not followed.source.ended:
                await asyncio.sleep(0.001)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "id", ["é-1", "a\tb", "1 ", "\u3042", "x" * 1025, "0badcafe-5", "x" * 6000, "\ufffd"], ids=lambda id: ascii(id)[:12]
)
async def test_an_id_that_cannot_be_kept_is_replaced_but_the_position_keeps_it(id: str) -> None:
    event = f"id: {id}\ndata: a\n\n".encode()
    async with (
        scripted([answer(body=event)], [answer(body=event + b"id: 2\ndata: b\n\n"), HOLD]) as server,
        following(server) as followed,
    ):
        await followed.until_events(2)
        assert followed.seen[1] == ("2", "b")
        kept = str(followed.seen[0][0])
        assert kept.startswith("sha256:")
        assert kept.isascii()
        assert len(kept) == 39
        assert followed.source.repeats == 1
        assert followed.positions == ["", id, "2"]


async def test_an_id_too_long_for_a_request_is_skipped_at_resume_and_no_event_is_published_twice() -> None:
    large = "x" * (RESUME_ID_BYTES_MAX + 1)
    events = f"id: 2\ndata: b\n\nid: {large}\ndata: c\n\n".encode()
    async with (
        scripted([answer(body=b"id: 1\ndata: a\n\n" + events)], [answer(body=events + b"data: d\n\n"), HOLD]) as server,
        following(server) as followed,
    ):
        await followed.until_events(4)
        assert [data for _, data in followed.seen] == ["a", "b", "c", "d"]
        assert followed.source.repeats == 2
    assert server.header(1, "Last-Event-ID") == "2"


async def test_an_upstream_without_ids_causes_a_gap_at_each_lost_connection_after_events() -> None:
    event = b"data: a\n\n"
    async with (
        scripted([answer(body=event)], [answer(body=b"")], [answer(body=b"")], [answer(body=event), HOLD]) as server,
        following(server) as followed,
    ):
        await followed.until_events(3)
        assert followed.seen == [(None, "a"), (None, "unknown"), (None, "a")]
        assert json.loads(followed.hub.events[1].data)["missed"] is None


@pytest.mark.parametrize(("position", "gaps"), [(None, 0), ("", 1), ("7", 0)])
async def test_a_restart_without_a_position_is_a_gap(position: str | None, gaps: int) -> None:
    async with (
        scripted([answer(body=b"id: 8\ndata: a\n\n"), HOLD]) as server,
        following(server, position=position) as followed,
    ):
        await followed.until_events(gaps + 1)
        assert [data for _, data in followed.seen] == ["unknown"] * gaps + ["a"]
    assert server.header(0, "Last-Event-ID") == (position or None)


@pytest.mark.parametrize(
    "head",
    [b"retry: 50\n", b"retry: 5\n\n", b"id: 2\n\n", b"id: 2\nretry: 5\n\n", b": hello\n\n", b"event: x\n\n"],
)
async def test_fields_before_the_first_event_do_not_hide_a_repeat(head: bytes) -> None:
    repeated = b"id: 1\ndata: a\n\ndata: no id\n\nid: 2\ndata: b\n\n"
    first, second = answer(body=head + repeated), answer(body=head + repeated + b"id: 3\ndata: c\n\n")
    async with scripted([first], [second, HOLD]) as server, following(server) as followed:
        await followed.until_events(4)
        assert [data for _, data in followed.seen] == ["a", "no id", "b", "c"]
        assert {event.retry for event in followed.hub.events} == {None}
        assert followed.source.repeats == 3


async def test_events_that_only_resemble_repeats_are_published() -> None:
    """The order, the ids or the content differ, or there is no id to compare."""
    first = b"id: 1\ndata: a\n\ndata: tick\n\nid: 2\ndata: b\n\n"
    second = b"data: tick\n\nid: 2\ndata: b\n\nid: 1\ndata: a\n\nid: 2\ndata: b\n\n"
    async with scripted([answer(body=first)], [answer(body=second), HOLD]) as server, following(server) as followed:
        await followed.until_events(6)
        assert [data for _, data in followed.seen] == ["a", "tick", "b", "tick", "a", "b"]
        assert followed.source.repeats == 1


@pytest.mark.parametrize(
    "large", [b"id: 2\ndata: %b\n\n", b"data: %b\nid: 2\n\n", b"id: 2\n" + b"data: x\n" * 200 + b"%b\n\n"]
)
async def test_a_rejected_event_is_one_gap_and_is_not_requested_again(large: bytes) -> None:
    body = b"id: 1\ndata: a\n\n" + large % (b"x" * 5000)
    async with (
        scripted([answer(body=body)], [answer(body=b"id: 3\ndata: c\n\n"), HOLD]) as server,
        following(server, event_bytes_max=1000) as followed,
    ):
        await followed.until_events(3)
        assert followed.seen == [("1", "a"), (None, "refused"), ("3", "c")]
        assert followed.metrics.errors == [("upstream", "event")]
        assert followed.source.refused == 1
    assert server.header(1, "Last-Event-ID") == "2"


async def test_a_line_without_end_is_a_gap_as_soon_as_it_is_too_long() -> None:
    async with (
        scripted([answer(body=b"id: 1\ndata: a\n\ndata: "), *[b"x" * 10_000] * 100, HOLD]) as server,
        following(server, event_bytes_max=1000) as followed,
    ):
        await followed.until_events(2)
        assert followed.seen == [("1", "a"), (None, "refused")]


async def test_an_event_that_the_hub_rejects_is_a_gap_if_possible(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        scripted([answer(body=b"id: 1\ndata: a\n\n"), HOLD]) as server,
        following(server, topic="bad") as followed,
    ):
        async with asyncio.timeout(10):
            while len(followed.metrics.errors) < 2:
                await asyncio.sleep(0.001)
    assert followed.metrics.errors == [("upstream", "event"), ("upstream", "gap")]
    assert "topic: is bad" in caplog.text


async def test_events_of_relay_itself_are_published_except_heartbeats() -> None:
    body = b"event: relay.heartbeat\ndata:\n\nevent: relay.gap\ndata: {}\n\nevent: relay.end\ndata: x\n\n"
    async with scripted([answer(body=body), HOLD]) as server, following(server) as followed:
        await followed.until_events(2)
        assert [(e.event, e.data) for e in followed.hub.events] == [(GAP, "{}"), ("upstream.end", "x")]
        assert isinstance(followed.hub.events[0], Event)
