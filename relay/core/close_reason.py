"""The reasons for which relay closes a stream.

Owns the list of close reasons; `docs/reference/close-reasons.md` has one row for each. Never closes a stream.

The engine is below the core and is partly written in C: it reports `client`, `timeout`, `error` and `input` as plain
strings. `/stats` and `/metrics` use the values.
"""

from __future__ import annotations

from enum import StrEnum


class CloseReason(StrEnum):
    """Why a stream was closed. Each closed stream has exactly one reason."""

    CLIENT = "client"
    """The client closed the connection."""

    TIMEOUT = "timeout"
    """Sent bytes stayed unacknowledged for `client-timeout`."""

    ERROR = "error"
    """The socket failed, or an exception occurred while the stream was served."""

    INPUT = "input"
    """The client sent more than `discard-bytes-max` after its request."""

    SLOW = "slow"
    """The policy `disconnect` applied, or an event that the stream needed was evicted."""

    BLOCKED = "blocked"
    """A `block` stream held up publishers for `block-timeout`."""

    LAPPED = "lapped"
    """An edge dropped its log and received another one from its hub."""

    ANSWERED = "answered"
    """A waiting poll received its answer."""

    ENDED = "ended"
    """All topics of the stream have ended."""

    EXPIRED = "expired"
    """The token of the stream expired."""

    REVOKED = "revoked"
    """The token or its subject was revoked."""

    AGE = "age"
    """The stream reached `max-age`."""

    DRAIN = "drain"
    """The server is stopping."""

    SHUTDOWN = "shutdown"
    """The server stopped before the stream had received everything."""


CLEAN = frozenset(
    (
        CloseReason.ANSWERED,
        CloseReason.ENDED,
        CloseReason.EXPIRED,
        CloseReason.REVOKED,
        CloseReason.AGE,
        CloseReason.DRAIN,
    )
)
"""The reasons for which a stream ends in order, with a complete body. For any other reason, the body is truncated."""
