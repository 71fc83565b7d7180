"""`relay.sources.mapping`: a message of a feed becomes an event, with the topic of the template."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from relay.errors import ConfigError, EventError
from relay.event import Event
from relay.sources.feed import FeedMessage
from relay.sources.mapping import MessageMapping

SOURCE = "redis://h:6379/0?stream=a"
KEY = "2ee7992b/"


def convert(options: Mapping[str, str], message: FeedMessage, topic: str = "default", source: str = SOURCE) -> Event:
    return MessageMapping(options, topic, source).event(message)


@pytest.mark.parametrize(
    ("template", "name", "topic"),
    [
        ("orders", "a/b", "orders"),
        ("in.{0}", "sensors/7/temperature", "in.sensors.7.temperature"),
        ("in.{2}.{1}", "orders:eu", "in.eu.orders"),
        ("{3}", "a.b.c", "c"),
        ("{0}", "/leading/and//empty/", "leading.and.empty"),
        ("x.{customer}", "a", "x.ada"),
        ("{{x}}", "a", "{x}"),
    ],
)
def test_a_template_contains_levels_and_fields(template: str, name: str, topic: str) -> None:
    message = FeedMessage(name, b"x", {"customer": "ada"})
    assert convert({"topic": template}, message).topic == topic


def test_other_fields_have_templates_too_and_the_position_is_the_dedup_key() -> None:
    message = FeedMessage("a/b", b"x", {"kind": "created", "id": "7"}, "a/12")
    assert convert({}, message) == Event(data="x", topic="default", dedup=KEY + "a/12")
    event = convert({"event": "{kind}", "key": "order-{id}", "dedup": "{id}"}, message)
    assert event == Event(data="x", topic="default", event="created", key="order-7", dedup="7")
    assert convert({}, message._replace(position="")).dedup is None


def test_positions_of_different_servers_have_different_keys_and_long_positions_fit() -> None:
    message = FeedMessage("a", b"x", {}, "a/1")
    assert convert({}, message).dedup != convert({}, message, source="redis://other:6379/0?stream=a").dedup
    first, second = (convert({}, message._replace(position="x" * 1000 + end)).dedup or "" for end in "12")
    assert first != second
    assert len(first) == len(second) < 100


def test_the_topic_of_the_settings_is_not_a_template() -> None:
    assert convert({}, FeedMessage("a", b"x", {}), "{1}").topic == "{1}"


@pytest.mark.parametrize(
    ("options", "fields", "data"),
    [
        ({}, {"data": "x", "more": "y"}, "x"),
        ({"data": "more"}, {"data": "x", "more": "y"}, "y"),
        ({}, {"customer": "ada", "total": "1.50"}, '{"customer":"ada","total":"1.50"}'),
    ],
)
def test_the_data_of_a_message_of_fields(options: dict[str, str], fields: dict[str, str], data: str) -> None:
    assert convert(options, FeedMessage("a", None, fields)).data == data


@pytest.mark.parametrize("options", [{}, {"data": "more"}, {"data": "more", "format": "event"}])
def test_a_field_that_is_not_utf8_is_rejected_if_it_is_data(options: dict[str, str]) -> None:
    message = FeedMessage("a", None, {"more": b"\xff".decode(errors="surrogateescape")})
    with pytest.raises(EventError, match=r"^data: .* is not UTF-8"):
        convert(options, message)
    assert convert({}, message._replace(fields={**message.fields, "data": "x"})).data == "x"


def test_a_payload_may_be_an_event_with_its_own_fields() -> None:
    text = b'{"data": {"n": 1.50}, "event": "created", "topic": "own"}'
    message = FeedMessage("a", text, {}, "a/1")
    event = convert({"format": "event", "topic": "{1}"}, message)
    assert (bytes(event.data), event.event, event.topic, event.dedup) == (b'{"n":1.50}', "created", "own", KEY + "a/1")
    message = message._replace(payload=b'{"data": "x", "dedup": "mine"}')
    event = convert({"format": "event", "topic": "{1}"}, message)
    assert (event.topic, event.dedup) == ("a", "mine")


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        ({"topic": "{customer}"}, FeedMessage("a", b"x", {}), "topic: the message has no part 'customer'"),
        ({"topic": "{2}"}, FeedMessage("a", b"x", {}), "topic: the message has no part '2'"),
        ({}, FeedMessage("a", b"x\xff", {}), "data: byte 1 is not UTF-8"),
        ({}, FeedMessage("a", None, {}), "data: the message has no field 'data'"),
        ({"data": "body"}, FeedMessage("a", None, {"x": "y"}), "data: the message has no field 'body'"),
        ({"format": "event"}, FeedMessage("a", b"no JSON", {}), "event: not valid JSON"),
    ],
)
def test_a_message_that_cannot_be_converted_is_an_error(
    options: dict[str, str], message: FeedMessage, error: str
) -> None:
    with pytest.raises(EventError) as raised:
        convert(options, message)
    assert str(raised.value).startswith(error)


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a:3}", "{a!r}"])
def test_a_malformed_template_is_an_error_of_the_settings(template: str) -> None:
    with pytest.raises(ConfigError, match=r"source: topic: .* is not a template"):
        MessageMapping({"topic": template}, "default", SOURCE)
