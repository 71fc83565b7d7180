"""Ended topics: those that an event of type `relay.end` has closed for good.

Owns which topics they are, and the form of that event. Never ends a stream (the hub does) and never publishes.

Theory of operation. The end of a topic is an event like any other, the last one of its topic: so it has its place in
the log, reaches every edge in order, and is on the disk. A topic is *ending* from when that event is accepted, after
which no other event of it is, and *ended* once it is in the log, after which no stream waits for more of it. With a
file the two are a write apart. Topics are remembered beyond what the log retains, the last `ENDED_MAX` of them, but
over a restart only as long as their end is in the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

END = "relay.end"
ENDED_MAX = 10_000
"""Topics remembered: 4 MB at most. The one that ended first is forgotten first, and is a topic like any other then."""

_PREFIX = f"event: {END}\n".encode()


class Ended:
    """The topics of one log that have ended."""

    def __init__(self) -> None:
        self.topics: OrderedDict[str, bool] = OrderedDict()  # and of each whether its end is in the log

    def begin(self, topic: str) -> None:
        """Note that a topic is ending: nothing is published on it any more."""
        self.topics.setdefault(topic, False)
        while len(self.topics) > ENDED_MAX:
            self.topics.popitem(last=False)

    def note(self, topic: str) -> None:
        """Note that a topic has ended: its end is in the log, or was."""
        self.begin(topic)
        self.topics[topic] = True

    def all(self, terms: Iterable[str]) -> bool:
        """Say whether all of these terms are topics that have ended."""
        topics = self.topics
        return bool(topics) and all(topics.get(term, False) for term in terms)

    def known(self) -> list[str]:
        """Return the topics that have ended, the first one first."""
        return [topic for topic, is_in_log in self.topics.items() if is_in_log]


def is_end(frame: bytes) -> bool:
    """Say whether a frame is that of an event that ends its topic; `event` is the first field of each frame."""
    return frame.startswith(_PREFIX)
