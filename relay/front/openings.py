"""Openings: opens streams directly from accepted sockets, without a connection of the front.

Owns the cache of request shapes. Never responds: `relay.front.connection` serves every other request.

Theory of operation. In a reconnect storm, the heads of all requests are equal, except for a few fields. `cut_head`
removes these fields. The rest of the head is its shape, which is a valid head itself. The parser and the router read a
shape once, so their result for a repeated shape is known. The removed fields then give the last id, the grant and the
address of the client. If anything is not ordinary (an incomplete head, another request, an error, a limit), a
connection of the front receives the input and serves it as if this module did not exist.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

from relay.core.stream import Subscribe
from relay.errors import RequestError
from relay.front.front import Front
from relay.http.forwarded import client_address
from relay.http.request import LONG_BYTES, Request, parse_head
from relay.ids import readings
from relay.speedups import cut_head

SHAPES_CACHED = 1024
"""Number of request shapes that are kept. A shape has at most 2 KiB."""


class Openings:
    """Opens streams for one front.

    Args:
        front: its router, credentials and hub.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self.bytes_max = min(LONG_BYTES, front.config.head_bytes_max)
        self._known = lru_cache(SHAPES_CACHED)(self._read)

    def open(self, fd: int, address: str, received: bytes) -> bool:
        """Open a stream if the input of a new connection is exactly one request for it.

        Args:
            fd: the socket. The hub owns it if a stream is open.
            address: the address of the peer.
            received: the input.

        Returns:
            whether a stream is open.
        """
        front = self._front
        cut = cut_head(received)
        if cut is None:
            return False
        shape, last_id, authorization, forwarded = cut
        known = self._known(shape)
        if known is None:
            return False
        request, route = known
        last_ids = readings(last_id) if last_id else ()
        if not last_id and (route.since_s is not None or route.must_know):
            route = cast(Subscribe, front.router.route(request))  # `since` may depend on the time
        try:
            route = front.admit(route, front.auth.bearer(authorization.decode("ascii")), last_ids)
            if forwarded and front.proxies:
                address = client_address(address, forwarded.decode("ascii"), front.proxies)
            now_s = front.clock()
            if route.replays and not (front.knows(route) and front.hub.can_replay(route, now_s)):
                return False  # The connection waits.
            front.hub.subscribe(fd, route, address, now_s)
        except (RequestError, OSError):
            return False  # The connection meets the same error and responds.
        front.metrics.opened["direct"] += 1
        return True

    def _read(self, shape: bytes) -> tuple[Request, Subscribe] | None:
        """Return the request and the route of a shape; None unless it is a plain request for a stream."""
        try:
            request = parse_head(shape)
            route = self._front.router.route(request)
        except RequestError:
            return None
        plain = request.body_length == 0 and not request.expects_continue and not request.raw_values("ticket")
        return (request, route) if isinstance(route, Subscribe) and plain else None
