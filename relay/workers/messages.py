"""The messages of a link, encoded and decoded; sans-IO.

A message consists of the payload's length (32 bits, little-endian), a kind (8 bits) and the payload. Entries have a
compact binary form, because each event is sent as one. The payload of every other message is a MessagePack map that
names its type. Decoding ignores unknown fields and rejects unknown types. A change of a message's meaning increments
`VERSION`. Some tags on the wire differ from the class names, which are newer; the tags do not change.

    edge → hub   Hello, once; Status each second and when its held terms change; PublishRequest,
                 RateRequest, Find, Head, Ask; Answer
    hub → edge   Refuse, or Begin, EvictedMarks, EndedTopics and the entries, with SkipTo where entries are evicted;
                 Beat each second; Published, RateAnswer, Found, Refused, Answer; Ask; Drain; Setup as the first message

Owns the wire format and the limit on a message's size. Never acts on messages (`relay.workers.edge_end` and
`relay.workers.hub_end` do).
"""

from __future__ import annotations

import math
import struct
from typing import Literal

import msgspec

from relay.config.model import Config
from relay.core.log import Entry
from relay.errors import RelayError
from relay.telemetry.topics import TopicsQuery

VERSION = 7

OVERHEAD_BYTES_MAX = 64 * 1024
"""Longest part of a message besides the event or the body that it carries."""

_CONTROL, _ENTRY = 0, 1
_HEADER = struct.Struct("<IB")
_ENTRY_HEAD = struct.Struct("<QddHHI")
_ENTRY_WHOLE = struct.Struct("<IBQddHHI")
_NO_TTL = -1.0
_NO_ID = 0xFFFF
_NO_KEY = 0xFFFFFFFF

Report = Literal["stats", "metrics", "topics"]


class LinkError(RelayError):
    """The other end of a link violated the protocol; the link is closed."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A message other than an entry."""


class Setup(_Message, frozen=True):
    """To an edge: its settings and listeners.

    Args:
        config: the settings.
        listeners: fds of the inherited listeners of the public.
        admin_listeners: fds of the inherited listeners at `admin-listen`.
        own_token: the publish token that this run generated.
    """

    config: Config
    listeners: list[int]
    admin_listeners: list[int]
    own_token: str


class Hello(_Message, frozen=True):
    """To the hub: the first message of the edge. A worker that restarts may have another version than its hub."""

    version: int


class Refuse(_Message, frozen=True):
    """To an edge: the hub rejects the link."""

    reason: str


class Begin(_Message, frozen=True):
    """To an edge: drop the log and start again from this sequence, which the next entry has.

    Args:
        head: head of the hub's log; the edge has the snapshot when its own head reaches this one.
        now_s: the hub's time.
        evicted_s: upper bound of the time of the last entry before `sequence`, in the hub's time.
    """

    epoch: str
    sequence: int
    head: int
    now_s: float
    evicted_s: float


class EvictedMarks(_Message, frozen=True, tag="Past"):
    """To an edge that starts a new log: some of the marks that the hub keeps for evicted entries.

    Args:
        topics: marks in the form that `Log.evicted` returns; times are the hub's.
        ids: pairs in the form that `OwnIds.evicted` returns.
        rest: only in the last message: the mark of all topics that no message named.
    """

    topics: list[tuple[str, int, float]]
    ids: list[tuple[str, str]]
    rest: tuple[int, float] | None = None


class EndedTopics(_Message, frozen=True, tag="Ended"):
    """To an edge that starts a new log: ended topics, including those whose end event is evicted."""

    topics: list[str]


class SkipTo(_Message, frozen=True):
    """To an edge: the next entry has this sequence or a later one, because the entries before it are evicted."""

    sequence: int


class Beat(_Message, frozen=True):
    """To an edge: the hub is alive.

    Args:
        head: head of the hub's log.
        leaving: the hub drains soon; the edge must report that it is not ready.
        log_level: the current log level of the hub, which the edge adopts.
    """

    head: int
    leaving: bool = False
    log_level: str = ""


class Status(_Message, frozen=True):
    """To the hub: the edge is alive.

    Args:
        sequence: acknowledges all entries before it; they are in the edge's log.
        streams: number of open streams.
        ready: the edge has received the snapshot.
        holding: terms whose publishers must wait.
    """

    sequence: int
    streams: int
    ready: bool
    holding: list[str]


class PublishRequest(_Message, frozen=True, tag="Publish"):
    """To the hub: publish all events or none. They are a JSON array, which keeps their data exactly as written."""

    number: int
    events: bytes


class Published(_Message, frozen=True):
    """To an edge: the ids of the events that it published."""

    number: int
    ids: list[str]


class RateRequest(_Message, frozen=True):
    """To the hub: take a number of events from the publish rate of a subject."""

    number: int
    subject: str
    count: int


class RateAnswer(_Message, frozen=True):
    """To an edge: the result of `RateRequest`. `wait_s` is 0, or the time after which to try again."""

    number: int
    wait_s: float


class Find(_Message, frozen=True):
    """To the hub: find the sequence of a subscription's last id. `ids` are its possible readings."""

    number: int
    terms: tuple[str, ...]
    ids: tuple[str, ...]


class Head(_Message, frozen=True):
    """To the hub: request the sequence of the next event."""

    number: int


class Found(_Message, frozen=True):
    """To an edge: the requested sequence; None if the id is unknown."""

    number: int
    sequence: int | None


class Refused(_Message, frozen=True):
    """To an edge: a request failed. `status` is an HTTP status; `field` names the invalid field of an event, if any."""

    number: int
    status: int
    reason: str
    field: str | None = None


class Ask(_Message, frozen=True):
    """To either end: request /stats, /metrics or /topics. A hub returns those of all processes, an edge its own.

    Args:
        query: the topics, if the report is `topics`.
    """

    number: int
    report: Report = msgspec.field(name="what")
    query: TopicsQuery | None = None


class Answer(_Message, frozen=True, tag="Told"):
    """To either end: the body that `Ask` requested."""

    number: int
    body: bytes


class TopicSignal(_Message, frozen=True):
    """To either end: a signal for the feeders of a topic. `value` is compact JSON."""

    topic: str
    value: bytes


class Drain(_Message, frozen=True):
    """To an edge: the last entry has been sent; drain and exit."""


Message = (Setup | Hello | Refuse | Begin | EvictedMarks | EndedTopics | Beat | Status | PublishRequest | Published) | (
    SkipTo | RateRequest | RateAnswer | Find | Head | Found | Refused | Ask | Answer | TopicSignal | Drain
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Encode a message.

    Raises:
        ValueError: an event's data is not a JSON value (also OverflowError, TypeError, RecursionError).
    """
    payload = _encoder.encode(message)
    return _HEADER.pack(len(payload), _CONTROL) + payload


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry."""
    topic = entry.topic.encode()
    id = b"" if entry.id is None else entry.id.encode()
    key = b"" if entry.key is None else entry.key.encode("utf-8", "surrogatepass")
    head = _ENTRY_WHOLE.pack(
        _ENTRY_HEAD.size + len(topic) + len(id) + len(key) + len(entry.frame),
        _ENTRY,
        entry.sequence,
        entry.time_s,
        _NO_TTL if entry.ttl_s is None else entry.ttl_s,
        len(topic),
        _NO_ID if entry.id is None else len(id),
        _NO_KEY if entry.key is None else len(key),
    )
    return b"".join((head, topic, id, key, entry.frame))


class Parser:
    """Parses messages incrementally from the bytes of one end.

    Args:
        bytes_max: longest payload; may be changed at any time.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0
        self._need = _HEADER.size  # bytes that the next step of parsing needs

    def feed(self, data: bytes) -> list[Message | Entry]:
        """Add bytes and return all complete messages.

        Raises:
            LinkError: the bytes are not those of a link, or a message is too long.
        """
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._need:
            return []
        buffer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        messages: list[Message | Entry] = []
        start, size = 0, len(buffer)
        while True:
            if size - start < _HEADER.size:
                self._need = _HEADER.size
                break
            length, kind = _HEADER.unpack_from(buffer, start)
            if length > self.bytes_max:
                raise LinkError(f"a message of {length} bytes exceeds the limit of {self.bytes_max}")
            stop = start + _HEADER.size + length
            if stop > size:
                self._need = stop - start
                break
            messages.append(_decode(kind, buffer, start + _HEADER.size, stop))
            start = stop
        rest = buffer[start:]
        self._parts, self._size = [rest] if rest else [], len(rest)
        return messages


def _decode(kind: int, buffer: bytes, start: int, stop: int) -> Message | Entry:
    try:
        if kind == _ENTRY:
            return _decode_entry(buffer, start, stop)
        if kind == _CONTROL:
            message: Message = _decoder.decode(memoryview(buffer)[start:stop])
            return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, struct.error) as error:
        raise LinkError(f"cannot decode a message: {error}") from None
    raise LinkError(f"a message has the unknown kind {kind}")


def _decode_entry(buffer: bytes, start: int, stop: int) -> Entry:
    if stop - start < _ENTRY_HEAD.size:
        raise LinkError("an entry is truncated")
    sequence, time_s, ttl_s, topic_size, id_size, key_size = _ENTRY_HEAD.unpack_from(buffer, start)
    topic_end = start + _ENTRY_HEAD.size + topic_size
    id_end = topic_end + (0 if id_size == _NO_ID else id_size)
    key_end = id_end + (0 if key_size == _NO_KEY else key_size)
    if key_end >= stop or not math.isfinite(time_s) or not math.isfinite(ttl_s):
        raise LinkError("an entry is truncated")
    return Entry(
        sequence,
        time_s,
        buffer[topic_end - topic_size : topic_end].decode(),
        None if id_size == _NO_ID else buffer[topic_end:id_end].decode(),
        None if key_size == _NO_KEY else buffer[id_end:key_end].decode("utf-8", "surrogatepass"),
        buffer[key_end:stop],
        ttl_s if ttl_s >= 0 else None,
    )
