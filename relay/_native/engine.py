"""The engine of streams in plain Python: the readable counterpart of `_speedups/engine.pxi`, and its oracle in tests.

`_speedups/engine.pxi` describes the theory of operation. Owns descriptors, cursors and the half-sent frame of each
stream. Never parses, encodes or decides.

The module is longer than 400 lines because it has the structure of its compiled counterpart, for comparison.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import Enum
from itertools import accumulate
from weakref import WeakSet

CLOCK_EVERY = 16
"""Number of sends between two readings of the clock."""

COMBINED_MAX = 16
"""Maximum number of audiences in a combination; a stream in more due audiences catches up."""

DISCARD_BYTES = 4096
"""Bytes per read of discarded input."""

POLL_EVENTS = 512
"""Maximum number of events that one call takes from epoll."""

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _State(Enum):
    LIVE = "live"  # has received everything of its audiences up to the last flush
    BEHIND = "behind"  # lagging or replaying: needs `pending`, then the entries from `cursor` on
    CLOSING = "closing"  # sends `pending`, then ends
    ENDED = "ended"  # has sent its end; waits for the peer to close
    DEAD = "dead"  # waits for sweep()


_chunks: WeakSet[Chunk] = WeakSet()
_engines: WeakSet[Engine] = WeakSet()


def counters() -> dict[str, int]:
    """Return the numbers of chunks, half-sent frames and streams in this process, so that tests can detect leaks."""
    streams = [stream for engine in _engines for stream in engine._streams.values()]
    frames = sum(bool(stream.pending) for stream in streams)
    return {"chunks": len(_chunks), "frames": frames, "streams": len(streams)}


class _DiedError(Exception):
    """The socket of a stream failed; the text is the close reason."""


def _reason_of(number: int | None) -> str:
    """Return the close reason of a socket that failed with this errno; 0 means that the peer disconnected."""
    if number == errno.ETIMEDOUT:
        return "timeout"
    return "client" if number in (0, errno.EPIPE, errno.ECONNRESET) else "error"


class Chunk:
    """Entries joined into one buffer, which the engine sends to many streams.

    Args:
        frames: the frames, at least one.
        sequences: their sequences, in ascending order.
        cursor: the cursor of a stream that has received all of them.
        checks: for a compressed form, the CRC-32 and the size of the content of each frame; else None.
        events: number of events, if the only frame holds several; 0 for one per frame.
    """

    def __init__(
        self,
        frames: list[bytes],
        sequences: Sequence[int],
        cursor: int,
        checks: list[tuple[int, int]] | None = None,
        events: int = 0,
    ) -> None:
        if not frames or len(frames) != len(sequences):
            raise ValueError("a chunk has one sequence for each of its frames, and at least one")
        if checks is not None and len(checks) != len(frames):
            raise ValueError("a chunk of a compressed form has one check for each of its frames")
        self._checks = checks
        self._events = events or len(frames)
        self.data = frames[0] if len(frames) == 1 else b"".join(frames)
        self.cursor = cursor
        self._frames = frames
        self._sequences = sequences
        self._ends = list(accumulate(map(len, frames)))
        _chunks.add(self)

    def __len__(self) -> int:
        return len(self._frames)

    def _sent(self, stream: _Stream, first: int, stop: int) -> int:
        """Count the content of the rows [first, stop), sent to a stream; return the number of events."""
        for crc, size in self._checks[first:stop] if self._checks is not None else ():
            stream.crc = _appended(stream.crc, crc, size)
            stream.size = (stream.size + size) % 2**32
        return self._events - len(self._frames) + stop - first if stop > first else 0


def _appended(crc: int, more: int, size: int) -> int:
    """Return the CRC-32 of two joined parts from the CRC-32 of each; the second has `size` bytes (RFC 1952)."""
    return zlib.crc32(bytes(size), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF ^ more


class Members:
    """The handles of one audience's streams; some may be stale."""

    def __init__(self) -> None:
        self._handles: list[int] = []

    def __len__(self) -> int:
        return len(self._handles)


class _Stream:
    __slots__ = (
        "address",
        "clean_since",
        "combined",
        "crc",
        "cursor",
        "discarded",
        "form",
        "handle",
        "last_write_s",
        "offset",
        "pending",
        "reason",
        "released",
        "size",
        "sock",
        "state",
        "subscription",
    )

    def __init__(
        self,
        handle: int,
        sock: socket.socket,
        subscription: object,
        address: object,
        cursor: int,
        pending: bytes,
        form: int,
        joins: bool,
    ) -> None:
        self.handle = handle
        self.sock = sock
        self.subscription = subscription
        self.address = address
        self.cursor = cursor
        self.pending = pending
        self.form = form
        # All events from this sequence on were sent, and nothing between them. None without a shared compressor.
        self.clean_since = cursor if joins else None
        self.crc = 0  # CRC-32 of the content sent so far, including the half-sent frame
        self.size = 0  # bytes of this content, modulo 2^32
        self.offset = 0
        self.state = _State.BEHIND
        self.combined = 0
        self.discarded = 0
        self.last_write_s = 0.0
        self.reason = ""
        self.released = False  # the caller of `release` owns the socket


class Engine:
    """Open streams and their sockets. Never parses, encodes or decides.

    Args:
        discard_bytes_max: maximum bytes that a client may send after its request; above it, its stream is closed.
    """

    def __init__(self, discard_bytes_max: int) -> None:
        self.open = 0
        self.deliveries = 0
        self.bytes = 0
        self.writes = 0
        self.short_writes = 0
        self.unshared = 0
        self._discard_bytes_max = discard_bytes_max
        self._streams: dict[int, _Stream] = {}
        self._by_fd: dict[int, int] = {}
        self._next_handle = 0
        self._dead: list[_Stream] = []
        self._lagging: list[int] = []
        self._round = 1
        self._epoll = select.epoll()
        _engines.add(self)

    # The clock and the kernel, which a simulation replaces.

    def _monotonic_s(self) -> float:
        return time.monotonic()

    def _sendmsg(self, stream: _Stream, parts: list[bytes | memoryview]) -> int:
        return stream.sock.sendmsg(parts, (), _FLAGS)

    def _recv(self, stream: _Stream) -> bytes:
        return stream.sock.recv(DISCARD_BYTES, socket.MSG_DONTWAIT)

    def _error(self, stream: _Stream) -> int:
        return stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _register(self, handle: int, fd: int) -> socket.socket:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        self._by_fd[fd] = handle
        return socket.socket(fileno=fd)

    def _release(self, stream: _Stream) -> int:
        fd = stream.sock.fileno()
        self._epoll.unregister(fd)  # Another process may still use the socket.
        del self._by_fd[fd]
        return stream.sock.detach()

    def _close(self, stream: _Stream) -> None:
        os.close(self._release(stream))

    def _events(self) -> list[tuple[int, int]]:
        return [(self._by_fd[fd], mask) for fd, mask in self._epoll.poll(0, POLL_EVENTS)]

    def fileno(self) -> int:
        """Return the epoll descriptor, which is readable when a stream has an event for `poll`."""
        return self._epoll.fileno()

    def add(
        self,
        fd: int,
        subscription: object,
        address: object,
        cursor: int,
        pending: bytes,
        now_s: float,
        form: int = 0,
        joins: bool = False,
    ) -> int:
        """Add a connected, non-blocking socket as a stream that is behind; see the compiled counterpart."""
        handle = self._next_handle
        stream = _Stream(handle, self._register(handle, fd), subscription, address, cursor, pending, form, joins)
        stream.last_write_s = now_s
        self._streams[handle] = stream
        self._next_handle += 1
        self.open += 1
        return handle

    def join(self, handle: int, members: Members) -> None:
        """Make the stream a member of an audience."""
        members._handles.append(handle)

    def compact(self, members: Members) -> None:
        """Remove the handles of streams that no longer exist."""
        members._handles[:] = [handle for handle in members._handles if handle in self._streams]

    def listed(self, members: Members) -> list[int]:
        """Return the handles of an audience, including stale ones."""
        return list(members._handles)

    # Reading the state of a stream

    def is_behind(self, handle: int) -> bool:
        """Return whether the stream is behind (lagging or replaying)."""
        stream = self._streams.get(handle)
        return stream is not None and stream.state is _State.BEHIND

    def cursor(self, handle: int) -> int:
        """Return the first sequence of which no byte is sent or pending."""
        return self._streams[handle].cursor

    def subscription(self, handle: int) -> object:
        """Return the subscription that the stream was added with."""
        return self._streams[handle].subscription

    def address(self, handle: int) -> object:
        """Return the peer's address that the stream was added with."""
        return self._streams[handle].address

    def handles(self) -> list[int]:
        """Return the handles of all live and behind streams."""
        return [handle for handle, stream in self._streams.items() if stream.state in (_State.LIVE, _State.BEHIND)]

    def pack(self) -> list[tuple[int, int, int, bytes, float, str | None]]:
        """Describe the streams for another process; see the compiled counterpart."""
        return [
            (
                handle,
                stream.sock.fileno(),
                stream.cursor,
                stream.pending[stream.offset :],
                stream.last_write_s,
                stream.reason if stream.state in (_State.CLOSING, _State.ENDED) else None,
            )
            for handle, stream in self._streams.items()
            if stream.state is not _State.DEAD
        ]

    # Writing

    def _behind(self, handle: int) -> _Stream:
        stream = self._streams[handle]
        if stream.state is not _State.BEHIND:
            raise RuntimeError("the stream is not behind")
        return stream

    def _send(self, stream: _Stream, data: bytes | memoryview, now_s: float) -> int:
        """Send `pending`, then `data`; return the bytes of `data` sent, or -1 if `pending` is not finished."""
        rest = len(stream.pending) - stream.offset
        parts = [part for part in (memoryview(stream.pending)[stream.offset :], data) if part]
        if not parts:
            return 0
        self.writes += 1
        try:
            sent = self._sendmsg(stream, parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _DiedError(_reason_of(error.errno)) from None
        if sent:
            stream.last_write_s = now_s
        self.bytes += sent
        if sent < rest + len(data):
            self.short_writes += 1
        if sent < rest:
            stream.offset += sent
            return -1
        stream.pending, stream.offset = b"", 0
        return sent - rest

    def _write(self, stream: _Stream, chunk: Chunk | None, now_s: float) -> bool:
        first = start = 0
        data: bytes | memoryview = b""
        if chunk is not None:
            first = bisect_left(chunk._sequences, stream.cursor)
            start = chunk._ends[first - 1] if first else 0
            data = memoryview(chunk.data)[start:]
        try:
            taken = self._send(stream, data, now_s)
        except _DiedError as error:
            self._die(stream, str(error))
            return False
        if taken < 0 or chunk is None:
            return taken >= 0
        if taken == len(data):
            self.deliveries += chunk._sent(stream, first, len(chunk))
            stream.cursor = max(stream.cursor, chunk.cursor)
            return True
        last = bisect_right(chunk._ends, start + taken)
        offset = start + taken - (chunk._ends[last - 1] if last else 0)
        stream.cursor = chunk._sequences[last]
        if offset:
            stream.pending, stream.offset = chunk._frames[last], offset
            last += 1
            stream.cursor = chunk.cursor if last == len(chunk) else stream.cursor + 1
        self.deliveries += chunk._sent(stream, first, last)
        return False

    def write(self, handle: int, chunk: Chunk | None, now_s: float) -> bool:
        """Send `pending`, then the chunk from the cursor on, to a stream that is behind, in one system call.

        Args:
            chunk: entries that follow the cursor; None to write only the `pending` bytes.

        Returns:
            True if everything was sent; False if the stream must wait until it is writable again, or is dead.
        """
        return self._write(self._behind(handle), chunk, now_s)

    def write_each(self, handles: list[int], chunk: Chunk, now_s: float) -> tuple[list[int], list[int]]:
        """Call `write` with one chunk for each of some streams; omit streams that are not behind any more.

        Returns:
            the handles of the streams that received everything, and those of the streams that must wait.
        """
        whole, short = [], []
        for handle in handles:
            if not self.is_behind(handle):
                continue
            if self.write(handle, chunk, now_s):
                whole.append(handle)
            elif self.is_behind(handle):
                short.append(handle)
        return whole, short

    def live(self, handle: int, cursor: int) -> None:
        """Make a stream live; see the compiled counterpart."""
        stream = self._behind(handle)
        if stream.pending:
            raise RuntimeError("only a stream that has all of its bytes can be live")
        stream.state = _State.LIVE
        stream.cursor = max(stream.cursor, cursor)

    def fall_behind(self, handle: int, cursor: int) -> bool:
        """Put a live stream behind, with the later of `cursor` and its own cursor.

        Returns:
            whether it was live.
        """
        stream = self._streams.get(handle)
        if stream is None or stream.state is not _State.LIVE:
            return False
        stream.state = _State.BEHIND
        stream.cursor = max(stream.cursor, cursor)
        return True

    def skip(self, handle: int, cursor: int, notice: bytes) -> None:
        """Move the cursor of a stream that is behind; send `notice` after the half-sent frame."""
        stream = self._behind(handle)
        stream.cursor = cursor
        self._interrupt(stream, cursor)
        self._append(stream, notice)

    def _interrupt(self, stream: _Stream, cursor: int) -> None:
        """Note that something other than the next event is sent before `cursor`."""
        if stream.clean_since is not None:
            stream.clean_since = cursor

    def count_content(self, handle: int, content: bytes) -> None:
        """Count the content of a notice that `add`, `skip` or `close` sends in a compressed form."""
        stream = self._streams[handle]
        stream.crc = zlib.crc32(content, stream.crc)
        stream.size = (stream.size + len(content)) % 2**32

    def content(self, handle: int) -> tuple[int, int]:
        """Return the CRC-32 of the content that a stream of a compressed form received, and its size modulo 2^32."""
        stream = self._streams[handle]
        return stream.crc, stream.size

    def continue_content(self, handle: int, crc: int, size: int) -> None:
        """Continue the count of a stream's content from the values that `content` returned in another process."""
        stream = self._streams[handle]
        stream.crc, stream.size = crc, size

    def _append(self, stream: _Stream, more: bytes) -> None:
        stream.pending, stream.offset = stream.pending[stream.offset :] + more, 0

    def broadcast(
        self,
        members: Members,
        start: int,
        chunk: Chunk,
        combined: bool,
        now_s: float,
        slice_s: float,
        shared: Chunk | None = None,
        key_cursor: int = 0,
    ) -> int:
        """Send a flush's chunk to the live streams of an audience, to each from its cursor on.

        Args:
            members: the audience.
            start: place in `members` at which to begin.
            combined: whether `combine` made these members. Other broadcasts of the round omit their streams.
            slice_s: maximum duration, after which the call returns.
            shared: the same entries as one frame from a compressor that the members share; None without a compressor.
            key_cursor: the compressor refers to content from this sequence on. Only streams that have received exactly
                this content can read `shared`. Other streams receive `chunk`; `unshared` counts those that could join.

        Returns:
            the place at which to continue; `len(members)` when all members are done.
        """
        stop_s = self._monotonic_s() + slice_s
        sends = 0
        for place in range(start, len(members)):
            stream = self._streams.get(members._handles[place])
            if stream is None or stream.state is not _State.LIVE or (stream.combined == self._round and not combined):
                continue
            if stream.cursor >= chunk.cursor or chunk._sequences[-1] < stream.cursor:
                continue
            sent = chunk
            if shared is not None:
                if self._is_clean(stream, key_cursor) and stream.cursor <= chunk._sequences[0]:
                    sent = shared
                elif stream.clean_since is not None:
                    self.unshared += 1
            if not self._write(stream, sent, now_s) and stream.state is _State.LIVE:
                self._note_lagging(stream)
            sends += 1
            if sends % CLOCK_EVERY == 0 and self._monotonic_s() >= stop_s:
                return place + 1
        return len(members)

    @staticmethod
    def _is_clean(stream: _Stream, cursor: int) -> bool:
        return stream.clean_since is not None and stream.clean_since <= cursor

    def _note_lagging(self, stream: _Stream) -> None:
        stream.state = _State.BEHIND
        self._lagging.append(stream.handle)

    def combine(self, audiences: list[Members]) -> list[tuple[tuple[int, ...], Members]]:
        """Begin a flush of several due audiences: find the streams that are in more than one of them.

        Args:
            audiences: the members of each due audience.

        Returns:
            (places in `audiences`, members) for each combination of audiences that a stream has, and ((), members) for
            the streams in more than `COMBINED_MAX` audiences. Until the next call, only a `combined` broadcast sends
            to these streams.
        """
        self._round += 1
        places: dict[int, list[int]] = {}
        for number, members in enumerate(audiences):
            for handle in members._handles:
                stream = self._streams.get(handle)
                if stream is not None and stream.state is _State.LIVE:
                    places.setdefault(handle, []).append(number)
        groups: dict[tuple[int, ...], Members] = {}
        for handle, numbers in places.items():
            if len(numbers) > 1:
                self._streams[handle].combined = self._round
                key = tuple(numbers) if len(numbers) <= COMBINED_MAX else ()
                groups.setdefault(key, Members())._handles.append(handle)
        return list(groups.items())

    def heartbeat(
        self,
        frames: list[bytes],
        start: int,
        idle_s: float,
        now_s: float,
        slice_s: float,
        contents: list[bytes] | None = None,
        cursor: int = 0,
    ) -> int:
        """Send a heartbeat to each live stream whose last write is at least `idle_s` seconds ago.

        Args:
            frames: the heartbeat of each form.
            contents: the content of the heartbeat of each compressed form; empty for other forms.
            cursor: live streams have received everything before this sequence.

        Returns:
            the `start` of the next call; 0 when all streams are done.
        """
        stop_s = self._monotonic_s() + slice_s
        for count, handle in enumerate(sorted(h for h in self._streams if h >= start), 1):
            stream = self._streams[handle]
            if stream.state is _State.LIVE and now_s - stream.last_write_s >= idle_s:
                frame = frames[stream.form]
                if contents is not None and contents[stream.form]:
                    self._interrupt(stream, max(stream.cursor, cursor))
                    self.count_content(handle, contents[stream.form])
                try:
                    taken = self._send(stream, frame, now_s)
                except _DiedError as error:
                    self._die(stream, str(error))
                else:
                    if taken < len(frame):
                        self._append(stream, frame[taken:])
                        self._note_lagging(stream)
            if count % CLOCK_EVERY == 0 and self._monotonic_s() >= stop_s:
                return handle + 1
        return 0

    def lagging(self) -> list[int]:
        """Return the handles of the streams that fell behind in a broadcast or heartbeat since the last call."""
        found, self._lagging = self._lagging, []
        return found

    # Polling and closing

    def _discard(self, stream: _Stream) -> str | None:
        """Read and discard input; return a close reason if the peer disconnected or sent too much, or on an error."""
        while True:
            try:
                data = self._recv(stream)
            except BlockingIOError:
                return None
            except OSError as error:
                return _reason_of(error.errno)
            if not data:
                return "client"
            stream.discarded += len(data)
            if stream.discarded > self._discard_bytes_max:
                return "input"

    def poll(self) -> tuple[list[int], bool]:
        """Process events of epoll: mark streams of disconnected peers as dead, and discard input from clients.

        Returns:
            the handles of behind streams that became writable, and whether more events may be waiting.
        """
        writable = []
        events = self._events()
        for handle, mask in events:
            stream = self._streams[handle]
            if stream.state is _State.DEAD:
                continue
            if mask & (select.EPOLLERR | select.EPOLLHUP):
                self._die(stream, _reason_of(self._error(stream)))
                continue
            if mask & (select.EPOLLIN | select.EPOLLRDHUP):
                reason = self._discard(stream)
                if reason is not None:
                    self._die(stream, reason)
                    continue
            if mask & select.EPOLLOUT:
                if stream.state is _State.BEHIND:
                    writable.append(handle)
                elif stream.state is _State.CLOSING:
                    self._finish(stream)
        return writable, len(events) == POLL_EVENTS

    def _die(self, stream: _Stream, reason: str) -> None:
        if stream.state is not _State.DEAD:
            if stream.state not in (_State.CLOSING, _State.ENDED):
                stream.reason = reason
            stream.state = _State.DEAD
            self._dead.append(stream)

    def _finish(self, stream: _Stream) -> None:
        try:
            if self._send(stream, b"", stream.last_write_s) >= 0:
                stream.sock.shutdown(socket.SHUT_WR)
                stream.state = _State.ENDED
        except (_DiedError, OSError):
            self._die(stream, stream.reason)

    def close(self, handle: int, reason: str, last: bytes = b"") -> None:
        """Close a stream between frames: send the rest and `last` first; see the compiled counterpart."""
        stream = self._streams[handle]
        if stream.state in (_State.CLOSING, _State.ENDED, _State.DEAD):
            return
        self._append(stream, last)
        stream.state = _State.CLOSING
        stream.reason = str(reason)
        self._finish(stream)

    def abort(self, handle: int, reason: str) -> None:
        """Close a stream without sending the rest of its half-sent frame; `reason` as in `close`."""
        self._die(self._streams[handle], str(reason))

    def release(self, handle: int, reason: str) -> tuple[int, bytes, bool]:
        """End a live or behind stream and give its descriptor to the caller; see the compiled counterpart."""
        stream = self._streams[handle]
        if stream.state not in (_State.LIVE, _State.BEHIND):
            raise RuntimeError("the stream is closing")
        stream.released = True
        self._die(stream, str(reason))
        return self._release(stream), stream.pending[stream.offset :], stream.discarded > 0

    def sweep(self) -> list[tuple[int, object, object, int, str]]:
        """Close the descriptors of dead streams and remove the streams.

        Returns:
            (handle, subscription, address, cursor, reason) of each dead stream.
        """
        dead, self._dead = self._dead, []
        for stream in dead:
            if not stream.released:
                self._discard(stream)  # Unread input would make the kernel reset the connection and lose sent bytes.
                self._close(stream)
            del self._streams[stream.handle]
            self.open -= 1
        return [(s.handle, s.subscription, s.address, s.cursor, s.reason) for s in dead]
