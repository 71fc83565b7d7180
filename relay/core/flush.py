"""The flush: one round of writing new entries to the live streams.

The flush joins the new entries once per audience, and once per combination of audiences that a stream has. The engine
receives one buffer for all streams of an audience. A flush may run in slices, between which publishers and other
streams continue. It sends the entries that existed at its start (before `until`), and to each stream only those from
its cursor on. If the entries do not fit into one segment, the streams catch up instead, so that a policy can apply. All
audiences of a combination have the same form.

Owns the due audiences and the position up to which live streams have received everything. Never applies a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias
from zlib import crc32

from relay.core.audience import Audience
from relay.core.compression import Compression
from relay.core.histogram_protocols import Observer
from relay.core.index import SEGMENT_BYTES, Index
from relay.core.log import Batch, Log
from relay.speedups import Chunk, Engine, Members

SLICE_S = 0.002
"""Maximum duration of a slice, after which other work of the event loop runs."""

MEMBERS_A_SLICE = 512
"""Maximum number of streams of small audiences in one slice; the engine reads the clock only within an audience."""

MEMBERS_A_JOIN = 4
"""Cost of joining one chunk, as a number of streams of `MEMBERS_A_SLICE`."""

STALE_MEMBERS = 64
"""The stale members of an audience are removed when they outnumber its streams by more than this."""

_Task: TypeAlias = tuple[tuple[Audience, ...], tuple[Index, ...], Members]
"""Some audiences, their indexes, and the streams that are in all of them. No audiences: each stream is in too many."""


@dataclass(slots=True)
class _Round:
    """The tasks and the progress of the current flush."""

    tasks: list[_Task]
    since: int
    until: int
    began_s: float
    oldest_s: float
    task: int = 0
    chunk: Chunk | None = None
    shared: Chunk | None = None
    key_cursor: int = 0
    unshared: int = 0
    place: int = 0


class Flush:
    """The flushes of one hub.

    Args:
        log: the log to read.
        engine: the engine that holds the streams.
        fall_behind: called with the handle of a stream and the cursor from which it has to catch up.
        compression: the compressors of audiences.
        flush_s: histogram of the duration of a flush.
        written_s: histogram of the age of the oldest event of a flush when the flush ends.
        clock: the time in seconds.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        fall_behind: Callable[[int, int], None],
        compression: Compression,
        flush_s: Observer,
        written_s: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._since = log.head
        self._log = log
        self._engine = engine
        self._fall_behind = fall_behind
        self._compression = compression
        self._flush_s = flush_s
        self._written_s = written_s
        self._clock = clock
        self._due: list[Audience] = []
        self._round: _Round | None = None

    @property
    def due(self) -> bool:
        """Whether entries wait to be sent."""
        return bool(self._due) or self._round is not None

    @property
    def unsent(self) -> int | None:
        """Sequence of the first entry that waits to be sent; None if none waits."""
        return self._since if self._due or self._round is not None else None

    @property
    def flushed(self) -> int:
        """The sequence before which live streams have received everything."""
        return self._since if self.due else self._log.head

    def begin(self, sequence: int) -> None:
        """Clear all marks, because the log continues from another sequence and no stream is live."""
        for audience in self._due:
            audience.due = False
        self._due, self._round, self._since = [], None, sequence
        self._compression.begin()

    def mark(self, audiences: Iterable[Audience], sequence: int) -> bool:
        """Mark audiences as due from an appended entry; return whether no audience was due before."""
        first = False
        for audience in audiences:
            if not audience.due:
                audience.due = True
                if not self._due and self._round is None:
                    self._since, first = sequence, True
                self._due.append(audience)
        return first

    def turn(self, now_s: float) -> bool:
        """Run one slice; return whether the flush is unfinished."""
        if self._round is None:
            if not self._due:
                return False
            self._round = self._begin()
        flush, sent = self._round, 0
        while flush.task < len(flush.tasks):
            audiences, indexes, members = flush.tasks[flush.task]
            chunk = flush.chunk
            if chunk is None:
                chunk = flush.chunk = self._join(audiences, indexes, members, flush)
                sent += MEMBERS_A_JOIN
            if chunk is not None:
                began, combined = flush.place, len(audiences) > 1
                flush.place = place = self._engine.broadcast(
                    members, began, chunk, combined, now_s, SLICE_S, flush.shared, flush.key_cursor
                )
                sent += place - began
                if place < len(members):
                    return True
                if flush.shared is not None and (compressor := audiences[0].compressor) is not None:
                    compressor.waiting = self._engine.unshared - flush.unshared
            flush.task, flush.chunk, flush.shared, flush.place = flush.task + 1, None, None, 0
            if sent > MEMBERS_A_SLICE:
                return True
        self._round = None
        self._since = flush.until
        ended_s = self._clock()
        self._flush_s.observe(ended_s - flush.began_s)
        self._written_s.observe(ended_s - flush.oldest_s)
        return False

    def compact(self, audience: Audience) -> None:
        """Drop the stale members of an audience if they are the majority; never during a flush."""
        if self._round is None and len(audience.members) > 2 * audience.streams + STALE_MEMBERS:
            self._engine.compact(audience.members)

    def _begin(self) -> _Round:
        """List the due audiences and each combination of them that a stream has."""
        log, engine, since = self._log, self._engine, self._since
        due, self._due = self._due, []
        tasks: list[_Task] = []
        shared: list[Audience] = []
        for audience in due:
            audience.due = False  # An audience without streams may get some later.
            members, streams = audience.members, audience.streams
            if not streams:
                self._compression.lose(audience)
                continue
            if len(members) > 2 * streams + STALE_MEMBERS:
                engine.compact(members)
            tasks.append(((audience,), (audience.index,), members))
            if audience.shared:
                shared.append(audience)
        for places, members in engine.combine([audience.members for audience in shared] if len(shared) > 1 else []):
            audiences = [shared[place] for place in places]
            tasks.append((tuple(audiences), tuple([audience.index for audience in audiences]), members))
        oldest = since if since > log.tail else log.tail
        return _Round(tasks, since, log.head, self._clock(), log.time_s(oldest))

    def _join(
        self, audiences: tuple[Audience, ...], indexes: tuple[Index, ...], members: Members, flush: _Round
    ) -> Chunk | None:
        """Join the entries of a task; if they are too large, make the members catch up and return None.

        Polls catch up too, because they end with their first events.
        """
        form = audiences[0].form if audiences else None
        if form is not None and not form.once:
            batch = self._log.merge(indexes, flush.since, flush.until, SEGMENT_BYTES)
            if batch is None:
                return None
            if batch.cursor == flush.until:
                if form.compressed and len(audiences) == 1:
                    self._compress(audiences[0], batch, flush)
                return form.chunk(self._log, batch.sequences, flush.until)
        for audience in audiences:
            self._compression.lose(audience)
        for handle in self._engine.listed(members):
            self._fall_behind(handle, flush.since)
        return None

    def _compress(self, audience: Audience, batch: Batch, flush: _Round) -> None:
        """Compress the entries once for all streams of an audience that can read the output."""
        compressor = self._compression.compressor(audience)
        if compressor is None:
            return
        content = b"".join(audience.form.contents(self._log, batch.sequences))
        output = compressor.feed(content, flush.since, audience.streams)
        assert compressor.key_cursor is not None
        check = crc32(content), len(content)
        flush.shared = Chunk([output], batch.sequences[:1], flush.until, [check], len(batch.sequences))
        flush.key_cursor, flush.unshared = compressor.key_cursor, self._engine.unshared
