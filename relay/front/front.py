"""The front: the state that all its connections share.

Owns the set of connections, their deadlines, and the report of rejected requests. Never serves a request
(`relay.front.connection`) and never opens a listener.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import msgspec
from msgspec.structs import replace

from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.config.networks import Network, parse_networks
from relay.core.grant import Grant
from relay.core.hub import Hub
from relay.core.stream import Subscribe
from relay.errors import RelayError, RequestError
from relay.front.deadlines import Deadlines, Waiting
from relay.front.pace import Pace
from relay.front.rate import Rates
from relay.front.routes import Resource, Router
from relay.http.request import Request
from relay.http.response import Dates, Headers, page_headers
from relay.sources.requests import BatchPublisher, Cancel, Publishing, TakeDone, TakeRate, nothing
from relay.sources.topic_signals import TopicSignals
from relay.telemetry.input_errors import InputErrors
from relay.telemetry.metrics import Metrics
from relay.telemetry.topics import TopicsQuery

if TYPE_CHECKING:
    from relay.front.connection import FrontProtocol
    from relay.front.h2 import Http2Connection
    from relay.telemetry.traces import Traces

BODY_BYTES_PER_S_MIN = 64 * 1024
"""Slowest rate of a body. The limit is `head-timeout` plus the time of the largest body at this rate."""
LINGER_S = 2.0
"""Time for a client to close the connection after its last response."""

Find = Callable[[tuple[str, ...], tuple[str, ...], Callable[[int | RelayError | None], None]], Cancel]
Ask = Callable[
    [Literal["stats", "metrics", "topics"], TopicsQuery | None, Callable[[bytes | RelayError], None]], Cancel
]

_logger = logging.getLogger("relay.front")


def guarded(step: Callable[[], None], abort: Callable[[], None]) -> None:
    """Run a step of a connection as the outermost callback. An unexpected error is logged, and aborts the connection.

    Args:
        step: the step.
        abort: aborts this connection only.
    """
    try:
        step()
    except Exception:
        _logger.exception("failed to serve a connection")
        abort()


class PackedConnection(msgspec.Struct, frozen=True, array_like=True):
    """An idle connection on its way to another process.

    Args:
        peer: the address of its peer.
        unread: the unparsed bytes.
        is_admin: whether it was accepted at `admin-listen`.
    """

    peer: str
    unread: bytes
    is_admin: bool = False


@dataclass(slots=True, eq=False)
class Front:
    """The state that all connections of the front share.

    Args:
        hub: receives events and opens streams.
        config: the settings.
        metrics: the counters, and the body of /metrics.
        stats: returns the body of /stats at the hub's `now_s`.
        page: the document at `/`.
        auth: checks tokens.
        loop: the running event loop.
        clock: returns the hub's `now_s`.
        traces: the spans of publish requests; None without `otlp-url`.

    `signals` has the feeders of this process; `signal` sends a signal to those of all processes. At an edge,
    `become_edge` sets `publisher`, `find` and `ask`. `take_rate` takes events from the publish rate of a subject, which
    several processes may share. `ready` is part of the answer to /readyz: whether this
    process accepts new streams. `arriving` holds accepted sockets that have no connection yet, with the time of each.
    `http2` holds the connections of HTTP/2, which have `http2_streams` streams; `takes_http2` is False while an upgrade
    waits for them to close. `takes_uploads` is False while uploads (open publish requests) must end, in a drain or an
    upgrade.
    """

    hub: Hub
    config: Config
    metrics: Metrics
    stats: Callable[[float], bytes]
    page: bytes
    auth: Auth
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    traces: Traces | None = None
    ready: bool = field(init=False, default=True)
    publisher: BatchPublisher = field(init=False)
    signals: TopicSignals = field(init=False)
    signal: Callable[[str, bytes], None] = field(init=False)
    find: Find | None = field(init=False, default=None)
    ask: Ask | None = field(init=False, default=None)
    router: Router = field(init=False)
    dates: Dates = field(init=False)
    take_rate: TakeRate = field(init=False)
    signal_rates: Rates = field(init=False)
    deadlines: Deadlines = field(init=False)
    pace: Pace = field(init=False)
    errors: InputErrors = field(init=False)
    page_headers: Headers = field(init=False)
    proxies: tuple[Network, ...] = field(init=False)
    connections: set[FrontProtocol] = field(init=False, default_factory=set)
    arriving: dict[asyncio.Task[None], float] = field(init=False, default_factory=dict)
    http2: set[Http2Connection] = field(init=False, default_factory=set)
    http2_streams: int = field(init=False, default=0)
    takes_http2: bool = field(init=False, default=True)
    takes_uploads: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.publisher = Publishing(self.hub, self.config.block_timeout_s, self.loop, self.clock)
        self.signals = TopicSignals(self.metrics.signals)
        self.signal = self.signals.deliver
        self.router = Router(self.config)
        self.dates = Dates(self.auth.wall)
        self.proxies = parse_networks(self.config.trusted_proxy)
        rates = Rates(self.config.publish_rate)

        def take_rate(subject: str, count: int, done: TakeDone) -> Cancel:
            done(rates.take(subject, count, self.clock()))
            return nothing

        self.take_rate = take_rate
        self.signal_rates = Rates(self.config.signal_rate)
        self.pace = Pace(self.loop.call_soon, self.clock)
        self.page_headers = page_headers(self.page)
        self.errors = InputErrors("http", self.metrics, self.loop, _logger)
        head_s = self.config.head_timeout_s
        self.deadlines = Deadlines(
            self.loop,
            {
                Waiting.HEAD: head_s,
                Waiting.BODY: head_s + self.config.body_bytes_max / BODY_BYTES_PER_S_MIN,
                Waiting.LINE: self.config.line_timeout_s,
                Waiting.REST: self.config.keepalive_timeout_s,
                Waiting.FLUSH: head_s,
                Waiting.LINGER: LINGER_S,
            },
        )

    def become_edge(self, publisher: BatchPublisher, find: Find, ask: Ask | None = None) -> None:
        """Send requests that only the hub can answer to the hub.

        Args:
            publisher: publishes at the hub.
            find: asks the hub for the sequence of an id that this edge's log does not contain.
            ask: asks the hub for a report of all processes; without it, the reports show this process only.
        """
        self.publisher, self.find, self.ask = publisher, find, ask

    def admit(self, route: Subscribe, grant: Grant, last_ids: tuple[str, ...] = ()) -> Subscribe:
        """Return the request of a stream with its grant and the current date.

        Args:
            route: the request.
            grant: the grant of the client.
            last_ids: the readings of the client's last id, if the request does not contain them.

        Raises:
            RequestError: 403, the grant does not cover the terms.
        """
        grant.check_subscribe(route.terms)
        head, ends_s = self.dates.head(route.head), grant.ends_s
        if ends_s != math.inf:
            ends_s += self.clock() - self.auth.wall()  # Later steps of the wall clock do not change it.
        if not last_ids:
            return replace(route, head=head, grant=grant, ends_s=ends_s)
        return replace(
            route,
            head=head,
            grant=grant,
            ends_s=ends_s,
            last_ids=last_ids,
            since_s=None,
            must_know=False,
            newest=False,
        )

    def check_admin(self, request: Request, route: Resource | TopicsQuery, *, is_admin: bool) -> None:
        """Check that a connection and the token of a request may read a document of operators.

        Args:
            request: the request.
            route: its route.
            is_admin: whether the connection was accepted at `admin-listen`.

        Raises:
            RequestError: 404, only `admin-listen` serves this path; 401, the token is missing or wrong.
        """
        if route in (Resource.HEALTH, Resource.READY):
            return
        if self.config.admin_listen and not is_admin:
            raise RequestError(404, "no such path")
        if route is not Resource.PAGE:  # The page contains nothing that is secret, and asks for the token.
            self.auth.check_admin(request)

    def knows(self, route: Subscribe) -> bool:
        """Return whether the hub of this process can find the last id of a stream, if any, without asking another."""
        return self.find is None or not route.last_ids or self.hub.find(route.terms, route.last_ids) is not None

    def cut_oldest(self, waiting: Waiting, age_s: float) -> bool:
        """Close the connection that has waited longest, if at least `age_s`; return whether one was closed."""
        found = self.deadlines.oldest(waiting)
        if found is None or found[1] < age_s:
            return False
        connection = cast("FrontProtocol | Http2Connection", found[0])
        if waiting is Waiting.REST:
            connection.close_idle()
            self.deadlines.set(found[0], Waiting.LINGER)  # its last response may be unsent
        else:
            connection.abort()
        return True

    def close_idle(self) -> None:
        """Close the idle connections, and end the uploads. In a drain, other connections close after their response."""
        self.end_uploads()
        for connection in list(self.connections):
            connection.close_idle()
        for each in list(self.http2):
            each.leave()

    def end_uploads(self) -> None:
        """End all uploads, and reject new ones until `takes_uploads` is set. Their publishers send the rest again."""
        self.takes_uploads = False
        for connection in list(self.connections):
            connection.end_upload()

    def cut_http2(self) -> None:
        """Close all HTTP/2 connections, and new ones until `takes_http2` is set. Their clients reconnect and resume."""
        self.takes_http2 = False
        for each in list(self.http2):
            each.cut()

    def abort(self) -> None:
        """Abort all connections and stop the timers."""
        for each in list(self.http2):
            each.abort()
        for connection in list(self.connections):
            connection.abort()
        self.deadlines.close()
        self.errors.close()
