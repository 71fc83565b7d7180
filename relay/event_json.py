"""Events from JSON: an object with the fields of `Event`, from a feeder's line or a request's body.

All sources read JSON by the same rule. It is UTF-8, and a byte order mark at its start is skipped. Text that is not
JSON (RFC 8259) is rejected, and the error names the place. This includes NaN, an escaped lone surrogate and nesting
deeper than `DEPTH_MAX`. Data that is not a string is copied as it was written, without the white space between its
tokens. So numbers keep their digits and signs, and two members with the same name are both kept. Text input
(`decode_text`) is decoded by WHATWG Encoding: bytes that are not UTF-8 become U+FFFD.

Owns this rule and the text of its errors. Never decides where an event is published.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8

import msgspec
from msgspec.structs import force_setattr

from relay.errors import EventError
from relay.event import Event
from relay.speedups import json_data

DEPTH_MAX = 512
"""Levels to which the objects and arrays of an event's data may be nested."""

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The exceptions of msgspec for text that is not JSON, or has the wrong type."""

# A pair of surrogates or an escaped character is skipped. Any other surrogate is lone.
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


class _WrittenEvent(Event, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A decoded event whose `data` is still JSON text, until `take_data` is called."""

    data: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_WrittenEvent).decode
_decode_events = msgspec.json.Decoder(list[_WrittenEvent]).decode


def take_data(event: Event) -> None:
    """Turn an event's data from JSON text into a string, or into compact JSON.

    Args:
        event: just decoded, and not shared with other code yet.

    Raises:
        EventError: the data is nested too deeply.
        UnicodeDecodeError: the data is a string that is not UTF-8.
    """
    force_setattr(event, "data", json_data(event.data, DEPTH_MAX))


def parse_event(text: bytes) -> Event:
    """Parse one JSON object into an event.

    Raises:
        EventError: not JSON, not an object, an unknown field, or a field of a wrong type.
    """
    text = text.removeprefix(BOM_UTF8)
    try:
        return _finished(_decode_event(text))
    except BAD_JSON as error:
        raise json_error(error, text) from None


def parse_events(text: bytes) -> list[Event]:
    """Parse a JSON array of events; raises as `parse_event`, with a field like `[2].id`."""
    text = text.removeprefix(BOM_UTF8)
    try:
        return [_finished(event) for event in _decode_events(text)]
    except BAD_JSON as error:
        raise json_error(error, text) from None


def json_error(error: Exception, text: bytes) -> EventError:
    """Return an error that describes a fault in JSON text and its place.

    Args:
        error: one of `BAD_JSON`.
        text: the text that was parsed.

    Returns:
        the error. It names the field that has a wrong type (msgspec ends its message with the path:
        "… - at `$.retry`"), or `event` for the whole event.
    """
    if isinstance(error, RecursionError):
        return EventError("data", f"JSON is nested more than {DEPTH_MAX} levels deep")
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return _not_json(f"byte {wrong.start} is not UTF-8")
    message = str(error)
    if isinstance(error, msgspec.ValidationError):
        reason, _, path = message.partition(" - at `$")
        return EventError(path.rstrip("`").lstrip(".") or "event", reason)
    if "truncated" not in message:
        return _not_json(message.removeprefix("JSON is malformed: "))
    # msgspec reports a lone surrogate as truncated too.
    lone = next((match for match in _LONE.finditer(text) if match["lone"]), None)
    if lone is not None and _is_whole(text):
        return _not_json(f"lone surrogate {lone['lone'].decode()} at byte {lone.start()}")
    return _not_json(f"it ends after byte {len(text)}")


def decode_text(text: bytes) -> str:
    """Decode text input: bytes that are not UTF-8 become U+FFFD (WHATWG Encoding, UTF-8 decode without BOM)."""
    return text.decode(errors="replace")


def _not_json(reason: str) -> EventError:
    return EventError("event", f"not valid JSON: {reason}")


def _finished(event: _WrittenEvent) -> Event:
    take_data(event)
    return Event(event.data, event.event, event.id, event.retry, event.key, event.topic, event.dedup, event.ttl)


def _is_whole(text: bytes) -> bool:
    """Return whether the JSON text is complete. The standard library accepts lone surrogates."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
