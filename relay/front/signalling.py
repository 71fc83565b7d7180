"""Signals over HTTP: from a request to the feeders of its topic (`relay.sources.topic_signals`).

Owns the checks of the sender. Never responds (`relay.front.handlers`).
"""

from __future__ import annotations

import math

from relay.core.grant import Grant
from relay.errors import RequestError
from relay.front.front import Front
from relay.http.request import Request
from relay.limits import Limit
from relay.sources.topic_signals import read_signal


def send_signal(front: Front, request: Request, grant: Grant, topic: str, body: bytes) -> None:
    """Send the body of a request as a signal to the feeders of a topic.

    Args:
        front: the state that all connections share.
        request: the head.
        grant: the grant of the sender.
        topic: the topic.
        body: the body.

    Raises:
        RequestError: 400 the body is not valid; 403 the topic is not granted; 415 the content type is not accepted; 429
            the sender exceeds its rate; 503 the link to the hub is down.
    """
    grant.check_signal(topic)
    value = read_signal(request.headers.get("content-type", ""), body)
    wait_s = front.signal_rates.take(grant.subject, 1, front.clock())
    if wait_s:
        headers = (("Retry-After", str(math.ceil(wait_s))),)
        reason = f"rate limit exceeded: at most {front.config.signal_rate} signals per second"
        raise RequestError(429, reason, headers, limit=Limit.SIGNAL_RATE)
    front.signal(topic, value)
