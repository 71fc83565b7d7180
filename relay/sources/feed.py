"""The feed: a stream of messages in another system that relay reads as a source.

Theory of operation. A feed that has positions delivers each message until relay has stored the position after it.
relay stores a position only after the events are published, so that a crash repeats messages and never loses one. The
position of a message identifies it. The event's `dedup` key is the position, so that a repeat is not published again.

Owns the protocol and its values. Never connects. One module for each system implements the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

READ_MESSAGES_MAX = 256
"""Messages of one read. relay stores the position after each read."""

WAIT_S = 1.0
"""Longest time that a read waits for the first message."""

LATER_MESSAGES_MAX = 16 * 1024
"""Messages that may wait in memory, in feeds that cannot make their server wait. More are dropped and counted."""


class FeedMessage(NamedTuple):
    """One message of a feed.

    Args:
        name: the topic, channel, subject, stream or table that it comes from.
        payload: its bytes; None if it consists of fields only.
        fields: its fields, headers or columns, as text. Bytes that are not UTF-8 are lone surrogates (PEP 383), so that
            a field that is used is rejected, and another one is ignored.
        position: identifies the message in its feed, also after a restart; empty if the feed has no positions.
        handle: the value that the feed needs to store the position.
    """

    name: str
    payload: bytes | None
    fields: Mapping[str, str]
    position: str = ""
    handle: Any = None


class SourceFeed(Protocol):
    """One feed. Each method raises BrokerError if the server cannot be reached or rejects a call."""

    lost: int
    """Messages that were dropped because too many waited in memory; always 0 for feeds with positions."""

    async def connect(self) -> None:
        """Connect, and continue after the stored position."""

    async def read(self) -> Sequence[FeedMessage]:
        """Return the next messages in order, at most `READ_MESSAGES_MAX`; none after about `WAIT_S`."""

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Store the position after these messages, so that the server does not deliver them again."""

    async def check(self) -> None:
        """Log in and check that the server has the source, without reading a message and without a change there.

        The feed is not connected before and after.
        """

    async def close(self) -> None:
        """Close the connection. May be called more than once."""
