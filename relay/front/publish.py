"""Publish requests: from the head and the body of a request to its events, or to an upload.

An upload is a request whose lines are published as they arrive (`relay.sources.upload`). A body that consists of lines
is an upload if it has no length, or if the client accepts NDJSON, which contains an answer to each line.

Owns the checks of a publisher, and the choice of the parser. Never publishes and never responds
(`relay.front.handlers`).
"""

from __future__ import annotations

import math
from functools import partial

from msgspec.structs import replace

from relay.core.grant import Grant
from relay.errors import RETRY_SOON, RequestError
from relay.event import Event
from relay.front.front import Front
from relay.front.negotiate import accepts_ndjson
from relay.front.routes import PublishBody
from relay.http.coding import BodyDecoder, decode_body
from relay.http.request import Request
from relay.limits import Limit
from relay.sources.body import line_format, media_type, parse_body
from relay.sources.upload import Upload


def authorise(front: Front, request: Request, route: PublishBody) -> Grant:
    """Return the grant of a publisher, before the body is read.

    A webhook with a secret needs a signature, which `read_events` checks. Any other publisher needs a token.

    Raises:
        RequestError: 401, there is no signature or no valid token.
    """
    if route.webhook is not None and front.auth.has_secret(route.webhook):
        return front.auth.signer(request, route.webhook, route.topic)
    return front.auth.publisher(request)


def read_events(front: Front, request: Request, route: PublishBody, grant: Grant, body: bytes) -> list[Event]:
    """Return the events of a body, within the grant and the limits.

    Args:
        front: the state that all connections share.
        request: the head.
        route: the route of the head.
        grant: from `authorise`.
        body: the body as received.

    Raises:
        EventError: an event is malformed.
        RequestError: 400 the body is not valid in its content coding; 401 the signature is not valid; 403 a topic is
            not granted; 413 the body is too large, or has too many events; 415 the content type is not accepted.
    """
    if route.webhook is not None and front.auth.has_secret(route.webhook):
        front.auth.check_signed(request, route.webhook, body)
    body = decode_body(route.coding, body, front.config.body_bytes_max)
    fields, members = _fields(request, route)
    content_type = request.headers.get("content-type", "")
    events = parse_body(
        content_type, body, fields, is_data=route.is_data, as_lines=route.as_lines, members=members
    )
    events_max = front.config.batch_events_max
    if len(events) > events_max:
        raise RequestError(413, f"a request has at most {events_max} events", limit=Limit.BATCH_EVENTS_MAX)
    grant.check_publish({str(event.topic) for event in events})
    return events


def check_rate(front: Front, wait_s: float) -> None:
    """Check the result of `front.take_rate` for the events of a request.

    Raises:
        RequestError: 429, the publisher exceeds its rate.
    """
    if wait_s:
        headers = (("Retry-After", str(math.ceil(wait_s))),)
        reason = f"rate limit exceeded: at most {front.config.publish_rate} events per second"
        raise RequestError(429, reason, headers, limit=Limit.PUBLISH_RATE)


def open_upload(front: Front, request: Request, route: PublishBody, grant: Grant) -> Upload | None:
    """Return the upload of a request; None if the body must arrive as a whole.

    Args:
        front: the state that all connections share.
        request: the head.
        route: the route of the head.
        grant: from `authorise`.

    Raises:
        RequestError: 400 all lines would have the same id; 415 the charset is not UTF-8; 503 the server ends its
            uploads.
    """
    answering = accepts_ndjson(request.headers.get("accept", ""))
    if (request.body_length is not None and not answering) or front.auth.has_secret(route.webhook):
        return None
    fields, members = _fields(request, route)
    media = media_type(request.headers.get("content-type", ""))
    bytes_max = front.config.line_bytes_max
    format = line_format(
        media, fields, is_data=route.is_data, as_lines=route.as_lines, members=members, bytes_max=bytes_max
    )
    if format is None:
        return None
    if not front.takes_uploads:
        raise RequestError(503, "the server is draining", RETRY_SOON)
    return Upload(
        format,
        BodyDecoder(route.coding) if route.coding else None,
        front.publisher,
        lambda event: grant.check_publish({str(event.topic)}),
        partial(front.take_rate, grant.subject),
        front.metrics.upload_lines,
        front.loop,
        dedup=fields.dedup,
        answering=answering,
    )


def _fields(request: Request, route: PublishBody) -> tuple[Event, dict[str, str]]:
    """Return the fields of events that the body does not describe, and those that are members of a JSON body.

    The fields of a webhook take precedence over those of the query.
    """
    fields = Event(
        event=route.event, id=route.id, key=route.key, topic=route.topic, dedup=route.dedup, ttl=route.ttl
    )
    members = {}
    for field, place in route.webhook.places if route.webhook is not None else ():
        if place.startswith("."):
            members[field] = place
        elif value := request.headers.get(place):
            fields = replace(fields, **{field: _header_text(value)})
    return fields, members


def _header_text(value: str) -> str:
    """Return a header value as text. Some senders encode it in UTF-8, others in Latin-1, as the parser decodes it."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value
