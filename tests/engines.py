"""Both implementations of the engine over socket pairs, and helpers for their tests."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from bench.implementations import EngineTypes, load_engine
from relay._native.engine import Chunk, Engine, Members
from tests import twins

DISCARD_BYTES_MAX = 10_000
SEND_BUFFER = 4608
"""The smallest buffer that Linux allows. It holds two or three writes of a few kilobytes."""

FOREVER_S = 3600.0
ROOM = b"x" * 65_536
"""More bytes than a send buffer holds."""


@dataclass
class Rig:
    """One engine, its streams and, by handle, the subscribers' ends of their sockets."""

    twin: EngineTypes
    engine: Engine = field(init=False)
    members: Members = field(init=False)
    peers: dict[int, socket.socket] = field(default_factory=dict)
    sends: int = SEND_BUFFER

    def __post_init__(self) -> None:
        self.engine = self.twin.engine(DISCARD_BYTES_MAX)
        self.members = self.twin.members()

    def chunk(self, frames: list[bytes], first: int = 1, cursor: int | None = None) -> Chunk:
        """Join frames with consecutive sequences."""
        sequences = list(range(first, first + len(frames)))
        return self.twin.chunk(frames, sequences, first + len(frames) if cursor is None else cursor)

    def open(
        self,
        cursor: int = 1,
        pending: bytes = b"head",
        *,
        subscription: object = None,
        address: object = None,
        now_s: float = 0.0,
        joins: bool = False,
    ) -> int:
        """Open a lagging stream."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.sends)
        handle = self.engine.add(ours.detach(), subscription, address, cursor, pending, now_s, 0, joins)
        self.peers[handle] = theirs
        return handle

    def open_live(self, cursor: int = 1, *, members: Members | None = None, now_s: float = 0.0) -> int:
        """Open a stream, send its response head, and make it a live member of an audience."""
        handle = self.open(cursor, now_s=now_s)
        assert self.engine.write(handle, None, now_s)
        assert self.read(handle) == b"head"
        self.engine.live(handle, cursor)
        self.engine.join(handle, self.members if members is None else members)
        return handle

    def broadcast(self, chunk: Chunk, *, now_s: float = 0.0) -> None:
        """Send a chunk to the whole audience; no other audience is due."""
        self.engine.combine([])
        assert self.engine.broadcast(self.members, 0, chunk, False, now_s, FOREVER_S) == len(self.members)

    def is_open(self, handle: int) -> bool:
        """Return whether a stream exists and is not closing."""
        return handle in self.engine.handles()

    def read(self, handle: int, size: int = 1 << 20) -> bytes:
        """Read at most `size` of the bytes that have arrived at a subscriber."""
        data = b""
        while len(data) < size:
            try:
                # A larger size is slower: each call allocates it, which takes most of a test's time under ASan.
                piece = self.peers[handle].recv(min(size - len(data), 65_536))
            except (BlockingIOError, ConnectionResetError):
                break
            if not piece:
                break
            data += piece
        return data

    def ended(self, handle: int) -> bool:
        """Return whether a subscriber that has read everything sees the end of its stream."""
        try:
            return self.peers[handle].recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def finish(self, handle: int, chunk: Chunk | None, *, now_s: float = 0.0) -> bytes:
        """Write the rest of a chunk to a stream while its subscriber reads, until all of it is sent."""
        data = self.read(handle)
        for _ in range(10_000):
            whole = self.engine.write(handle, chunk, now_s)
            data += self.read(handle)
            if whole:
                return data
        raise AssertionError("the stream never gets its bytes")

    def stall(self, handle: int) -> None:
        """Fill the socket of a lagging stream until it accepts no further byte."""
        self.engine.skip(handle, self.engine.cursor(handle), ROOM)
        while True:
            before = self.engine.bytes
            assert not self.engine.write(handle, None, 0.0)
            if self.engine.bytes == before:
                return

    def leave(self, handle: int) -> None:
        """Close the subscriber's end, and poll so that the engine notices."""
        self.peers[handle].close()
        self.engine.poll()

    def closes(self) -> list[tuple[int, str]]:
        """Sweep; return the handle and close reason of each closed stream."""
        return [(handle, reason) for handle, _, _, _, reason in self.engine.sweep()]

    def tear_down(self) -> None:
        """Close everything that is open."""
        self.engine.sweep()
        for handle, peer in self.peers.items():
            with contextlib.suppress(KeyError):
                self.engine.abort(handle, "test")
            peer.close()
        self.engine.sweep()
        assert self.engine.open == 0
        del self.engine  # This closes the engine's epoll descriptor.


@pytest.fixture(params=twins.NAMES)
def twin(request: pytest.FixtureRequest) -> EngineTypes:
    """Return each implementation of the engine in turn."""
    return load_engine(request.param)


@pytest.fixture
def rig(twin: EngineTypes) -> Iterator[Rig]:
    """Return a rig for each implementation of the engine; tear it down at the end."""
    rig = Rig(twin)
    yield rig
    rig.tear_down()


def frames_of(sizes: Sequence[int]) -> list[bytes]:
    """Make frames of these sizes whose bytes differ from those of nearby frames."""
    return [bytes([number % 251]) * size for number, size in enumerate(sizes)]
