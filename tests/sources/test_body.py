"""`relay.sources.body`: a body of each content type becomes events, or an error that names the place."""

from __future__ import annotations

import msgspec
import pytest

from relay.errors import EventError, RequestError
from relay.event import Event
from relay.sources.body import parse_body
from tests.sources.fakes import value


def test_a_json_object_is_one_event_on_the_default_topic() -> None:
    body = b'{"data": {"a": 1}, "event": "e", "id": "7", "key": "k", "retry": 5}'
    event = Event(data=msgspec.Raw(b'{"a":1}'), event="e", id="7", key="k", retry=5, topic="t")
    assert parse_body("application/json; charset=utf-8", body, "t") == [event]


def test_a_json_array_is_several_events_in_order() -> None:
    body = b' [{"data": "a"}, {"data": "b", "topic": "own"}]'
    assert parse_body("Application/JSON", body, "t") == [
        Event(data="a", topic="t"),
        Event(data="b", topic="own"),
    ]
    assert parse_body("application/json", b"[]", "t") == []


@pytest.mark.parametrize("media", ["application/x-ndjson", "application/ndjson"])
def test_ndjson_is_one_event_per_line_and_empty_lines_are_skipped(media: str) -> None:
    body = b'{"data": 1}\r\n\n  \n{"data": 2}'
    assert [value(event.data) for event in parse_body(media, body, "t")] == [1, 2]


def test_text_is_the_data_of_one_event_unchanged() -> None:
    events = parse_body("text/plain", "a\r\nö\n".encode(), "t", event="e", id="i", key="k")
    assert events == [Event(data="a\r\nö\n", event="e", id="i", key="k", topic="t")]
    assert parse_body("text/csv;charset=UTF-8", b"", "t") == [Event(data="", topic="t")]


def test_bytes_of_a_text_that_are_not_utf8_are_replaced_and_a_byte_order_mark_is_skipped() -> None:
    [event] = parse_body("text/plain", b"\xef\xbb\xbfab\xff", "t")
    assert event.data == "ab\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
def test_a_byte_order_mark_before_json_is_skipped(media: str) -> None:
    assert [event.data for event in parse_body(media, b'\xef\xbb\xbf{"data":"a"}', "t")] == ["a"]


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "text/plain; charset=latin-1",
        'application/json; charset="utf-16"',
    ],
)
def test_other_content_types_are_rejected(content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(content_type, b"{}", "t")
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("media", "body", "field", "where"),
    [
        ("application/json", b'{"data": 1, "retry": "x"}', "retry", ""),
        ("application/json", b'{"data": 1, "odd": 1}', "event", "odd"),
        ("application/json", b"", "event", ""),
        ("application/json", b"7", "event", ""),
        ("application/json", b'{"data": "\xff"}', "event", ""),
        ("application/json", b"[" * 100_000, "event", ""),
        ("application/json", b'[{"data": 1}, {"data": 2, "id": 5}]', "id", "item 2"),
        ("application/json", b'[{"data": 1}, 5]', "event", "item 2"),
        ("application/json", b'[{"data": 1}', "event", ""),
        ("application/x-ndjson", b'{"data": 1}\n\n{"data": 2, "topic": 5}\n', "topic", "line 3"),
        ("application/x-ndjson", b'{"data": 1}\n{"data"', "event", "line 2"),
    ],
)
def test_a_malformed_event_is_an_error_with_field_and_place(media: str, body: bytes, field: str, where: str) -> None:
    with pytest.raises(EventError) as caught:
        parse_body(media, body, "t")
    assert where in str(caught.value)
    assert caught.value.field == field
