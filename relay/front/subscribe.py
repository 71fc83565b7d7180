"""Requests for streams and polls: from an admitted request to the answer of a poll, or to a stream of the hub.

Owns the steps in between: the position in the log, the replay, and the hand-over of the descriptor. Never parses a
request (`relay.front.routes`) and never writes to a stream (`relay.core.hub`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from relay.core.stream import Subscribe
from relay.errors import RETRY_SOON, RequestError
from relay.front.routes import Poll
from relay.http.request import Request
from relay.http.response import JSON
from relay.limits import Limit

if TYPE_CHECKING:
    from relay.front.connection import FrontProtocol


def open_stream(connection: FrontProtocol, subscribe: Subscribe) -> None:
    """Open a stream when its position is known and its replay is prepared."""
    _locate(connection, subscribe, partial(_open, connection))


def answer_poll(connection: FrontProtocol, request: Request, route: Poll) -> None:
    """Respond to a poll, or hand it over as a stream that waits for an event."""
    _locate(connection, route.subscribe, partial(_answer, connection, request, route))


def _locate(connection: FrontProtocol, subscribe: Subscribe, then: Callable[[Subscribe], None]) -> None:
    """Find the position of a stream or a poll. At an edge, the hub may have to look up the last id."""
    find = connection.front.find
    if find is None or connection.front.knows(subscribe):
        _prepare(connection, subscribe, then)
    else:
        connection.wait_for(
            lambda done: find(subscribe.terms, subscribe.last_ids, done),
            lambda sequence: _prepare(connection, replace(subscribe, after=sequence), then),
        )


def _prepare(connection: FrontProtocol, subscribe: Subscribe, then: Callable[[Subscribe], None]) -> None:
    """Continue when the hub has prepared the replay, which may require a search for the entries of a pattern."""
    front = connection.front
    if subscribe.replays:
        connection.wait_for(
            lambda done: front.hub.prepare(subscribe, front.clock(), done), lambda _: then(subscribe)
        )
    else:
        then(subscribe)


def _open(connection: FrontProtocol, subscribe: Subscribe) -> None:
    if _hand_over(connection, subscribe):
        connection.front.metrics.opened["connection"] += 1


def _answer(connection: FrontProtocol, request: Request, route: Poll, subscribe: Subscribe) -> None:
    front = connection.front
    answer = front.hub.answer(subscribe, route.events_max, front.clock(), newest=route.newest)
    if not answer.empty or not route.wait_s:
        if answer.empty and request.path == "/poll" and front.hub.ended.all(subscribe.terms):
            raise RequestError(204, "its topics have ended for good")  # as for a poll that would wait
        front.metrics.polls["history" if route.newest else "at-once"] += 1
        connection.respond(200, JSON, answer.body)
        return
    keep = request.keep_alive and connection.can_continue_after_poll()
    waiting = replace(subscribe, wait_s=route.wait_s, after=answer.following - 1, events_max=route.events_max)
    waiting = front.router.waiting(request, waiting, keep=keep and request.version == "1.1")
    if _hand_over(connection, replace(waiting, head=front.dates.head(waiting.head))):
        front.metrics.polls["waiting"] += 1


def _hand_over(connection: FrontProtocol, subscribe: Subscribe) -> bool:
    """Hand the descriptor over to the hub. Return False if earlier responses must be sent before.

    Raises:
        RequestError: 503 there is no free descriptor, or the hub refuses the stream.
    """
    front = connection.front
    if not connection.is_flushed():
        return False
    try:
        fd = os.dup(connection.transport.get_extra_info("socket").fileno())
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise RequestError(503, "the server has no free descriptor", RETRY_SOON, limit=Limit.DESCRIPTORS) from None
    try:
        front.hub.subscribe(fd, subscribe, connection.address(), front.clock())
    except (RequestError, OSError):
        os.close(fd)
        raise
    connection.abort()
    return True
