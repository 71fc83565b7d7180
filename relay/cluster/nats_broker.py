"""The log of a cluster in NATS JetStream: a stream with one subject.

Theory of operation. The sequence of an entry is that of its message. The epoch is in a second stream; see
`relay.cluster.epochs`. JetStream does not tell which entry precedes an entry, so the follower compares its last entry
whenever it begins to read.

Owns the follower's connection. `relay.cluster.nats_publisher` publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from zlib import crc32

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.brokers.nats_client import NatsConnector, close, errors
from relay.cluster.broker import (
    READ_ENTRIES_MAX,
    BrokerReport,
    LogChangedError,
    LogEntry,
    LogPosition,
    Request,
    Result,
    is_next,
)
from relay.cluster.entry import FORM
from relay.cluster.epochs import Epochs, encode_record
from relay.cluster.nats_publisher import NatsPublisher
from relay.cluster.nats_pull import NatsPull
from relay.config.broker_address import NatsAddress
from relay.errors import BrokerError

WINDOW_S_MIN = 120.0
"""Shortest window for duplicates of a new stream. A call that is repeated after a lost connection needs it too."""

EPOCHS = "-epochs"
_INACTIVE_S = 30.0


class NatsBroker:
    """The log of one cluster.

    Args:
        address: the servers and the stream.
        node: identifies this process as a publisher: 8 hexadecimal digits.
        dedup_window_s: lifetime of dedup keys, if this node creates the stream.
        password: returns the password, or the contents of a credentials file; see `NatsConnector`.
        tls: files for TLS.
    """

    def __init__(
        self,
        address: NatsAddress,
        node: str,
        dedup_window_s: float,
        password: Callable[[], str],
        tls: TlsFiles,
    ) -> None:
        self._log = address.name
        self._window_s = max(WINDOW_S_MIN, dedup_window_s)
        self._connector = NatsConnector(address, password, tls)
        self._publisher = NatsPublisher(address.name, node, self._connector)
        self._follower: Client | None = None
        self._consumer: NatsPull | None = None
        self._next = 0  # sequence of the next message that the consumer returns
        self._epochs = Epochs()
        self._epochs_read = 0  # sequence of the last record of the stream of epochs

    # The follower

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""
        await self.close_follower()
        self._follower = await self._connector.connect()
        self._epochs, self._epochs_read = Epochs(), 0
        async with errors():
            await self._info(self._log + EPOCHS)
            await self._read_epochs()
            if not self._epochs.current:
                await self._append_epoch("", epoch)
            return await self._position()

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""
        async with errors():
            await self._append_epoch(known, epoch)
            return await self._position()

    async def position(self) -> LogPosition:
        """Return epoch and head of the log; `read` compares the marks."""
        async with errors():
            info = await self._stream.stream_info(self._log)
            await self._read_epochs()
        return LogPosition(self._epochs.current, info.state.last_seq + 1, b"")

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one."""
        # The last entry is read again to compare its mark.
        first = after if epoch and mark and self._next != after + 1 else after + 1
        async with errors():
            if self._next != first:
                await self._subscribe(first)
            assert self._consumer is not None
            messages = await self._consumer.take(min(count_max, READ_ENTRIES_MAX) + after + 1 - first, wait_s)
        entries: list[LogEntry] = []
        for message in messages:
            entry, entry_epoch = self._entry(message)
            self._next = entry.sequence + 1
            if not is_next(entry, after, len(entries), mark):
                continue
            if epoch and entry_epoch not in ("", epoch):
                raise LogChangedError(f"entry {entry.sequence} has the epoch {entry_epoch}")
            entries.append(entry)
        return entries

    async def trim(self, before: int) -> None:
        """Do nothing: the limits of the stream apply."""

    async def close_follower(self) -> None:
        """Close the follower's connection."""
        client, self._follower, self._consumer, self._next = self._follower, None, None, 0
        await close(client)

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
        if "relay-call" in headers:
            self._publisher.note(headers["relay-call"], sequence)
        form = headers.get("relay", FORM.decode()).encode()
        mark = b"%d-%08x" % (time_ms, crc32(message.data))
        return LogEntry(sequence, time_ms, form, message.data, mark), headers.get("relay-epoch", "")

    # The publisher

    async def connect(self) -> None:
        """Connect the publisher."""
        await self._publisher.connect()

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order. A request with dedup keys, or with many events, is not atomic."""
        epoch = self._epochs.known()
        return epoch, await self._publisher.publish(call, epoch, requests)

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""
        return await self._publisher.head()

    async def inspect(self) -> BrokerReport:
        """Return the version of the server and the settings of the stream."""
        client = await self._connector.connect()
        try:
            async with errors():
                found = client.connected_server_version
                version = f"nats-server {found.major}.{found.minor}.{found.patch}"
                try:
                    config = (await client.jetstream(timeout=ANSWER_S).stream_info(self._log)).config
                except NotFoundError:
                    return BrokerReport(version, {"stream": "missing; relay creates it"})
        finally:
            await close(client)
        return BrokerReport(
            version,
            {
                "storage": _word(config.storage),
                "retention": _word(config.retention),
                "discard": _word(config.discard),
                "replicas": str(config.num_replicas),
            },
        )

    async def close_publisher(self) -> None:
        """Close the publisher's connection."""
        await self._publisher.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.close_follower()
        await self.close_publisher()


def _word(value: object) -> str:
    """Return a setting as text. The library leaves some of them as text, and makes enumerations of others."""
    return str(value.value if isinstance(value, Enum) else value)


def _consumer(first: int) -> ConsumerConfig:
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=AckPolicy.NONE,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=_INACTIVE_S,
    )
