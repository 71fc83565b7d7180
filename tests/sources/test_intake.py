"""`relay.sources.intake`: each line is published or rejected once, in order, and is answered if it asks."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.hub import Hub
from relay.sources.intake import ACK_BYTES_MAX, ANSWER_BYTES_MAX, TURN_LINES, Intake, State
from relay.sources.lines import LineSplitter, parse_line, parse_text
from tests.sources.fakes import FakeHub, value


class Feed:
    """An intake with a fake hub, and the errors that it reported."""

    def __init__(self, answering: bool = True, parse: Any = parse_line, line_bytes_max: int = 10_000) -> None:
        self.hub = FakeHub()
        self.reports: list[tuple[str, int, str]] = []
        self.intake = Intake(
            LineSplitter(line_bytes_max),
            parse,
            cast(Hub, self.hub),
            "default",
            lambda *report: self.reports.append(report),
            answering,
        )

    def send(self, data: bytes) -> list[Any]:
        """Feed bytes, do all turns, and return the answers."""
        self.intake.receive(data)
        answers = []
        while self.intake.work(0.0, ANSWER_BYTES_MAX) is State.BUSY:
            answers += self.answers()
        return answers + self.answers()

    def answers(self) -> list[Any]:
        return [json.loads(line) for line in self.intake.take_answers().splitlines()]


def test_a_line_is_published_on_its_topic_or_the_default_one() -> None:
    feed = Feed()
    assert feed.send(b'{"topic":"t","data":1}\n{"data":2}\n{"topic":null,"data":3}\n') == []
    assert [(event.topic, value(event.data)) for event in feed.hub.events] == [
        ("t", 1),
        ("default", 2),
        ("default", 3),
    ]


def test_a_byte_order_mark_before_the_first_line_is_skipped_at_every_split() -> None:
    for cut in range(6):
        feed = Feed()
        text = b'\xef\xbb\xbf{"data":1}\n{"data":2}\n'
        feed.intake.receive(text[:cut])
        feed.intake.receive(text[cut:])
        assert feed.intake.work(0.0, ANSWER_BYTES_MAX) is State.IDLE
        assert feed.hub.data == [1, 2]


def test_a_byte_order_mark_is_skipped_before_the_first_line_of_each_writer_of_a_fifo() -> None:
    feed = Feed()
    for number in range(3):
        feed.intake.receive(b'\xef\xbb\xbf{"data":%d}\n{"data":"x"}' % number)
        feed.intake.receive_end()
        assert feed.intake.work(0.0, ANSWER_BYTES_MAX) is State.IDLE
    assert feed.hub.data == [0, "x", 1, "x", 2, "x"]


@pytest.mark.parametrize(
    "ack", ["7", "null", '"ä"', "false", '{"a": [1, 2.50]}', "123456789012345678901234567890"]
)
def test_an_answer_returns_the_ack_unchanged_with_the_id(ack: str) -> None:
    feed = Feed()
    feed.intake.receive(b'{"data":1}\n{"data":2,"ack":%s}\n' % ack.encode())
    assert feed.intake.work(0.0, ANSWER_BYTES_MAX) is State.IDLE
    assert feed.intake.take_answers().decode() == f'{{"ack":{ack},"id":"e-2"}}\n'


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b"{", "json", "event: not valid JSON: it ends after byte 1"),
        (b"[1]", "json", "event: Expected `object`, got `array`"),
        (b'{"retry":"x"}', "json", "retry: Expected `int | null`, got `str`"),
        (b'{"x":1}', "json", "event: Object contains unknown field `x`"),
        (
            b'{"data":"\xff"}',
            "json",
            "event: not valid JSON: byte 9 is not UTF-8",
        ),
        (
            b'{"data":' + b"[" * 9000,
            "json",
            "data: JSON is nested more than 512 levels deep",
        ),
        (b'{"topic":"bad"}', "event", "topic: is bad"),
        (b"x" * 10_001, "line", "line: longer than 10000 bytes"),
    ],
)
def test_a_bad_line_is_answered_and_reported_and_the_others_are_published(line: bytes, kind: str, reason: str) -> None:
    feed = Feed()
    answers = feed.send(b'{"data":1}\n\n' + line + b'\n{"data":2}\n')
    assert answers == [{"error": reason, "line": 3}]
    assert feed.reports == [(kind, 3, reason)]
    assert feed.hub.data == [1, 2]


def test_the_answer_to_a_bad_line_contains_its_ack_if_it_can_be_parsed() -> None:
    feed = Feed()
    answers = feed.send(b'{"ack":5,"x":1}\n{"ack":6,"topic":"bad"}\n{"ack":7,"data":\n{"ack":"\xff"}\n')
    assert [answer.get("ack") for answer in answers] == [5, 6, None, None]
    assert all("error" in answer for answer in answers)
    assert answers[3]["error"] == "ack: invalid UTF-8"


def test_a_long_ack_is_rejected() -> None:
    feed = Feed()
    (answer,) = feed.send(b'{"ack":"%s","data":1}\n' % (b"x" * ACK_BYTES_MAX))
    assert answer == {"error": f"ack: longer than {ACK_BYTES_MAX} bytes", "line": 1}
    assert feed.hub.events == []


def test_the_text_that_an_error_quotes_is_printable_and_short() -> None:
    feed = Feed()
    name = "\\n\\u001b[31m" + "x" * 5000
    (answer,) = feed.send(f'{{"{name}":1}}\n'.encode())
    assert len(answer["error"]) < 300
    assert answer["error"].isprintable()


def test_blank_lines_are_ignored_and_counted_as_lines() -> None:
    feed = Feed()
    assert feed.send(b"\n  \t\n\r\n{\n") == [{"error": "event: not valid JSON: it ends after byte 1", "line": 4}]


def test_the_last_line_needs_no_lf() -> None:
    feed = Feed()
    assert feed.send(b'{"data":1}\n{"data":2}') == []
    feed.intake.receive_end()
    assert feed.intake.work(0.0, 0) is State.IDLE
    assert feed.hub.data == [1, 2]


def test_empty_lines_of_text_are_events() -> None:
    feed = Feed(answering=False, parse=parse_text)
    assert feed.send(b"a\n\n b \n\xff\n") == []
    assert feed.hub.data == ["a", "", " b ", "\N{REPLACEMENT CHARACTER}"]
    assert feed.reports == []


def test_without_answering_no_answer_is_written() -> None:
    feed = Feed(answering=False)
    assert feed.send(b'{"data":1,"ack":1}\n{\n') == []
    assert feed.hub.data == [1]


def test_a_turn_ends_after_turn_lines_items() -> None:
    feed = Feed()
    feed.intake.receive(b'{"data":1}\n' * (2 * TURN_LINES + 1))
    states = [feed.intake.work(0.0, 0) for _ in range(3)]
    assert states == [State.BUSY, State.BUSY, State.IDLE]
    assert len(feed.hub.events) == 2 * TURN_LINES + 1


def test_a_held_topic_delays_its_line_and_the_lines_after_it() -> None:
    feed = Feed()
    feed.hub.holding.add("h")
    feed.intake.receive(b'{"data":1}\n{"topic":"h","data":2,"ack":2}\n{"data":3}\n{\n')
    for _ in range(2):
        assert feed.intake.work(0.0, ANSWER_BYTES_MAX) is State.HELD
        assert feed.answers() == []
        assert feed.hub.data == [1]
    feed.hub.holding.clear()
    assert feed.intake.work(0.0, ANSWER_BYTES_MAX) is State.IDLE
    assert feed.hub.data == [1, 2, 3]
    assert [answer.get("line", answer.get("ack")) for answer in feed.answers()] == [2, 4]


def test_a_line_with_an_ack_waits_for_room() -> None:
    feed = Feed()
    feed.intake.receive(b'{"data":1}\n{"data":2,"ack":2}\n')
    assert feed.intake.work(0.0, 0) is State.FULL
    assert feed.hub.data == [1]
    assert feed.intake.work(0.0, 1) is State.IDLE
    assert feed.answers() == [{"ack": 2, "id": "e-2"}]


def test_a_bad_line_with_an_ack_waits_for_room() -> None:
    feed = Feed()
    feed.intake.receive(b'{"topic":"bad","ack":1}\n')
    assert feed.intake.work(0.0, 0) is State.FULL
    assert feed.reports == []
    assert feed.intake.work(0.0, 1) is State.IDLE
    assert feed.reports == [("event", 1, "topic: is bad")]
    assert feed.answers() == [{"error": "topic: is bad", "line": 1, "ack": 1}]


def test_a_bad_line_without_an_ack_is_not_answered_without_room() -> None:
    feed = Feed()
    feed.intake.receive(b'{\n{"data":1}\n')
    assert feed.intake.work(0.0, 0) is State.IDLE
    assert feed.hub.data == [1]
    assert len(feed.reports) == 1
    assert feed.answers() == []


def test_the_answers_of_a_turn_are_bounded() -> None:
    feed = Feed()
    line = b'{"data":1,"ack":"%s"}\n' % (b"x" * 900)
    feed.intake.receive(line * TURN_LINES)
    assert feed.intake.work(0.0, 2000) is State.FULL
    assert len(feed.hub.events) == 3
    assert len(feed.answers()) == 3


def test_an_internal_error_is_not_reported_as_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        Feed().send(b'{"topic":"broken"}\n')


FRAGMENTS = st.sampled_from(
    [
        *[
            b"{",
            b"}",
            b'"data":',
            b'"ack":',
            b'"topic":',
            b'"bad"',
            b'"\\ud800"',
            b"1",
            b"null",
            b",",
            b"[",
            b"]",
        ],
        *[b"\n", b"\r\n", b"\xff", b'{"data":1,"ack":1}\n', b'{"data":1}\n'],
    ]
)


@given(st.lists(st.one_of(FRAGMENTS, st.binary(max_size=20))), st.integers(0, 100), st.booleans())
def test_no_input_raises_and_every_line_is_published_or_reported(
    chunks: list[bytes], room: int, answering: bool
) -> None:
    feed = Feed(answering, line_bytes_max=40)
    answers = []
    text = b"".join(chunks)
    for chunk in [*chunks, None]:
        if chunk is None:
            feed.intake.receive_end()
        else:
            feed.intake.receive(chunk)
        state = feed.intake.work(0.0, room)
        while state is not State.IDLE:
            answers += feed.answers()
            state = feed.intake.work(0.0, max(room, 1))
        answers += feed.answers()
    lines = [line for line in text.split(b"\n") if line.strip()]
    assert len(feed.hub.events) + len(feed.reports) == len(lines)
    numbers = [number for _, number, _ in feed.reports]
    assert numbers == sorted(set(numbers))
    assert len(answers) <= len(lines)
    assert answering or not answers
