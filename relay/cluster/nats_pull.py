"""A pull consumer of JetStream that returns each message as soon as it arrives.

`fetch` of nats-py waits for the rest of a batch, which delays single events. Here one request for messages is always
pending, so that a new message needs no round trip.

Owns one subscription and its pending request. Never interprets a message.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.errors import BrokerError

BATCH = 512
"""Messages of one request."""

BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of one request; more if the server accepts larger messages, so that each message fits. Together with `BATCH`,
this bounds the messages that wait in memory."""

EXPIRES_S = 30
"""Time after which the server ends a request."""

_ENDED = ("404", "408", "409")
_IDLE = "100"


class NatsPull:
    """Pulls the messages of one consumer.

    Args:
        client: a connected client.
        stream: the stream.
        consumer: the name of the consumer.
    """

    def __init__(self, client: Client, stream: str, consumer: str) -> None:
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        size = max(BATCH_BYTES, 2 * client.max_payload)
        self._request = json.dumps({"batch": BATCH, "max_bytes": size, "expires": EXPIRES_S * 10**9}).encode()
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._messages: deque[Msg] = deque()
        self._left = 0  # messages that the pending request can still return
        self._failure = ""
        self._arrived = asyncio.Event()

    async def start(self) -> None:
        """Begin to receive."""
        self._subscription = await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def stop(self) -> None:
        """Stop receiving."""
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()

    async def take(self, count: int, wait_s: float) -> list[Msg]:
        """Return the next messages, at most `count`; wait up to `wait_s` for the first one.

        Raises:
            BrokerError: the connection is lost, or the server has removed the consumer.
        """
        await self._ask()
        if not self._messages:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                if self._client.is_closed:
                    raise BrokerError("the connection is lost") from None
        if self._failure:
            raise BrokerError(self._failure)
        taken = [self._messages.popleft() for _ in range(min(count, len(self._messages)))]
        await self._ask()
        return taken

    async def _ask(self) -> None:
        """Request more messages if no request is pending and no message waits."""
        if self._left <= 0 and not self._messages:
            self._left = BATCH
            await self._client.publish(self._subject, self._request, reply=self._inbox)

    async def _on_message(self, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers and not message.reply else None
        if status is None:
            self._left -= 1
            self._messages.append(message)
        elif status in _ENDED:
            self._left = 0
        elif status != _IDLE:
            self._failure = f"the server ended the consumer: {status}"
        self._arrived.set()
