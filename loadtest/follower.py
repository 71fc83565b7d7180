"""One stream that is read with urllib3 and relay's decoder, and that resumes after a disconnect.

Owns one connection at a time and the last id. Never judges an event.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from urllib.parse import urlencode, urlsplit

import urllib3

from relay.event import Event
from relay.sse import Decoder

EVENT_BYTES_MAX = 1 << 20
READ_BYTES = 64 * 1024
TIMEOUT_S = 30.0


class FollowError(Exception):
    """The server answered with a status other than 200."""


class Follower:
    """A subscriber, over all of its connections.

    Args:
        host: the server's address, as `http://127.0.0.1:8080`.
        terms: topics and patterns.
        receive_buffer: SO_RCVBUF, bytes; 0 keeps the system's.
    """

    def __init__(self, host: str, terms: Sequence[str], *, receive_buffer: int = 0) -> None:
        place = urlsplit(host)
        assert place.hostname is not None
        self._address = (place.hostname, place.port or 80)
        self._target = "/events?" + urlencode({"topic": terms}, doseq=True)
        self._options: list[tuple[int, int, int | bytes]] = []
        if receive_buffer:
            self._options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer))
        self._connection: urllib3.connection.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._response: urllib3.BaseHTTPResponse | None = None
        self._decoder = Decoder(EVENT_BYTES_MAX)
        self.last_id = ""

    @property
    def is_open(self) -> bool:
        """Return whether a connection is open."""
        return self._response is not None

    def open(self) -> None:
        """Connect, and resume from the last id if there is one.

        Raises:
            FollowError: the server rejects the stream.
            OSError, urllib3.exceptions.HTTPError: the connection failed.
        """
        self.close()
        headers = {"Accept": "text/event-stream"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        self._connection = urllib3.connection.HTTPConnection(
            *self._address, timeout=TIMEOUT_S, socket_options=self._options
        )
        self._connection.connect()
        self._socket = self._connection.sock
        self._connection.request("GET", self._target, headers=headers, preload_content=False)
        response = self._connection.getresponse()
        if response.status != 200:
            self.close()
            raise FollowError(f"answered {response.status}")
        self._response = response
        self._decoder = Decoder(EVENT_BYTES_MAX)

    def read(self, bytes_max: int = READ_BYTES) -> list[Event] | None:
        """Wait for bytes; return the events that they complete, or None at the end of the stream."""
        assert self._response is not None
        try:
            data = self._response.read1(bytes_max)
        except (OSError, urllib3.exceptions.HTTPError):
            data = b""
        if not data:
            self.close()
            return None
        events = self._decoder.feed(data)
        self.last_id = self._decoder.last_event_id or self.last_id
        return events

    def drop(self) -> None:
        """Shut the connection down, from a greenlet other than the reader's."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        self._response = self._connection = self._socket = None
