"""`relay.sources.upstream` and `relay.sources.group`: a followed stream is published complete, in order and once.

A gap event reports events that the upstream cannot send again.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.event import Event
from tests.oracle import Oracle, Published
from tests.running import Feeder, Relay, Stream, eventually, free_port, relay, run
from tests.scripted_http import HOLD, answer, scripted

QUICK = ("--retry-min", "1ms", "--retry-max", "2ms")


def linked(server: Relay) -> Callable[[], bool]:
    return lambda: bool(server.stats()["upstream"]["linked"])


async def in_thread(function: Callable[[], None]) -> None:
    import asyncio

    await asyncio.to_thread(function)


async def test_events_are_published_with_their_ids_types_and_data() -> None:
    """The stream is cut within an event and has every line end, a comment, a heartbeat and a block without data."""
    first = answer(
        body=b"retry: 1\n: hello\n\nid: 1\nevent: price\ndata: a\ndata: b\n\nid: 2\r\ndata: c\r\n\r\n"
        b"event: relay.heartbeat\ndata:\n\nid: 3\rdata: d\r\rdata: torn"
    )
    second = answer(503, "Retry-After: 0\r\n")
    third = answer(body=b"id: 4\ndata: e\n\n")
    async with scripted([first], [second], [third, HOLD]) as upstream:

        def follow() -> None:
            with relay(
                "--upstream", f"{upstream.url}/feed?of=prices", "--topic", "prices", "--upstream-token", "s" * 20
            ) as server:
                with Stream(server.port, "topic=prices&since=earliest") as stream:
                    seen = [(event.id, event.event, event.data) for event in stream.take(4)]
                assert seen == [("1", "price", "a\nb"), ("2", None, "c"), ("3", None, "d"), ("4", None, "e")]
                eventually(linked(server), "linked again")
                stats = {"linked": True, "breaks": 1, "events": 4, "repeats": 0, "refused": 0, "error": "", "ended": ""}
                assert server.stats()["upstream"] == stats
                names = {"linked": 1, "breaks_total": 1, "events_total": 4, "repeats_total": 0, "refused_total": 0}
                for name, value in names.items():
                    assert server.metric(f"relay_upstream_{name}") == value
                shown = [line.split() for line in run("top", server.url, "--once").stdout.splitlines()]
                assert ["upstream", "linked", "breaks", "1"] in shown
                assert not any("s" * 20 in json.dumps(record) for record in server.log)

        await in_thread(follow)
    assert [upstream.path(place) for place in range(3)] == ["/feed?of=prices"] * 3
    assert [upstream.header(place, "Last-Event-ID") for place in range(3)] == [None, "3", "3"]
    assert upstream.header(0, "Authorization") == "Bearer " + "s" * 20


async def test_events_repeated_after_a_resume_are_dropped_by_id_also_after_a_restart(tmp_path: Path) -> None:
    """The server starts from the beginning at each connection. Later it reuses an id for a new event."""
    again = b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n"
    first, second = answer(body=b"retry: 1\n\n" + again), answer(body=again + b"id: 3\ndata: c\n\nid: 3\ndata: c\n\n")
    third = answer(body=again + b"id: 3\ndata: c\n\nid: 1\ndata: new\n\nid: 4\ndata: d\n\n")
    async with scripted([first], [second, HOLD], [third, HOLD]) as upstream:

        def follow() -> None:
            flags = ("--upstream", upstream.url, "--data", str(tmp_path / "data"))
            with relay(*flags) as server:
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    assert [event.data for event in stream.take(4)] == ["a", "b", "c", "c"]
                assert server.stats()["upstream"]["repeats"] == 2
                server.stop(signal.SIGKILL)
            with relay(*flags) as server:
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    assert [event.data for event in stream.take(6)] == ["a", "b", "c", "c", "new", "d"]
                assert server.stats()["upstream"]["repeats"] == 3

        await in_thread(follow)
    assert upstream.header(2, "Last-Event-ID") == "3"


async def test_events_without_an_id_receive_one_so_that_a_client_can_resume_between_them() -> None:
    body = b"id: 7\ndata: a\n\ndata: b\n\nid\ndata: c\n\ndata: d\n\n"
    async with scripted([answer(body=body), HOLD]) as upstream:

        def follow() -> None:
            with relay("--upstream", upstream.url) as server:
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    events = stream.take(4)
                assert events[0].id == "7"
                for place, event in enumerate(events[:-1]):
                    with Stream(server.port, headers={"Last-Event-ID": str(event.id)}) as stream:
                        left = stream.take(3 - place)
                        assert left == events[place + 1 :]

        await in_thread(follow)


async def test_a_redirected_stream_is_followed_and_its_new_server_does_not_get_the_token() -> None:
    async with scripted([answer(body=b"id: 1\ndata: a\n\n"), HOLD]) as there:
        moved = answer(307, f"Location: {there.url}/new\r\nContent-Length: 0\r\n")
        async with scripted([moved]) as here:

            def follow() -> None:
                with (
                    relay("--upstream", here.url, "--upstream-token", "s" * 20) as server,
                    Stream(server.port, "topic=default&since=earliest") as stream,
                ):
                    assert stream.next().data == "a"

            await in_thread(follow)
    assert here.header(0, "Authorization") == "Bearer " + "s" * 20
    assert (there.path(0), there.header(0, "Authorization")) == ("/new", None)


def test_the_end_of_an_upstream_topic_does_not_end_the_local_topic() -> None:
    with relay() as source, relay("--upstream", f"{source.url}/events?topic=**") as server:
        eventually(linked(server), "linked")
        with Stream(server.port) as stream:
            source.publish('{"event": "relay.end", "data": "3:1"}', "match", "application/json")
            source.publish("continues", "other")
            end, event = stream.take(2)
        assert (end.event, end.data, event.data) == ("upstream.end", "3:1", "continues")


async def test_the_end_of_the_only_upstream_topic_stops_following_without_another_request() -> None:
    async with scripted([answer(body=b"id: 7\nevent: relay.end\ndata: bye\n\n")]) as upstream:

        def follow() -> None:
            with relay("--upstream", f"{upstream.url}/events/a") as server:
                eventually(lambda: "relay.end" in str(server.stats()["upstream"]["ended"]), "it ends")
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    assert stream.next().event == "upstream.end"

        await in_thread(follow)
    assert len(upstream.requests) == 1


async def test_204_stops_following_and_serving_continues() -> None:
    async with scripted([answer(204, "")]) as upstream:

        def follow() -> None:
            with relay("--upstream", upstream.url) as server:
                eventually(lambda: bool(server.stats()["upstream"]["ended"]), "it ends")
                assert "204" in server.stats()["upstream"]["ended"]
                eventually(lambda: bool([each for each in server.log if each.get("level") == "ERROR"]), "it is logged")
                server.publish("of its own")
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    assert stream.next().data == "of its own"

        await in_thread(follow)
    assert len(upstream.requests) == 1


async def test_a_gap_replaces_an_event_that_is_too_large_and_the_rest_is_published() -> None:
    body = b"id: 1\ndata: a\n\nid: 2\ndata: " + b"x" * 5000 + b"\n\nid: 3\ndata: c\n\n"
    async with scripted([answer(body=body), HOLD]) as upstream:

        def follow() -> None:
            with relay("--upstream", upstream.url, "--event-bytes-max", "1000") as server:
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    first, gap, last = stream.take(3)
                assert (first.data, gap.event, last.data) == ("a", "relay.gap", "c")
                assert json.loads(gap.data) == {"reason": "refused", "missed": 1, "from": None, "to": None}
                with Stream(server.port, headers={"Last-Event-ID": "1"}) as stream:
                    assert [event.event for event in stream.take(2)] == ["relay.gap", None]
                assert server.stats()["input_errors"] == 1
                assert server.metric("relay_upstream_refused_total") == 1
                eventually(lambda: bool(server.messages("upstream: rejected an event")), "it is logged")
                [line] = server.messages("upstream: rejected an event")
                assert "larger than 1000 bytes" in line

        await in_thread(follow)
    assert len(upstream.requests) == 1


async def test_events_whose_ids_are_replaced_are_published_once_also_after_a_crash_and_repeats(
    tmp_path: Path,
) -> None:
    """The second process resumes from the original id and recognizes repeated events."""
    long = "[" + "x" * 2000 + "%d]"
    events = b"".join(f"id: {long % number}\ndata: {number}\n\n".encode() for number in range(1, 4))
    alone = f"id: {long % 9}\n\n".encode()
    first, second = answer(body=events + alone), answer(body=events + b"data: new\n\n")
    async with scripted([first, HOLD], [second, HOLD]) as upstream:

        def follow() -> None:
            flags = ("--upstream", upstream.url, "--data", str(tmp_path / "data"), "--durable")
            with relay(*flags) as server:
                with Stream(server.port, "topic=default&since=earliest") as stream:
                    seen = stream.take(3)
                for place, event in enumerate(seen):
                    with Stream(server.port, headers={"Last-Event-ID": str(event.id)}) as stream:
                        assert stream.take(2 - place) == seen[place + 1 :]
                server.publish("of somebody else")  # The position was stored before this event.
                server.stop(signal.SIGKILL)
            with relay(*flags) as server, Stream(server.port, "topic=default&since=earliest") as stream:
                data = [event.data for event in stream.take(5)]
                assert data == ["1", "2", "3", "of somebody else", "new"]

        await in_thread(follow)
    assert upstream.header(1, "Last-Event-ID") == long % 9


async def test_a_silent_server_counts_as_lost() -> None:
    async with scripted([answer(body=b"id: 7\ndata: a\n\n"), HOLD], [answer(body=b"data: b\n\n"), HOLD]) as upstream:

        def follow() -> None:
            with (
                relay("--upstream", upstream.url, "--upstream-timeout", "200ms") as server,
                Stream(server.port, "topic=default&since=earliest") as stream,
            ):
                assert [event.data for event in stream.take(2)] == ["a", "b"]

        await in_thread(follow)
    assert upstream.header(1, "Last-Event-ID") == "7"


def test_following_a_relay_that_is_killed_and_restarted_with_its_file_loses_nothing(tmp_path: Path) -> None:
    data, path, port, count = str(tmp_path / "relay.db"), tmp_path / "relay.sock", free_port(), 100
    arguments = ("--listen", f"127.0.0.1:{port}", "--unix", str(path), "--data", data, "--durable", *QUICK)
    published = Published()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(relay(*arguments))
        server = stack.enter_context(
            relay("--upstream", f"http://127.0.0.1:{port}/events?topic=**", "--data", data + "2")
        )
        eventually(linked(server), "linked")
        oracle = Oracle(published, ("**",))
        oracle.connect(1)
        with Stream(server.port) as stream:
            for turn in range(4):
                with Feeder(path) as feeder:
                    for number in range(count):
                        text = f"{turn} {number}"
                        published.add(Event(text, topic="default"), feeder.publish(data=text))
                if turn < 3:
                    source.stop(signal.SIGKILL)
                    source = stack.enter_context(relay(*arguments))
            for _ in range(4 * count):
                event = stream.next()
                assert event.event != "relay.gap"
                oracle.receive(event)
        oracle.finish()
        server.stop()


def test_a_killed_relay_continues_after_the_last_event_in_its_file(tmp_path: Path) -> None:
    data = str(tmp_path / "relay.db")
    published = Published()
    with relay() as source:
        arguments = ("--upstream", f"{source.url}/events?topic=**", "--data", data)
        with relay(*arguments) as server:
            eventually(linked(server), "linked")
            for number in range(100):
                published.add(Event(f"{number}", topic="default"), source.publish(f"{number}")[0])
            with Stream(server.port, "topic=default&since=earliest") as stream:
                stream.take(10)
            server.stop(signal.SIGKILL)
        for number in range(100, 200):
            published.add(Event(f"{number}", topic="default"), source.publish(f"{number}")[0])
        with relay(*arguments) as server, Stream(server.port, "topic=default&since=earliest") as stream:
            oracle = Oracle(published, ("**",))
            oracle.connect(1)
            for event in stream.take(200):
                oracle.receive(event)
            oracle.finish()


def test_events_lost_at_the_upstream_are_reported_to_local_subscribers() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(relay("--listen", f"127.0.0.1:{port}", *QUICK))
        server = stack.enter_context(relay("--upstream", f"http://127.0.0.1:{port}"))
        eventually(linked(server), "linked")
        with Stream(server.port) as stream:
            source.publish("before")
            assert stream.next().data == "before"
            source.stop(signal.SIGKILL)
            source = stack.enter_context(relay("--listen", f"127.0.0.1:{port}"))
            source.publish("of the new run")
            gap, event = stream.take(2)
            assert (gap.event, json.loads(str(gap.data))["reason"]) == ("relay.gap", "unknown")
            assert event.data == "of the new run"
        server.stop()


def test_a_held_topic_stops_the_reading_and_nothing_is_lost(tmp_path: Path) -> None:
    """The stream waits in the buffers of its server while a local `block` stream lags."""
    count, size = 1000, 1000
    with (
        relay("--history-bytes", "64MiB") as source,
        relay(
            *("--upstream", source.url, "--policy", "block", "--lag-bytes", "64KiB", "--block-timeout", "60s"),
        ) as server,
    ):
        eventually(linked(server), "linked")
        with Stream(server.port, receive_buffer=4096) as slow:
            body = json.dumps([{"data": "x" * size, "id": f"own-{number}"} for number in range(count)])
            ids = source.publish(body, content_type="application/json")
            eventually(lambda: server.metric("relay_topics_held") == 1, "the slow stream holds its topic")
            assert server.stats()["events"] < count
            assert [event.id for event in slow.take(count)] == ids


@pytest.mark.parametrize("address", ["https://", "http:///events", "ftp://a.example/events"])
def test_a_malformed_address_fails_the_start(address: str) -> None:
    process = run("serve", "--listen", "127.0.0.1:0", "--stdin", "off", "--upstream", address)
    assert process.returncode == 2
    assert "upstream: " in process.stderr
