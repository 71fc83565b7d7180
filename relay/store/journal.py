"""The journal: what is published waits here until it is on the disk, and only then goes into the log.

Theory of operation. Entries come with their sequences, are written in batches by one thread, and are handed to the log
when the disk has them: so nobody ever sees an event that a crash could take back, and no id is given twice. While one
batch is written the next one gathers, so that the slower the disk, the larger the batches.

    publish ── put ──► pending ── one batch at a time ──► store (its thread) ──► take: the log, marks, flush
                          │                                      │
                          └─ too much: publishers are held       └─ confirm: the acknowledgements of `durable`

A disk that is full or fails changes nothing of what is in the log: that is served. What is pending is kept and tried
again; nothing new is taken until it could be written.

Owns the pending entries and the thread. Never encodes, never answers.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from relay.core.log import Entry, Log
from relay.core.measures import Observer
from relay.core.seen import Seen
from relay.errors import RelayError
from relay.store.file import Key, Store, Trim, WriteBatch

PENDING_ENTRIES_MAX = 16 * 1024
PENDING_BYTES_MAX = 16 * 1024 * 1024
"""What may wait for the disk before publishers are held; one publish request may go beyond."""

TURN_ENTRIES = 1024
"""Entries that go into the log in one turn of the loop: some 2 ms."""

RETRY_S = 1.0
"""Pause after a write that failed."""

TRIM_S = 1.0
"""How often the file lets go of what the log has evicted."""

_logger = logging.getLogger("relay.journal")


class Journal:
    """The way to the disk.

    Args:
        store: an open file.
        log: what the entries go into.
        seen: the dedup keys.
        take: takes each stored entry, in order.
        released: called when publishers are held no longer.
        write_s: how long each write takes.
        loop: the event loop.
        clock: the hub's time.
        wall: the wall's time.
    """

    def __init__(
        self,
        store: Store,
        log: Log,
        seen: Seen,
        *,
        take: Callable[[Entry, float], None],
        released: Callable[[], None],
        write_s: Observer,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.head = log.head  # sequence of the next entry to be published
        self.refusal = ""  # why nothing can be published; empty when it can
        self.failures = 0
        self._store = store
        self._log = log
        self._seen = seen
        self._take = take
        self._released = released
        self._write_s = write_s
        self._loop = loop
        self._clock = clock
        self._wall = wall
        self._ahead_s = wall() - clock()  # what the wall's time is ahead of the hub's
        self._entries: list[Entry] = []  # that gather for the next batch
        self._keys: list[Key] = []
        self.upstream_position = store.upstream_position  # where to resume at the upstream; None if none was followed
        self._position: str | None = None  # the same, where it is still to be written
        self._batch: WriteBatch | None = None  # what is being written, or has to be tried again
        self._writing: Future[None] | None = None
        self._began_s = 0.0
        self._stored: deque[Entry] = deque()  # on the disk, and not in the log yet
        self._bytes = 0  # of the frames of all that
        self._held = False
        self._confirms: deque[tuple[int, Callable[[], None]]] = deque()
        self._due = False  # a write is to begin, is under way, or is to be tried again
        self._closed = False
        self._open = True
        self._timer: asyncio.TimerHandle | None = None
        self._trimmed = log.tail
        self._trimmed_s = clock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, "relay-store")

    @property
    def pending(self) -> int:
        """How many entries wait for the disk."""
        return self.head - self._log.head

    @property
    def full(self) -> bool:
        """Whether publishers have to wait."""
        self._held = bool(self.refusal) or self.pending >= PENDING_ENTRIES_MAX or self._bytes >= PENDING_BYTES_MAX
        return self._held

    def put(self, entries: Sequence[Entry], keys: Sequence[Key]) -> None:
        """Take what was published at once.

        Args:
            entries: the first with the sequence `head`; at least one.
            keys: the dedup keys of some of them, with the ids that these were published under.
        """
        for entry in entries:
            self._bytes += len(entry.frame)
        self._entries += entries
        self._keys += keys
        self.head += len(entries)
        if not self._due:
            self._due = True
            self._idle.clear()
            # What else this turn of the loop publishes goes with it.
            self._loop.call_soon(self._write)

    def note_upstream(self, position: str) -> None:
        """Note where to resume at the upstream; stored together with what has been put in this turn of the loop."""
        self.upstream_position = self._position = position
        if not self._due:
            self._due = True
            self._loop.call_soon(self._write)

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back when all that has been put until now is on the disk; at once when it is."""
        if self.head == self._log.head:
            callback()
        else:
            self._confirms.append((self.head, callback))

    def tick(self, now_s: float) -> None:
        """Let the file shrink with the log, where nothing is written that would do it."""
        if self._log.tail > self._trimmed and now_s - self._trimmed_s >= TRIM_S and not self._due:
            self._due = True
            self._write()

    def _write(self) -> None:
        """Begin to write what has gathered, or what failed, once more."""
        self._timer = None
        if self._closed or self._writing is not None:
            return
        began_s = self._clock()
        if self._batch is None:
            wall_s = began_s + self._ahead_s
            self._batch = WriteBatch(self._entries, self._keys, self._ahead_s, wall_s, self._position)
            self._entries, self._keys, self._position = [], [], None
        self._began_s = began_s
        self._writing = writing = self._thread.submit(self._store.write, self._batch, self._trim(began_s))
        writing.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._written, writing))

    def _trim(self, now_s: float) -> Trim | None:
        if now_s - self._trimmed_s < TRIM_S:
            return None
        self._trimmed_s = now_s
        self._trimmed = tail = self._log.tail
        evicted_s = self._log.time_s(tail) if len(self._log) else now_s
        return Trim(tail, evicted_s + self._ahead_s, now_s - self._seen.window_s + self._ahead_s)

    def _written(self, writing: Future[None]) -> None:
        """Hand what is stored to the log, and write what has gathered; or wait, where it could not be stored."""
        if writing is not self._writing:
            return  # `flush` was quicker
        self._writing = None
        error = writing.exception()
        if error is not None:
            self._fail(error)
            return
        now_s = self._clock()
        self._write_s.observe(now_s - self._began_s)
        self._ahead_s = self._wall() - now_s
        if self.refusal:
            _logger.info("data: events are stored again")
            self.refusal = ""
        batch, self._batch = self._batch, None
        assert batch is not None
        due = not self._stored
        self._stored.extend(batch.entries)
        if due:
            self._hand_over()
        if self._unwritten:
            self._write()
        else:
            self._due = False

    @property
    def _unwritten(self) -> bool:
        """Whether something gathers for the next batch."""
        return bool(self._entries) or self._position is not None

    def _hand_over(self) -> None:
        """Put stored entries into the log, and go on with what waits for that."""
        stored = self._stored
        for _ in range(min(TURN_ENTRIES, len(stored))):
            entry = stored.popleft()
            self._bytes -= len(entry.frame)
            self._take(entry, entry.time_s)
        head = self._log.head
        while self._confirms and self._confirms[0][0] <= head:
            self._confirms.popleft()[1]()
        if self._held and not self.full:
            self._released()
        if stored:
            self._loop.call_soon(self._hand_over)
        elif not self.pending:
            self._idle.set()

    def _fail(self, error: BaseException) -> None:
        self.failures += 1
        if not self.refusal:
            _logger.error("data: %d events cannot be stored, and no more are taken: %s", self.pending, error)
        self.refusal = f"events cannot be stored: {error}"
        self._timer = self._loop.call_later(RETRY_S, self._write)

    async def settle(self) -> None:
        """Wait until nothing is pending."""
        await self._idle.wait()

    def flush(self) -> None:
        """Write what is pending and put it into the log, here and now; it stays pending where that fails."""
        if self._unwritten and self._writing is None and not self.refusal:
            self._write()
        while (writing := self._writing) is not None:
            writing.exception()  # waits for it
            self._written(writing)
        while self._stored:
            self._hand_over()

    @property
    def path(self) -> str:
        """Path of the file."""
        return self._store.path

    def release_file(self) -> None:
        """Write everything and close the file, so that another process can take it.

        Raises:
            RelayError: not all of it can be written; the file stays open.
        """
        self.flush()
        if self.refusal:
            raise RelayError(self.refusal)
        self._open = False
        self._store.close()

    def reopen(self) -> None:
        """Open the file again, if it was let go of.

        Raises:
            ConfigError: it cannot be used.
        """
        if not self._open:
            self._store, self._open = Store(self._store.path), True

    def close(self) -> None:
        """Write what is pending, and let go of the file; what cannot be written is lost, and the log says so."""
        self.refusal = ""  # one more try
        if self._timer is not None:
            self._timer.cancel()
            self._write()
        self.flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown()
        if self.pending:
            _logger.error("data: %d events that were taken are lost: %s", self.pending, self.refusal)
        try:
            self._store.close()
        except sqlite3.Error as error:
            _logger.error("data: %s was not closed, and will be put in order: %s", self._store.path, error)
