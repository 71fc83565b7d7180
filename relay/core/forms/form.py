"""Forms: the bytes that a stream receives for the entries of the log.

Theory of operation. The log stores each event once, as an SSE frame in a chunk of an HTTP body (RFC 9112 section 7.1).
A form turns these stored chunks into the bytes of one kind of response. It has two parts. The syntax tells how an event
is written (`sse`, `envelope`, `ndjson`). The framing tells how the body ends: in chunks, whose last chunk is empty, or
plain, until the connection closes. The stored chunks are the form `sse` in chunks, so most streams share them as they
are. Other forms derive their bytes from the stored chunks, once per entry.

An audience is keyed by its term and its form. Nothing else depends on the form: flushing, catching up, cursors,
policies and gaps are the same for all forms. A form sends one chunk per event, so a cursor can point to any event, and
a stream never ends within one.

To add a syntax, write a module with a class like `relay.core.forms.ndjson.Ndjson` and add it to `SYNTAXES` in
`relay.core.forms.registry`.

Owns the framing and the derived bytes. Never chooses a form, and never sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from relay.core.log import Log

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a body in chunks. A body that ends without it was cut off."""

CHUNK_BYTES_MAX = 16
"""More bytes than a chunk adds to its content: the size in hexadecimal digits, and two line ends."""

DERIVED_BYTES_MAX = 1024 * 1024
"""Maximum bytes of derived entries that a form keeps for other audiences of the same events."""


def wrap(content: bytes) -> bytes:
    """Return a chunk with this content."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def unwrap(chunk: bytes) -> bytes:
    """Return the content of one chunk."""
    return chunk[chunk.index(b"\n") + 1 : -2]


class Syntax(Protocol):
    """How events are written in a body."""

    name: str
    """The name in messages between processes and in metrics."""
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
        syntax: how events are written.
        number: the number of the form in the engine.
        chunked: send chunks; else the bytes of the body only, as HTTP/1.0 requires.
    """

    def __init__(self, syntax: Syntax, number: int, *, chunked: bool) -> None:
        self.syntax = syntax
        self.number = number
        self.chunked = chunked
        self.name = syntax.name if chunked else f"{syntax.name}/plain"
        self.end = LAST_CHUNK if chunked else b""  # ends a body; an aborted stream does not get it
        self._stored = chunked and isinstance(syntax, Sse)
        self._derived: dict[int, tuple[bytes, bytes]] = {}  # sequence → stored chunk, derived bytes
        self._derived_bytes = 0

    def __repr__(self) -> str:
        return f"<Form {self.name}>"

    def entries(self, log: Log, sequences: Sequence[int]) -> list[bytes]:
        """Return the bytes of retained entries.

        Args:
            log: the log, always the same one.
            sequences: the sequences of the entries.
        """
        stored = log.pick(sequences)
        if self._stored:
            return stored
        return [self._derive(log, *pair) for pair in zip(sequences, stored, strict=True)]

    def notice(self, frame: bytes) -> bytes:
        """Return the bytes of a notice, which is an SSE frame or comment; nothing for an empty one."""
        if not frame:
            return b""
        content = self.syntax.notice(frame)
        return wrap(content) if self.chunked else content

    def _derive(self, log: Log, sequence: int, stored: bytes) -> bytes:
        known = self._derived.get(sequence)
        if known is not None and known[0] is stored:  # a log that begins again reuses sequences
            return known[1]
        content = self.syntax.entry(unwrap(stored), log.topic_of(sequence))
        data = wrap(content) if self.chunked else content
        if self._derived_bytes > DERIVED_BYTES_MAX:
            self._derived.clear()
            self._derived_bytes = 0
        self._derived[sequence] = stored, data
        self._derived_bytes += len(stored) + len(data)
        return data
