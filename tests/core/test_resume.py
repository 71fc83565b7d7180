"""Resume at a real server: the ids from clients, the start of a stream, and the counts of gaps.

Covers `relay.core.notice`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import TOKEN, Relay, Stream, relay

LIMITS = ("--history-events", "40", "--lag-events", "10", "--client-buffer", "4KiB", "--event-bytes-max", "16KiB")


@pytest.fixture(scope="module", params=[(), ("--workers", "2")], ids=["alone", "workers"])
def server(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """A server that several tests share. Its streams are at the hub, or at workers."""
    with relay(*request.param) as running:
        yield running


def publish(server: Relay, *events: dict[str, str]) -> int:
    """Publish events in one request; return the status."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return server.request("POST", "/publish", json.dumps(events).encode(), headers)[0]


def resumed(server: Relay, query: str, id: str, last: str) -> list[str]:
    """Resume from an id. Return the data of the events up to the last one, with `gap` for a gap."""
    seen: list[str] = []
    with Stream(server.port, query, {"Last-Event-ID": id}) as stream:
        while last not in seen:
            event = stream.next()
            seen.append("gap" if event.event == "relay.gap" else event.data)
    return seen


def test_an_id_means_the_oldest_event_of_the_streams_topics(server: Relay) -> None:
    events = [{"topic": f"own.{letter}", "id": str(n), "data": f"{letter}{n}"} for letter in "ab" for n in (1, 2)]
    assert publish(server, *events) == 200
    assert publish(server, {"topic": "own.a", "id": "1", "data": "a again"}) == 200
    assert resumed(server, "topic=own.a", "1", "a again") == ["a2", "a again"]
    assert resumed(server, "topic=own.b", "1", "b2") == ["b2"]
    assert resumed(server, "topic=own.a&topic=own.b", "2", "a again") == ["b1", "b2", "a again"]
    assert resumed(server, "topic=own.*", "1", "a again") == ["a2", "b1", "b2", "a again"]
    assert publish(server, {"topic": "own.c", "data": "c"}) == 200
    assert resumed(server, "topic=own.c", "1", "c") == ["gap", "c"]


@pytest.mark.parametrize("id", ["a\x01b", "a\x0cb", "\x7f", "caf\u00e9", "\u20ac", "x" * 4000, "deadbeef-1", " ", "\0"])
def test_an_unknown_id_causes_a_gap_and_never_an_error(server: Relay, id: str) -> None:
    assert publish(server, {"topic": "odd", "id": id, "data": "x"}) == 400
    assert publish(server, {"topic": "odd", "data": "odd"}) == 200
    if id.strip():
        assert resumed(server, "topic=odd", id, "odd")[0] == "gap"
    with Stream(server.port, f"topic=odd&lastEventId={''.join(f'%{byte:02x}' for byte in id.encode())}") as stream:
        assert stream.next().event == "relay.gap"


def test_since_accepts_only_a_time_or_a_known_id(server: Relay) -> None:
    before_s = time.time() - 1
    assert publish(server, {"topic": "since", "id": "s-1", "data": "1"}, {"topic": "since", "data": "2"}) == 200
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before_s))
    for since in ("earliest", "1m", date, str(int(before_s)), str(int(before_s * 1000))):
        with Stream(server.port, f"topic=since&since={since}") as stream:
            assert [event.data for event in stream.take(2)] == ["1", "2"]
    with Stream(server.port, "topic=since&since=s-1") as stream:
        assert stream.next().data == "2"
    for since in ("s-2", "10", "yesterday", "2026-99-01T00:00:00Z", "-5m", "%00"):
        status, _, body = server.request("GET", f"/events?topic=since&since={since}")
        assert status == 400
        assert "RFC" in json.loads(body)["error"] or "date-time" in json.loads(body)["error"]
    assert server.request("GET", "/events?topic=other&since=s-1")[0] == 400


def test_the_error_for_a_misspelt_name_shows_the_right_one(server: Relay) -> None:
    for name, meant in (("topics", "topic"), ("Topic", "topic"), ("last-event-id", "lastEventId")):
        status, _, body = server.request("GET", f"/events?{name}=x")
        assert (status, meant in json.loads(body)["error"]) == (400, True)


def counted(stream: Stream, total: int) -> tuple[int, int]:
    """Read until all events are accounted for. Return the numbers of received and of missed events."""
    seen = missed = 0
    while seen + missed < total:
        event = stream.next()
        if event.event == "relay.gap":
            gap = json.loads(event.data)
            missed += gap["missed"]
            assert not any("secret" in gap[end] for end in ("from", "to"))
        else:
            seen += 1
    return seen, missed


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "conflate"])
@pytest.mark.parametrize("term", ["a", "a&topic=b&topic=*"])
def test_received_and_missed_events_add_up_to_the_published_events(policy: str, term: str, tmp_path: Path) -> None:
    """An upgrade passes on a stream that does not read. Another stream resumes after a restart."""
    arguments = ("--policy", policy, "--data", str(tmp_path / "relay.db"), *LIMITS)
    with relay(*arguments) as server, Stream(server.port, f"topic={term}", receive_buffer=4096) as stream:
        count = 0
        for part in range(2):
            for number in range(10):
                events = [
                    {"topic": topic, "data": "x" * 2000, "id": f"{topic}-{part}-{number}-{each}", "key": str(each)}
                    for each in range(5)
                    for topic in ("a", "b", "secret.c")
                ]
                assert publish(server, *events) == 200
                count += 5 * (1 if term == "a" else 2)
            if part == 0:
                server.upgrade()
        seen, missed = counted(stream, count)
        assert (seen + missed, missed > 0) == (count, True)
        server.stop()
    with relay(*arguments) as server:
        assert publish(server, {"topic": "a", "data": "end"}) == 200
        assert resumed(server, "topic=a", "a-0-0-0", "end")[0] == "gap"
        assert resumed(server, "topic=a", "a-1-9-4", "end") == ["end"]


def test_an_earlier_start_of_a_replay_includes_events_that_other_replays_skipped() -> None:
    """The streams share one index. Its oldest segment grows each time a stream starts further back."""
    with relay() as server:
        ids = [server.publish(str(number))[0] for number in range(30)]
        with Stream(server.port, "topic=**") as live:
            live.read_until(b"\nid: ")
            for seen in (20, 10, 0):
                with Stream(server.port, "topic=**", {"Last-Event-ID": ids[seen]}) as stream:
                    assert [event.id for event in stream.take(29 - seen)] == ids[seen + 1 :]
