"""The witness: a healthy subscriber of all topics during the faults; the oracle checks its events."""

from __future__ import annotations

import re

from relay.event import Event
from tests.oracle import Oracle, Published
from tests.running import Relay, Stream, eventually


class Witness:
    """One subscriber of `**`, and the known events of its server.

    Args:
        server: a server that has published nothing yet.
    """

    def __init__(self, server: Relay) -> None:
        self._server = server
        self._published = Published()
        self._oracle = Oracle(self._published, ("**",))
        self._oracle.connect(1)
        server.stats()  # libuv opens its spare descriptor with the first connection that is not a stream.
        self._stream = Stream(server.port, "topic=**")
        server.request("GET", "/healthz")  # The first transport opens a descriptor that the process keeps.
        eventually(lambda: server.connections() == 1, "only the stream is connected")
        self.descriptors = server.open_descriptors()

    def note(self, data: str, topic: str, id: str) -> None:
        """Record an event of another publisher. Every line ending arrives as LF."""
        self._published.add(Event(re.sub(r"\r\n?", "\n", data), topic=topic), id)

    def publish(self, data: str, topic: str = "witness") -> str:
        """Publish an event and return its id."""
        [id] = self._server.publish(data, topic)
        self.note(data, topic, id)
        return id

    def check(self) -> None:
        """Check that all published events have arrived, that nothing else has, and that no resource is left."""
        last = self.publish("the last")
        seen = None
        while seen != last:
            event = self._stream.next()
            assert event.event != "relay.gap", event
            self._oracle.receive(event)
            seen = event.id
        self._oracle.finish()
        eventually(lambda: self._server.connections() == 1, "only the witness is connected")
        eventually(lambda: self._server.open_descriptors() == self.descriptors, "the descriptors are closed")

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()
