"""Topic signals: short messages to the feeders of a topic, for example to stop a language model.

A feeder receives the signals of the topics that it has published to. It registers a topic when it publishes to it for
the first time. A signal is a line of JSON, `{"signal": …, "topic": …}`, on the connection of the feeder.

Owns the map from topics to feeders, and the format of a signal. Never stores a signal: if no feeder can receive it now,
it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import msgspec
import orjson

from relay.errors import EventError, RequestError
from relay.event_json import DEPTH_MAX
from relay.speedups import json_data

TOPICS_MAX = 10_000
"""Topics of one feeder. With more, it no longer receives the signals of the topics that it registered first. They take
about 2 MB."""

SIGNAL_BYTES_MAX = 4096
"""Largest body of a signal. A signal is a command and not a way to publish."""

SendLine = Callable[[bytes], bool]
"""Sends a line to a feeder; returns False if the feeder does not read, so that the line is dropped."""


def _drop(line: bytes) -> bool:
    """Send a line to no feeder."""
    return False


class FeederTopics:
    """The topics of one feeder. Created by `TopicSignals.feeder`.

    Args:
        owner: the map that contains them.
        send: sends a line to the feeder.
    """

    __slots__ = ("_owner", "names", "send")

    def __init__(self, owner: TopicSignals, send: SendLine) -> None:
        self.names: dict[str, None] = {}
        self.send = send
        self._owner = owner

    def add(self, topic: str) -> None:
        """Register a topic that is not in `names`."""
        if len(self.names) >= TOPICS_MAX:
            self._owner.forget(next(iter(self.names)), self)
        self.names[topic] = None
        self._owner.topics.setdefault(topic, {})[self] = None

    def close(self) -> None:
        """Remove all topics, and release the feeder, which refers to this object."""
        for topic in list(self.names):
            self._owner.forget(topic, self)
        self.send = _drop


class TopicSignals:
    """The feeders of one process, by their topics.

    Args:
        counts: counts the lines for feeders as `delivered` or `dropped`.
    """

    def __init__(self, counts: MutableMapping[str, int]) -> None:
        self.topics: dict[str, dict[FeederTopics, None]] = {}
        self._counts = counts

    def feeder(self, send: SendLine) -> FeederTopics:
        """Return the topics of a new feeder, which has none."""
        return FeederTopics(self, send)

    def forget(self, topic: str, feeder: FeederTopics) -> None:
        """Remove a topic of a feeder."""
        del feeder.names[topic]
        feeders = self.topics[topic]
        del feeders[feeder]
        if not feeders:
            del self.topics[topic]

    def deliver(self, topic: str, value: bytes) -> None:
        """Send a signal to the feeders of a topic.

        Args:
            topic: the topic.
            value: the value as compact JSON, as `read_signal` returns it.
        """
        line = b'{"signal":%b,"topic":%b}\n' % (value, orjson.dumps(topic))
        for feeder in list(self.topics.get(topic, ())):
            self._counts["delivered" if feeder.send(line) else "dropped"] += 1


def read_signal(content_type: str, body: bytes) -> bytes:
    """Return the value of a signal as compact JSON.

    Args:
        content_type: the Content-Type of the request: JSON, or any text for a string. Without a body, it may be empty.
        body: the body; empty for the value null.

    Raises:
        RequestError: 400 if the body is not valid, 415 for any other content type.
    """
    if not body:
        return b"null"
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            orjson.loads(body)  # Checks the text only, because its result would lose digits of numbers.
            value = json_data(msgspec.Raw(body.strip()), DEPTH_MAX)
            return bytes(value) if isinstance(value, msgspec.Raw) else orjson.dumps(value)
        if kind.startswith("text/"):
            return orjson.dumps(body.decode())
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, UnicodeDecodeError, EventError) as error:
        raise RequestError(400, f"the signal is not valid: {error}") from None
    raise RequestError(415, "the content type of a signal must be application/json or text/plain")
