"""The form `ndjson`: one JSON object per line, for `Accept: application/x-ndjson`.

An event is `{"id": …, "event": …, "topic": …, "data": …}`; absent fields are omitted. `data` is the event's data. An
object or array is embedded as JSON; all other data is a string, even if it looks like a number. Notices have the same
members without `topic`, and `retry` in milliseconds. A heartbeat or other comment is an empty line, which JSON parsers
skip as white space.

U+0085, U+2028 and U+2029 are escaped, because some clients end a line at them, for example
`httpx.Response.iter_lines`.

Owns this format, and reading the fields of a stored frame. Never sends.
"""

from __future__ import annotations

import orjson

_SPACES = bytes.maketrans(b"\r\n", b"  ")

# As UTF-8. In JSON, these characters occur in strings only, and never after a backslash.
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


def dumps(members: dict[str, object]) -> bytes:
    """Return an object as JSON in one line, by any definition of a line."""
    line = orjson.dumps(members)
    for character, escape in _LINE_ENDS:
        if character in line:
            line = line.replace(character, escape)
    return line


class Fields:
    """The fields of a frame as `relay.sse.encode` writes it: event, id, retry and data, each at most once, in order.

    Args:
        frame: the frame.
    """

    __slots__ = ("before_data", "data", "event", "id", "retry")

    def __init__(self, frame: bytes) -> None:
        self.event: str | None = None
        self.id: str | None = None
        self.retry: int | None = None
        self.data: bytes | None = None  # with LF between its lines
        place = 0
        while True:
            stop = frame.find(b"\n", place)
            if stop <= place:
                break
            name, _, value = frame[place:stop].partition(b": ")
            if name == b"data":
                # All remaining lines are data, except the empty line at the end.
                self.data = frame[place + 6 : -2].replace(b"\ndata: ", b"\n")
                break
            if name == b"id":
                self.id = value.decode()
            elif name == b"event":
                self.event = value.decode()
            elif name == b"retry":
                self.retry = int(value)
            place = stop + 1
        self.before_data = frame[:place]


class Ndjson:
    """Newline-delimited JSON."""

    name = "ndjson"
    media_types: tuple[str, ...] = ("application/x-ndjson", "application/ndjson", "application/jsonl")

    def entry(self, frame: bytes, topic: str) -> bytes:
        """Return the event as a line."""
        return _line(frame, topic)

    def notice(self, frame: bytes) -> bytes:
        """Return the notice as a line without a topic; an empty line for a comment."""
        return _line(frame, None)


def data_json(data: bytes) -> object:
    """Return an event's data as a value for `dumps`: an object or array unchanged, anything else as a string.

    Args:
        data: the data in UTF-8. In JSON, line ends are white space outside strings, so they become spaces.
    """
    if data[:1] in (b"{", b"["):
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError:
            pass
        else:
            return orjson.Fragment(data.translate(_SPACES))
    return data.decode()


def _line(frame: bytes, topic: str | None) -> bytes:
    fields = Fields(frame)
    members: dict[str, object] = {}
    if fields.id is not None:
        members["id"] = fields.id
    if fields.event is not None:
        members["event"] = fields.event
    if fields.retry is not None:
        members["retry"] = fields.retry
    if topic is not None:
        members["topic"] = topic
    if fields.data is not None:
        members["data"] = data_json(fields.data)
    return dumps(members) + b"\n" if members else b"\n"
