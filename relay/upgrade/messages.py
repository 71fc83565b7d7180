"""The handover: what one process tells another that takes its place, and how.

Theory of operation. Both hold one end of a Unix stream socket. A message is a head (its size, and how many descriptors
come with it), then MessagePack. Descriptors travel with the first byte of the head (SCM_RIGHTS), so that they cannot be
read apart from their message; each message that has some is answered, so that few are ever in flight.

    old                              new
                                     Hello        its settings are read and checked
    Start                            …            the log begins here
    Entries …                        …            while the old one still serves
    (stops) Entries, Evicted         …            what came meanwhile
    Listeners, Terms, Streams …      Got …        with descriptors
    Feeders …, Connections …         Got …        with descriptors
    Keys …, Rest                     Ready        nothing has been read from or written to them; the file is taken
    Go, and exits                    serves

Until Go the old process can go on as if nothing had been; where the channel ends before it, the new one ends too.

Owns the messages and the channel; never decides what is in them.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from relay.core.grant import Grant
from relay.core.log import Entry
from relay.core.policy import Rule
from relay.core.stream import PackedStream
from relay.errors import RelayError
from relay.front.front import PackedConnection
from relay.sources.feeder import PackedFeeder

FORM = 3
"""Form of the messages; another one is refused, and the old process goes on."""

VARIABLE = "RELAY_TAKEOVER"
"""Environment variable with the descriptor of the new process's end of the channel."""

FDS_MAX = 200
"""Descriptors of one message; Linux takes 253 (SCM_MAX_FD)."""

MESSAGE_BYTES_MAX = 1 << 30

_HEAD = struct.Struct("!IH")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What passes."""


class UpgradeHello(Message, frozen=True, tag="Hello"):
    """The new process is ready to take over."""

    form: int
    version: str


class Start(Message, frozen=True):
    """The log begins, or begins anew since what was to come has been evicted."""

    own_token: str
    data: str
    epoch: str
    sequence: int
    evicted_s: float


class Entries(Message, frozen=True):
    """The next entries of the log."""

    entries: list[Entry]


class Evicted(Message, frozen=True):
    """The log's tail, and what it knows of evicted entries, as for `Log.know_evicted`."""

    tail: int
    rest: tuple[int, float]
    topics: list[tuple[str, int, float]]
    ids: list[tuple[str, str]] = []


class Listeners(Message, frozen=True):
    """The front's listeners, then the feeders', if `unix`; `file` is what its file is known by, if it is ours."""

    unix: bool
    file: tuple[int, int] | None


class Terms(Message, frozen=True):
    """The subscriptions that the streams have; they refer to them by place."""

    subscriptions: list[tuple[tuple[str, ...], Rule]]


class Streams(Message, frozen=True):
    """Streams, each with its descriptor."""

    streams: list[PackedStream]


class DedupKeys(Message, frozen=True, tag="Keys"):
    """The next dedup keys, oldest first: key, id, time."""

    keys: list[tuple[str, str, float]]


class Feeders(Message, frozen=True):
    """Feeders of the Unix socket, each with its descriptor."""

    feeders: list[PackedFeeder]


class Connections(Message, frozen=True):
    """Connections of the front, each with its descriptor."""

    connections: list[PackedConnection]


class Rest(Message, frozen=True):
    """What is left: the feeder on standard input (None when its input is over), tickets that are out, ended topics."""

    stdin: PackedFeeder | None
    tickets: dict[str, tuple[float, Grant]]
    ended: list[str]


class Got(Message, frozen=True):
    """A message with descriptors has arrived."""


class Ready(Message, frozen=True):
    """Everything has arrived, and can be served."""


class Go(Message, frozen=True):
    """The old process has let go."""


_Log = Start | Entries | Evicted
_Held = Listeners | Terms | Streams | Feeders | Connections | DedupKeys | Rest
_Any = UpgradeHello | _Log | _Held | Got | Ready | Go
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Any).decode


class Channel:
    """One end of a handover.

    Args:
        end: its socket, the channel's from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    @staticmethod
    def encode(message: Message, fds: Sequence[int] = ()) -> bytes:
        """Return a message as it is sent."""
        body = _encode(message)
        return _HEAD.pack(len(body), len(fds)) + body

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, with at most `FDS_MAX` descriptors, and wait until those have arrived.

        Raises:
            RelayError: the other end is gone, or too slow.
        """
        data = self.encode(message, fds)
        try:
            if fds:
                socket.send_fds(self.socket, [data[: _HEAD.size]], fds)
                data = data[_HEAD.size :]
            self.socket.sendall(data)
        except OSError as error:
            raise RelayError(f"the other process cannot be told: {error}") from None
        if fds:
            self.expect(Got)

    def receive(self) -> tuple[_Any, list[int]]:
        """Wait for a message; return it with its descriptors, which are the caller's.

        Raises:
            RelayError: the other end is gone, or too slow, or says something else than a message.
        """
        try:
            head, fds, _, _ = socket.recv_fds(self.socket, _HEAD.size, FDS_MAX)
            for fd in fds:
                os.set_inheritable(fd, False)
            head += self._read(_HEAD.size - len(head)) if head else b""
            if not head:
                raise RelayError("the other process has gone")
            size, count = _HEAD.unpack(head)
            if size > MESSAGE_BYTES_MAX or count != len(fds):
                raise RelayError("the other process sent no message")
            message = _decode(self._read(size))
        except OSError as error:
            raise RelayError(f"the other process does not answer: {error}") from None
        except msgspec.MsgspecError as error:
            raise RelayError(f"the other process sent no message: {error}") from None
        if fds:
            self.send(Got())
        return message, fds

    def expect(self, kind: type[Message]) -> Message:
        """Wait for a message of one kind, which has no descriptors.

        Raises:
            RelayError: as for `receive`, or it is of another kind.
        """
        message, _ = self.receive()
        if not isinstance(message, kind):
            raise RelayError(f"the other process sent {type(message).__name__} in place of {kind.__name__}")
        return message

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, place = memoryview(data), 0
        while place < size:
            count = self.socket.recv_into(view[place:])
            if not count:
                raise RelayError("the other process has gone")
            place += count
        return bytes(data)
