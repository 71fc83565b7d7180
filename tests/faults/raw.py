"""A raw HTTP client that sends bytes and reads responses unchanged."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from tests.running import TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; `body` holds the part that was read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection that can send any bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.unread = b""

    def send(self, data: bytes) -> None:
        """Send bytes. A server that has answered and closed may not accept them."""
        self.socket.sendall(data)

    def answer(self, *, bodyless: bool = False) -> Answer:
        """Read the next response. For a stream or a HEAD request, read only the head."""
        while b"\r\n\r\n" not in self.unread:
            self._more()
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = start.split(" ", 2)
        assert version == "HTTP/1.1", start
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines), f"a repeated field: {lines}"
        length = 0 if bodyless else int(headers.get("content-length", 0))
        while len(self.unread) < length:
            self._more()
        body, self.unread = self.unread[:length], self.unread[length:]
        return Answer(int(status), headers, body)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"closed; unread is {self.unread!r}"
        self.unread += data

    def read_until(self, mark: bytes) -> None:
        """Read until these bytes have arrived."""
        while mark not in self.unread:
            self._more()

    def rest(self) -> bytes:
        """Read to the end of the connection, which must close without a reset."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while data := self.socket.recv(65536):
            self.unread += data
            assert time.monotonic() < deadline_s, "the connection stays open"
        return self.unread

    def ended(self) -> bool:
        """Wait for a close or a reset; always return True."""
        with contextlib.suppress(ConnectionResetError):
            self.rest()
        return True

    def finish(self) -> None:
        """Shut down the sending half of the connection."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Cut the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
