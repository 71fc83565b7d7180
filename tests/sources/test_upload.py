"""`relay.sources.upload`: each line of an open request is published once and in order, or is rejected by its number."""

from __future__ import annotations

import gzip
import json
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, cast

import pytest

from relay.errors import EventError, RelayError, RequestError
from relay.event import Event
from relay.http.coding import PIECE_BYTES, BodyDecoder
from relay.sources.body import line_format
from relay.sources.requests import Cancel, Done, TakeDone, nothing
from relay.sources.upload import BATCH_LINES_MAX, ERRORS_MAX, FILL_PIECES_MAX, Upload


class FakePublisher:
    """Publishes batches without an event whose data is `bad`; it answers at once, or when a test calls `answer`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls: list[int] = []
        self.waiting: list[Callable[[], None]] | None = None
        self.failure: RelayError | None = None
        self.cancelled = 0

    def publish(self, events: list[Event], done: Done) -> Cancel:
        self.calls.append(len(events))
        if self.waiting is None:
            self._answer(events, done)
        else:
            self.waiting.append(lambda: self._answer(events, done))
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1

    def _answer(self, events: list[Event], done: Done) -> None:
        if self.failure is not None:
            done(self.failure)
        elif any(event.data == "bad" for event in events):
            done(EventError("data", "is bad"))
        else:
            self.events += events
            done([f"e-{len(self.events) - len(events) + place}" for place in range(len(events))])

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self.events]


class FakeLoop:
    """Runs timers when a test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeLoop:
        self.timers.append((delay_s, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class Request:
    """An upload and everything around it.

    Args:
        media: the media type of the body.
        coding: its content coding.
        as_lines: whether each line is data.
        **settings: arguments of the upload.
    """

    def __init__(self, media: str = "application/x-ndjson", coding: str = "", **settings: Any) -> None:
        self.publisher = FakePublisher()
        self.loop = FakeLoop()
        self.counts = {"published": 0, "rejected": 0}
        self.waits_s: list[float] = []
        self.results: list[RelayError | None] = []
        is_data, as_lines = settings.pop("is_data", False), settings.pop("as_lines", False)
        format = line_format(media, Event(topic="t"), is_data=is_data, as_lines=as_lines, bytes_max=100)
        assert format is not None
        self.upload = Upload(
            format,
            BodyDecoder(coding) if coding else None,
            self.publisher,
            self.check,
            self.rate,
            self.counts,
            cast(AbstractEventLoop, self.loop),
            **settings,
        )

    def rate(self, count: int, done: TakeDone) -> Cancel:
        done(self.waits_s.pop(0) if self.waits_s else 0.0)
        return nothing

    def check(self, event: Event) -> None:
        if event.topic == "forbidden":
            raise RequestError(403, "not allowed")

    def send(self, data: bytes, *, ended: bool = False) -> None:
        """Add input, and publish the lines until there are none or a batch waits."""
        assert not self.upload.fill()
        self.upload.receive(data, ended=ended)
        self.work()

    def work(self) -> None:
        """Publish the lines that have arrived."""
        while (has_lines := self.upload.fill()) or self.upload.decoding:
            if not has_lines:
                continue
            before = len(self.results)
            self.upload.publish(self.results.append)
            if len(self.results) == before or self.results[-1] is not None:
                return

    def report(self, error: RequestError | None = None) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.upload.report(error))
        return result

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.upload.take_answers().splitlines()]


def lines(*data: str) -> bytes:
    return b"".join(json.dumps({"data": each}).encode() + b"\n" for each in data)


def test_lines_are_published_as_they_arrive() -> None:
    request = Request()
    request.send(b'\xef\xbb\xbf{"data": "a"}\n{"data": "b", "topic": "own"}\r\n\n{"da')
    assert [(event.data, event.topic) for event in request.publisher.events] == [("a", "t"), ("b", "own")]
    assert not request.upload.ended
    assert request.upload.unfinished
    request.send(b'ta": "c"}', ended=True)
    assert request.publisher.data == ["a", "b", "c"]
    assert request.upload.ended
    assert request.report() == {"complete": True, "lines": 4, "published": 3, "rejected": 0, "last_id": "e-2"}
    assert request.counts == {"published": 3, "rejected": 0}


def test_the_input_may_be_cut_at_every_byte() -> None:
    body = lines("a", "b") + b"\n" + lines("c")
    request = Request()
    for place in range(len(body)):
        request.send(body[place : place + 1])
    request.send(b"", ended=True)
    assert request.publisher.data == ["a", "b", "c"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_compressed_body_is_decoded_as_it_arrives(size: int) -> None:
    body = gzip.compress(lines("a", "b", "c"))
    request = Request(coding="gzip")
    for place in range(0, len(body), size):
        request.send(body[place : place + size])
    request.send(b"", ended=True)
    assert request.publisher.data == ["a", "b", "c"]
    assert request.upload.ended


def test_a_truncated_compressed_body_ends_the_upload() -> None:
    request = Request(coding="gzip")
    with pytest.raises(RequestError, match="truncated"):
        request.send(gzip.compress(lines("a"))[:-4], ended=True)
    assert request.publisher.data == ["a"]


def test_lines_of_text_are_data() -> None:
    request = Request("text/plain", as_lines=True)
    request.send(b"one\r\n\ntwo\xff", ended=True)
    assert request.publisher.data == ["one", "", "two\N{REPLACEMENT CHARACTER}"]


def test_lines_of_json_are_data() -> None:
    request = Request(is_data=True)
    request.send(b'{"data": 1}\n"text"\n\nnonsense\n', ended=True)
    assert [str(data) if isinstance(data, str) else bytes(data) for data in request.publisher.data] == [
        *(b'{"data":1}', "text")
    ]
    assert request.report()["errors"][0]["line"] == 4


def test_an_event_stream_is_published() -> None:
    request = Request("text/event-stream")
    request.send(b"event: e\nid: 7\ndata: a\n\ndata: b\ndata: c\n\n: comment\n\ndata: unfin")
    request.send(b"ished\n", ended=True)
    first, second = request.publisher.events
    assert first == Event(data="a", event="e", id="7", topic="t")
    assert second.data == "b\nc"
    report = request.report()
    assert (report["published"], report["rejected"]) == (2, 1)
    assert "ended before its empty line" in report["errors"][0]["error"]


def test_rejected_lines_do_not_affect_the_others() -> None:
    request = Request(answering=True)
    names = ["a", "bad", "b", "c", "bad", "bad", "d"]
    request.send(lines(*names) + b'no json\n{"data": 1, "topic": "forbidden"}\n' + b"x" * 101 + b"\n", ended=True)
    assert request.publisher.data == ["a", "b", "c", "d"]
    answers = request.answers()
    assert [answer["line"] for answer in answers] == list(range(1, 11))
    assert [answer.get("id") for answer in answers] == ["e-0", None, "e-1", "e-2", None, None, "e-3", None, None, None]
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert errors[0] == "data: is bad"
    assert "not valid JSON" in errors[3]
    assert errors[4:] == ["not allowed", "event: line: longer than 100 bytes"]
    assert request.report() == {"complete": True, "lines": 10, "published": 4, "rejected": 6, "last_id": "e-3"}


def test_a_batch_without_errors_is_one_call_and_one_bad_line_costs_few() -> None:
    request = Request()
    request.send(lines(*["a"] * BATCH_LINES_MAX))
    assert request.publisher.calls == [BATCH_LINES_MAX]
    request = Request()
    request.send(lines(*["a"] * 100, "bad", *["a"] * 100))
    assert request.publisher.data == ["a"] * 200
    assert len(request.publisher.calls) < 20


def test_a_batch_of_only_bad_lines_does_not_recurse() -> None:
    request = Request()
    request.send(lines(*["bad"] * 5 * BATCH_LINES_MAX), ended=True)
    report = request.report()
    assert report["rejected"] == 5 * BATCH_LINES_MAX
    assert len(report["errors"]) == ERRORS_MAX


def test_the_next_batch_waits_for_the_result_of_the_last() -> None:
    request = Request()
    request.publisher.waiting = []
    request.send(lines("a", "b"))
    assert request.results == []
    [answer] = request.publisher.waiting
    answer()
    assert request.results == [None]
    assert request.publisher.data == ["a", "b"]


def test_an_error_of_the_server_ends_the_upload_and_the_report_names_the_rest() -> None:
    request = Request(answering=True)
    request.send(lines("a"))
    request.publisher.failure = error = RequestError(503, "the disk is full")
    request.send(b"nonsense\n" + lines("b") + b"nonsense\n")
    assert request.results == [None, error]
    assert [answer["line"] for answer in request.answers()] == [1, 2]
    report = request.report(error)
    assert (report["complete"], report["lines"], report["published"], report["rejected"]) == (False, 2, 1, 1)
    assert report["error"] == "the disk is full; the lines after line 2 are not published"


def test_compressed_input_without_lines_is_decoded_in_several_calls() -> None:
    request = Request(coding="gzip")
    request.upload.receive(gzip.compress(b"x" * 10 * PIECE_BYTES), ended=True)
    assert request.upload.fill(), "the line is rejected as soon as it is too long"
    request.upload.publish(request.results.append)
    calls = 0
    while not request.upload.ended:
        assert not request.upload.fill()
        calls += 1
        assert request.upload.decoding or request.upload.ended
    assert calls >= 10 // FILL_PIECES_MAX
    assert request.report()["errors"] == [{"line": 1, "error": "event: line: longer than 100 bytes"}]


def test_an_upload_waits_for_its_rate() -> None:
    request = Request()
    request.waits_s = [2.5]
    request.send(lines("a"))
    [(delay_s, resume)] = request.loop.timers
    assert (delay_s, request.publisher.data) == (2.5, [])
    resume()
    assert request.publisher.data == ["a"]


def test_cancelling_publishes_nothing_more() -> None:
    request = Request()
    request.waits_s = [1.0]
    request.upload.receive(lines("a"), ended=False)
    assert request.upload.fill()
    request.upload.publish(request.results.append)()
    assert request.loop.cancelled == 1
    request.publisher.waiting = []
    request.upload.publish(request.results.append)()
    assert request.publisher.cancelled == 1
    request.publisher.waiting[0]()
    assert request.results == []


def test_the_key_of_the_request_is_numbered_by_line() -> None:
    request = Request(dedup="k")
    request.send(b'{"data": 1}\n\n{"data": 2, "dedup": "own"}\n', ended=False)
    request.send(b'{"data": 3}\n', ended=True)
    assert [event.dedup for event in request.publisher.events] == ["k:1", "own", "k:4"]
