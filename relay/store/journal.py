"""The journal: writes published events to the disk before they enter the log.

Theory of operation. Entries arrive with their sequences. One thread writes them in batches, and they enter the log
after the write is synced. So no subscriber sees an event that a crash could undo, and no id is assigned twice. While
one batch is written, the next one fills; a slower disk gets larger batches.

    publish ── put ──► pending ── one batch at a time ──► store (its thread) ──► take: the log, marks, flush
                          │                                      │
                          └─ at the limit: publishers wait        └─ confirm: the acknowledgements of `durable`

A full or failing disk does not affect the entries in the log; relay still serves them. The journal keeps pending
entries and retries the write. It accepts no new entries until the write succeeds.

Owns the pending entries and the thread. Never encodes events and never answers publishers.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from relay.core.histogram_protocols import Observer
from relay.core.log import Entry, Log
from relay.core.seen import Seen
from relay.errors import RelayError
from relay.store.file import Key, Store, Trim, WriteBatch

PENDING_ENTRIES_MAX = 16 * 1024
PENDING_BYTES_MAX = 16 * 1024 * 1024
"""Entries, and bytes of their frames, that may be pending before publishers wait; one request may exceed them."""

TURN_ENTRIES = 1024
"""Entries moved into the log in one iteration of the event loop: about 2 ms."""

RETRY_S = 1.0
"""Pause before a failed write is retried."""

TRIM_S = 1.0
"""Interval at which the file drops the entries that the log has evicted."""

_logger = logging.getLogger("relay.journal")


class Journal:
    """Writes published entries to the store, then hands them to the log.

    Args:
        store: an open store.
        log: the log that receives the entries.
        seen: the dedup keys.
        take: called with each stored entry, in order.
        released: called when publishers no longer have to wait.
        write_s: observes the duration of each write.
        loop: the event loop.
        clock: returns the hub's time.
        wall: returns the wall-clock time.
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
        self.head = log.head  # sequence of the next entry
        self.refusal = ""  # the reason why publishing fails; empty if it works
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
        self._ahead_s = wall() - clock()  # wall-clock time minus the hub's time
        self._entries: list[Entry] = []  # of the next batch
        self._keys: list[Key] = []
        self.upstream_position = store.upstream_position  # to resume from; None without upstream
        self._position: str | None = None  # the same, not yet written
        self._batch: WriteBatch | None = None  # being written, or to be retried
        self._writing: Future[None] | None = None
        self._began_s = 0.0
        self._stored: deque[Entry] = deque()  # on the disk, not yet in the log
        self._bytes = 0  # of the frames of all pending entries
        self._held = False  # publishers may be waiting
        self._confirms: deque[tuple[int, Callable[[], None]]] = deque()
        self._due = False  # a write is scheduled, in progress, or to be retried
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
        """The number of entries that are not in the log yet."""
        return self.head - self._log.head

    @property
    def full(self) -> bool:
        """Whether publishers have to wait."""
        return bool(self.refusal) or self.pending >= PENDING_ENTRIES_MAX or self._bytes >= PENDING_BYTES_MAX

    def put(self, entries: Sequence[Entry], keys: Sequence[Key]) -> None:
        """Accept the entries of one publish request.

        Args:
            entries: at least one; the first has the sequence `head`.
            keys: the dedup keys of some of the entries, with their ids.
        """
        for entry in entries:
            self._bytes += len(entry.frame)
        self._entries += entries
        self._keys += keys
        self.head += len(entries)
        if not self._due:
            self._due = True
            self._idle.clear()
            # The write also includes entries that are published later in this iteration of the event loop.
            self._loop.call_soon(self._write)

    def note_upstream(self, position: str) -> None:
        """Set the upstream position; it is stored with the entries of this iteration of the event loop."""
        self.upstream_position = self._position = position
        if not self._due:
            self._due = True
            self._loop.call_soon(self._write)

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back when all entries put so far are on the disk and in the log; at once if they are already."""
        if self.head == self._log.head:
            callback()
        else:
            self._confirms.append((self.head, callback))

    def tick(self, now_s: float) -> None:
        """Trim the file after an eviction, if no write is due that would trim it."""
        if self._log.tail > self._trimmed and now_s - self._trimmed_s >= TRIM_S and not self._due:
            self._due = True
            self._write()

    def _write(self) -> None:
        """Start to write the next batch, or retry the failed one."""
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
        """Hand the stored entries to the log and start the next write; after a failure, schedule a retry."""
        if writing is not self._writing:
            return  # `flush` has handled this write already.
        self._writing = None
        error = writing.exception()
        if error is not None:
            self._fail(error)
            return
        now_s = self._clock()
        self._write_s.observe(now_s - self._began_s)
        self._ahead_s = self._wall() - now_s
        if self.refusal:
            _logger.info("data: writes to the disk succeed again")
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
        """Whether the next batch has content."""
        return bool(self._entries) or self._position is not None

    def _hand_over(self) -> None:
        """Move stored entries into the log; then confirm them and release publishers."""
        stored = self._stored
        self._held = self._held or self.full
        for _ in range(min(TURN_ENTRIES, len(stored))):
            entry = stored.popleft()
            self._bytes -= len(entry.frame)
            self._take(entry, entry.time_s)
        head = self._log.head
        while self._confirms and self._confirms[0][0] <= head:
            self._confirms.popleft()[1]()
        if self._held and not self.full:
            self._held = False
            self._released()
        if stored:
            self._loop.call_soon(self._hand_over)
        elif not self.pending:
            self._idle.set()

    def _fail(self, error: BaseException) -> None:
        self.failures += 1
        self._held = True
        if not self.refusal:
            _logger.error("data: cannot store %d events, publishing is refused: %s", self.pending, error)
        self.refusal = f"cannot store events: {error}"
        self._timer = self._loop.call_later(RETRY_S, self._write)

    async def settle(self) -> None:
        """Wait until no entry is pending."""
        await self._idle.wait()

    def flush(self) -> None:
        """Write pending entries and move them into the log before returning; after a failure they stay pending."""
        if self._unwritten and self._writing is None and not self.refusal:
            self._write()
        while (writing := self._writing) is not None:
            writing.exception()  # Waits for the write.
            self._written(writing)
        while self._stored:
            self._hand_over()

    @property
    def path(self) -> str:
        """Path of the file."""
        return self._store.path

    def release_file(self) -> None:
        """Write all pending entries and close the file, so that another process can open it.

        Raises:
            RelayError: the write failed; the file stays open.
        """
        self.flush()
        if self.refusal:
            raise RelayError(self.refusal)
        self._open = False
        self._store.close()

    def reopen(self) -> None:
        """Open the file again after `release_file`.

        Raises:
            ConfigError: the file cannot be used.
        """
        if not self._open:
            self._store, self._open = Store(self._store.path), True

    def close(self) -> None:
        """Write pending entries and close the file; log the number of entries that are lost if the write fails."""
        self.refusal = ""  # Try once more.
        if self._timer is not None:
            self._timer.cancel()
            self._write()
        self.flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown()
        if self.pending:
            _logger.error("data: lost %d accepted events: %s", self.pending, self.refusal)
        try:
            self._store.close()
        except sqlite3.Error as error:
            _logger.error("data: cannot close %s cleanly, the next start recovers it: %s", self._store.path, error)
