"""`relay.sources.body`: a body of each content type becomes events, or an error that names the place."""

from __future__ import annotations

import msgspec
import pytest

from relay.errors import EventError, RequestError
from relay.event import Event
from relay.sources.body import parse_body, parse_data
from tests.sources.fakes import value

T = Event(topic="t")


def test_a_json_object_is_one_event_on_the_default_topic() -> None:
    body = b'{"data": {"a": 1}, "event": "e", "id": "7", "key": "k", "retry": 5}'
    event = Event(data=msgspec.Raw(b'{"a":1}'), event="e", id="7", key="k", retry=5, topic="t")
    assert parse_body("application/json; charset=utf-8", body, T) == [event]


def test_a_json_array_is_several_events_in_order() -> None:
    body = b' [{"data": "a"}, {"data": "b", "topic": "own"}]'
    assert parse_body("Application/JSON", body, T) == [
        Event(data="a", topic="t"),
        Event(data="b", topic="own"),
    ]
    assert parse_body("application/json", b"[]", T) == []


@pytest.mark.parametrize("media", ["application/x-ndjson", "application/ndjson"])
def test_ndjson_is_one_event_per_line_and_empty_lines_are_skipped(media: str) -> None:
    body = b'{"data": 1}\r\n\n  \n{"data": 2}'
    assert [value(event.data) for event in parse_body(media, body, T)] == [1, 2]


@pytest.mark.parametrize(
    ("media", "body", "ttls"),
    [
        ("application/json", b'{"data": 1}', [60]),
        ("application/json", b'{"data": 1, "ttl": 0}', [0]),
        ("application/json", b'[{"data": 1, "ttl": 5}, {"data": 2}]', [5, 60]),
        ("application/x-ndjson", b'{"data": 1, "ttl": 5}\n{"data": 2}', [5, 60]),
        ("text/event-stream", b"data: 1\n\ndata: 2\n\n", [60, 60]),
        ("text/plain", b"1", [60]),
    ],
)
def test_the_ttl_of_a_request_applies_to_events_that_have_none(media: str, body: bytes, ttls: list[float]) -> None:
    assert [event.ttl for event in parse_body(media, body, Event(topic="t", ttl=60))] == ttls


@pytest.mark.parametrize("media", ["application/x-ndjson", "text/event-stream", "text/plain"])
def test_events_of_one_body_never_share_an_id(media: str) -> None:
    with pytest.raises(RequestError, match="each needs an id of its own") as raised:
        parse_body(media, b"1\n2\n", Event(topic="t", id="i"), is_data=True, as_lines=True)
    assert raised.value.status == 400


def test_text_is_the_data_of_one_event_unchanged() -> None:
    events = parse_body("text/plain", "a\r\nö\n".encode(), Event(topic="t", event="e", id="i", key="k"))
    assert events == [Event(data="a\r\nö\n", event="e", id="i", key="k", topic="t")]
    assert parse_body("text/csv;charset=UTF-8", b"", T) == [Event(data="", topic="t")]


def test_bytes_of_a_text_that_are_not_utf8_are_replaced_and_a_byte_order_mark_is_skipped() -> None:
    [event] = parse_body("text/plain", b"\xef\xbb\xbfab\xff", T)
    assert event.data == "ab\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
def test_a_byte_order_mark_before_json_is_skipped(media: str) -> None:
    assert [event.data for event in parse_body(media, b'\xef\xbb\xbf{"data":"a"}', T)] == ["a"]


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
        parse_body(content_type, b"{}", T)
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
        parse_body(media, body, T)
    assert where in str(caught.value)
    assert caught.value.field == field


def test_the_dedup_key_of_a_request_is_numbered_if_the_body_can_hold_several_events() -> None:
    def keys(media: str, body: bytes) -> list[str | None]:
        return [event.dedup for event in parse_body(media, body, Event(topic="t", dedup="k"))]

    assert keys("text/plain", b"a") == keys("application/json", b'{"data": 1}') == ["k"]
    assert keys("application/json", b'{"data": 1, "dedup": "own"}') == ["own"]
    assert keys("application/json", b'[{"data": 1}]') == ["k:1"]
    ndjson = b'{"data": 1}\n\n{"data": 2, "dedup": "own"}\n{"data": 3}'
    assert keys("application/x-ndjson", ndjson) == ["k:1", "own", "k:4"]


FIELDS = Event(topic="t", event="e", dedup="d")


@pytest.mark.parametrize("media", ["application/json", "application/cloudevents+json"])
def test_a_json_body_is_data_and_keeps_its_notation(media: str) -> None:
    body = b'\xef\xbb\xbf {"a": 1.0, "b": [true, null], "a": -0}\n'
    event = parse_data(media, body, FIELDS)
    assert event == Event(data=msgspec.Raw(b'{"a":1.0,"b":[true,null],"a":-0}'), topic="t", event="e", dedup="d")
    assert parse_data(media, b'"text"', FIELDS).data == "text"
    assert parse_data(media, b"7", FIELDS).data == msgspec.Raw(b"7")


def test_a_text_body_is_data() -> None:
    assert parse_data("text/plain", b"a\nb", FIELDS).data == "a\nb"


def test_the_fields_of_a_form_are_an_object() -> None:
    form = "application/x-www-form-urlencoded"
    assert parse_data(form, b"a=1&b=x+y%C3%A9&a=2&c=", FIELDS).data == {"a": ["1", "2"], "b": "x yé", "c": ""}
    assert parse_data(form, b"", FIELDS).data == {}
    assert parse_data(form, b"a=%ff", FIELDS).data == {"a": "\N{REPLACEMENT CHARACTER}"}
    with pytest.raises(EventError, match="more than 1000 fields"):
        parse_data(form, b"&".join([b"a=1"] * 1001), FIELDS)


def test_members_of_a_json_body_become_fields() -> None:
    members = {"event": ".type", "id": ".data.number", "dedup": ".missing", "key": ".data"}
    event = parse_data("application/json", b'{"type": "paid", "data": {"number": 7}}', FIELDS, members)
    assert (event.event, event.id, event.dedup, event.key) == ("paid", "7", "d", None)
    for body in (b"[1]", b'"type"', b'{"type": null}', b'{"type": 1.5}', b'{"type": {"a": 1}}'):
        assert parse_data("application/json", body, FIELDS, members).event == "e"


@pytest.mark.parametrize("media", ["", "application/xml", "image/png", "multipart/form-data; boundary=x"])
def test_data_of_another_content_type_is_rejected_with_the_accepted_ones(media: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_data(media, b"{}", FIELDS)
    assert caught.value.status == 415
    assert "application/x-www-form-urlencoded" in dict(caught.value.headers)["Accept-Post"]


@pytest.mark.parametrize("body", [b"", b"{", b"{} x", b'{"a": NaN}', b'"\xff"', b"[" * 600 + b"]" * 600])
def test_data_that_is_not_json_is_rejected(body: bytes) -> None:
    with pytest.raises(EventError):
        parse_data("application/json", body, FIELDS)
