"""A server process sends events, gaps and heartbeats to the streams of real clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from contextlib import aclosing
from pathlib import Path

import httpx
import httpx_sse
import pytest

from relay.client.subscribe import subscribe
from tests.running import TIMEOUT_S, Feeder, Relay, Stream, relay

PADDING = b": " + b" " * 2048 + b"\n"


def test_an_event_from_the_unix_socket_reaches_every_stream_and_is_encoded_once(server: Relay) -> None:
    before = server.metric("relay_encodes_total")
    streams = [Stream(server.port, "topic=once") for _ in range(20)]
    with Feeder(server.unix_path) as feeder:
        id = feeder.publish(topic="once", data={"price": 1.5}, event="tick")
    for stream in streams:
        with stream:
            event = stream.next()
            assert (event.id, event.event, event.data) == (id, "tick", '{"price":1.5}')
    assert server.metric("relay_encodes_total") == before + 1


def test_a_stream_starts_with_a_comment_a_random_retry_and_a_priming_id(server: Relay) -> None:
    retries = set()
    for _ in range(5):
        with Stream(server.port, "topic=prime") as stream:
            raw = stream.read_until(b"\n\n")
            comment, retry, id = raw.split(b"\n")[:3]
            assert comment == b":"
            retries.add(int(retry.removeprefix(b"retry: ")))
            assert id.startswith(b"id: ")
            assert stream.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(retries) > 1
    assert all(1000 <= retry <= 5000 for retry in retries)


def test_a_client_cut_off_before_its_first_event_resumes_without_loss(server: Relay) -> None:
    with Stream(server.port, "topic=cut") as stream:
        stream.read_until(b"\n\n")
        last_id = stream.last_event_id
    server.publish("missed", "cut")
    with Stream(server.port, "topic=cut", {"Last-Event-ID": last_id}) as stream:
        assert stream.next().data == "missed"


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id", "lastEventID", "evs_last_event_id"])
def test_the_last_id_can_be_in_the_query_and_the_header_overrides_it(server: Relay, name: str) -> None:
    first, second = server.publish("1", f"query-{name}") + server.publish("2", f"query-{name}")
    with Stream(server.port, f"topic=query-{name}&{name}={first}") as stream:
        assert stream.next().data == "2"
    server.publish("3", f"query-{name}")
    with Stream(server.port, f"topic=query-{name}&{name}={first}", {"Last-Event-ID": second}) as stream:
        assert stream.next().data == "3"


def test_a_publishers_own_id_is_kept_and_found(server: Relay) -> None:
    with Feeder(server.unix_path) as feeder:
        assert feeder.publish(topic="own", data="a", id="order 1") == "order 1"
        feeder.publish(topic="own", data="b")
    with Stream(server.port, "topic=own", {"Last-Event-ID": "order 1"}) as stream:
        assert stream.next().data == "b"


def test_an_id_of_another_epoch_causes_a_gap_and_a_replay_of_retained_events(server: Relay) -> None:
    server.publish("kept", "epoch")
    with Stream(server.port, "topic=epoch", {"Last-Event-ID": "0badc0de-7"}) as stream:
        gap, kept = stream.take(2)
    assert gap.event == "relay.gap"
    assert json.loads(gap.data) == {"reason": "unknown", "missed": None, "from": None, "to": None}
    assert kept.data == "kept"


def test_one_id_resumes_many_topics_in_log_order(server: Relay) -> None:
    first = server.publish("0", "many.a")[0]
    for number in range(1, 7):
        server.publish(str(number), f"many.{'abc'[number % 3]}")
    with Stream(server.port, "topic=many.*&topic=many.a", {"Last-Event-ID": first}) as stream:
        assert [event.data for event in stream.take(6)] == ["1", "2", "3", "4", "5", "6"]


def test_since_replays_all_events_recent_events_or_none(server: Relay) -> None:
    server.publish("old", "since")
    with Stream(server.port, "topic=since&since=earliest") as stream:
        assert stream.next().data == "old"
    with Stream(server.port, "topic=since&since=1h") as stream:
        assert stream.next().data == "old"
    with Stream(server.port, "topic=since&since=latest") as stream:
        server.publish("new", "since")
        assert stream.next().data == "new"


def test_an_event_reaches_a_stream_of_many_terms_once(server: Relay) -> None:
    query = "&".join(f"topic=t{number}" for number in range(998)) + "&topic=u.*.w&topic=u.**"
    with Stream(server.port, query) as stream:
        server.publish("x", "t7")
        server.publish("y", "u.v.w")
        server.publish("z", "t900")
        assert [event.data for event in stream.take(3)] == ["x", "y", "z"]


def test_curl_reads_the_stream(server: Relay) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    process = subprocess.Popen(
        [curl, "-sN", f"{server.url}/events/curl?since=earliest"],
        stdout=subprocess.PIPE,
        env={name: text for name, text in os.environ.items() if name != "LD_PRELOAD"},  # curl hangs under ASan
    )
    with process:
        assert process.stdout is not None
        id = server.publish("two\nlines", "curl")[0]
        lines = iter(process.stdout.readline, b"")
        seen = b"".join(line for _, line in zip(range(8), lines, strict=False))
        process.kill()
    assert f"id: {id}\ndata: two\ndata: lines\n".encode() in seen


def test_httpx_sse_reads_the_stream(server: Relay) -> None:
    server.publish("for httpx", "httpx")
    url = f"{server.url}/events/httpx?since=earliest"
    with httpx.Client(timeout=TIMEOUT_S) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        # To httpx-sse, the priming block is an empty event. Browsers follow the standard and ignore it.
        [event] = [event for _, event in zip(range(2), source.iter_sse(), strict=False) if event.data]
        assert event.data == "for httpx"


async def test_relays_client_reads_the_stream(server: Relay) -> None:
    server.publish("for our own", "own-client")
    url = f"{server.url}/events"
    async with asyncio.timeout(TIMEOUT_S), aclosing(subscribe(url, ("own-client",), since="earliest")) as events:
        assert (await anext(events)).data == "for our own"


def test_hundreds_of_connections_leave_nothing() -> None:
    with relay() as server:
        def everything_closed() -> tuple[int, int]:
            deadline_s = time.monotonic() + TIMEOUT_S
            while server.stats()["streams"]:
                assert time.monotonic() < deadline_s
            return server.open_descriptors(), server.stats()["gc_objects"]

        Stream(server.port).close()
        everything_closed()
        descriptors, objects = everything_closed()
        for _ in range(300):
            with Stream(server.port, "topic=a&topic=b.*") as stream:
                stream.read_until(b"\n\n")
        after = everything_closed()
        assert after[0] <= descriptors + 1  # the connection of the request may be counted twice
        assert after[1] <= objects + 50
        assert server.stats()["topics_total"] == 0


def test_a_stalled_stream_receives_gaps_and_does_not_affect_others() -> None:
    with relay("--lag-bytes", "256KiB", "--client-buffer", "16KiB") as server:
        healthy = Stream(server.port)
        stalled = Stream(server.port, receive_buffer=8192)
        body = "\n".join(json.dumps({"data": f"{n}:" + "x" * 1000}) for n in range(100))
        for _ in range(30):
            server.publish(body, content_type="application/x-ndjson")
            assert [int(event.data.split(":")[0]) for event in healthy.take(100)] == [*range(100)]
        server.publish("the end")
        seen = missed = gaps = 0
        while (event := stalled.next()).data != "the end":
            if event.event == "relay.gap":
                missed += json.loads(event.data)["missed"]
                gaps += 1
            else:
                seen += 1
        assert missed > 500
        assert server.metric("relay_gaps_total") == gaps
        assert server.metric("relay_gap_events_total") == missed
        assert seen + missed == 3000
        assert server.stats()["policy_actions"] == {"drop-oldest": server.metric("relay_policy_actions_total")}
        healthy.close()
        stalled.close()


def test_a_block_stream_makes_the_feeder_wait_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--unix", str(path), "--policy", "block", "--lag-bytes", "64KiB", "--client-buffer", "16KiB") as server:
        stream = Stream(server.port, receive_buffer=8192)
        with Feeder(path) as feeder:
            feeder.socket.setblocking(False)
            line = json.dumps({"data": "x" * 1000}).encode() + b"\n"
            written, unsent, deadline_s = 0, b"", time.monotonic() + TIMEOUT_S
            while not server.metric("relay_topics_held"):
                assert time.monotonic() < deadline_s
                try:
                    unsent = unsent or line
                    unsent = unsent[feeder.socket.send(unsent) :]
                    written += not unsent
                except BlockingIOError:
                    pass
            feeder.socket.setblocking(True)
            assert server.stats()["events"] < written + 1
            feeder.send(*([unsent[:-1]] if unsent else []), {"data": "the end"})
            count = 0
            while stream.next().data != "the end":
                count += 1
        assert count == written + bool(unsent)
        stream.close()


def test_a_slow_stream_with_policy_disconnect_is_closed_between_frames() -> None:
    with relay("--policy", "disconnect", "--lag-bytes", "64KiB", "--client-buffer", "16KiB") as server:
        with Stream(server.port, receive_buffer=8192) as stream:
            for _ in range(4):
                server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 500), content_type="application/x-ndjson")
            events = stream.rest()
            assert 0 < len(events) < 2000
            assert stream.raw.endswith(b"\n\n")
        assert server.metric("relay_closes_total") == 1
        # The client reconnects and misses nothing.
        with Stream(server.port, headers={"Last-Event-ID": stream.last_event_id}) as stream:
            assert len(stream.take(2000 - len(events))) == 2000 - len(events)


def test_an_event_stream_on_stdin_is_relayed_unchanged() -> None:
    with relay("--stdin", "sse", stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        assert server.process.stdin is not None
        server.process.stdin.write(b"id: up-1\nevent: e\ndata: a\ndata: b\n\n")
        server.process.stdin.flush()
        event = stream.next()
        assert (event.id, event.event, event.data) == ("up-1", "e", "a\nb")
        server.process.stdin.close()


def test_a_client_that_never_stops_sending_is_closed() -> None:
    with relay("--discard-bytes-max", "8KiB") as server, Stream(server.port) as stream:
        stream.read_until(b"\n\n")
        stream.socket.sendall(b"x" * 4096)
        server.publish("still here")
        assert stream.next().data == "still here"
        with pytest.raises(ConnectionError):
            stream.socket.sendall(b"x" * (1 << 24))
        assert server.stats()["closes"] == {"input": 1}


def test_idle_streams_receive_heartbeats() -> None:
    with relay("--heartbeat", "100ms", "--heartbeat-as", "event") as server, Stream(server.port) as stream:
        assert [event.event for event in stream.take(2)] == ["relay.heartbeat"] * 2
    with relay("--heartbeat", "100ms") as server, Stream(server.port) as stream:
        raw = stream.read_until(b"\n\n:\n:\n")
        assert b":\n\n" not in raw[2:]
    with relay("--heartbeat", "100ms", "--heartbeat-as", "padded") as server, Stream(server.port) as stream:
        stream.read_until(b"\n\n" + 2 * PADDING)


def test_a_stream_that_requests_padding_starts_with_two_kibibytes(server: Relay) -> None:
    with Stream(server.port, "topic=padding&padding") as stream:
        assert stream.read_until(b"\n\n").startswith(PADDING + b"retry: ")


def test_an_event_without_subscribers_is_written_to_no_stream() -> None:
    with relay() as server, Stream(server.port, "topic=followed") as stream, Stream(server.port, "topic=a.*") as other:
        server.publish("before", "followed")
        assert stream.next().data == "before"
        assert b"\n\n" in other.read_until(b"\n\n")
        before = server.stats()
        for number in range(10):
            server.publish(str(number), f"unfollowed.{number}")
        server.publish("after", "followed")
        assert stream.next().data == "after"
        after = server.stats()
        assert after["events"] == before["events"] + 11
        assert after["writes"] == before["writes"] + 1
        assert after["deliveries"] == before["deliveries"] + 1
