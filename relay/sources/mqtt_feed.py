"""The feed of MQTT 5: the topics that a filter matches, with QoS 1 and a persistent session.

The session stores the position: relay acknowledges each message after its event is published, and the broker keeps the
messages that arrive while relay is not connected. MQTT has no identity of a message, so that relay cannot recognize a
repeat after a crash, unless the publisher adds a user property and the option `dedup` names it.

Owns the client, which reads in a thread of its own. Never publishes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.config.source_address import ServerAddress
from relay.errors import BrokerError
from relay.sources.feed import LATER_MESSAGES_MAX, READ_MESSAGES_MAX, WAIT_S, FeedMessage

KEEPALIVE_S = 10
SESSION_S = 2**32 - 1
"""Time for which the broker keeps the session of a relay that is not connected: without limit (MQTT 5, 3.1.2.11.2)."""

_NO_RETAINED_AGAIN = 1
"""Retained messages are sent only with a new subscription (MQTT 5, 3.8.3.1)."""


class MqttFeed:
    """The topics of one filter.

    Args:
        server: the broker.
        password: returns the password; called before each connection.
        tls: files for TLS.
        filter: the topic filter, such as `sensors/+/temperature` or `sensors/#`; empty to only log in.
        name: the client id, which identifies the session.
    """

    def __init__(
        self,
        server: ServerAddress,
        password: Callable[[], str],
        tls: TlsFiles,
        filter: str,
        name: str,
    ) -> None:
        self.lost = 0
        self._server = server
        self._password = password
        self._tls = tls
        self._filter = filter
        self._name = name
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop
        self._received: asyncio.Queue[MQTTMessage | BrokerError]
        self._subscribed: asyncio.Future[None]

    async def connect(self) -> None:
        """Connect, continue the session and subscribe."""
        await self._connect(SESSION_S)

    async def _connect(self, session_s: int) -> None:
        await self.close()
        self._loop = asyncio.get_running_loop()
        self._received, self._subscribed = asyncio.Queue(), self._loop.create_future()
        server, self._client = self._server, self._make_client()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = session_s
        properties.ReceiveMaximum = READ_MESSAGES_MAX
        [(host, port)] = server.hosts
        try:
            async with asyncio.timeout(ANSWER_S):
                await asyncio.to_thread(
                    self._client.connect, host, port, KEEPALIVE_S, clean_start=False, properties=properties
                )
                self._client.loop_start()
                await self._subscribed
        except TimeoutError:
            raise BrokerError(f"no answer within {ANSWER_S:g} s") from None
        except OSError as error:
            raise BrokerError(f"{type(error).__name__}: {error}") from None

    async def read(self) -> Sequence[FeedMessage]:
        """Return messages."""
        received: list[MQTTMessage] = []
        try:
            async with asyncio.timeout(WAIT_S):
                first = await self._received.get()
        except TimeoutError:
            return ()
        item: MQTTMessage | BrokerError = first
        while True:
            if isinstance(item, BrokerError):
                raise item
            received.append(item)
            if len(received) == READ_MESSAGES_MAX or self._received.empty():
                return [_message(each) for each in received]
            item = self._received.get_nowait()

    async def store(self, messages: Sequence[FeedMessage]) -> None:
        """Acknowledge messages. Those of QoS 0 need no acknowledgement."""
        assert self._client is not None, "not connected"
        for message in messages:
            self._client.ack(*message.handle)

    async def check(self) -> None:
        """Log in with a client id of its own, because a second login with an id ends the first connection."""
        name = f"{self._name}-check-{secrets.token_hex(4)}"
        login = MqttFeed(self._server, self._password, self._tls, filter="", name=name)
        try:
            await login._connect(session_s=0)
        finally:
            await login.close()

    async def close(self) -> None:
        """Close the connection. The session remains."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    def _make_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            self._name,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = ANSWER_S
        if self._server.user:
            client.username_pw_set(self._server.user, self._server.password or self._password())
        if self._server.tls:
            client.tls_set_context(self._tls.context())
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _data, message: self._call(self._take, message)
        client.on_disconnect = lambda _client, _data, _flags, code, _properties: self._call(self._fail, str(code))
        return client

    # In the thread of the client

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _on_connect(self, client: Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        if code.is_failure:
            self._call(self._fail, f"the broker rejects the connection: {code}")
        elif not self._filter:
            self._call(self._begin)
        else:
            options = SubscribeOptions(qos=1, retainHandling=_NO_RETAINED_AGAIN)
            client.subscribe(self._filter, options=options)

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        if codes[0].is_failure:
            self._call(self._fail, f"the broker rejects the subscription: {codes[0]}")
        else:
            self._call(self._begin)

    # In the event loop

    def _begin(self) -> None:
        if not self._subscribed.done():
            self._subscribed.set_result(None)

    def _fail(self, reason: str) -> None:
        error = BrokerError(reason)
        if not self._subscribed.done():
            self._subscribed.set_exception(error)
        else:
            self._received.put_nowait(error)

    def _take(self, message: MQTTMessage) -> None:
        """Add a message. The broker limits those of QoS 1, and sends those of QoS 0 without waiting."""
        if message.qos == 0 and self._received.qsize() >= LATER_MESSAGES_MAX:
            self.lost += 1
        else:
            self._received.put_nowait(message)


def _message(received: MQTTMessage) -> FeedMessage:
    """Return one message. Its user properties are its fields."""
    fields = dict(getattr(received.properties, "UserProperty", ()))
    return FeedMessage(received.topic, bytes(received.payload), fields, "", (received.mid, received.qos))
