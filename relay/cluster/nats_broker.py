"""The log of a cluster in NATS JetStream: a stream with one subject.

Theory of operation. The sequence of an entry is that of its message. The events of a call go out as atomic batches
(JetStream 2.12): all messages of a batch are stored next to each other, or none. An event with a dedup key goes out
alone, with the key as its message id, so that JetStream recognizes a repeat. The first message of a batch has a message
id too, so that a call that is repeated is not stored twice; the follower then knows its sequence.

The epoch is in a second stream; see `relay.cluster.epochs`. JetStream does not tell which entry precedes an entry, so
the follower compares its last entry whenever it begins to read.

Owns the two connections. nats-py is imported only here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote
from zlib import crc32

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from relay.cluster.broker import (
    BrokerError,
    EntriesReplacedError,
    LogChangedError,
    LogEntry,
    LogPosition,
    NewEntry,
    Request,
    Result,
)
from relay.cluster.entry import FORM
from relay.cluster.epochs import Epochs, encode_record
from relay.cluster.nats_pull import NatsPull
from relay.config.broker_address import NatsAddress
from relay.errors import RequestError

ANSWER_S = 5.0
"""Time limit of an answer, in addition to the time that the call may wait."""

READ_ENTRIES_MAX = 512
BATCH_MESSAGES_MAX = 1000
"""Messages of an atomic batch; the default limit of the server. A larger request is several batches."""

CALLS_MAX = 1000
"""Own batches whose sequences the follower remembers."""

WINDOW_S_MIN = 120.0
"""Shortest window for duplicates of a new stream. A call that is repeated after a lost connection needs it too."""

EPOCHS = "-epochs"
_BATCH_IS_REPEAT = 10201
_MESSAGE_TOO_LARGE = 10054
_INACTIVE_S = 30.0
_HEADERS_BYTES_MAX = 1024


class NatsBroker:
    """The log of one cluster.

    Args:
        address: the servers and the stream.
        node: identifies this process as a publisher: 8 hexadecimal digits.
        dedup_window_s: lifetime of dedup keys, if this node creates the stream.
        password: returns the password; called before each connection.
        credentials: path of a credentials file of NATS; empty for none.
        tls: makes the context of TLS; None without TLS.
    """

    def __init__(
        self,
        address: NatsAddress,
        node: str,
        dedup_window_s: float,
        password: Callable[[], str],
        credentials: str,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self._address = address
        self._log = address.stream
        self._node = node
        self._window_s = max(WINDOW_S_MIN, dedup_window_s)
        self._password = password
        self._credentials = credentials
        self._tls = tls
        self._follower: Client | None = None
        self._publisher: Client | None = None
        self._consumer: NatsPull | None = None
        self._next = 0  # sequence of the next message that the consumer returns
        self._epochs = Epochs()
        self._epochs_read = 0  # sequence of the last record of the stream of epochs
        self._own: OrderedDict[str, int] = OrderedDict()  # message id of an own batch → its first sequence

    # The follower

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""
        await self.close_follower()
        self._follower = await self._connect()
        self._epochs, self._epochs_read = Epochs(), 0
        async with _errors():
            await self._info(self._log + EPOCHS)
            await self._read_epochs()
            if not self._epochs.current:
                await self._append_epoch("", epoch)
            return await self._position()

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""
        async with _errors():
            await self._append_epoch(known, epoch)
            return await self._position()

    async def position(self) -> LogPosition:
        """Return epoch and head of the log; `read` compares the marks."""
        async with _errors():
            info = await self._stream.stream_info(self._log)
            await self._read_epochs()
        return LogPosition(self._epochs.current, info.state.last_seq + 1, b"")

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one."""
        # The last entry is read again to compare its mark.
        first = after if epoch and mark and self._next != after + 1 else after + 1
        async with _errors():
            if self._next != first:
                await self._subscribe(first)
            assert self._consumer is not None
            messages = await self._consumer.take(min(count_max, READ_ENTRIES_MAX) + after + 1 - first, wait_s)
        entries: list[LogEntry] = []
        for message in messages:
            entry, entry_epoch = self._entry(message)
            self._next = entry.sequence + 1
            if entry.sequence == after and not entries:
                if entry.mark != mark:
                    raise EntriesReplacedError(f"entry {after} is another one")
                continue
            if entry.sequence != after + len(entries) + 1:
                raise LogChangedError(f"entry {after + len(entries) + 1} is missing")
            if epoch and entry_epoch not in ("", epoch):
                raise LogChangedError(f"entry {entry.sequence} has the epoch {entry_epoch}")
            entries.append(entry)
        return entries

    async def trim(self, before: int) -> None:
        """Do nothing: the limits of the stream apply."""

    async def close_follower(self) -> None:
        """Close the follower's connection."""
        client, self._follower, self._consumer, self._next = self._follower, None, None, 0
        await _close(client)

    @property
    def _stream(self) -> JetStreamContext:
        assert self._follower is not None, "the follower is not connected"
        return self._follower.jetstream(timeout=ANSWER_S)

    async def _position(self) -> LogPosition:
        await self._read_epochs()
        state = (await self._info(self._log)).state
        time_ms = tail_ms = 0
        oldest = min(state.first_seq, state.last_seq)
        if state.messages:
            await self._subscribe(oldest)
            assert self._consumer is not None
            found = await self._consumer.take(1, ANSWER_S)
            if not found:
                raise BrokerError(f"no message within {ANSWER_S:g} s")
            self._next = 0
            tail_ms = self._entry(found[0])[0].time_ms
        # JetStream has no command for its time. The response to a new consumer contains it.
        info = await self._stream.add_consumer(self._log + EPOCHS, config=_consumer(1))
        time_ms = int(info.created.timestamp() * 1000) if info.created is not None else tail_ms
        tail = state.first_seq if state.messages else state.last_seq + 1
        return LogPosition(
            self._epochs.current, state.last_seq + 1, b"", max(1, tail), tail_ms or time_ms, time_ms
        )

    async def _info(self, name: str) -> StreamInfo:
        """Return the state of a stream; create it if it is missing."""
        try:
            return await self._stream.stream_info(name)
        except NotFoundError:
            await self._stream.add_stream(
                StreamConfig(
                    name=name,
                    subjects=[name],
                    storage=StorageType.FILE,
                    duplicate_window=self._window_s,
                    allow_direct=True,
                    allow_atomic=True,
                    deny_delete=True,
                )
            )
            return await self._stream.stream_info(name)

    async def _append_epoch(self, known: str, epoch: str) -> None:
        await self._stream.publish(self._log + EPOCHS, encode_record(known, epoch), timeout=ANSWER_S)

    async def _read_epochs(self) -> None:
        last = (await self._stream.stream_info(self._log + EPOCHS)).state.last_seq
        while self._epochs_read < last:
            record = await self._stream.get_msg(self._log + EPOCHS, self._epochs_read + 1)
            self._epochs.take(record.data or b"")
            self._epochs_read += 1

    async def _subscribe(self, first: int) -> None:
        if self._consumer is not None:
            await self._consumer.stop()
        assert self._follower is not None
        info = await self._stream.add_consumer(self._log, config=_consumer(first))
        self._consumer = NatsPull(self._follower, self._log, info.name)
        await self._consumer.start()
        self._next = first

    def _entry(self, message: Msg) -> tuple[LogEntry, str]:
        """Return the entry in a message, and the epoch that its publisher knew."""
        headers = message.headers or {}
        # $JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE.CONSUMER_SEQUENCE.TIME_NS.PENDING; newer servers insert two words.
        words = message.reply.split(".")
        place = 5 if len(words) == 9 else 7
        sequence, time_ms = int(words[place]), int(words[place + 2]) // 1_000_000
        call = headers.get("relay-call")
        if call is not None and call.startswith(self._node):
            self._own[call] = sequence
            while len(self._own) > CALLS_MAX:
                self._own.popitem(last=False)
        form = headers.get("relay", FORM.decode()).encode()
        mark = b"%d-%08x" % (time_ms, crc32(message.data))
        return LogEntry(sequence, time_ms, form, message.data, mark), headers.get("relay-epoch", "")

    # The publisher

    async def connect(self) -> None:
        """Connect the publisher."""
        await self.close_publisher()
        self._publisher = await self._connect()

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order. A request with dedup keys, or with many events, is not atomic."""
        epoch = self._epochs.current
        results: list[Result] = []
        run: list[NewEntry] = []
        async with _errors():
            for entry in (entry for request in requests for entry in request):
                id_bytes = 0 if entry.dedup is None else len(message_id(entry.dedup))
                fits = len(entry.payload) + id_bytes + _HEADERS_BYTES_MAX <= self._publishing.max_payload
                if fits and entry.dedup is None:
                    run.append(entry)
                    if len(run) < BATCH_MESSAGES_MAX:
                        continue
                results += await self._publish_batch(call, len(results), epoch, run)
                run = []
                if not fits:
                    results.append(_too_large("broker (max_payload)"))
                elif entry.dedup is not None:
                    results.append(await self._publish_one(epoch, entry))
            results += await self._publish_batch(call, len(results), epoch, run)
        return epoch, results

    async def _publish_batch(self, call: int, place: int, epoch: str, run: Sequence[NewEntry]) -> list[Result]:
        """Publish events next to each other, all or none."""
        if not run:
            return []
        client, id = self._publishing, f"{self._node}-{call}-{place}"
        first = {"relay": "v1", "relay-epoch": epoch, "relay-call": id, "Nats-Msg-Id": id}
        last, batch_id = len(run), secrets.token_hex(8)
        for number, entry in enumerate(run, 1):
            batch = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            headers = {**(first if number == 1 else {}), **batch}
            if number < last:
                await client.publish(self._log, entry.payload, headers=headers)
        headers["Nats-Batch-Commit"] = "1"
        answer = json.loads((await client.request(self._log, run[-1].payload, ANSWER_S, headers=headers)).data)
        error = answer.get("error")
        if error is None:
            sequence = int(answer["seq"]) - last + 1
        elif error.get("err_code") == _BATCH_IS_REPEAT:
            sequence = await self._sequence_of(id)
        elif error.get("err_code") == _MESSAGE_TOO_LARGE:
            if last == 1:
                return [_too_large("stream (max_msg_size)")]
            alone = [await self._publish_batch(call, place + at, epoch, [entry]) for at, entry in enumerate(run)]
            return [result for results in alone for result in results]
        else:
            raise BrokerError(str(error.get("description", "JetStream rejected a batch")))
        return list(range(sequence, sequence + last))

    async def _sequence_of(self, id: str) -> int:
        """Return the sequence of an own batch that was stored before; wait until the follower has it."""
        async with asyncio.timeout(ANSWER_S):
            while id not in self._own:
                await asyncio.sleep(0.01)
        return self._own[id]

    async def _publish_one(self, epoch: str, entry: NewEntry) -> Result:
        """Publish an event with a dedup key."""
        headers = {"relay": "v1", "relay-epoch": epoch, "Nats-Msg-Id": message_id(str(entry.dedup))}
        message = await self._publishing.request(self._log, entry.payload, ANSWER_S, headers=headers)
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is not None:
            if error.get("err_code") == _MESSAGE_TOO_LARGE:
                return _too_large("stream (max_msg_size)")
            raise BrokerError(str(error.get("description", "JetStream rejected an event")))
        sequence = int(answer["seq"])
        if not answer.get("duplicate"):
            return sequence
        return f"{epoch}-{sequence}" if entry.id is None else entry.id

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""
        async with _errors():
            info = await self._publishing.jetstream(timeout=ANSWER_S).stream_info(self._log)
        return int(info.state.last_seq) + 1

    async def close_publisher(self) -> None:
        """Close the publisher's connection."""
        client, self._publisher = self._publisher, None
        await _close(client)

    async def close(self) -> None:
        """Close all connections."""
        await self.close_follower()
        await self.close_publisher()

    @property
    def _publishing(self) -> Client:
        assert self._publisher is not None, "the publisher is not connected"
        return self._publisher

    async def _connect(self) -> Client:
        address = self._address
        scheme = "tls" if address.tls else "nats"
        login: dict[str, Any] = {}
        if self._credentials:
            login = {"user_credentials": self._credentials}
        elif address.user:
            login = {"user": address.user, "password": address.password or self._password()}
        client = Client()
        try:
            async with _errors():
                await client.connect(
                    servers=[f"{scheme}://{host}:{port}" for host, port in address.hosts],
                    name="relay",
                    allow_reconnect=False,
                    connect_timeout=int(ANSWER_S),
                    ping_interval=2,
                    max_outstanding_pings=2,
                    error_cb=_ignore,
                    tls=self._tls() if self._tls is not None else None,
                    **login,
                )
        except BaseException:
            await _close(client)
            raise
        return client


def message_id(dedup: str) -> str:
    """Return the message id for a dedup key. It is percent-encoded, because a header contains no line feed."""
    return quote(dedup, safe="")


def _too_large(limit: str) -> RequestError:
    return RequestError(413, f"the event exceeds the limit of the {limit}")


def _consumer(first: int) -> ConsumerConfig:
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=AckPolicy.NONE,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=_INACTIVE_S,
    )


async def _ignore(_: Exception) -> None:
    """Ignore an error that the library also raises from the call that failed."""


async def _close(client: Client | None) -> None:
    if client is not None:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await client.close()


@contextlib.asynccontextmanager
async def _errors() -> Any:
    """Turn the library's errors into BrokerError, with a limit for the whole operation."""
    try:
        async with asyncio.timeout(2 * ANSWER_S):
            yield
    except (nats.errors.Error, OSError, TimeoutError) as error:
        text = " ".join(str(error).split())[:300]
        raise BrokerError(f"{type(error).__name__}: {text}" if text else type(error).__name__) from None
