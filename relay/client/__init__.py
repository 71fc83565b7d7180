"""The Python client: subscribe and publish."""

from relay.client.publish import Publisher
from relay.client.subscribe import publish, subscribe

__all__ = ["Publisher", "publish", "subscribe"]
