"""Streams in a form: the request of each form, and a stream that checks the head of its response."""

from __future__ import annotations

import contextlib
import time

from relay.event import Event
from tests.running import TIMEOUT_S, Stream

FORMS = ("sse", "envelope", "ndjson", "sse/plain", "envelope/plain", "ndjson/plain")
CHUNKED = FORMS[:3]
COMPRESSED = ("sse/gzip", "envelope/gzip", "ndjson/gzip")
FAULT_FORMS = ("sse", "sse/plain", "sse/gzip", "ndjson", "ndjson/gzip", "envelope")
"""The forms in which each kind of fault is tested. The server needs `--compress gzip`."""
TYPES = {"sse": "text/event-stream", "envelope": "text/event-stream", "ndjson": "application/x-ndjson"}


def parts(form: str, query: str) -> tuple[str, dict[str, str], str]:
    """Return the query, the headers and the HTTP version of a request for a form."""
    syntax = form.partition("/")[0]
    headers = {"Accept": TYPES[syntax]} | ({"Accept-Encoding": "gzip"} if form in COMPRESSED else {})
    return query + "&envelope=1" * (syntax == "envelope"), headers, "1.0" if form.endswith("/plain") else "1.1"


def request(form: str, query: str, headers: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a request for a form."""
    query, fields, version = parts(form, query)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | (headers or {})).items())
    return f"GET /events?{query} HTTP/{version}\r\nHost: a\r\n{lines}\r\n".encode()


class FormStream(Stream):
    """A stream in a form.

    Args:
        port: of the server.
        form: the name of the form.
        query: after `/events?`.
        headers: more request headers.
        receive_buffer: SO_RCVBUF, for slow clients.
        timeout_s: longest time without data.
    """

    def __init__(
        self,
        port: int,
        form: str,
        query: str = "topic=default",
        headers: dict[str, str] | None = None,
        receive_buffer: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.form = form
        query, fields, version = parts(form, query)
        fields |= headers or {}
        super().__init__(port, query, fields, receive_buffer, version=version, form=form, timeout_s=timeout_s)
        assert f"Content-Type: {TYPES[form.partition('/')[0]]}\r\n".encode() in self.head
        assert (b"Transfer-Encoding: chunked" in self.head) == (form not in FORMS[3:])
        assert (b"Content-Encoding: gzip" in self.head) == (form in COMPRESSED)

    def __enter__(self) -> FormStream:
        return self

    def primed(self) -> None:
        """Wait until the priming has arrived."""
        self.read_until(b'"retry":' if "ndjson" in self.form else b"\nid: ")

    def end(self) -> list[Event]:
        """Read to the end of the connection, which may be a reset."""
        deadline_s = time.monotonic() + TIMEOUT_S
        with contextlib.suppress(ConnectionResetError):
            while data := self._receive(deadline_s, "the end of the stream"):
                self.take_bytes(data)
        return self.events()

    @property
    def has_last_chunk(self) -> bool:
        return self._reader.body.complete

    @property
    def is_torn(self) -> bool:
        """Whether the stream ended within a chunk."""
        return self._reader.body.torn

    @property
    def topics(self) -> list[str | None]:
        """The topics of the events so far; empty if the form does not name them."""
        return self._reader.topics
