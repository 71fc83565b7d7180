"""Forms, through the real process: the same events in each form, and a last chunk only after a clean end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.core.close_reason import CLEAN
from relay.event import Event
from tests.auth.test_access import JWT, bearer, token
from tests.forms import CHUNKED, COMPRESSED, FORMS, FormStream
from tests.running import TIMEOUT_S, Relay, Stream, eventually, relay

pytestmark = pytest.mark.slow

SLOW = ("--client-buffer", "16KiB", "--lag-bytes", "64KiB")


@contextlib.contextmanager
def one_each(server: Relay, query: str = "topic=default", forms: tuple[str, ...] = FORMS) -> Iterator[list[FormStream]]:
    """Open one stream in each form."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(FormStream(server.port, form, query)) for form in forms]
        for stream in streams:
            stream.primed()
        yield streams


def fields(events: list[Event]) -> list[tuple[str | None, str | None, str]]:
    return [(event.id, event.event, event.data) for event in events]


def publish(server: Relay, *events: dict[str, Any], topic: str = "default") -> list[str]:
    return server.publish("\n".join(map(json.dumps, events)), topic, "application/x-ndjson")


def test_the_same_events_arrive_in_each_form_at_once() -> None:
    with relay() as server, one_each(server, "topic=prices.*") as streams:
        ids = publish(server, {"data": "one"}, {"data": [1, 2], "event": "e"}, topic="prices.eu")
        ids += publish(server, {"data": "two\n\nlines"}, {"data": "", "id": "own"}, topic="prices.us")
        for stream in streams:
            first, second, third, fourth = stream.take(4)
            assert fields([first, third, fourth]) == [
                (ids[0], None, "one"),
                (ids[2], None, "two\n\nlines"),
                ("own", None, ""),
            ]
            assert (second.id, second.event, json.loads(second.data)) == (ids[1], "e", [1, 2])
            if not stream.form.startswith("sse"):
                assert stream.topics == ["prices.eu", "prices.eu", "prices.us", "prices.us"]
        assert server.stats()["forms"] == dict.fromkeys(FORMS, 1)
        assert server.metric("relay_streams") == len(FORMS)


def test_a_stream_resumes_with_an_id_from_another_form() -> None:
    with relay() as server:
        publish(server, *({"data": str(number)} for number in range(6)))
        last_id = ""
        for number, form in enumerate(FORMS):
            headers = {"Last-Event-ID": last_id} if last_id else {}
            query = "topic=default" + ("" if last_id else "&since=earliest")
            with FormStream(server.port, form, query, headers) as stream:
                assert stream.next().data == str(number)
                last_id = f"{stream.last_event_id.rpartition('-')[0]}-{number + 1}"


def test_an_unknown_id_gives_a_gap_without_topic_before_the_priming() -> None:
    with relay() as server:
        publish(server, {"data": "x"}, topic="t")
        for form in FORMS:
            with FormStream(server.port, form, "topic=t", {"Last-Event-ID": "unknown"}) as stream:
                gap, event = stream.take(2)
                assert (gap.event, gap.id, json.loads(gap.data)["reason"]) == ("relay.gap", None, "unknown")
                assert event.data == "x"
                assert stream.raw.index(b"relay.gap") < stream.raw.index(b"retry")
                if not form.startswith("sse"):
                    assert stream.topics == [None, "t"]


@pytest.mark.parametrize("kind", ["comment", "padded", "event"])
def test_heartbeats_in_each_form(kind: str) -> None:
    comment = {"comment": b":\n", "padded": b": " + b" " * 2048 + b"\n"}
    flags = ("--heartbeat", "1s", "--heartbeat-as", kind, "--no-prime")
    with relay(*flags) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(FormStream(server.port, form)) for form in FORMS]
        for stream in streams:
            ndjson = stream.form.startswith("ndjson")
            if kind == "event":
                event = stream.next()
                assert (event.event, event.data, event.id) == ("relay.heartbeat", "", None)
                if ndjson:
                    assert stream.raw == b'\n{"event":"relay.heartbeat","data":""}\n'
            else:
                beat = b"\n" if ndjson else comment[kind]
                greeting = b"\n" if ndjson else b":\n"
                assert stream.read_until(greeting + beat) == greeting + beat


def test_head_has_the_headers_of_the_form_and_no_body() -> None:
    with relay("--envelope", "wrapped.*") as server:
        for accept, kind in (("", "text/event-stream"), ("application/x-ndjson", "application/x-ndjson")):
            status, headers, body = server.request("HEAD", "/events?topic=t", headers={"Accept": accept})
            assert (status, body, headers["content-type"]) == (200, b"", kind)
            assert (headers["vary"], headers["connection"]) == ("Accept", "close")
        assert server.request("GET", "/events?topic=t&envelope=2")[0] == 400
        assert server.request("GET", "/events?topic=t&envelope=0&envelope=1")[0] == 400
        publish(server, {"data": "x"}, topic="wrapped.a")
        wrapped = {"": b'data: {"topic":"wrapped.a","data":"x"}\n\n', "&envelope=0": b"data: x\n\n"}
        for more, frame in wrapped.items():
            with Stream(server.port, f"topic=wrapped.a&since=earliest{more}") as stream:
                stream.read_until(frame)


def test_ndjson_is_chosen_by_quality_before_the_envelope() -> None:
    with relay() as server:
        accept = {"Accept": "text/event-stream;q=0.5, application/x-ndjson; q=0.9, */*;q=0.1"}
        with Stream(server.port, "topic=t&envelope=1", accept) as stream:
            publish(server, {"data": "x"}, topic="t")
            stream.read_until(b'"topic":"t","data":"x"}\n')


# The end of a stream


def drained(server: Relay) -> None:
    server.process.send_signal(signal.SIGTERM)


def ended(server: Relay) -> None:
    publish(server, {"event": "relay.end", "data": "over"})


def nothing(server: Relay) -> None:
    """The stream ends without a cause from outside."""


@pytest.mark.parametrize(
    ("reason", "flags", "cause"),
    [("drain", (), drained), ("ended", (), ended), ("age", ("--max-age", "1s"), nothing)],
)
def test_a_clean_end_has_a_last_chunk(reason: str, flags: tuple[str, ...], cause: Callable[[Relay], None]) -> None:
    assert reason in CLEAN
    with relay(*flags) as server, one_each(server) as streams:
        publish(server, {"data": "x"})
        cause(server)
        for stream in streams:
            events = stream.end()
            assert [event.data for event in events] == ["x", *(["over"] if reason == "ended" else [])]
            assert stream.has_last_chunk == (stream.form in CHUNKED)
            if reason != "ended":
                last = stream.raw.splitlines()[-1]
                assert last.startswith(b'{"retry":' if "ndjson" in stream.form else b"retry: ")
        if reason == "drain":
            server.wait()
        else:
            eventually(lambda: server.stats()["closes"] == {reason: len(FORMS)}, "the streams are closed")


def test_compressed_forms_have_the_same_events_and_a_last_chunk() -> None:
    with relay("--compress", "gzip") as server, one_each(server, "topic=a.*", COMPRESSED + CHUNKED) as streams:
        ids = [*publish(server, {"data": "x" * 1000}, topic="a.b"), *publish(server, {"data": "x" * 1000}, topic="a.c")]
        assert server.stats()["forms"] == dict.fromkeys(COMPRESSED + CHUNKED, 1)
        drained(server)
        for stream in streams:
            assert [event.id for event in stream.end()] == ids
            assert stream.has_last_chunk
            if not stream.form.startswith("sse"):
                assert stream.topics == ["a.b", "a.c"]
        server.wait()


@pytest.mark.parametrize("reason", ["expired", "revoked"])
def test_the_end_of_a_grant_is_clean(reason: str, tmp_path: Path) -> None:
    assert reason in CLEAN
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    with relay(*JWT, "--jwt-revoked-file", str(revoked)) as server:
        grant = bearer(token(exp=time.time() + 2) if reason == "expired" else token())
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(FormStream(server.port, form, "topic=orders.eu", grant)) for form in CHUNKED
            ]
            revoked.write_text("ann\n" if reason == "revoked" else "")
            if reason == "revoked":
                server.process.send_signal(signal.SIGHUP)
            for stream in streams:
                assert stream.end() == []
                assert stream.has_last_chunk
                assert b"retry" in stream.raw.splitlines()[-1]


@pytest.mark.parametrize("form", CHUNKED)
def test_a_stream_that_is_too_slow_ends_between_events_without_a_last_chunk(form: str) -> None:
    with relay("--policy", "disconnect", *SLOW) as server:
        with FormStream(server.port, form, receive_buffer=4096) as stream:
            stream.primed()
            publish(server, *({"data": "x" * 10_000} for _ in range(200)))
            eventually(lambda: server.stats()["policy_actions"].get("disconnect") == 1, "the policy has acted")
            events = stream.end()
            assert events
            assert {event.data for event in events} == {"x" * 10_000}
            assert not stream.has_last_chunk
            assert not stream.is_torn
        eventually(lambda: server.stats()["closes"] == {"slow": 1}, "the stream is closed")


@pytest.mark.parametrize("form", CHUNKED)
def test_a_stream_that_blocks_too_long_ends_without_a_last_chunk(form: str) -> None:
    with relay("--policy", "block", "--block-timeout", "1s", *SLOW) as server:
        with FormStream(server.port, form, receive_buffer=4096) as stream:
            stream.primed()
            publish(server, *({"data": "x" * 10_000} for _ in range(100)))
            eventually(lambda: server.stats()["policy_actions"].get("block") == 1, "the policy has acted")
            eventually(lambda: server.metric("relay_topics_held") == 0, "the topic is released")
            assert stream.end()
            assert not stream.has_last_chunk
            assert not stream.is_torn
        eventually(lambda: server.stats()["closes"] == {"blocked": 1}, "the stream is closed")


def test_a_shutdown_before_the_end_of_a_drain_gives_no_last_chunk() -> None:
    with relay("--drain-timeout", "1s", "--client-buffer", "16KiB") as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(FormStream(server.port, form, receive_buffer=4096)) for form in CHUNKED]
        for stream in streams:
            stream.primed()
        publish(server, *({"data": "x" * 10_000} for _ in range(100)))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(TIMEOUT_S)
        for stream in streams:
            stream.end()
            assert not stream.has_last_chunk


def test_a_client_that_sends_too_much_gets_no_last_chunk() -> None:
    with relay("--discard-bytes-max", "8KiB") as server, one_each(server, forms=CHUNKED) as streams:
        for stream in streams:
            with pytest.raises(ConnectionError):
                stream.socket.sendall(b"x" * (1 << 24))
            stream.end()
            assert not stream.has_last_chunk
        assert server.stats()["closes"] == {"input": len(CHUNKED)}


# Slow clients


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["drop-oldest", "conflate"])
def test_a_slow_stream_gets_whole_events_and_gaps(policy: str, form: str) -> None:
    with relay("--policy", policy, *SLOW) as server, FormStream(server.port, form, receive_buffer=4096) as stream:
        stream.primed()
        publish(server, *({"data": f"{number:06}" + "x" * 5000, "key": str(number % 3)} for number in range(300)))
        publish(server, {"data": "last", "key": "last"})
        events = stream.take(1)
        while events[-1].data != "last":
            events += stream.take(1)
        missed = sum(json.loads(event.data)["missed"] for event in events if event.event == "relay.gap")
        numbers = [int(event.data[:6]) for event in events if event.data.endswith("xx")]
        assert numbers == sorted(set(numbers))
        assert missed > 0
        assert missed + len(numbers) == 300


# Other processes


@pytest.mark.parametrize("form", FORMS)
def test_an_event_of_the_maximum_size_arrives_in_each_form(form: str) -> None:
    with relay("--event-bytes-max", "100KiB") as server, FormStream(server.port, form) as stream:
        stream.primed()
        overhead = len(b"id: 00000000-1\ndata: \n\n")
        for text in ("x", "\x01", "\u2028"):
            data = text * ((100 * 1024 - overhead) // len(text.encode()))
            server.publish(data, content_type="text/plain")
            assert stream.next().data == data


def test_streams_of_each_form_on_one_pattern_survive_upgrades() -> None:
    with relay() as server, one_each(server, "topic=a.*") as streams:
        publish(server, {"data": "0"}, topic="a.b")
        for upgrades in (1, 2):
            for stream in streams:
                assert stream.next().data == str(upgrades - 1)
            server.upgrade()
            publish(server, {"data": str(upgrades)}, topic="a.b")
        for stream in streams:
            assert stream.next().data == "2"
        assert server.stats()["forms"] == dict.fromkeys(FORMS, 1)


def test_a_half_sent_event_is_finished_after_an_upgrade() -> None:
    with relay("--client-buffer", "16KiB") as server, contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(FormStream(server.port, form, receive_buffer=4096)) for form in FORMS
        ]
        for stream in streams:
            stream.primed()
        data = [f"{number}:" + "y" * 300_000 for number in range(4)]
        publish(server, *({"data": text} for text in data))
        eventually(lambda: server.stats()["held"]["frames"] >= 1, "an event is half-sent")
        server.upgrade()
        for stream in streams:
            assert [event.data for event in stream.take(4)] == data


def test_workers_serve_each_form() -> None:
    with relay("--workers", "2") as server, one_each(server, "topic=a.*") as streams:
        ids = publish(server, {"data": "x"}, {"event": "relay.end", "data": "over"}, topic="a.b")
        for stream in streams:
            assert [event.id for event in stream.take(2)] == ids
        assert server.stats()["forms"] == dict.fromkeys(FORMS, 1)


def test_the_end_of_a_topic_ends_each_form_at_a_worker() -> None:
    with relay("--workers", "2") as server, one_each(server) as streams:
        ended(server)
        for stream in streams:
            assert [event.event for event in stream.end()] == ["relay.end"]
            assert stream.has_last_chunk == (stream.form in CHUNKED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_history_of_a_file_is_served_in_each_form(number: signal.Signals, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "relay.db"), "--durable")
    with relay(*data) as server:
        ids = publish(server, {"data": {"a": [1, 2.50]}}, {"data": "two\nlines"}, topic="a.b")
        server.stop(number)
    with relay(*data) as server:
        for form in FORMS:
            with FormStream(server.port, form, "topic=a.*&since=earliest") as stream:
                first, second = stream.take(2)
                assert [first.id, second.id] == ids
                assert json.loads(first.data) == {"a": [1, 2.5]}
                assert second.data == "two\nlines"
                if not form.startswith("sse"):
                    assert stream.topics == ["a.b", "a.b"]


def test_a_pipe_to_a_json_parser_needs_no_event_stream_parser() -> None:
    with relay() as server:
        publish(server, {"data": {"n": 1}}, {"data": "text"}, topic="a.b")
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
            head = "GET /events?topic=a.*&since=earliest HTTP/1.0\r\nHost: x\r\nAccept: application/x-ndjson\r\n\r\n"
            client.sendall(head.encode())
            with client.makefile("rb") as lines:
                while lines.readline() != b"\r\n":
                    pass
                found: list[Any] = []
                while len(found) < 2:
                    line = lines.readline()
                    members = json.loads(line) if line.strip() else {}
                    if "data" in members:
                        found.append(members["data"])
    assert found == [{"n": 1}, "text"]
