"""The sink of a source: the hub of this process, or the publisher of a cluster.

Owns this protocol, and the receipt of an event whose id is assigned later. Never publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relay.errors import RelayError
from relay.event import Event


class Receipt:
    """The result of publishing one event; it is known once the sink confirms the event."""

    __slots__ = ("error", "id")

    def __init__(self) -> None:
        self.id = ""
        self.error: RelayError | None = None


class EventSink(Protocol):
    """Accepts the events of sources, one by one and in order."""

    def publish_one(self, event: Event, now_s: float, *, foreign: bool = False) -> str | Receipt:
        """Publish an event; return its id, or a receipt if the id is assigned later.

        Args:
            event: an event with a topic.
            now_s: the time.
            foreign: the event and its id come from another server; see `relay.core.writer.Writer.publish_one`.

        Raises:
            EventError: the event is rejected.
        """

    def held(self, topic: str) -> bool:
        """Return whether publishers of a topic have to wait."""

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, when publishers of some topic may continue."""

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once, when everything published so far may be acknowledged; possibly within this call."""

    def confirm_stored(self, callback: Callable[[], None]) -> None:
        """Call back once, when everything published so far survives a crash; without a file or a broker, at once."""
