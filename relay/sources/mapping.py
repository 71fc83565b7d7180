"""The mapping: converts a message of a feed to an event.

Owns the templates and the conversion; sans-IO. Never publishes.

A template is text with parts in braces, such as `orders.{customer}`. A part is the name of a field, the number of a
level in the message's name (its topic, channel or subject), or `{0}` for the whole name with its levels joined by dots.
The characters `.`, `/` and `:` divide a name into levels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from string import Formatter

import orjson
from msgspec.structs import replace

from relay.errors import ConfigError, EventError
from relay.event import Event
from relay.event_json import parse_event
from relay.sources.feed import FeedMessage

POSITION_CHARACTERS_MAX = 200
"""Longest position that a dedup key contains; the key contains a digest of a longer one."""

_DIVIDER = re.compile("[./:]")


class MessageMapping:
    """Converts the messages of one source.

    Args:
        options: `topic`, `event`, `key` and `dedup` are templates; `format` is `text` or `event`; `data` is the name of
            the field that contains the data.
        topic: the topic, if the options have no template of it.
        source: the address of the feed, without credentials. Feeds of different servers have different `dedup` keys.

    Raises:
        ConfigError: a template is malformed.
    """

    def __init__(self, options: Mapping[str, str], topic: str, source: str) -> None:
        self._source = _digest(source)[:8]
        self._topic = _Template("topic", options.get("topic", topic.replace("{", "{{").replace("}", "}}")))
        self._templates = {
            name: _Template(name, options[name]) for name in ("event", "key", "dedup") if name in options
        }
        self._is_event = options.get("format") == "event"
        self._data = options.get("data")

    def event(self, message: FeedMessage) -> Event:
        """Convert a message.

        Raises:
            EventError: the data is not UTF-8 or not an event, or a part of a template is missing.
        """
        levels = [level for level in _DIVIDER.split(message.name) if level]
        parts = {str(place): level for place, level in enumerate(levels, 1)} | {"0": ".".join(levels)}
        parts |= message.fields
        data = self._text(message)
        event = parse_event(data.encode()) if self._is_event else Event(data=data)
        changes = {name: template.fill(parts) for name, template in self._templates.items()}
        if event.topic is None:
            changes["topic"] = self._topic.fill(parts)
        if event.dedup is None and "dedup" not in changes and message.position:
            changes["dedup"] = self._key(message.position)
        return replace(event, **changes)

    def _key(self, position: str) -> str:
        """Return the dedup key of a position. Long positions contain long names."""
        return f"{self._source}/{position if len(position) <= POSITION_CHARACTERS_MAX else _digest(position)}"

    def _text(self, message: FeedMessage) -> str:
        """Return the data of a message as text. A message of fields without the data's field becomes a JSON object."""
        if message.payload is None:
            text = message.fields.get(self._data or "data")
            if text is not None:
                return _utf8(text)
            if self._data or not message.fields:
                raise EventError("data", f"the message has no field {self._data or 'data'!r}")
            try:
                return orjson.dumps(dict(message.fields)).decode()
            except orjson.JSONEncodeError:
                raise EventError("data", "a field of the message is not UTF-8") from None
        try:
            return message.payload.decode()
        except UnicodeDecodeError as error:
            raise EventError("data", f"byte {error.start} is not UTF-8") from None


class _Template:
    """The template of one field of an event."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"source: {name}: {text!r} is not a template: {error}") from None
        if any(each[1] == "" or each[2] or each[3] for each in parts):
            raise ConfigError(f"source: {name}: {text!r} is not a template: write a part as a name in braces: {{key}}")
        self._parts = [(literal, part) for literal, part, _, _ in parts]

    def fill(self, parts: Mapping[str, str]) -> str:
        """Return the text with the parts of a message.

        Raises:
            EventError: the message does not have a part.
        """
        filled = []
        for literal, part in self._parts:
            filled.append(literal)
            if part is not None:
                if part not in parts:
                    raise EventError(self._name, f"the message has no part {part!r}")
                filled.append(parts[part])
        return "".join(filled)


def _utf8(text: str) -> str:
    """Return the text of a field. Raise EventError if its bytes are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EventError("data", "the field of the message is not UTF-8") from None
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
