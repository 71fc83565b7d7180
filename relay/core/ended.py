"""Ended topics: topics that an event of type `relay.end` has ended.

Owns the set of ended topics and the form of that event. Never closes a stream (the hub does) and never publishes.

Theory of operation. The end of a topic is the last event of the topic. Like any event it has a position in the log,
reaches every edge in order and is stored on the disk. A topic is *ending* once this event is accepted; it then rejects
other events. It is *ended* once the event is in the log; its streams then close. With a file, the write to the disk
happens between the two. The last `ENDED_MAX` topics are remembered even if the log does not retain their end. After a
restart, only the topics whose end is in the file are known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

END = "relay.end"
ENDED_MAX = 10_000
"""Maximum number of remembered topics (4 MB). The oldest is forgotten first and can be published to again."""

_FIELD = f"\r\nevent: {END}\n".encode()
_FIELD_STOP = 8 + len(_FIELD)
"""Latest position of the field's end: at most 8 hexadecimal digits precede the field."""


class Ended:
    """The ended topics of one log."""

    def __init__(self) -> None:
        self.topics: OrderedDict[str, bool] = OrderedDict()  # topic → whether its end is in the log

    def begin(self, topic: str) -> None:
        """Mark a topic as ending: it rejects events from now on."""
        self.topics.setdefault(topic, False)
        while len(self.topics) > ENDED_MAX:
            self.topics.popitem(last=False)

    def note(self, topic: str) -> None:
        """Mark a topic as ended: its end is or was in the log."""
        self.begin(topic)
        self.topics[topic] = True

    def all(self, terms: Iterable[str]) -> bool:
        """Return whether all of these terms are ended topics."""
        topics = self.topics
        return bool(topics) and all(topics.get(term, False) for term in terms)

    def known(self) -> list[str]:
        """Return the ended topics, oldest end first."""
        return [topic for topic, is_in_log in self.topics.items() if is_in_log]


def is_end(chunk: bytes) -> bool:
    """Return whether an entry's stored bytes end its topic; `event` is the first field of each frame."""
    return chunk.find(_FIELD, 0, _FIELD_STOP) >= 0
