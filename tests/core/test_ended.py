"""Topics that end permanently: `relay.end` is their last event, for every publisher and every stream."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from relay.core.ended import ENDED_MAX, Ended
from tests.running import TOKEN, Feeder, Relay, Stream, eventually, relay, run

END = '{"event": "relay.end", "data": "bye"}'
JSON = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def end(server: Relay, topic: str) -> str:
    """End a topic; return the id of its last event."""
    [id] = server.publish(END, topic, "application/json")
    return id


def subscribe(server: Relay, query: str, last_id: str = "") -> int:
    """Return the status that a browser receives."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
    return server.request("GET", f"/events?{query}", headers=headers)[0]


def knows_end(server: Relay) -> bool:
    """Return whether a server knows that topic c has ended."""
    return subscribe(server, "topic=c") == 204


def check_ended(server: Relay, topic: str, ids: list[str]) -> None:
    """Check the answers of a server for an ended topic, over several connections."""
    for _ in range(6):
        assert subscribe(server, f"topic={topic}") == 204
        assert subscribe(server, f"topic={topic}", ids[-1]) == 204
        with Stream(server.port, f"topic={topic}", {"Last-Event-ID": ids[0]}) as late:
            assert [event.id for event in late.rest()] == ids[1:], "an early reconnect receives the rest first"
        with Stream(server.port, f"topic={topic}&since=earliest") as late:
            assert [event.id for event in late.rest()] == ids
        status, _, body = server.request("POST", f"/publish?topic={topic}", b'{"data": 1}', JSON)
        assert (status, json.loads(body)["field"]) == (410, "topic")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_streams_of_a_topic_end_after_its_last_event_without_reconnecting(workers: str) -> None:
    with relay("--workers", workers) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.port, "topic=a")) for _ in range(30)]
        two = stack.enter_context(Stream(server.port, "topic=a&topic=b"))
        pattern = stack.enter_context(Stream(server.port, "topic=*"))
        ids = [server.publish(str(number), "a")[0] for number in range(20)] + [end(server, "a")]
        for stream in streams:
            events = stream.rest()
            assert [event.id for event in events] == ids
            assert (events[-1].event, events[-1].data) == ("relay.end", "bye")
        eventually(lambda: server.stats()["closes"] == {"ended": 30}, "the streams are counted")
        check_ended(server, "a", ids)
        more = server.publish("still here", "b")
        for stream in (two, pattern):
            assert [event.id for event in stream.take(22)] == ids + more
        assert server.metric("relay_topics_ended") == (1 if workers == "1" else 3), "one in each process"


def test_a_slow_stream_receives_everything_before_it_ends() -> None:
    with relay("--client-buffer", "16KiB") as server, Stream(server.port, "topic=a", receive_buffer=4096) as slow:
        for number in range(100):
            server.publish("x" * 10_000 + str(number), "a")
        end(server, "a")
        assert [event.data.lstrip("x") for event in slow.rest()] == [*map(str, range(100)), "bye"]


def test_a_worker_that_starts_later_knows_an_ended_topic_that_is_not_retained() -> None:
    with relay("--workers", "2", "--history-events", "5") as server:
        for number in range(120):
            end(server, f"a{number}")
        for number in range(10):
            server.publish(str(number), "b")
        pid = server.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        eventually(lambda: server.stats().get("worker_restarts") == 2, "both are restarted")
        for number in range(0, 120, 7):
            assert subscribe(server, f"topic=a{number}") == 204
        end(server, "c")
        eventually(partial(knows_end, server), "the answering worker knows the end")


def test_the_end_is_stored_in_the_file_and_passed_on_in_an_upgrade(tmp_path: Path) -> None:
    flags = ("--data", str(tmp_path / "data"), "--durable")
    with relay(*flags) as server:
        ids = [*server.publish("1", "a"), end(server, "a")]
        check_ended(server, "a", ids)
        server.stop(signal.SIGKILL)
    with relay(*flags) as server:
        check_ended(server, "a", ids)
        server.upgrade()
        check_ended(server, "a", ids)


def test_a_stream_that_an_upgrade_passed_on_ends_with_its_topic() -> None:
    with relay("--history-events", "2") as server, Stream(server.port, "topic=a") as stream:
        end(server, "b")
        for _ in range(5):
            server.publish("x", "c")
        server.upgrade()
        assert subscribe(server, "topic=b") == 204
        end(server, "a")
        assert [event.event for event in stream.rest()] == ["relay.end"]


def test_feeders_receive_an_error_and_repeats_are_acknowledged_again(tmp_path: Path) -> None:
    with relay("--unix", str(tmp_path / "u")) as server, Feeder(server.unix_path) as feeder:
        first = feeder.publish(topic="a", data=1, dedup="one")
        last = feeder.publish(topic="a", event="relay.end", dedup="two")
        feeder.send({"topic": "a", "data": 2})
        assert feeder.answer()["error"] == "topic: has ended for good"
        assert feeder.publish(topic="a", data=1, dedup="one") == first
        assert feeder.publish(topic="a", event="relay.end", dedup="two") == last
        assert feeder.publish(topic="b", data=2)


def test_a_batch_with_an_event_after_the_end_is_rejected_completely() -> None:
    with relay() as server:
        body = b'[{"data": 1}, {"event": "relay.end"}, {"topic": "b", "data": 2}, {"data": 3}]'
        assert server.request("POST", "/publish?topic=a", body, JSON)[0] == 410
        assert server.metric("relay_events_total") == 0
        assert server.request("POST", "/publish?topic=a", b'{"data": 1}', JSON)[0] == 200, "it has not ended"


def test_after_a_gap_event_a_reconnect_to_an_ended_topic_receives_204() -> None:
    with relay("--history-events", "1") as server:
        end(server, "a")
        server.publish("x", "b")
        with Stream(server.port, "topic=a", {"Last-Event-ID": "of-another-run"}) as stream:
            assert [event.event for event in stream.rest()] == ["relay.gap"]
            assert subscribe(server, "topic=a", stream.last_event_id) == 204
    with relay("--history-events", "1", "--no-prime") as server:
        end(server, "a")
        server.publish("x", "b")
        assert subscribe(server, "topic=a", "of-another-run") == 204


def test_the_command_exits_when_its_topic_ends() -> None:
    with relay() as server:
        server.publish("1", "a")
        end(server, "a")
        result = run("subscribe", server.url, "--topic", "a", "--since", "earliest", "--output", "data")
        assert (result.returncode, result.stdout.split()) == (0, ["1", "bye"])


def test_the_topic_that_ended_first_is_deleted_first() -> None:
    ended = Ended()
    for number in range(ENDED_MAX + 1):
        ended.note(str(number))
    assert len(ended.known()) == ENDED_MAX
    assert not ended.all(["0"])
    assert ended.all(["1", str(ENDED_MAX)])
    ended.begin("ending")
    assert not ended.all(["ending"])
    assert "ending" not in ended.known()
