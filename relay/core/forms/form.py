"""Forms: the bytes that a stream receives for the entries of the log.

Theory of operation. The log stores each event once, as an SSE frame in a chunk of an HTTP body (RFC 9112 section 7.1).
A form turns these stored chunks into the bytes of one kind of response. It has two parts. The syntax is the
representation of an event (`sse`, `envelope`, `ndjson`). The framing is the encoding of the body: in chunks, plain
until the connection closes, or compressed in chunks. The stored chunks already have the form `sse` in chunks, so most
streams share them unchanged. Other forms derive their bytes from the stored chunks, once per entry.

An audience is keyed by its term and its form. Nothing else depends on the form: flushing, catching up, cursors,
policies and gaps are the same for all forms. A form sends one chunk per event, so a cursor can point to any event, and
a stream never ends within one.

To add a form, write a module with a syntax like `relay.core.forms.ndjson.Ndjson` or a framing like
`relay.core.forms.gzip.Gzip`, and add its class to `relay.core.forms.registry`.

Owns the derived bytes. Never chooses a form, and never sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

from relay.core.forms.document import Document
from relay.core.forms.framing import Chunked, Framing, unwrap
from relay.core.log import Log
from relay.speedups import Chunk

DERIVED_BYTES_MAX = 1024 * 1024
"""Maximum bytes of derived entries that a form keeps for other audiences of the same events."""


class Syntax(Protocol):
    """The representation of events in a body."""

    name: str
    """The first part of the names of its forms."""
    media_types: tuple[str, ...]
    """The media types in Accept that select the syntax; the first is the value of Content-Type."""

    def entry(self, frame: bytes, topic: str) -> bytes:
        """Return an event of a topic in this syntax.

        Args:
            frame: the event as an SSE frame, as `relay.sse.encode` writes it.
            topic: the topic.
        """

    def notice(self, frame: bytes) -> bytes:
        """Return a gap, priming block, reconnection time or heartbeat in this syntax; `frame` as for `entry`."""


class Sse:
    """The WHATWG event stream. Entries are frames already."""

    name = "sse"
    media_types: tuple[str, ...] = ("text/event-stream",)

    def entry(self, frame: bytes, topic: str) -> bytes:
        """Return the frame."""
        return frame

    def notice(self, frame: bytes) -> bytes:
        """Return the frame."""
        return frame


class Form:
    """One form of one log's entries.

    Args:
        name: the name in messages between processes and in metrics.
        syntax: the representation of events.
        framing: the encoding of the body.
        number: the number of the form in the engine.
    """

    def __init__(self, name: str, syntax: Syntax, framing: Framing, number: int) -> None:
        self.name = name
        self.syntax = syntax
        self.framing = framing
        self.number = number
        self.compressed = framing.compressed
        self.once = isinstance(syntax, Document)  # its streams are polls, which end with their first events
        self._is_sse = isinstance(syntax, Sse)
        self._is_stored = self._is_sse and isinstance(framing, Chunked)
        self._derived: dict[int, tuple[bytes, bytes]] = {}  # sequence → stored chunk, content
        self._derived_bytes = 0

    def __repr__(self) -> str:
        return f"<Form {self.name}>"

    def chunk(self, log: Log, sequences: Sequence[int], cursor: int) -> Chunk:
        """Return retained entries as one buffer for many streams.

        Args:
            log: the log, always the same one.
            sequences: the sequences of the entries.
            cursor: the cursor of a stream that has received them all.
        """
        if self._is_stored:
            return Chunk(log.pick(sequences), sequences, cursor)
        contents = self.contents(log, sequences)
        checks = [(crc32(content), len(content)) for content in contents] if self.compressed else None
        return Chunk([self.framing.wrap(content) for content in contents], sequences, cursor, checks)

    def contents(self, log: Log, sequences: Sequence[int]) -> list[bytes]:
        """Return retained entries in the syntax of the form, without framing."""
        return [self._content(log, *pair) for pair in zip(sequences, log.pick(sequences), strict=True)]

    def notice_content(self, *frames: bytes) -> bytes:
        """Return notices, which are SSE frames or comments, in the syntax of the form; empty ones yield nothing."""
        if not self._is_sse:
            frames = tuple(self.syntax.notice(frame) for frame in frames if frame)
        return b"".join(frames)

    def notice(self, frame: bytes) -> bytes:
        """Return the bytes of a notice, which is an SSE frame or comment; an empty one yields nothing."""
        return self.part(self.notice_content(frame))

    def part(self, content: bytes) -> bytes:
        """Return some content as a part of the body; nothing for no content."""
        return self.framing.wrap(content) if content else b""

    def _content(self, log: Log, sequence: int, stored: bytes) -> bytes:
        known = self._derived.get(sequence)
        if known is not None and known[0] is stored:  # a log that begins again reuses sequences
            return known[1]
        content = self.syntax.entry(unwrap(stored), log.topic_of(sequence))
        if self._derived_bytes > DERIVED_BYTES_MAX:
            self._derived.clear()
            self._derived_bytes = 0
        self._derived[sequence] = stored, content
        self._derived_bytes += len(stored) + len(content)
        return content
