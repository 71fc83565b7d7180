"""The Python client: subscribe and publish."""

from relay.client.follow import END
from relay.client.publish import Publisher, publish
from relay.client.subscribe import GAP, Gap, SubscribedEvents, read_gap, subscribe
from relay.client.sync import SyncPublisher, publish_sync

__all__ = [
    "END",
    "GAP",
    "Gap",
    "Publisher",
    "SubscribedEvents",
    "SyncPublisher",
    "publish",
    "publish_sync",
    "read_gap",
    "subscribe",
]
