"""Refusals: how the front reports a rejected request, and the response that makes an EventSource try again.

Owns the choice between an error response and a stream that ends at once (`refuse-streams`). Never writes to a
connection.
"""

from __future__ import annotations

from relay.core.notice import come_back
from relay.errors import RequestError
from relay.front.front import Front
from relay.http.request import Request
from relay.sse import comment

_FOR_NOW = (429, 503)
_REPORTED = (400, 401, 403, 408, 413, 414, 415, 417, 421, 429, 431, 501, 505)


def report_refusal(front: Front, error: RequestError, address: str) -> None:
    """Count a rejected request by its limit, and log it unless its status is ordinary.

    Args:
        front: the state that all connections share.
        error: the error.
        address: the address of the client.
    """
    if error.limit:
        front.metrics.limited(error.limit)
    if error.status in _REPORTED:
        kind = "token" if error.status == 401 else "request"
        front.errors.report(kind, "rejected a request from %s: %s", address, error.reason)


def retry_stream(front: Front, request: Request | None, error: RequestError) -> bytes | None:
    """Return the response that refuses a stream temporarily; None if an error response refuses the request.

    The response is a short stream that sets the reconnection time, because an EventSource gives up after any status
    but 200 (WHATWG HTML 9.2.3).

    Args:
        front: the state that all connections share.
        request: the head; None if it could not be parsed.
        error: the reason.
    """
    if error.status not in _FOR_NOW or request is None or not _wants_retry_stream(front, request):
        return None
    after_ms = 1000 * int(dict(error.headers).get("Retry-After", "0"))
    text = comment(error.reason) + come_back(after_ms + front.hub.draw_retry_ms())
    head, body = front.router.whole_stream(request, text)
    return front.dates.head(head) + body


def _wants_retry_stream(front: Front, request: Request) -> bool:
    """Return whether the request is for an event stream and `refuse-streams` is `retry`."""
    return (
        front.config.refuse_streams == "retry"
        and request.method == "GET"
        and request.path.startswith("/events")
        and "text/event-stream" in request.headers.get("accept", "").lower()
    )
