"""The routes: map a request head to a route.

Owns the paths, their query names and their methods. Pure: a request in, one small value out. Never parses a value of
the query (`relay.front.query`), reads a body, publishes or opens a stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial

from msgspec.structs import replace

from relay.config.model import Config
from relay.config.origins import Allowed
from relay.config.webhooks import Webhook, find_webhook, parse_webhooks
from relay.core.forms.form import Form
from relay.core.forms.registry import DEFAULT, PLAIN, POLL, POLL_AND_CLOSE, all_forms
from relay.core.policy import Policy
from relay.core.polls import EVENTS_MAX
from relay.core.stream import Subscribe
from relay.errors import EventError, RequestError
from relay.front.negotiate import Negotiator
from relay.front.query import (
    Names,
    check_names,
    read_duration,
    read_last_ids,
    read_limit,
    read_raw,
    read_since,
    read_switch,
    read_text,
)
from relay.http.coding import check_coding
from relay.http.idempotency import read_key
from relay.http.request import Request
from relay.http.response import Headers, cors_headers, stream_head
from relay.ids import LAST_ID_NAMES
from relay.limits import Limit
from relay.telemetry.topics import LIMIT, LIMIT_MAX, TopicsQuery
from relay.topic import check_term, check_topic, is_pattern

_STREAM_NAMES = Names(
    ("topic", "since", "policy", "envelope", "padding", "evs_preamble", "ticket", "limit", *LAST_ID_NAMES)
)
_POLL_NAMES = Names(("topic", "since", "wait", "limit", "ticket", *LAST_ID_NAMES))
HISTORY_EVENTS = 100
"""Number of events of a history without `limit`."""
POLL_WAIT_S = 30.0
"""Time that a poll without `wait` waits. Proxies usually give up after 60 seconds."""
_TOPICS_NAMES = Names(("after", "limit"))
_PUBLISH_NAMES = Names(("topic", "event", "id", "key", "dedup", "ttl", "lines"))
ORIGINS_CACHED = 1024
"""Size of the cache of headers per origin; a wildcard can match any number of origins."""

_READ = ("GET", "HEAD", "OPTIONS")
_WRITE = ("POST", "OPTIONS")
_POLICIES = frozenset(policy.value for policy in Policy)
_PREFLIGHT_MAX_AGE_S = 7200
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, Last-Event-ID, Cache-Control, Content-Encoding, Idempotency-Key, "
    "traceparent, tracestate"
)


@dataclass(frozen=True, slots=True)
class StreamHead:
    """Respond to HEAD with the response head of the stream, and close."""

    terms: tuple[str, ...]
    head: bytes


@dataclass(frozen=True, slots=True)
class Poll:
    """Respond with one JSON document of events.

    Args:
        subscribe: the terms and the position.
        wait_s: maximum time to wait for an event; 0 to respond at once.
        events_max: maximum number of events.
        newest: respond with the newest events instead of those after a position.
    """

    subscribe: Subscribe
    wait_s: float
    events_max: int
    newest: bool = False


@dataclass(frozen=True, slots=True)
class PublishBody:
    """Publish the body.

    Args:
        topic: topic of events that do not name one.
        event: event type, if the body is the data of one event.
        id: event id, if the body is the data of one event.
        key: event key, if the body is the data of one event.
        dedup: dedup key of events that have none.
        ttl: time in seconds for which events that have no `ttl` are retained.
        is_data: whether the body is the data of one event, regardless of its content type: the path names the topic,
            or the query has the `event`, `id` or `key`.
        webhook: the webhook of the topic, if the path names the topic.
        coding: the content coding of the body; empty for none.
        as_lines: whether each line of a text is the data of an event.
    """

    topic: str
    event: str | None
    id: str | None
    key: str | None
    dedup: str | None = None
    ttl: float | None = None
    is_data: bool = False
    webhook: Webhook | None = None
    coding: str = ""
    as_lines: bool = False


@dataclass(frozen=True, slots=True)
class SignalTopic:
    """Send the body as a signal to the feeders of a topic."""

    topic: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """Issue a ticket for a stream."""


@dataclass(frozen=True, slots=True)
class Options:
    """Respond 204 with these headers: to a preflight request, or with the methods of the path."""

    headers: Headers


class Resource(Enum):
    """A document that GET returns."""

    PAGE = "/"
    HEALTH = "/healthz"
    READY = "/readyz"
    METRICS = "/metrics"
    STATS = "/stats"


Route = Subscribe | StreamHead | Poll | PublishBody | SignalTopic | Ticket | Options | Resource | TopicsQuery

_RESOURCES = {resource.value: resource for resource in Resource}


class Router:
    """Maps requests to routes, under one set of settings.

    Args:
        config: topic, limits, policies and origins.
        wall: returns the Unix time in seconds.
    """

    def __init__(self, config: Config, wall: Callable[[], float] = time.time) -> None:
        self._config = config
        self._wall = wall
        self._hosts = Allowed(config.allowed_host) if config.allowed_host else None
        self._origins = Allowed(config.cors_origin)
        self._cors = lru_cache(ORIGINS_CACHED)(partial(cors_headers, self._origins))
        # Streams share one head per listed origin, and one for all other origins.
        self._heads = lru_cache(ORIGINS_CACHED)(self._build_head)
        self._forms = all_forms()
        self._webhooks = parse_webhooks(config.webhook)
        self._negotiator = Negotiator(config)

    def cors(self, request: Request | None) -> Headers:
        """Return the CORS headers of the response; `request` is None if the request could not be parsed."""
        cors = self._cors(None if request is None else self._origin(request))
        return (*cors, ("Access-Control-Expose-Headers", "Retry-After")) if _allows(cors) else cors

    def _origin(self, request: Request) -> str | None:
        """Return the origin of a request, if it is listed."""
        origin = request.headers.get("origin")
        return origin if origin is not None and self._origins.lists(origin) else None

    def _build_head(self, origin: str | None, form: Form) -> bytes:
        """Return the response head of a stream."""
        return stream_head(
            form.syntax.media_types[0],
            form.framing.headers,
            self._negotiator.vary,
            self._cors(origin),
            keep_alive=form.name == POLL,
        )

    def waiting(self, request: Request, subscribe: Subscribe, *, keep: bool) -> Subscribe:
        """Return the stream of a poll that waits; `keep` states whether its connection stays open afterwards."""
        form = POLL if keep else POLL_AND_CLOSE
        return replace(subscribe, form=form, head=self._heads(self._origin(request), self._forms[form]))

    def whole_stream(self, request: Request, frame: bytes) -> tuple[bytes, bytes]:
        """Return the head and the body of a response whose event stream contains only this notice."""
        form = self._forms[DEFAULT if request.version == "1.1" else PLAIN]
        return self._heads(self._origin(request), form), form.notice(frame) + form.framing.end(0, 0)

    def route(self, request: Request) -> Route:
        """Return the route of a request.

        Raises:
            RequestError: 400 malformed argument, 403 policy not allowed in requests, 404 unknown path, 405 wrong
                method, 421 host not allowed.
        """
        if self._hosts is not None and not self._hosts.lists(request.host.removesuffix(".")):
            # RFC 9110 section 15.5.20
            raise RequestError(421, f"{request.host!r} is not a name of this server; add it to allowed-host")
        path = request.path
        if path == "/events" or path.startswith("/events/"):
            return self._by_method(request, _READ, self._events)
        if path == "/poll":
            return self._by_method(request, _READ, self._poll)
        if path == "/publish" or path.startswith("/publish/"):
            return self._by_method(request, _WRITE, self._publish)
        if path.startswith("/topics/") and request.raw_path.endswith("/signal") and request.raw_path.count("/") > 2:
            return self._by_method(request, _WRITE, _signal)
        if path == "/ticket" and self._config.subscribe == "jwt":
            return self._by_method(request, _WRITE, lambda _: Ticket())
        if path == "/topics" or path.startswith("/topics/"):
            return self._by_method(request, _READ, _topics)
        resource = _RESOURCES.get(path)
        if resource is not None:
            return self._by_method(request, _READ, lambda _: resource)
        if path == "*" and request.method == "OPTIONS":
            return self._options(request, ("GET", "HEAD", "POST", "OPTIONS"))
        raise RequestError(404, "no such path")

    def _by_method(self, request: Request, methods: tuple[str, ...], parse: Callable[[Request], Route]) -> Route:
        """Return the route of a request to a path that has these methods; raise RequestError 405 for another method."""
        if request.method not in methods:
            raise RequestError(405, f"{request.method} is not allowed for this path", (("Allow", ", ".join(methods)),))
        return self._options(request, methods) if request.method == "OPTIONS" else parse(request)

    def _events(self, request: Request) -> Subscribe | StreamHead | Poll:
        """Return the route of a request for events."""
        check_names(request, _STREAM_NAMES)
        stream = self._subscribe(request)
        if stream.form == POLL or request.raw_values("limit"):
            return self._history(request, stream)
        return StreamHead(stream.terms, stream.head) if request.method == "HEAD" else stream

    def _options(self, request: Request, methods: tuple[str, ...]) -> Options:
        """Return the response to OPTIONS: the allowed methods, and CORS for a preflight of an allowed origin."""
        headers = (("Allow", ", ".join(methods)),)
        if "access-control-request-method" not in request.headers or not _allows(self.cors(request)):
            return Options(headers)
        return Options(
            (
                *headers,
                ("Access-Control-Allow-Methods", ", ".join(methods)),
                ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
                ("Access-Control-Max-Age", str(_PREFLIGHT_MAX_AGE_S)),
            )
        )

    def _subscribe(self, request: Request) -> Subscribe:
        """Parse the arguments of a stream."""
        last_ids = read_last_ids(request)
        text = read_raw(request, "since") or ""
        since = read_since("" if last_ids else text, self._wall())
        terms = self._terms(request)
        form = self._negotiator.form(request, terms, read_text(request, "envelope"))
        return Subscribe(
            terms=terms,
            last_ids=last_ids or since.ids,
            since_s=since.age_s,
            policy=self._policy(read_text(request, "policy")),
            padding=any(name in ("padding", "evs_preamble") for name, _ in request.query),
            head=self._heads(self._origin(request), self._forms[form]),
            form=form,
            must_know=bool(since.ids),
            newest=since.newest,
        )

    def _poll(self, request: Request) -> Poll:
        """Parse the arguments of a poll."""
        check_names(request, _POLL_NAMES)
        wait_s = read_duration(request, "wait")
        if request.method == "HEAD":
            wait_s = 0.0
        elif wait_s is None:
            wait_s = POLL_WAIT_S
        subscribe = replace(_with_history(self._subscribe(request)), form=POLL, policy=None)
        return Poll(subscribe, min(wait_s, self._config.poll_wait_max_s), read_limit(request, EVENTS_MAX, EVENTS_MAX))

    def _history(self, request: Request, stream: Subscribe) -> Poll:
        """Return the route of a stream's request whose client wants the events as a document."""
        _with_history(stream)
        newest = not stream.replays and not read_raw(request, "since")
        since_s = math.inf if newest else stream.since_s
        subscribe = replace(stream, form=POLL, policy=None, since_s=since_s)
        return Poll(subscribe, 0.0, read_limit(request, HISTORY_EVENTS, EVENTS_MAX), newest)

    def _terms(self, request: Request) -> tuple[str, ...]:
        """Return the topics and patterns without duplicates: from the path, then from the query."""
        wanted = request.values("topic")
        if request.path not in ("/events", "/poll"):
            wanted.insert(0, _path_topic(request, "/events"))
        try:
            terms = tuple(dict.fromkeys(check_term(term) for term in wanted))
        except EventError as error:
            raise RequestError(400, str(error)) from None
        if len(terms) > self._config.topics_per_stream_max:
            reason = f"a stream has at most {self._config.topics_per_stream_max} topics"
            raise RequestError(400, reason, limit=Limit.TOPICS_PER_STREAM_MAX)
        if sum(map(is_pattern, terms)) > self._config.patterns_per_stream_max:
            reason = f"a stream has at most {self._config.patterns_per_stream_max} patterns"
            raise RequestError(400, reason, limit=Limit.PATTERNS_PER_STREAM_MAX)
        return terms or (self._config.topic,)

    def _policy(self, policy: str | None) -> str | None:
        """Return the policy if a request may choose it; else raise RequestError."""
        if policy is None or policy in self._config.policy_request:
            return policy
        allowed = ", ".join(self._config.policy_request) or "none"
        status = 403 if policy in _POLICIES else 400
        raise RequestError(status, f"policy: requests may not choose this policy; allowed: {allowed}")

    def _publish(self, request: Request) -> PublishBody:
        """Parse the arguments of a publish request."""
        coding = check_coding(request.headers.get("content-encoding", ""))
        check_names(request, _PUBLISH_NAMES)
        path_topic = None if request.path == "/publish" else _path_topic(request, "/publish")
        query_topic = read_text(request, "topic")
        if path_topic is not None and query_topic is not None:
            raise RequestError(400, "query: the path already names the topic; remove topic from the query")
        topic = path_topic or query_topic or self._config.topic
        try:
            check_topic(topic)
        except EventError as error:
            raise RequestError(400, str(error)) from None
        event, id, key = read_text(request, "event"), read_text(request, "id"), read_text(request, "key")
        return PublishBody(
            topic,
            event,
            id,
            key,
            read_text(request, "dedup") or read_key(request.headers.get("idempotency-key")),
            read_duration(request, "ttl"),
            is_data=path_topic is not None or (event, id, key) != (None, None, None),
            webhook=find_webhook(self._webhooks, topic) if path_topic is not None else None,
            coding=coding,
            as_lines=read_switch(request, "lines"),
        )


def _allows(cors: Headers) -> bool:
    return any(name == "Access-Control-Allow-Origin" for name, _ in cors)


def _signal(request: Request) -> SignalTopic:
    """Parse the path of a signal."""
    if request.raw_path.count("/") != 3:
        raise RequestError(404, "the path is /topics/TOPIC/signal")
    try:
        return SignalTopic(check_topic(request.path.removeprefix("/topics/").removesuffix("/signal")))
    except EventError as error:
        raise RequestError(400, str(error)) from None


def _with_history(stream: Subscribe) -> Subscribe:
    """Return the request of a poll; raise RequestError 400 if it asks for the newest event of each topic."""
    if stream.newest:  # A document could not contain the events of many topics.
        raise RequestError(400, "since: `last` is only for streams; give `earliest`, a time or an id")
    return stream


def _path_topic(request: Request, parent: str) -> str:
    """Return the topic or pattern that follows `parent` in the path.

    Raises:
        RequestError: 404, the topic is empty or has an unescaped slash.
    """
    topic = request.path.removeprefix(f"{parent}/")
    if request.raw_path.count("/") != 2 or not topic:
        raise RequestError(404, f"the path is {parent} or {parent}/TOPIC")
    return topic


def _topics(request: Request) -> TopicsQuery:
    """Parse a request for one topic, or for a page of topics."""
    if request.path != "/topics":
        return TopicsQuery(topic=_path_topic(request, "/topics"))
    check_names(request, _TOPICS_NAMES)
    return TopicsQuery(after=read_text(request, "after") or "", limit=read_limit(request, LIMIT, LIMIT_MAX))
