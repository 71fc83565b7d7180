"""Readers of streams: the bytes of a response body to events, for each form.

Owns a plain decoder for every form, written without the server's code except its event stream decoder.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from relay.event import Event
from relay.sse import Decoder


class Body:
    """Decodes the framing of a body: chunks (RFC 9112 section 7.1), or none.

    Args:
        chunked: whether the body is sent in chunks.
    """

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self.complete = False  # the last chunk has arrived
        self._unread = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the contents of the chunks that they complete."""
        if not self.chunked:
            return [data] if data else []
        data, place, contents = self._unread + data, 0, []
        while place < len(data):
            assert not self.complete, f"bytes after the last chunk: {data[place:]!r}"
            end = data.find(b"\r\n", place)
            assert end >= 0 or len(data) - place < 20, f"not a chunk: {data[place : place + 20]!r}"
            if end < 0 or len(data) < (stop := end + 2 + int(data[place:end], 16)) + 2:
                break
            assert data[stop : stop + 2] == b"\r\n", f"not the end of a chunk: {data[stop : stop + 2]!r}"
            content, place = data[end + 2 : stop], stop + 2
            self.complete = not content
            if content:
                contents.append(content)
        self._unread = data[place:]
        return contents

    @property
    def torn(self) -> bool:
        """Whether a chunk has begun and is not complete."""
        return bool(self._unread)


class Reader:
    """Reads the events of one body.

    Args:
        form: the name of the form, as `relay.core.forms.registry` lists it.
        bytes_max: largest event.
    """

    def __init__(self, form: str = "sse", bytes_max: int = 1 << 24) -> None:
        self.syntax, _, framing = form.partition("/")
        self.body = Body(chunked=framing != "plain")
        self.gzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if framing == "gzip" else None
        self._contents: list[bytes] = []
        self.last_event_id = ""
        self.topics: list[str | None] = []  # of the events so far, where the form names it
        self._decoder = Decoder(bytes_max)
        self._line = b""

    def feed(self, data: bytes) -> list[Event]:
        """Add bytes of the body; return the events that they complete."""
        events: list[Event] = []
        for part in self.body.feed(data):
            content = part if self.gzip is None else self.gzip.decompress(part)
            assert self.gzip is None or not self.gzip.unused_data
            self._contents.append(content)
            if self.syntax != "json":
                events += self._lines(content) if self.syntax == "ndjson" else self._blocks(content)
        return self._document() if self.syntax == "json" and data and self.complete else events

    @property
    def content(self) -> bytes:
        """The decoded content so far."""
        self._contents = [b"".join(self._contents)]
        return self._contents[0]

    @property
    def complete(self) -> bool:
        """Whether the body has ended in order; zlib has then checked the trailer of gzip."""
        assert self.gzip is None or self.gzip.eof == self.body.complete
        return self.body.complete

    def _blocks(self, content: bytes) -> list[Event]:
        events = self._decoder.feed(content)
        self.last_event_id = self._decoder.last_event_id
        if self.syntax != "envelope":
            return events
        return [self._named(json.loads(str(event.data)), event.event, event.id) for event in events]

    def _lines(self, content: bytes) -> list[Event]:
        *lines, self._line = (self._line + content).split(b"\n")
        events = []
        for members in map(json.loads, filter(None, lines)):
            self.last_event_id = members.get("id", self.last_event_id)
            if "data" in members:
                events.append(self._named(members, members.get("event"), members.get("id")))
        return events

    def _document(self) -> list[Event]:
        document = json.loads(self.content)
        self.last_event_id = document["next"]
        return [self._named(each, each.get("event"), each.get("id")) for each in document["events"]]

    def _named(self, members: dict[str, Any], event: str | None, id: str | None) -> Event:
        self.topics.append(members.get("topic"))
        data = members["data"]
        return Event(data if isinstance(data, str) else json.dumps(data), event, id)
