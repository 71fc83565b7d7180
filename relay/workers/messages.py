"""The link's messages: values ⇄ bytes; sans-IO.

A message is a length (32 bits, little-endian, of what follows the kind), a kind (8 bits) and a payload. An entry has a
form of its own, since there is one for each event; everything else is a MessagePack map that names its type. Unknown
fields are passed over, unknown types are an error: whoever changes what a message means changes `VERSION`.

    edge → hub   Hello, once; Status each second and when what it holds has changed; Publish, Find, Ask; Told
    hub → edge   Refuse, or Begin, Past, Ended and the entries; Beat each second; Published, Found, Refused, Told; Ask;
                 Drain; to a worker, Setup before all

Owns the form of messages and the bound on their size. Never knows what they do (`relay.workers.edge_end`,
`relay.workers.hub_end`).
"""

from __future__ import annotations

import math
import struct
from typing import Literal

import msgspec

from relay.config.model import Config
from relay.core.log import Entry
from relay.errors import RelayError

VERSION = 3

HELLO_BYTES_MAX = 16 * 1024
"""What is taken of somebody who has not shown the token yet."""

OVERHEAD_BYTES_MAX = 64 * 1024
"""What a message may have beyond the event, or the body, that it carries."""

_CONTROL, _ENTRY = 0, 1
_HEADER = struct.Struct("<IB")
_ENTRY_HEAD = struct.Struct("<QdHHI")
_ENTRY_WHOLE = struct.Struct("<IBQdHHI")
_NO_ID = 0xFFFF
_NO_KEY = 0xFFFFFFFF

Report = Literal["stats", "metrics"]


class LinkError(RelayError):
    """The other end of a link says what it must not; the link is cut."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A message other than an entry."""


class Setup(_Message, frozen=True):
    """To a worker: what it is.

    Args:
        config: the settings.
        number: of the worker, from 1 on.
        listeners: descriptors of the listeners that it has inherited.
        own_token: the run's own token for publishing.
    """

    config: Config
    number: int
    listeners: list[int]
    own_token: str


class Hello(_Message, frozen=True):
    """To the hub: who links, and what it needs next.

    Args:
        token: the link's token.
        name: what the hub calls it in its log.
        epoch: of its log; empty for one that has not begun.
        sequence: the next one that it needs.
    """

    version: int
    token: str
    name: str
    epoch: str
    sequence: int


class Refuse(_Message, frozen=True):
    """To an edge: there will be no link."""

    reason: str


class Begin(_Message, frozen=True):
    """To an edge: the entries that follow begin with this sequence.

    To one that needs just this one it means: go on. To another it means that what it has is of no use any more.

    Args:
        head: the snapshot is in when the edge has all before it.
        now_s: the hub's time.
        evicted_s: time of the last entry before the first, as far as that is known.
    """

    epoch: str
    sequence: int
    head: int
    now_s: float
    evicted_s: float


class EvictedMarks(_Message, frozen=True, tag="Past"):
    """To an edge that begins anew: a part of what the hub knows of evicted entries.

    Args:
        topics: as `Log.evicted` returns them; times are the hub's.
        ids: as `OwnIds.evicted` returns them.
        rest: in the last part, the mark of all topics that no part has named.
    """

    topics: list[tuple[str, int, float]]
    ids: list[tuple[str, str]]
    rest: tuple[int, float] | None = None


class EndedTopics(_Message, frozen=True, tag="Ended"):
    """To an edge that begins anew: topics that have ended, whether or not their ends are retained."""

    topics: list[str]


class Beat(_Message, frozen=True):
    """To an edge: the hub lives.

    Args:
        head: of its log.
        leaving: it will drain soon, so that no new client should come.
    """

    head: int
    leaving: bool = False


class Status(_Message, frozen=True):
    """To the hub: the edge lives.

    Args:
        sequence: all before it is in the edge's log: the acknowledgement.
        streams: that are open.
        ready: its snapshot is in.
        holding: terms whose publishers have to wait.
    """

    sequence: int
    streams: int
    ready: bool
    holding: list[str]


class PublishRequest(_Message, frozen=True, tag="Publish"):
    """To the hub: publish these events, all or none. They are a JSON array, so that their data stays as written."""

    number: int
    events: bytes


class Published(_Message, frozen=True):
    """To an edge: the ids of what it published."""

    number: int
    ids: list[str]


class Find(_Message, frozen=True):
    """To the hub: which sequence has the last id of this subscription? `ids` are the readings of it."""

    number: int
    terms: tuple[str, ...]
    ids: tuple[str, ...]


class Head(_Message, frozen=True):
    """To the hub: which sequence will the next event get?"""

    number: int


class Found(_Message, frozen=True):
    """To an edge: the sequence that it asked for; None when an id is not known."""

    number: int
    sequence: int | None


class Refused(_Message, frozen=True):
    """To an edge: a request failed, by the status of HTTP; an event's `field` is named where it is the event."""

    number: int
    status: int
    reason: str
    field: str | None = None


class Ask(_Message, frozen=True):
    """To either: give me /stats or /metrics; the hub gives the whole, a worker its own."""

    number: int
    report: Report = msgspec.field(name="what")


class Answer(_Message, frozen=True, tag="Told"):
    """To either: what was asked for."""

    number: int
    body: bytes


class Drain(_Message, frozen=True):
    """To an edge: this was the last entry; drain and leave."""


Message = (Setup | Hello | Refuse | Begin | EvictedMarks | EndedTopics | Beat | Status | PublishRequest | Published) | (
    Find | Head | Found | Refused | Ask | Answer | Drain
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Encode a message.

    Raises:
        ValueError: an event's data is no JSON value (also OverflowError, TypeError, RecursionError).
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
        len(topic),
        _NO_ID if entry.id is None else len(id),
        _NO_KEY if entry.key is None else len(key),
    )
    return b"".join((head, topic, id, key, entry.frame))


class Parser:
    """Turns the bytes of one end into messages, however they are cut.

    Args:
        bytes_max: longest payload; may be set anew at any time.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0
        self._need = _HEADER.size  # bytes below which there is nothing to parse

    def feed(self, data: bytes) -> list[Message | Entry]:
        """Take bytes; return the messages that are whole.

        Raises:
            LinkError: this is no link, or a message is too long.
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
                raise LinkError(f"a message of {length} bytes is longer than {self.bytes_max}")
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
        raise LinkError(f"a message cannot be read: {error}") from None
    raise LinkError(f"a message of an unknown kind: {kind}")


def _decode_entry(buffer: bytes, start: int, stop: int) -> Entry:
    if stop - start < _ENTRY_HEAD.size:
        raise LinkError("an entry is cut short")
    sequence, time_s, topic_size, id_size, key_size = _ENTRY_HEAD.unpack_from(buffer, start)
    topic_end = start + _ENTRY_HEAD.size + topic_size
    id_end = topic_end + (0 if id_size == _NO_ID else id_size)
    key_end = id_end + (0 if key_size == _NO_KEY else key_size)
    if key_end >= stop or not math.isfinite(time_s):
        raise LinkError("an entry is cut short")
    return Entry(
        sequence,
        time_s,
        buffer[topic_end - topic_size : topic_end].decode(),
        None if id_size == _NO_ID else buffer[topic_end:id_end].decode(),
        None if key_size == _NO_KEY else buffer[id_end:key_end].decode("utf-8", "surrogatepass"),
        buffer[key_end:stop],
    )
