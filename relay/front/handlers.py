"""The handlers of the front: they admit a request by its head, and serve it by its route once its body is complete.

Owns the dispatch from a route to its handler, and publishing over HTTP. Never reads from a connection and never changes
its phase (`relay.front.connection`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from relay.core.grant import ANYBODY, Grant
from relay.core.stream import Subscribe
from relay.errors import RETRY_SOON, EventError, RequestError
from relay.event import Event
from relay.front.documents import list_topics, respond_with
from relay.front.front import Front
from relay.front.publish import authorise, check_rate, read_events
from relay.front.routes import Options, Poll, PublishBody, Resource, Route, SignalTopic, StreamHead, Ticket
from relay.front.signalling import send_signal
from relay.front.subscribe import answer_poll, open_stream
from relay.http.request import Request
from relay.http.response import json_body
from relay.sources.requests import Cancel, Done
from relay.sources.topic_signals import SIGNAL_BYTES_MAX
from relay.telemetry.topics import TopicsQuery

if TYPE_CHECKING:
    from relay.front.connection import FrontProtocol


def admit(front: Front, request: Request, *, is_admin: bool) -> tuple[Route, Grant]:
    """Return the route of a request and the grant of its publisher, after checking its head and its token.

    Args:
        front: the state that all connections share.
        request: the head. The body is not read yet.
        is_admin: whether the connection was accepted at `admin-listen`.

    Raises:
        RequestError: the head is invalid, the token is missing or invalid, or the server is draining.
    """
    route = front.router.route(request)
    if isinstance(route, PublishBody | Subscribe | Poll) and front.hub.draining:
        raise RequestError(503, "the server is draining", RETRY_SOON)
    if isinstance(route, Subscribe):
        return front.admit(route, front.auth.subscriber(request)), ANYBODY
    if isinstance(route, Poll):
        subscribe = front.admit(route.subscribe, front.auth.subscriber(request))
        return replace(route, subscribe=subscribe), ANYBODY
    if isinstance(route, PublishBody):
        return route, authorise(front, request, route)
    if isinstance(route, SignalTopic):
        return route, front.auth.publisher(request, "a signal")
    if isinstance(route, StreamHead):
        front.auth.subscriber(request).check_subscribe(route.terms)
    if isinstance(route, Resource | TopicsQuery):
        front.check_admin(request, route, is_admin=is_admin)
    return route, ANYBODY


def body_bytes_max(front: Front, route: Route) -> int:
    """Return the largest body of a request."""
    if isinstance(route, PublishBody):
        return front.config.body_bytes_max
    return SIGNAL_BYTES_MAX if isinstance(route, SignalTopic) else 0


def serve(connection: FrontProtocol, request: Request, route: Route, grant: Grant, body: bytes) -> None:
    """Serve a request: respond to it, wait for the result of another part, or hand the connection over.

    Args:
        connection: the connection.
        request: the head.
        route: the route of the head, as admitted.
        grant: the grant of the publisher.
        body: the whole body.

    Raises:
        RequestError: the request is rejected.
    """
    front = connection.front
    if isinstance(route, Subscribe):
        open_stream(connection, route)
    elif isinstance(route, Poll):
        answer_poll(connection, request, route)
    elif isinstance(route, StreamHead):
        connection.answer(front.dates.head(route.head), keep=False)
    elif isinstance(route, PublishBody):
        _publish(connection, request, route, grant, body)
    elif isinstance(route, SignalTopic):
        send_signal(front, request, grant, route.topic, body)
        connection.respond(202, *json_body({"topic": route.topic}))  # does not wait for the feeders
    elif isinstance(route, Options):
        connection.respond(204, route.headers)
    elif isinstance(route, Ticket):
        ticket = front.auth.ticket(request)
        connection.respond(200, *json_body({"ticket": ticket, "expires_in_s": front.config.ticket_s}))
    elif isinstance(route, TopicsQuery):
        list_topics(connection, route)
    else:
        respond_with(connection, route)


def _publish(
    connection: FrontProtocol, request: Request, route: PublishBody, grant: Grant, body: bytes
) -> None:
    """Publish the events of a body as soon as none of their topics is held."""
    front = connection.front
    try:
        events = read_events(front, request, route, grant, body)
    except EventError as error:
        connection.refuse_event(error)
        return
    send: Callable[[list[Event], Done], Cancel] = front.publisher.publish
    if front.traces is not None:
        send = partial(front.traces.publish, request.headers, send)

    def publish(wait_s: float) -> None:
        check_rate(front, wait_s)
        connection.wait_for(
            lambda done: send(events, done), lambda ids: connection.respond(200, *json_body({"ids": ids}))
        )

    connection.wait_for(lambda done: front.take_rate(grant.subject, len(events), done), publish)
