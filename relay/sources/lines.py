"""Lines: split the bytes of a feeder into lines or events, and parse a line into an event.

Owns the splitters, which buffer at most one unfinished item of bounded size, and the parsers of a line. Sans-IO. Never
publishes or answers.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import force_setattr

from relay.errors import EventError
from relay.event import Event
from relay.event_json import DEPTH_MAX, decode_text
from relay.speedups import json_data
from relay.sse import Decoder

NO_ACK = msgspec.Raw()


class Line(Event, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a feeder: an event, and the value to return in its answer.

    Args:
        ack: any JSON value, returned as it was written; `NO_ACK` if the line asks for no answer.
    """

    ack: msgspec.Raw = NO_ACK


HEARTBEAT = "relay.heartbeat"
"""Type of the events that keep a relay's streams open. They are not published."""

UNFINISHED = Line()
"""Stands for an event that the end of the stream cut off."""


class LineSplitter:
    """Splits bytes into lines at LF. One CR before the LF is removed too.

    Args:
        line_bytes_max: longest line, without its line end. A longer line is rejected as soon as it exceeds the
            limit, and its bytes are discarded up to the next LF.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self.limit = f"line: longer than {line_bytes_max} bytes"
        self._bytes_max = line_bytes_max
        self._unfinished = bytearray()
        self._refusing = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Add bytes and return the lines that are now complete. None stands for a rejected line."""
        lines = data.split(b"\n")
        rest = lines.pop()
        finished: list[bytes | None] = []
        if lines and self._refusing:
            del lines[0]
            self._refusing = False
        elif lines and self._unfinished:
            self._unfinished += lines.pop(0)
            finished.append(self._bounded(bytes(self._unfinished)))
            self._unfinished.clear()
        if b"\r" in data or len(data) > self._bytes_max:
            finished += map(self._bounded, lines)
        else:
            finished += lines
        if rest and not self._refusing and not self._keep(rest):
            finished.append(None)
        return finished

    def pack(self) -> tuple[bytes, bool]:
        """Return the unfinished line, and whether a line that is too long is being discarded."""
        return bytes(self._unfinished), self._refusing

    def adopt(self, unfinished: bytes, refusing: bool) -> None:
        """Continue with the state of another splitter."""
        self._unfinished[:], self._refusing = unfinished, refusing

    @property
    def unfinished(self) -> bool:
        """Whether the input ends within a line. A line that is being discarded does not count."""
        return bool(self._unfinished)

    def end(self) -> list[bytes | None]:
        """Return the last line, if it has no LF."""
        last = bytes(self._unfinished)
        self._unfinished.clear()
        self._refusing = False
        if not last:
            return []
        return [last if len(last) <= self._bytes_max else None]

    def _bounded(self, line: bytes) -> bytes | None:
        line = line.removesuffix(b"\r")
        return line if len(line) <= self._bytes_max else None

    def _keep(self, rest: bytes) -> bool:
        """Buffer the start of a line unless it is too long. A CR at its end may belong to the line end."""
        excess = len(self._unfinished) + len(rest) - self._bytes_max
        if excess > 1 or (excess == 1 and not rest.endswith(b"\r")):
            self._unfinished.clear()
            self._refusing = True
            return False
        self._unfinished += rest
        return True


class StreamSplitter:
    """Splits an event stream into events with their `id`, `event` and `retry`, all on one topic.

    Args:
        topic: topic of the events.
        event_bytes_max: largest event; a larger event is rejected.
    """

    def __init__(self, topic: str, event_bytes_max: int) -> None:
        self.limit = f"event: longer than {event_bytes_max} bytes"
        self._topic = topic
        self._event_bytes_max = event_bytes_max
        self._decoder = Decoder(bytes_max=event_bytes_max)

    def feed(self, data: bytes) -> list[Line | None]:
        """Add bytes and return the events that are now complete. None stands for a rejected event."""
        before = self._decoder.refused
        try:
            events = self._decoder.feed(data)
        except EventError:
            events = self._decoder.feed(b"")  # the events that are not too long
        refused = [None] * (self._decoder.refused - before)
        return [*(self._line(event) for event in events if event.event != HEARTBEAT), *refused]

    @property
    def unfinished(self) -> bool:
        """Whether the input ends within an event, before its empty line."""
        return self._decoder.unfinished

    def end(self) -> list[Line | None]:
        """Return `UNFINISHED` if the stream ends within an event. That event is discarded (WHATWG HTML 9.2.6).

        Bytes added after this call begin a new stream.
        """
        unfinished = self._decoder.unfinished
        self._decoder = Decoder(bytes_max=self._event_bytes_max)
        return [UNFINISHED] if unfinished else []

    def _line(self, event: Event) -> Line:
        return Line(data=event.data, event=event.event, id=event.id, retry=event.retry, topic=self._topic)


class _WrittenLine(Line, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line as decoded from JSON: `data` is raw JSON until `parse_line` converts it."""

    data: msgspec.Raw = msgspec.Raw()


_decode: Callable[[bytes], Line] = msgspec.json.Decoder(_WrittenLine).decode


def parse_line(line: bytes) -> Line:
    """Parse one line of NDJSON. Raises EventError, or an error of `relay.event_json.BAD_JSON`."""
    parsed = _decode(line)
    force_setattr(parsed, "data", json_data(parsed.data, DEPTH_MAX))  # like `take_data`, but one call fewer per event
    return parsed


def parse_text(line: bytes) -> Line:
    """Return an event whose data is the line of text."""
    return Line(data=decode_text(line))


def pass_event(event: Line) -> Line:
    """Return the event, which `StreamSplitter` has already parsed. Raises EventError for `UNFINISHED`."""
    if event is UNFINISHED:
        raise EventError("event", "the stream ended before its empty line")
    return event
