"""The HTTP source: parses the body of a publish request into events.

Owns the list of accepted content types and the parser of each; sans-IO. Never publishes, waits or responds.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable

import msgspec

from relay.errors import EventError, RequestError
from relay.event import Event
from relay.event_json import decode_text, parse_event, parse_events

ACCEPTED = "application/json, application/x-ndjson, text/plain"

_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
_ITEM = re.compile(r"\[(\d+)\]\.?(.*)", re.DOTALL)


def parse_body(
    content_type: str,
    body: bytes,
    topic: str,
    *,
    event: str | None = None,
    id: str | None = None,
    key: str | None = None,
) -> list[Event]:
    """Parse the body of a publish request into events. One bad event fails the whole body.

    A JSON object is one event and a JSON array is several. NDJSON (`application/x-ndjson`) has one event per line;
    empty lines are skipped. A body of any `text/…` type is the data of one event.

    Args:
        content_type: value of the Content-Type header; empty if the header is missing.
        body: the whole body.
        topic: topic of events that name none.
        event: event type, for a text body.
        id: id of the event, for a text body.
        key: key of the event, for a text body.

    Returns:
        The events in order, each with a topic.

    Raises:
        EventError: an event is malformed; the reason names the line or the item.
        RequestError: 415, the content type is not supported, or the charset is not UTF-8.
    """
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\";\s]*)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(415, "the body must be UTF-8")
    if media.startswith("text/"):
        return [Event(data=decode_text(body.removeprefix(BOM_UTF8)), event=event, id=id, key=key, topic=topic)]
    parse = _PARSERS.get(media)
    if parse is None:
        named = f"content type {media!r}" if media else "a body without a content type"
        raise RequestError(415, f"{named} is not taken; send one of {ACCEPTED}", (("Accept-Post", ACCEPTED),))
    replace = msgspec.structs.replace
    return [item if item.topic is not None else replace(item, topic=topic) for item in parse(body)]


def _json(body: bytes) -> list[Event]:
    if not _ARRAY.match(body):
        return [parse_event(body)]
    try:
        return parse_events(body)
    except EventError as error:
        item = _ITEM.fullmatch(error.field)
        if item is None:
            raise
        raise EventError(item[2] or "event", f"{error.reason} (item {int(item[1]) + 1})") from None


def _ndjson(body: bytes) -> list[Event]:
    events = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            events.append(parse_event(line))
        except EventError as error:
            raise EventError(error.field, f"{error.reason} (line {number})") from None
    return events


_PARSERS: dict[str, Callable[[bytes], list[Event]]] = {
    "application/json": _json,
    "application/ndjson": _ndjson,
    "application/x-ndjson": _ndjson,
}
