"""The codec in Python: encodes events as WHATWG event-stream bytes, and decodes such bytes.

Owns the rules of both directions (WHATWG HTML 9.2.5 and 9.2.6). Never handles topics, sockets or time.
`relay._speedups` has the compiled counterpart, which calls this module to raise the encoder's errors.
"""

from __future__ import annotations

import codecs

from relay.errors import EventError
from relay.event import Event

RETRY_MS_MAX = 2**31 - 1
"""Maximum reconnection time: with a longer delay, JavaScript timers fire at once."""

BOM = codecs.BOM_UTF8


def encode_event(
    data: str | bytes | None,
    event: str | None,
    id: str | None,
    retry: int | None,
    bytes_max: int,
    in_chunk: bool = False,
) -> bytes:
    """Encode one event as one frame: its fields in the order event, id, retry, data, and an empty line.

    Args:
        data: text or UTF-8 bytes, encoded as one field per line; None for no field, so that clients dispatch no event.
        event: the event type; None for `message`.
        id: the event's id.
        retry: reconnection time in milliseconds, at most RETRY_MS_MAX.
        bytes_max: largest frame, in bytes.
        in_chunk: wrap the frame in an HTTP chunk (RFC 9112 section 7.1), whose extra bytes `bytes_max` does not count.

    Returns:
        the frame.

    Raises:
        EventError: the format cannot carry a field unchanged, or the frame is larger than `bytes_max`.
    """
    lines = []
    if event is not None:
        lines.append(b"event: " + _field("event", event, "\r\n"))
    if id is not None:
        lines.append(b"id: " + _field("id", id, "\0\r\n"))
    if retry is not None:
        if type(retry) is not int or not 0 <= retry <= RETRY_MS_MAX:
            raise EventError("retry", f"must be a whole number of milliseconds from 0 to {RETRY_MS_MAX}")
        lines.append(b"retry: %d" % retry)
    if data is not None:
        text = _utf8("data", data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines.extend(b"data: " + line for line in text.split(b"\n"))
    frame = b"".join(line + b"\n" for line in lines) + b"\n"
    if len(frame) > bytes_max:
        raise too_large(bytes_max)
    return b"%x\r\n%b\r\n" % (len(frame), frame) if in_chunk else frame


def too_large(bytes_max: int) -> EventError:
    """Return the error of an event whose frame is larger than `bytes_max`."""
    return EventError("data", f"the event is larger than {bytes_max} bytes")


def _field(name: str, text: str, refused: str) -> bytes:
    if not isinstance(text, str):
        raise EventError(name, f"must be a string, not {type(text).__name__}")
    if not text:
        raise EventError(name, "must not be empty; leave it out instead")
    for character in refused:
        if character in text:
            raise EventError(name, f"must not contain U+{ord(character):04X}")
    return _utf8(name, text)


def _utf8(name: str, text: str | bytes) -> bytes:
    try:
        if isinstance(text, str):
            return text.encode()
        if isinstance(text, bytes):
            text.decode()
            return text
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise EventError(name, f"lone surrogate U+{code:04X} at character {error.start}") from None
    except UnicodeDecodeError as error:
        raise EventError(name, f"invalid UTF-8 at byte {error.start}") from None
    raise EventError(name, f"must be a string or bytes, not {type(text).__name__}")


# Theory of operation. The input arrives in pieces of any size. The decoder processes a line as soon as it has the line
# end; an unfinished line waits in `_line`. A CR ends its line at once, because waiting for a possible LF could delay an
# event indefinitely; an LF that follows is skipped (`_after_cr`). The block is in one of two states:
#
#     TAKING    keeps field lines; an empty line dispatches the block; a line that exceeds `bytes_max` leads to REFUSING
#     REFUSING  processes only `id` lines and drops other lines; an empty line leads to TAKING
#
# The decoder counts the bytes of a block's lines, so neither a line nor the data can exceed `bytes_max`. Comments are
# not counted. Of an unfinished comment, or a line that is too long, the decoder keeps only a colon, so that the rest of
# the line is a comment. A refused block still sets the last event id, like a block without data, so that a client does
# not request the same event again. The error is raised after all bytes at hand are processed, and the next call
# returns the events among them. An event that is too large therefore causes no loss of other events.
class Decoder:
    """Decode an event stream, in pieces of any size (WHATWG HTML 9.2.6).

    Decoded events can be encoded again: an empty event type or id becomes None, a longer reconnection time becomes
    RETRY_MS_MAX, and invalid UTF-8 becomes U+FFFD. A block without data yields no event. An unfinished event at the
    end of the stream is never returned.

    Args:
        bytes_max: maximum size of a block, in bytes of its lines without comments.
        last_event_id: the last event id before this stream, for a client that reconnects.
    """

    def __init__(self, bytes_max: int = 1024 * 1024, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._bytes_max = bytes_max
        self._start: bytes | None = b""
        self._after_cr = False
        self._line = bytearray()
        self._events: list[Event] = []
        self.refused = 0  # total number of blocks that were too large
        self._told = 0  # number of these blocks that an error has reported
        self._size: int
        self._data: list[bytes] = []
        self._event: str | None
        self._id: str | None
        self._retry: int | None
        self._refusing: bool
        self._reset()

    @property
    def unfinished(self) -> bool:
        """Whether a block has data or an unfinished line that is not a comment, and its empty line is missing."""
        return bool(self._data) or (bool(self._line) and not self._line.startswith(b":"))

    def feed(self, data: bytes) -> list[Event]:
        """Decode the next bytes of the stream.

        Args:
            data: any number of bytes.

        Returns:
            the completed events. The `id` of an event comes from its own block; `last_event_id` is that of the stream.

        Raises:
            EventError: a block is larger than `bytes_max`; raised once for each call. All of `data` has been
                processed. The next call, which may be `feed(b"")`, returns the other events in it and continues with
                the stream.
        """
        if self._start is not None:
            data = self._start + data
            if len(data) < len(BOM) and BOM.startswith(data):
                self._start = data
                return []
            self._start = None
            data = data.removeprefix(BOM)
        if data:
            self._feed(data)
        if self.refused > self._told:
            self._told = self.refused
            raise too_large(self._bytes_max)
        events, self._events = self._events, []
        return events

    def _feed(self, data: bytes) -> None:
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if self._line:
                line = bytes(self._line + line)
                self._line.clear()
            self._take(line)
        self._line += rest
        if self._line.startswith(b":"):
            del self._line[1:]
        elif self._line and self._size + len(self._line) > self._bytes_max:
            self._refuse()
            self._line[:] = b":"

    def _take(self, line: bytes) -> None:
        if not line:
            self._dispatch()
            return
        if line.startswith(b":"):
            return
        size = self._size + len(line) + 1
        if size > self._bytes_max:
            self._refuse()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        if self._refusing:
            return
        self._size = size
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            digits = value.lstrip(b"0") or b"0"
            self._retry = min(int(digits[:11]), RETRY_MS_MAX)
            self.retry_ms = self._retry

    def _dispatch(self) -> None:
        if self._id is not None:
            self.last_event_id = self._id
        if self._data:
            data = b"\n".join(self._data).decode(errors="replace")
            self._events.append(Event(data, self._event or None, self._id or None, self._retry))
        self._reset()

    def _refuse(self) -> None:
        if self._refusing:
            return
        id = self._id
        self.refused += 1
        self._reset()
        self._id = id
        self._refusing = True

    def _reset(self) -> None:
        self._size = len(b"\n")
        self._data.clear()
        self._event = None
        self._id = None
        self._retry = None
        self._refusing = False
