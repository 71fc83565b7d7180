"""The flush: one round of writing what is due to the live streams.

What is due is joined once for each audience, and once for each combination of audiences that some stream is in; the
engine gets one buffer for all of their streams. A flush may be cut into slices, between which others publish, come and
go: it sends what was there when it began (`until`), and each stream only what is at or after its own cursor. What does
not fit into one segment is left to catching up, where a policy can act.

Owns which audiences are due, and up to where live streams have been sent everything. Never judges a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.core.audience import Audience
from relay.core.log import SEGMENT_BYTES, Log
from relay.core.measures import Observer
from relay.speedups import Chunk, Engine, Members

SLICE_S = 0.002
"""How long a slice may send before the loop's other work has its turn."""

MEMBERS_A_SLICE = 512
"""Streams of small audiences that one slice sends to; the clock is looked at within an audience only."""

MEMBERS_A_JOIN = 4
"""What joining an audience's chunk counts as, in streams sent to."""


@dataclass(slots=True)
class _Round:
    """A flush under way: what is sent to whom, and how far it has come."""

    tasks: list[tuple[tuple[Audience, ...], Members, bool]]
    since: int
    until: int
    began_s: float
    oldest_s: float
    task: int = 0
    chunk: Chunk | None = None
    place: int = 0


class Flush:
    """The flushes of one hub.

    Args:
        log: what is read.
        engine: what sends.
        fall_behind: called with a stream's handle and the cursor from which it has to catch up by itself.
        flush_s: histogram of how long a flush takes.
        written_s: histogram of the age of a flush's oldest event at its end.
        clock: the time in seconds.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        fall_behind: Callable[[int, int], None],
        flush_s: Observer,
        written_s: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._since = log.head
        self._log = log
        self._engine = engine
        self._fall_behind = fall_behind
        self._flush_s = flush_s
        self._written_s = written_s
        self._clock = clock
        self._due: list[Audience] = []
        self._round: _Round | None = None

    @property
    def due(self) -> bool:
        """Whether there is something to send."""
        return bool(self._due) or self._round is not None

    @property
    def flushed(self) -> int:
        """The sequence before which live streams have been sent everything."""
        return self._since if self.due else self._log.head

    def begin(self, sequence: int) -> None:
        """Forget what was due: the log goes on from another sequence, and no stream is live."""
        for audience in self._due:
            audience.due = False
        self._due, self._round, self._since = [], None, sequence

    def mark(self, audiences: Iterable[Audience], sequence: int) -> bool:
        """Note that an entry was appended for these audiences; return whether it is the first that is due."""
        first = False
        for audience in audiences:
            if not audience.due:
                audience.due = True
                if not self._due and self._round is None:
                    self._since, first = sequence, True
                self._due.append(audience)
        return first

    def turn(self, now_s: float) -> bool:
        """Send a slice; return whether the flush has more to send."""
        if self._round is None:
            if not self._due:
                return False
            self._round = self._begin()
        flush, sent = self._round, 0
        while flush.task < len(flush.tasks):
            audiences, members, combined = flush.tasks[flush.task]
            if flush.chunk is None:
                flush.chunk = self._join(audiences, members, flush)
                sent += MEMBERS_A_JOIN
            if flush.chunk is not None:
                began = flush.place
                flush.place = self._engine.broadcast(members, began, flush.chunk, combined, now_s, SLICE_S)
                sent += flush.place - began
                if flush.place < len(members):
                    return True
            flush.task, flush.chunk, flush.place = flush.task + 1, None, 0
            if sent > MEMBERS_A_SLICE:
                return True
        self._round = None
        self._since = flush.until
        ended_s = self._clock()
        self._flush_s.observe(ended_s - flush.began_s)
        self._written_s.observe(ended_s - flush.oldest_s)
        return False

    def compact(self, audience: Audience) -> None:
        """Drop an audience's stale members once they are the most; never within a flush, which counts places."""
        if self._round is None and len(audience.members) > 2 * audience.streams + 64:
            self._engine.compact(audience.members)

    def _begin(self) -> _Round:
        """Find what is due: each audience, and each combination of audiences that some stream has."""
        log, since = self._log, self._since
        due, self._due = [audience for audience in self._due if audience.streams], []
        shared = [audience for audience in due if audience.shared]
        groups = self._engine.combine([audience.members for audience in shared] if len(shared) > 1 else [])
        tasks: list[tuple[tuple[Audience, ...], Members, bool]] = []
        for audience in due:
            audience.due = False
            self.compact(audience)
            tasks.append(((audience,), audience.members, False))
        for places, members in groups:
            tasks.append((tuple(shared[place] for place in places), members, True))
        return _Round(tasks, since, log.head, self._clock(), log.time_s(max(since, log.tail)))

    def _join(self, audiences: tuple[Audience, ...], members: Members, flush: _Round) -> Chunk | None:
        """Join what is due to these members; None where it is too much, and they are left to catching up."""
        log = self._log
        batch = log.merge([audience.index for audience in audiences], flush.since, flush.until, SEGMENT_BYTES)
        if audiences and batch is None:
            return None
        if batch is not None and batch.cursor == flush.until:
            return Chunk(log.pick(batch.sequences), batch.sequences, flush.until)
        for handle in self._engine.listed(members):
            self._fall_behind(handle, flush.since)
        return None
