"""The documents of the front: the page, health, readiness, statistics, metrics and topics.

Owns the response to a request for each of them. Never checks whether the client may read them (`relay.front.handlers`)
and never renders statistics or metrics (`relay.telemetry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import RequestError
from relay.front.front import Ask
from relay.front.routes import Resource
from relay.http.response import JSON, json_body
from relay.telemetry import topics
from relay.telemetry.topics import TopicsPage, TopicsQuery

if TYPE_CHECKING:
    from relay.front.connection import FrontProtocol

_TEXT = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"), ("Cache-Control", "no-store"))


def respond_with(connection: FrontProtocol, resource: Resource) -> None:
    """Respond with a document."""
    front = connection.front
    if resource is Resource.PAGE:
        connection.respond(200, front.page_headers, front.page)
    elif resource is Resource.HEALTH:
        connection.respond(200, *json_body({"status": "ok"}))
    elif resource is Resource.READY:
        ready = front.ready and front.hub.ready
        leaving = not front.ready or front.hub.draining
        status = "ready" if ready else "draining" if leaving else "waiting for its log"
        connection.respond(200 if ready else 503, *json_body({"status": status}))
    elif front.ask is not None:
        _ask(connection, front.ask, resource)
    elif resource is Resource.METRICS:
        connection.respond(200, _TEXT, front.metrics.render())
    else:
        connection.respond(200, JSON, front.stats(front.clock()))


def _ask(connection: FrontProtocol, ask: Ask, resource: Resource) -> None:
    """Respond with the statistics or metrics of all processes."""
    if resource is Resource.METRICS:
        connection.wait_for(
            lambda done: ask("metrics", None, done), lambda body: connection.respond(200, _TEXT, body)
        )
    else:
        connection.wait_for(lambda done: ask("stats", None, done), lambda body: connection.respond(200, JSON, body))


def list_topics(connection: FrontProtocol, query: TopicsQuery) -> None:
    """Respond with a page of topics, or with one topic."""
    front = connection.front
    if front.ask is not None:
        ask = front.ask
        connection.wait_for(
            lambda done: ask("topics", query, done), lambda body: _listed(connection, query, topics.decode(body))
        )
    else:
        ahead_s = front.auth.wall() - front.clock()
        connection.wait_for(
            lambda done: topics.search(front.hub, query, ahead_s, front.loop, done),
            lambda page: _listed(connection, query, page),
        )


def _listed(connection: FrontProtocol, query: TopicsQuery, page: TopicsPage) -> None:
    if not query.topic:
        connection.respond(200, JSON, topics.encode(page) + b"\n")
    elif page.topics:
        connection.respond(200, JSON, topics.encode(page.topics[0]) + b"\n")
    else:
        raise RequestError(404, f"the topic {query.topic!r} has neither retained events nor streams")
