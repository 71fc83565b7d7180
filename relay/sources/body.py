"""The HTTP source: parses the body of a publish request into events.

A body either describes events (`parse_body`), or is the data of one event (`parse_data`), for senders that do not know
relay. A body that consists of lines can also be parsed while it arrives (`line_format`).

Owns the lists of accepted content types and the parser of each; sans-IO. Never publishes, waits or responds.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from relay.errors import EventError, RequestError
from relay.event import Event
from relay.event_json import BAD_JSON, DEPTH_MAX, decode_text, json_error, parse_event, parse_events
from relay.http.idempotency import number_key
from relay.sources.lines import Line, LineSplitter, StreamSplitter, pass_event
from relay.speedups import json_data

ACCEPTED = "application/json, application/x-ndjson, text/event-stream, text/plain"
ACCEPTED_AS_DATA = (
    "application/json, application/x-www-form-urlencoded, application/x-ndjson, text/event-stream, text/plain"
)

FORM_FIELDS_MAX = 1000
"""Most fields of a form."""

_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
_ITEM = re.compile(r"\[(\d+)\]\.?(.*)", re.DOTALL)
_JSON = re.compile(r"application/(?:json|[!#$&^_.+0-9a-z-]+\+json)")
_FORM = "application/x-www-form-urlencoded"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_EVENT_STREAM = "text/event-stream"

_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_scalar = msgspec.json.Decoder(str | int | None).decode


def parse_body(
    content_type: str,
    body: bytes,
    fields: Event,
    *,
    is_data: bool = False,
    as_lines: bool = False,
    members: Mapping[str, str] | None = None,
) -> list[Event]:
    """Parse the body of a publish request into events. One bad event fails the whole body.

    A JSON object is one event and a JSON array is several. NDJSON (`application/x-ndjson`) has one event per line;
    empty lines are skipped. An event stream (`text/event-stream`) may contain several events. A body of any other
    `text/…` type is the data of one event.

    Args:
        content_type: value of the Content-Type header; empty if the header is missing.
        body: the whole body.
        fields: the topic of events that name none; the `ttl` of events that have none; the dedup key of events that
            have none, which is numbered if the body can contain several events; and all fields of the event whose data
            is a text.

    Returns:
        The events in order, each with a topic.

    Raises:
        EventError: an event is malformed; the reason names the line or the item.
        RequestError: 415, the content type is not supported, or the charset is not UTF-8; 400, `fields` has an id, but
            the body consists of lines.
    """
    media = media_type(content_type)
    format = line_format(
        media, fields, is_data=is_data, as_lines=as_lines, members=members, bytes_max=len(body) + 1
    )
    if format is not None:
        return _parse_lines(format, body, fields.dedup)
    if is_data or media.startswith("text/"):
        return [parse_data(media, body, fields, members)]
    if media != "application/json":
        raise not_accepted(media, ACCEPTED)
    if not _ARRAY.match(body):
        return [with_defaults(parse_event(body), fields.topic, fields.dedup, fields.ttl)]
    return [
        with_defaults(
            event, fields.topic, None if fields.dedup is None else number_key(fields.dedup, number), fields.ttl
        )
        for number, event in enumerate(_parse_array(body), 1)
    ]


def parse_data(media: str, body: bytes, fields: Event, members: Mapping[str, str] | None = None) -> Event:
    """Return an event whose data is a whole body.

    JSON stays as it was written. The fields of a form become a JSON object; a field that is repeated becomes an array.
    A body of any `text/…` type becomes a string.

    Args:
        media: the media type; empty if the request names none.
        body: the whole body, or a line of it.
        fields: the topic, and the fields of the event.
        members: fields of the event whose values are members of a JSON body, with the path of each (`.data.id`). A
            field whose member is missing is not changed.

    Raises:
        EventError: the body is not valid JSON.
        RequestError: 415, the media type is not accepted.
    """
    if media.startswith("text/"):
        return _text_event(body, fields)
    if media == _FORM:
        return msgspec.structs.replace(fields, data=_form(body))
    if not _JSON.fullmatch(media):
        raise not_accepted(media, ACCEPTED_AS_DATA)
    text = body.removeprefix(BOM_UTF8)
    try:
        raw = _decode_raw(text)
        data = json_data(raw, DEPTH_MAX)
    except BAD_JSON as error:
        raise json_error(error, text) from None
    found = {field: value for field, path in (members or {}).items() if (value := _member(text, path)) is not None}
    return msgspec.structs.replace(fields, data=data, **found)


@dataclass(frozen=True, slots=True)
class LineFormat:
    """The format of a body that consists of lines.

    Args:
        splitter: splits the bytes into items: lines, or the events of an event stream.
        parse: turns an item into an event with a topic, or into None if the item is empty. Raises EventError.
    """

    splitter: LineSplitter | StreamSplitter
    parse: Callable[[Any], Event | None]


def line_format(
    media: str,
    fields: Event,
    *,
    is_data: bool,
    as_lines: bool = False,
    members: Mapping[str, str] | None = None,
    bytes_max: int,
) -> LineFormat | None:
    """Return the format of a body that consists of lines; None if the body is one document.

    Args:
        media: the media type.
        fields: the topic and the `ttl` of events that have none, and the fields of events whose data are lines.
        is_data: whether each line of NDJSON is the data of an event, instead of an event.
        as_lines: whether each line of a text is the data of an event.
        members: as for `parse_data`.
        bytes_max: longest line, or largest event of an event stream.

    Raises:
        RequestError: 400, `fields` has an id, which all events would share.
    """
    topic = str(fields.topic)
    is_text = as_lines and media.startswith("text/")
    if fields.id is not None and (media in _NDJSON or media == _EVENT_STREAM or is_text):
        reason = "id: a body of lines is several events, and each needs an id of its own; remove id from the request"
        raise RequestError(400, reason)

    def parse_ndjson(line: bytes) -> Event | None:
        return with_defaults(parse_event(line), topic, None, fields.ttl) if line.strip() else None

    def parse_json_data(line: bytes) -> Event | None:
        return parse_data("application/json", line, fields, members) if line.strip() else None

    def parse_streamed(line: Line) -> Event:
        event = pass_event(line)
        return Event(
            data=event.data, event=event.event, id=event.id, retry=event.retry, topic=topic, ttl=fields.ttl
        )

    fields = msgspec.structs.replace(fields, dedup=None)  # the key of a request is numbered for each line
    if media in _NDJSON:
        return LineFormat(LineSplitter(bytes_max), parse_json_data if is_data else parse_ndjson)
    if media == _EVENT_STREAM:
        return LineFormat(StreamSplitter(topic, bytes_max), parse_streamed)
    if is_text:
        return LineFormat(LineSplitter(bytes_max), lambda line: _text_event(line, fields))
    return None


def with_defaults(event: Event, topic: str | None, dedup: str | None, ttl: float | None = None) -> Event:
    """Return the event with a topic, a dedup key and a `ttl`, if it has none of its own."""
    if topic is not None and event.topic is None:
        event = msgspec.structs.replace(event, topic=topic)
    if dedup is not None and event.dedup is None:
        event = msgspec.structs.replace(event, dedup=dedup)
    if ttl is not None and event.ttl is None:
        event = msgspec.structs.replace(event, ttl=ttl)
    return event


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, in lower case.

    Raises:
        RequestError: 415, the charset is not UTF-8.
    """
    media, _, parameters = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\";\s]*)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(415, "the body must be UTF-8")
    return media.strip().lower()


def not_accepted(media: str, accepted: str) -> RequestError:
    """Return the error for a body of another content type. It names the accepted ones."""
    named = f"content type {media!r}" if media else "a body without a content type"
    return RequestError(415, f"{named} is not accepted; send one of {accepted}", (("Accept-Post", accepted),))


def _text_event(body: bytes, fields: Event) -> Event:
    return msgspec.structs.replace(fields, data=decode_text(body.removeprefix(BOM_UTF8)))


def _form(body: bytes) -> dict[str, str | list[str]]:
    """Return the fields of a form (WHATWG URL, application/x-www-form-urlencoded)."""
    try:
        pairs = parse_qsl(
            decode_text(body), keep_blank_values=True, errors="replace", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError:
        raise EventError("data", f"the form has more than {FORM_FIELDS_MAX} fields") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: each[0] if len(each) == 1 else each for name, each in values.items()}


def _member(text: bytes, path: str) -> str | None:
    """Return a member of a JSON object as text; None if it is missing, or is neither a string nor a whole number."""
    raw = msgspec.Raw(text)
    try:
        for name in path[1:].split("."):
            raw = _decode_members(raw)[name]
        value = _decode_scalar(raw)
    except (KeyError, *BAD_JSON):
        return None
    return None if value is None else str(value)


def _parse_lines(format: LineFormat, body: bytes, dedup: str | None) -> list[Event]:
    events = []
    splitter = format.splitter
    for number, item in enumerate([*splitter.feed(body.removeprefix(BOM_UTF8)), *splitter.end()], 1):
        try:
            event = format.parse(item)
        except EventError as error:
            raise EventError(error.field, f"{error.reason} (line {number})") from None
        if event is not None:
            events.append(with_defaults(event, None, None if dedup is None else number_key(dedup, number)))
    return events


def _parse_array(body: bytes) -> list[Event]:
    try:
        return parse_events(body)
    except EventError as error:
        item = _ITEM.fullmatch(error.field)
        if item is None:
            raise
        raise EventError(item[2] or "event", f"{error.reason} (item {int(item[1]) + 1})") from None
