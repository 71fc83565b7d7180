"""The errors of relay: one base class, and one class for each party that can be wrong.

Owns the exception types; never logs and never formats a response.
"""

from __future__ import annotations

from relay.limits import Limit

RETRY_SOON = (("Retry-After", "2"),)
"""Headers of a refusal that is over in a moment: a drain, a held topic."""

RETRY_LATER = (("Retry-After", "5"),)
"""Headers of a refusal that somebody has to go for: the server, or one address or subject, is full."""


class RelayError(Exception):
    """Base class of every error that relay raises on purpose."""


class LostError(RelayError):
    """A server cannot be reached now, or its connection is lost; a new attempt may succeed.

    Args:
        reason: why.
        asked_s: the wait that the server asked for.
    """

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


class ConfigError(RelayError):
    """A setting is unknown, malformed or impossible on this machine."""


class EventError(RelayError):
    """A publisher's event cannot be taken; `field` names the part that is wrong.

    Args:
        field: name of the field (`data`, `event`, `id`, `retry`, `key`, `topic`), or `event` for the whole.
        reason: what is wrong with it, without the field's name.
    """

    status = 400
    """What it is over HTTP."""

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
    """A client's request is refused.

    Args:
        status: HTTP status code, 400 to 599; 204 where there will never be anything again.
        reason: one line for the response's body.
        headers: extra response headers (`Allow`, `Retry-After`).
        limit: the limit that the request exceeds; None if the reason is another.
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
