"""Lines: a feeder's bytes cut into lines or events, and a line turned into an event.

Owns the splitters, which hold back at most one unfinished item of bounded size, and the forms of a line.
Sans-IO; never publishes or answers.
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
    """One line of a feeder: an event, and what its answer is to carry.

    Args:
        ack: any JSON value, given back as it was written; `NO_ACK` asks for no answer.
    """

    ack: msgspec.Raw = NO_ACK


HEARTBEAT = "relay.heartbeat"
"""Type of the events with which a relay keeps its streams open; they are not passed on."""

UNFINISHED = Line()
"""Stands for an event that the end of a stream has cut."""


class LineSplitter:
    """Cuts bytes into lines at LF; a CR before it goes with it, nothing else does.

    Args:
        line_bytes_max: longest line, without its end. A longer one is refused as soon as that is known, and
            its bytes are thrown away up to the next LF.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self.limit = f"line: longer than {line_bytes_max} bytes"
        self._bytes_max = line_bytes_max
        self._unfinished = bytearray()
        self._refusing = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take the next bytes; return the lines that they finish, None for one that is refused."""
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
        """Return the line that is not finished, and whether one is being refused."""
        return bytes(self._unfinished), self._refusing

    def adopt(self, unfinished: bytes, refusing: bool) -> None:
        """Go on where another splitter stopped."""
        self._unfinished[:], self._refusing = unfinished, refusing

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun and its end has not come; one that is refused does not count."""
        return bool(self._unfinished)

    def end(self) -> list[bytes | None]:
        """Return the last line, where it has no LF."""
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
        """Keep the beginning of a line, unless it is too long already. A CR may turn out to be its end's."""
        excess = len(self._unfinished) + len(rest) - self._bytes_max
        if excess > 1 or (excess == 1 and not rest.endswith(b"\r")):
            self._unfinished.clear()
            self._refusing = True
            return False
        self._unfinished += rest
        return True


class StreamSplitter:
    """Cuts an event stream into events, each with its own `id`, `event` and `retry`, all on one topic.

    Args:
        topic: where they go.
        event_bytes_max: largest event; a larger one is refused.
    """

    def __init__(self, topic: str, event_bytes_max: int) -> None:
        self.limit = f"event: longer than {event_bytes_max} bytes"
        self._topic = topic
        self._event_bytes_max = event_bytes_max
        self._decoder = Decoder(bytes_max=event_bytes_max)

    def feed(self, data: bytes) -> list[Line | None]:
        """Take the next bytes; return the events that they finish, None for one that is refused."""
        before = self._decoder.refused
        try:
            events = self._decoder.feed(data)
        except EventError:
            events = self._decoder.feed(b"")  # those that were not too long
        refused = [None] * (self._decoder.refused - before)
        return [*(self._line(event) for event in events if event.event != HEARTBEAT), *refused]

    @property
    def unfinished(self) -> bool:
        """Whether an event has begun and its empty line has not come."""
        return self._decoder.unfinished

    def end(self) -> list[Line | None]:
        """Return `UNFINISHED` where the stream ends within an event, which is discarded (WHATWG HTML 9.2.6).

        What comes next is another stream.
        """
        unfinished = self._decoder.unfinished
        self._decoder = Decoder(bytes_max=self._event_bytes_max)
        return [UNFINISHED] if unfinished else []

    def _line(self, event: Event) -> Line:
        return Line(data=event.data, event=event.event, id=event.id, retry=event.retry, topic=self._topic)


class _WrittenLine(Line, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line as JSON has it: `data` is text until `take_data` is called."""

    data: msgspec.Raw = msgspec.Raw()


_decode: Callable[[bytes], Line] = msgspec.json.Decoder(_WrittenLine).decode


def parse_line(line: bytes) -> Line:
    """Parse one line of NDJSON. Raises EventError, or what `relay.event_json.BAD_JSON` lists."""
    parsed = _decode(line)
    force_setattr(parsed, "data", json_data(parsed.data, DEPTH_MAX))  # as `take_data`, with one call fewer an event
    return parsed


def parse_text(line: bytes) -> Line:
    """Make a line of text an event's data."""
    return Line(data=decode_text(line))


def pass_event(event: Line) -> Line:
    """Return the event: what comes from an event stream is parsed already. Raises EventError for `UNFINISHED`."""
    if event is UNFINISHED:
        raise EventError("event", "the stream ended before its empty line")
    return event
