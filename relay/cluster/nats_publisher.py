"""The publisher's side of a log in NATS JetStream.

Theory of operation. The events of a call go out as atomic batches (JetStream 2.12): all messages of a batch are stored
next to each other, or none. An event with a dedup key goes out alone, with the key as its message id, so that JetStream
recognizes a repeat. The first message of a batch has a message id too, so that a call that is repeated is not stored
twice; the follower then knows its sequence.

Owns the publisher's connection, and the sequences of its last batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nats.aio.client import Client
from nats.js.errors import NotFoundError

from relay.brokers import ANSWER_S
from relay.brokers.nats_client import NatsConnector, close, errors
from relay.cluster.broker import NewEntry, Request, Result
from relay.errors import BrokerError, RequestError

BATCH_MESSAGES_MAX = 1000
"""Messages of an atomic batch; the default limit of the server. A larger request is several batches."""

BATCHES_MAX = 1000
"""Own batches whose sequences are remembered."""

HEADERS_BYTES_MAX = 512
"""More bytes than the headers of a message have, without its dedup key."""

_BATCH_IS_REPEAT = 10201


class NatsPublisher:
    """Publishes to one stream.

    Args:
        stream: the stream.
        node: identifies this process as a publisher: 8 hexadecimal digits.
        connector: connects.
    """

    def __init__(self, stream: str, node: str, connector: NatsConnector) -> None:
        self._log = stream
        self._node = node
        self._connector = connector
        self._client: Client | None = None
        self._closed = asyncio.Event()  # the connection is lost or closed
        self._bytes_max = 0  # of a message and its headers
        self._limit = ""  # name of the setting that limits it
        self._batches: OrderedDict[str, int] = OrderedDict()  # message id of an own batch → its first sequence

    async def connect(self) -> None:
        """Connect, and read the limit of a message."""
        await self.close()
        self._closed = asyncio.Event()
        self._client = client = await self._connector.connect(self._closed)
        self._bytes_max, self._limit = client.max_payload, "broker (max_payload)"
        async with errors():
            with contextlib.suppress(NotFoundError):  # The follower creates the stream, without a limit.
                info = await client.jetstream(timeout=ANSWER_S).stream_info(self._log)
                if 0 < (info.config.max_msg_size or 0) < self._bytes_max:
                    self._bytes_max, self._limit = int(info.config.max_msg_size or 0), "stream (max_msg_size)"

    async def publish(self, call: int, epoch: str, requests: Sequence[Request]) -> list[Result]:
        """Publish requests in order. A request with dedup keys, or with many events, is not atomic."""
        results: list[Result] = []
        run: list[NewEntry] = []
        async with errors():
            for request in requests:
                error = self._check(request)
                for entry in request:
                    if error is None and entry.dedup is None:
                        run.append(entry)
                        if len(run) < BATCH_MESSAGES_MAX:
                            continue
                    results += await self._publish_batch(call, len(results), epoch, run)
                    run = []
                    if error is not None:
                        results.append(error)
                    elif entry.dedup is not None:
                        results.append(await self._publish_one(epoch, entry))
            results += await self._publish_batch(call, len(results), epoch, run)
        return results

    async def head(self) -> int:
        """Return the sequence of the next entry."""
        async with errors():
            info = await self._connected.jetstream(timeout=ANSWER_S).stream_info(self._log)
        return int(info.state.last_seq) + 1

    def note(self, call: str, sequence: int) -> None:
        """Remember the sequence of a batch, if this process published it; the follower has received it."""
        if call.startswith(self._node):
            self._batches[call] = sequence
            while len(self._batches) > BATCHES_MAX:
                self._batches.popitem(last=False)

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        await close(client)

    @property
    def _connected(self) -> Client:
        assert self._client is not None, "the publisher is not connected"
        return self._client

    def _check(self, request: Request) -> RequestError | None:
        """Return the error of a request with an event that the broker would reject; no event of it is published."""
        for number, entry in enumerate(request, 1):
            id_bytes = 0 if entry.dedup is None else len(message_id(entry.dedup))
            if len(entry.payload) + id_bytes + HEADERS_BYTES_MAX > self._bytes_max:
                name = "the event" if len(request) == 1 else f"event {number}"
                return RequestError(413, f"{name} exceeds the limit of the {self._limit}")
        return None

    async def _publish_batch(self, call: int, place: int, epoch: str, run: Sequence[NewEntry]) -> list[Result]:
        """Publish events next to each other, all or none."""
        if not run:
            return []
        id = f"{self._node}-{call}-{place}"
        first = {"relay": "v1", "relay-epoch": epoch, "relay-call": id, "Nats-Msg-Id": id}
        last, batch_id = len(run), secrets.token_hex(8)
        for number, entry in enumerate(run, 1):
            batch = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            headers = {**(first if number == 1 else {}), **batch}
            if number < last:
                await self._connected.publish(self._log, entry.payload, headers=headers)
        headers["Nats-Batch-Commit"] = "1"
        answer = await self._request(run[-1].payload, headers)
        if answer.get("error", {}).get("err_code") == _BATCH_IS_REPEAT:
            sequence = await self._sequence_of(id)
        else:
            sequence = _sequence(answer) - last + 1
        return list(range(sequence, sequence + last))

    async def _request(self, payload: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Send a message and return the answer of JetStream.

        nats-py would wait until the time limit if the connection is lost.

        Raises:
            BrokerError: the connection is lost.
        """
        answer = asyncio.ensure_future(self._connected.request(self._log, payload, ANSWER_S, headers=headers))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((answer, closed), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise BrokerError("the connection is lost")
            document: dict[str, Any] = json.loads(answer.result().data)
            return document
        finally:
            answer.cancel()
            closed.cancel()

    async def _sequence_of(self, id: str) -> int:
        """Return the sequence of an own batch that was stored before; wait until the follower has it."""
        async with asyncio.timeout(ANSWER_S):
            while id not in self._batches:
                await asyncio.sleep(0.01)
        return self._batches[id]

    async def _publish_one(self, epoch: str, entry: NewEntry) -> Result:
        """Publish an event with a dedup key."""
        headers = {"relay": "v1", "relay-epoch": epoch, "Nats-Msg-Id": message_id(str(entry.dedup))}
        answer = await self._request(entry.payload, headers)
        sequence = _sequence(answer)
        if not answer.get("duplicate"):
            return sequence
        return f"{epoch}-{sequence}" if entry.id is None else entry.id


def message_id(dedup: str) -> str:
    """Return the message id for a dedup key. It is percent-encoded, because a header contains no line feed."""
    return quote(dedup, safe="")


def _sequence(answer: dict[str, Any]) -> int:
    """Return the sequence in an answer of JetStream."""
    error = answer.get("error")
    if error is not None:
        raise BrokerError(str(error.get("description", "JetStream rejected an event")))
    return int(answer["seq"])
