"""The Python client: subscribe and publish."""

from relay.client.publish import Publisher, publish
from relay.client.subscribe import subscribe

__all__ = ["Publisher", "publish", "subscribe"]
