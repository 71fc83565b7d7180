"""The messages of an upgrade, which an old process and its replacement exchange, and the channel that carries them.

Theory of operation. Each process holds one end of a Unix stream socket. A message is a head (the size of the body and
the number of descriptors) and a MessagePack body. Descriptors travel with the first byte of the head (SCM_RIGHTS), so
they cannot be separated from their message. The receiver answers each message that has descriptors. This bounds the
number of descriptors in flight.

    old                              new
                                     Hello        the new process has checked its settings
    Start                            …            the log begins here
    Entries …                        …            the old process still serves
    (stops) Entries, Evicted         …            the entries published meanwhile
    Listeners, Terms, Streams …      Got …        with descriptors
    Feeders …, Connections …         Got …        with descriptors
    Keys …, Rest                     Ready        the new process has used no descriptor, but has opened the file
    Go, and exits                    serves

Until Go, the old process can resume with its state unchanged. If the channel closes before Go, the new process exits.

Owns the messages and the channel. Never decides the contents of a message.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from relay.core.grant import Grant
from relay.core.log import Entry
from relay.core.stream import PackedStream, PackedSubscription
from relay.errors import RelayError
from relay.front.front import PackedConnection
from relay.sources.feeder import PackedFeeder

FORM = 6
"""Version of the messages. If the processes have different versions, the upgrade fails and the old one continues."""

VARIABLE = "RELAY_TAKEOVER"
"""Environment variable that contains the descriptor of the new process's end of the channel."""

FDS_MAX = 200
"""Maximum number of descriptors in one message; Linux allows 253 (SCM_MAX_FD)."""

MESSAGE_BYTES_MAX = 1 << 30

_HEAD = struct.Struct("!IH")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A message of the upgrade."""


class UpgradeHello(Message, frozen=True, tag="Hello"):
    """The new process is ready to take over."""

    form: int
    version: str


class Start(Message, frozen=True):
    """The first sequence of the log; sent again if the next entries were evicted."""

    own_token: str
    data: str
    epoch: str
    sequence: int
    evicted_s: float


class Entries(Message, frozen=True):
    """The next entries of the log."""

    entries: list[Entry]


class Evicted(Message, frozen=True):
    """The log's tail and head, and its record of evicted entries; see `Log.know_evicted`."""

    tail: int
    head: int
    rest: tuple[int, float]
    topics: list[tuple[str, int, float]]
    ids: list[tuple[str, str]] = []


class Listeners(Message, frozen=True):
    """The listeners: the public ones, then `admin` others, then the Unix socket's.

    Args:
        unix: whether there is a Unix socket.
        file: the device and inode of the Unix socket, if relay created it.
        admin: number of listeners at `admin-listen`.
    """

    unix: bool
    file: tuple[int, int] | None
    admin: int


class Terms(Message, frozen=True):
    """The subscriptions of the streams; each stream has an index into this list."""

    subscriptions: list[PackedSubscription]


class Streams(Message, frozen=True):
    """Streams, each with its descriptor."""

    streams: list[PackedStream]


class DedupKeys(Message, frozen=True, tag="Keys"):
    """The next dedup keys, oldest first, as (key, id, time)."""

    keys: list[tuple[str, str, float]]


class Feeders(Message, frozen=True):
    """Feeders of the Unix socket, each with its descriptor."""

    feeders: list[PackedFeeder]


class Connections(Message, frozen=True):
    """Clients' connections, each with its descriptor."""

    connections: list[PackedConnection]


class Rest(Message, frozen=True):
    """The rest: the feeder on standard input (None after its end), the valid tickets, and the ended topics."""

    stdin: PackedFeeder | None
    tickets: dict[str, tuple[float, Grant]]
    ended: list[str]


class Got(Message, frozen=True):
    """A message with descriptors has arrived."""


class Ready(Message, frozen=True):
    """The new process has received everything and can serve."""


class Go(Message, frozen=True):
    """The old process has released everything; the new one may serve."""


_Log = Start | Entries | Evicted
_Held = Listeners | Terms | Streams | Feeders | Connections | DedupKeys | Rest
_Any = UpgradeHello | _Log | _Held | Got | Ready | Go
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Any).decode


class Channel:
    """One end of the channel between two processes.

    Args:
        end: the socket; the channel closes it.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    @staticmethod
    def encode(message: Message, fds: Sequence[int] = ()) -> bytes:
        """Encode a message: head and body."""
        body = _encode(message)
        return _HEAD.pack(len(body), len(fds)) + body

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message; if it has descriptors, wait for the answer.

        Args:
            message: the message.
            fds: at most `FDS_MAX` descriptors.

        Raises:
            RelayError: the other process closed the channel or did not answer in time.
        """
        data = self.encode(message, fds)
        try:
            if fds:
                socket.send_fds(self.socket, [data[: _HEAD.size]], fds)
                data = data[_HEAD.size :]
            self.socket.sendall(data)
        except OSError as error:
            raise RelayError(f"cannot send to the other process: {error}") from None
        if fds:
            self.expect(Got)

    def receive(self) -> tuple[_Any, list[int]]:
        """Wait for a message; return it with its descriptors, which the caller must close.

        Raises:
            RelayError: the other process closed the channel, was too slow, or sent an invalid message.
        """
        try:
            head, fds, _, _ = socket.recv_fds(self.socket, _HEAD.size, FDS_MAX)
            for fd in fds:
                os.set_inheritable(fd, False)
            head += self._read(_HEAD.size - len(head)) if head else b""
            if not head:
                raise RelayError("the other process closed the channel")
            size, count = _HEAD.unpack(head)
            if size > MESSAGE_BYTES_MAX or count != len(fds):
                raise RelayError("the other process sent an invalid message")
            message = _decode(self._read(size))
        except OSError as error:
            raise RelayError(f"cannot receive from the other process: {error}") from None
        except msgspec.MsgspecError as error:
            raise RelayError(f"the other process sent an invalid message: {error}") from None
        if fds:
            self.send(Got())
        return message, fds

    def expect(self, kind: type[Message]) -> Message:
        """Wait for a message of the given class, without descriptors.

        Raises:
            RelayError: as for `receive`, or the message is of another class.
        """
        message, _ = self.receive()
        if not isinstance(message, kind):
            raise RelayError(f"the other process sent {type(message).__name__} instead of {kind.__name__}")
        return message

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, place = memoryview(data), 0
        while place < size:
            count = self.socket.recv_into(view[place:])
            if not count:
                raise RelayError("the other process closed the channel")
            place += count
        return bytes(data)
