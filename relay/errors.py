"""The errors of relay: one base class, and one class for each party that can make a mistake.

Owns the exception types. Never logs and never formats a response.
"""

from __future__ import annotations

from relay.limits import Limit

RETRY_SOON = (("Retry-After", "2"),)
"""Headers of a short refusal: a drain, or a topic whose publishers wait."""

RETRY_LATER = (("Retry-After", "5"),)
"""Headers of a refusal that lasts until a stream closes: the server, an address or a subject is at its limit."""


class RelayError(Exception):
    """Base class of every error that relay raises on purpose."""


class LostError(RelayError):
    """A server cannot be reached, or its connection is lost. A new attempt may succeed.

    Args:
        reason: the cause, for a log line.
        asked_s: the wait in seconds that the server asked for.
    """

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


class BrokerError(RelayError):
    """The broker cannot be reached, or rejects a command. A later attempt may succeed. Contains no credentials."""


class ConfigError(RelayError):
    """A setting is unknown, malformed or impossible on this machine."""


class EventError(RelayError):
    """A publisher's event is rejected. `field` names the wrong part.

    Args:
        field: name of the field (`data`, `event`, `id`, `retry`, `key`, `topic`), or `event` for the whole event.
        reason: the fault, without the field's name.
    """

    status = 400
    """The HTTP status of this error."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class EndedError(EventError):
    """An event comes after the end of its topic."""

    status = 410

    def __init__(self) -> None:
        super().__init__("topic", "has ended for good")


class RequestError(RelayError):
    """A client's request is rejected.

    Args:
        status: HTTP status code, 400 to 599; 204 if no event can follow.
        reason: one line for the response's body.
        headers: extra response headers (`Allow`, `Retry-After`).
        limit: the limit that the request exceeds; None if it exceeds no limit.
    """

    def __init__(
        self, status: int, reason: str, headers: tuple[tuple[str, str], ...] = (), *, limit: Limit | None = None
    ) -> None:
        super().__init__(status, reason)
        self.limit = limit
        self.status = status
        self.reason = reason
        self.headers = headers

    def __str__(self) -> str:
        return self.reason
