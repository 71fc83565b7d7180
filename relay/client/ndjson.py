"""Decodes NDJSON streams of a relay: lines to events.

Owns this format: one JSON object per line, with the members `id`, `event`, `retry`, `topic` and `data`. A relay writes
it (`relay.core.forms.ndjson`). Never connects, and never resumes.
"""

from __future__ import annotations

import re

import msgspec

from relay.errors import EventError
from relay.event import Event

_DATA = re.compile(rb'[{,]"data":')


class _Members(msgspec.Struct):
    """The members of one line. Other members are ignored."""

    id: str | None = None
    event: str | None = None
    retry: int | None = None
    topic: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Members).decode


class LineDecoder:
    """Decodes an NDJSON stream, in pieces of any size, like `relay.sse.Decoder`.

    An event's data is a text: that of a JSON string, or the JSON text of any other value, as it was sent. A line
    without data gives no event. An unfinished line at the end of the stream is never decoded.

    Args:
        bytes_max: largest line, in bytes.
        last_event_id: the last event id before this stream, for a client that reconnects.
    """

    def __init__(self, bytes_max: int, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._bytes_max = bytes_max
        self._line = bytearray()
        self._skipping = False  # the line is too large

    def feed(self, data: bytes) -> list[Event]:
        """Decode the next bytes and return the events that they complete.

        Args:
            data: bytes up to the end of a line at most.

        Raises:
            EventError: the line is larger than `bytes_max`, or is not a JSON object with these members. The decoder
                continues with the next line.
        """
        ended = data.endswith(b"\n")
        if self._skipping:
            self._skipping = not ended
            return []
        self._line += data
        if len(self._line) > self._bytes_max:
            self._line.clear()
            self._skipping = not ended
            raise EventError("data", f"the event is larger than {self._bytes_max} bytes")
        if not ended:
            return []
        line = bytes(self._line).strip()
        self._line.clear()
        return self._events(line) if line else []

    def _events(self, line: bytes) -> list[Event]:
        try:
            members = _parse(line)
            text = None if isinstance(members.data, msgspec.UnsetType) else _text(bytes(members.data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EventError("data", f"not a line of a relay's NDJSON: {error}") from None
        if members.id is not None:
            self.last_event_id = members.id
        if members.retry is not None:
            self.retry_ms = members.retry
        if text is None:
            return []
        return [Event(text, members.event or None, members.id, members.retry, topic=members.topic)]


def _parse(line: bytes) -> _Members:
    try:
        return _decode(line)
    except RecursionError:
        # The data is nested too deeply to parse. A relay writes this member last, so the line can be split before it.
        found = _DATA.search(line)
        if found is None:
            raise
        members = _decode((line[: found.start()] or b"{") + b"}")
        members.data = msgspec.Raw(line[found.end() : -1])
        return members


def _text(value: bytes) -> str:
    return str(msgspec.json.decode(value)) if value.startswith(b'"') else value.decode()
