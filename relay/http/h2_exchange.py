"""One exchange of HTTP/2 in the form of HTTP/1.1, sans-IO: a request in one direction, its response in the other.

Owns the translation of heads and bodies (RFC 9113 section 8). The library `h2` validates the fields of the request, and
`h11` the HTTP/1.1 bytes of both directions. Never touches a socket and never handles a frame.
"""

from __future__ import annotations

import typing

import h11
from h2.exceptions import ProtocolError
from h2.utilities import HeaderValidationFlags, validate_headers

Fields = list[tuple[bytes, bytes]]

_REQUEST = HeaderValidationFlags(is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False)
_NAMED = frozenset((b"host", b"te", b"last-event-id"))


class MalformedError(Exception):
    """A request or a response violates its standard."""


class Exchange:
    """One request and its response.

    Args:
        fields: the fields of the request, as decoded; Cookie fields are already joined (RFC 9113 section 8.2.3).
        ended: whether the request has no body.

    Raises:
        MalformedError: the request is malformed (RFC 9113 section 8.1.1).
    """

    __slots__ = ("_http1", "request")

    def __init__(self, fields: Fields, *, ended: bool) -> None:
        self._http1 = h11.Connection(h11.CLIENT)
        try:
            method, target, head = _translate(list(validate_headers(fields, _REQUEST)), ended=ended)
            self.request = self._http1.send(h11.Request(method=method, target=target, headers=head)) or b""
            if ended:
                self.request += self.end()
        except (ProtocolError, h11.LocalProtocolError) as error:
            raise MalformedError(str(error)) from None
        # An id may contain bytes that h11 rejects. The parser of the front accepts them (`relay.http.request`).
        for name, value in fields:
            if name == b"last-event-id":
                self.request = self.request.replace(b"\r\n", b"\r\nlast-event-id: " + value + b"\r\n", 1)

    def body(self, data: bytes) -> bytes:
        """Return the HTTP/1.1 bytes of a part of the request's body.

        Raises:
            MalformedError: the body is longer than its Content-Length.
        """
        return self._send(h11.Data(data=data))

    def end(self) -> bytes:
        """Return the HTTP/1.1 bytes of the end of the request.

        Raises:
            MalformedError: the body is shorter than its Content-Length.
        """
        return self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._http1.send(event) or b""
        except h11.LocalProtocolError as error:
            raise MalformedError(str(error)) from None

    def receive(self, data: bytes) -> list[h11.Event]:
        """Return the parts of the response that are complete.

        Args:
            data: bytes from the front; b"" if the front has closed the connection.

        Raises:
            MalformedError: the response is malformed or truncated.
        """
        events: list[h11.Event] = []
        try:
            self._http1.receive_data(data)
            while True:
                event = self._http1.next_event()
                # isinstance is slow here, because the events of h11 have an abstract base class.
                kind = type(event)
                if event is h11.NEED_DATA or event is h11.PAUSED or kind is h11.ConnectionClosed:
                    return events
                events.append(typing.cast(h11.Event, event))
                if kind is h11.EndOfMessage:
                    return events
        except h11.RemoteProtocolError as error:
            raise MalformedError(str(error)) from None


def _translate(fields: Fields, *, ended: bool) -> tuple[bytes, bytes, Fields]:
    """Return the method, the target and the fields of the HTTP/1.1 request."""
    pseudo = {name: value for name, value in fields if name.startswith(b":")}
    authority = pseudo.get(b":authority", b"")
    method, target = pseudo[b":method"], pseudo.get(b":path", authority)  # CONNECT has no path
    if not (target.startswith(b"/") or method == b"CONNECT" or (target == b"*" and method == b"OPTIONS")):
        raise ProtocolError("the path does not begin with a slash")
    host = next((value for name, value in fields if name == b"host"), b"")
    head = [(b"host", authority or host)]
    head += [(name, value) for name, value in fields if not name.startswith(b":") and name not in _NAMED]
    if not ended and b"content-length" not in (name for name, _ in head):
        head.append((b"transfer-encoding", b"chunked"))
    return method, target, head
