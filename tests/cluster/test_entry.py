"""The format of an event in the broker: every event that relay accepts is the same after a round trip."""

from __future__ import annotations

import json

import msgspec
import pytest

from relay.cluster.entry import FORM, decode_payload, encode_payload, replacement
from relay.core.log import Entry
from relay.errors import EventError
from relay.event import Event
from relay.event_json import parse_event
from relay.sources.lines import Line
from relay.sse import encode

EPOCH = "0a1b2c3d"
BYTES_MAX = 1000


def decode(payload: bytes, form: bytes = FORM) -> Entry:
    """Decode the entry with the sequence 7."""
    return decode_payload(form, payload, EPOCH, 7, 1.5, BYTES_MAX)


@pytest.mark.parametrize(
    "event",
    [
        Event(data="text", topic="a"),
        Event(data='two\nlines, "quotes" and \N{SNOWMAN}', topic="a.b", event="kind", retry=5, key="k"),
        Event(data=msgspec.Raw(b'{"b":1.10,"a":[null,1e2]}'), topic="a"),
        Event(data={"a": 1}, topic="a", id="own id"),
        Event(topic="a", event="relay.end"),
        Event(data=None, topic="a", key=""),
    ],
)
def test_an_event_is_encoded_to_the_same_frame_at_every_node(event: Event) -> None:
    entry = decode(encode_payload(event))
    assert entry == Entry(7, 1.5, event.topic or "", event.id, event.key, encode(event, f"{EPOCH}-7", BYTES_MAX, True))


def test_a_line_of_a_feeder_is_stored_without_ack_and_dedup() -> None:
    line = Line(data="x", topic="a", dedup="d", ack=msgspec.Raw(b"1"))
    assert json.loads(encode_payload(line)) == {"data": "x", "topic": "a"}


def test_the_documented_example_is_an_event() -> None:
    payload = b'{"topic":"orders.42","data":{"price":1.50},"event":"update","key":"42"}'
    assert decode(payload).topic == "orders.42"
    assert b'data: {"price":1.50}' in decode(payload).frame


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "Expected `object`"),
        (b'{"data":"x"}', "topic: is missing"),
        (b'{"topic":"a..b","data":"x"}', "topic"),
        (b'{"topic":"a","unknown":1}', "unknown"),
        (b'{"topic":"a","id":"0a1b2c3d-1"}', "id: is not an id"),
        (b'{"topic":"a","id":"\\u00e9"}', "id: is not an id"),
        (b'{"topic":"a","key":"\\ud800"}', "lone surrogate"),
        (b'{"topic":"a","key":"' + b"k" * 257 + b'"}', "key: has 257 characters"),
        (b'{"topic":"a","event":"a\\nb"}', "event"),
        (b'{"topic":"a","event":"relay.gap"}', "event: types that begin with `relay.` are reserved"),
        (b'{"topic":"a","data":"' + b"x" * BYTES_MAX + b'"}', "data"),
    ],
)
def test_an_entry_that_is_not_an_event_is_rejected(payload: bytes, reason: str) -> None:
    with pytest.raises(EventError, match=reason):
        decode(payload)


def test_an_entry_of_another_version_is_rejected() -> None:
    with pytest.raises(EventError, match="has the format b'v2'; this version of relay reads only b'v1'"):
        decode(b'{"topic":"a"}', b"v2")


def test_data_that_is_not_json_cannot_be_published() -> None:
    with pytest.raises(EventError, match="data: not a JSON value"):
        encode_payload(Event(data=object(), topic="a"))


def test_the_replacement_of_an_entry_is_a_gap_of_one_event() -> None:
    entry = replacement(EPOCH, 7, 1.5, "news")
    assert (entry.sequence, entry.topic, entry.id) == (7, "news", None)
    assert b"event: relay.gap\n" in entry.frame
    assert b'"reason":"refused","missed":1' in entry.frame


def test_the_format_is_that_of_publishers() -> None:
    event = Event(data="x", topic="a", event="e", id="i", retry=1, key="k")
    assert parse_event(encode_payload(event)) == event
