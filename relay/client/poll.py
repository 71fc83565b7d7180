"""Long polling in the Python client, for networks in which event streams do not get through.

Owns the address of a poll, and the format of its answer: one JSON document with events and the id to resume from. Never
decides when to poll (`relay.client.follow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from relay.errors import LostError

if TYPE_CHECKING:
    import httpx

JSON = "application/json"


class PollAnswer(msgspec.Struct):
    """The answer to a poll: the events as lines of NDJSON without line ends, and the id to resume from."""

    events: list[msgspec.Raw]
    next: str


_decode = msgspec.json.Decoder(PollAnswer).decode


def poll_address(address: httpx.URL) -> httpx.URL | None:
    """Return the address of polls for the address of a stream; None if the path is not that of a relay's stream."""
    base, found, topic = address.path.rpartition("/events")
    if not found or (topic and not topic.startswith("/")):
        return None
    polls = address.copy_with(path=f"{base}/poll")
    return polls.copy_add_param("topic", topic[1:]) if topic[1:] else polls


def read_answer(body: bytes) -> PollAnswer:
    """Decode an answer.

    Raises:
        LostError: the body is not the answer of a relay.
    """
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LostError(f"the answer to a poll is malformed: {error}") from None
