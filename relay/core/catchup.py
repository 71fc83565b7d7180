"""Catching up: what is sent to streams that lag or replay, and what their policy does to them.

Owns what is known of each stream that is behind (a live one costs nothing here), the round in which they are served,
the chunks that neighbours share, and which topics a `block` stream holds up. Never marks an audience, opens or parses.

A stream is judged when it is about to be written to: a stalled one needs nothing, since it holds no memory but the
frame that is half sent. Only `disconnect`, `block` and soft limits are looked at by the clock as well.
"""

from __future__ import annotations

import heapq
import logging
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import cast

from relay.core import notice
from relay.core.audience import Audience, Subscription
from relay.core.close_reason import CloseReason
from relay.core.holds import Holds
from relay.core.log import SEGMENT_BYTES, Batch, Index, Log
from relay.core.measures import Observer
from relay.core.policy import Lag, Limits, Policy, Rule
from relay.core.stream import PackedLag
from relay.speedups import Chunk, Engine

_logger = logging.getLogger("relay.catchup")

SERVED_A_TURN = 32
"""Streams that one turn writes to: 32 writes of 64 KiB take about a millisecond."""

CHUNK_CACHE_BYTES = 16 * 1024 * 1024
"""Joined bytes kept for streams that read the same part of the log at about the same time."""

LAGS_A_TICK = 100
"""Streams behind whose lag a tick puts into the histogram."""

CLOSE_GRACE_S = 5.0
"""How long a stream that is closed may take to read the rest of a frame that is half sent."""


class Lagging:
    """What is known of one stream while it is behind."""

    __slots__ = (
        "ceiling",
        "conflating",
        "over_since_s",
        "queued",
        "refused",
        "replaying",
        "seen",
        "soft_since_s",
        "told",
    )

    def __init__(self, seen: int, replaying: bool, refused: bool) -> None:
        self.seen = seen  # ordinal of its cursor when it was last written to
        self.replaying = replaying  # it came with a cursor further back, and has not been live yet
        self.refused = refused  # the kernel did not take all that it was offered: it is the stream that is slow
        self.queued = False
        self.soft_since_s: float | None = None
        self.over_since_s: float | None = None  # `block`: since when it holds up its publishers
        self.ceiling: int | None = None  # `drop-newest`: where its backlog ends
        self.conflating = False
        # `conflate`: superseded events that a gap has told of and the cursor has not passed; of one read at most.
        self.told = array("Q")


class CatchUp:
    """Serves the streams that are behind, round robin, a chunk each.

    Args:
        log: what they read.
        engine: what writes.
        holds: receives the audiences whose publishers have to wait.
        block_timeout_s: how long one stream may hold up publishers.
        caught_up: called with the handle of a stream that has all there is.
        lag_s: histogram of the lag of the streams that are behind, at each tick.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        holds: Holds,
        block_timeout_s: float,
        caught_up: Callable[[int], None],
        lag_s: Observer,
    ) -> None:
        self.actions: Counter[str] = Counter()
        self.streams: dict[int, Lagging] = {}
        self.floor: int | None = None  # the oldest entry that a `block` stream needs
        self._log = log
        self._engine = engine
        self._holds = holds
        self._block_timeout_s = block_timeout_s
        self._caught_up = caught_up
        self._lag_s = lag_s
        self._ready: deque[int] = deque()
        self._blocking: set[int] = set()
        self._closing: dict[int, float] = {}
        self._chunks: OrderedDict[object, Chunk] = OrderedDict()
        self._chunks_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether the clock has something to look at soon."""
        return bool(self.streams or self._closing or self._holds.audiences)

    def begin(self) -> None:
        """Forget the chunks: the log goes on from another sequence."""
        self._chunks.clear()
        self._chunks_bytes = 0

    # Coming and going

    def add(self, handle: int, *, replaying: bool = False, refused: bool = False) -> None:
        """Take a stream that is behind: it has just come, or was refused by the kernel, or a flush was too large."""
        subscription = self._subscription(handle)
        seen = subscription.ordinal(self._engine.cursor(handle))
        self.streams[handle] = Lagging(seen, replaying, refused)
        if subscription.rule.policy is Policy.BLOCK:
            self._blocking.add(handle)

    def pack(self, handle: int) -> PackedLag:
        """Describe a stream that is behind."""
        state = self.streams[handle]
        return PackedLag(
            state.replaying,
            state.refused,
            self._subscription(handle).ordinal(self._log.head) - state.seen,
            state.soft_since_s,
            state.over_since_s,
            state.ceiling,
            state.conflating,
            list(state.told),
        )

    def adopt(self, handle: int, packed: PackedLag) -> None:
        """Take a stream that was behind in another process, whose log has the same head."""
        self.add(handle, replaying=packed.replaying, refused=packed.refused)
        state = self.streams[handle]
        state.seen = self._subscription(handle).ordinal(self._log.head) - packed.owed
        state.soft_since_s, state.over_since_s = packed.soft_since_s, packed.over_since_s
        state.ceiling, state.conflating = packed.ceiling, packed.conflating
        state.told = array("Q", packed.told)
        self.ready(handle)

    def ready(self, handle: int) -> None:
        """Serve a stream in one of the next turns: it is writable, as far as is known."""
        state = self.streams.get(handle)
        if state is not None and not state.queued:
            state.queued = True
            self._ready.append(handle)

    def drop(self, handle: int) -> None:
        """Forget a stream that is live, or no more."""
        self.streams.pop(handle, None)
        self._closing.pop(handle, None)
        self._blocking.discard(handle)

    def close(self, handle: int, reason: str, now_s: float, last: bytes = b"") -> None:
        """Close a stream between frames; one that does not read the rest of a frame in time is cut."""
        self._engine.close(handle, str(reason), last)  # the C engine accepts only an exact str
        self.drop(handle)
        self._closing[handle] = now_s + CLOSE_GRACE_S

    # Serving

    def turn(self, now_s: float) -> bool:
        """Serve some of the streams that are ready; return whether more are."""
        for _ in range(min(SERVED_A_TURN, len(self._ready))):
            handle = self._ready.popleft()
            state = self.streams.get(handle)
            if state is None:
                continue
            state.queued = False
            if self._engine.is_behind(handle) and self.serve(handle, now_s):
                self.ready(handle)
        return bool(self._ready)

    def serve(self, handle: int, now_s: float) -> bool:
        """Write one chunk to a stream; return whether it has been taken whole and there is more.

        What goes wrong with one stream ends that stream alone.
        """
        try:
            return self._serve(handle, now_s)
        except Exception:
            _logger.exception("a stream could not be served")
            self._engine.abort(handle, CloseReason.ERROR.value)
            return False

    def _serve(self, handle: int, now_s: float) -> bool:
        engine, log, state = self._engine, self._log, self.streams[handle]
        subscription = self._subscription(handle)
        if not self._judge(handle, state, subscription, now_s):
            return False
        cursor = engine.cursor(handle)
        batch: Batch | None = None
        if state.conflating:
            batch, chunk = self._conflated(handle, state, subscription, cursor)
        elif state.ceiling is not None:
            batch = log.merge(subscription.indexes, cursor, state.ceiling, SEGMENT_BYTES)
            chunk = self._join(batch)
        else:
            chunk = self._chunk(subscription, cursor)
        whole = engine.write(handle, chunk, now_s)
        if whole and batch is not None and chunk is None:
            engine.skip(handle, batch.cursor, b"")
        if state.told:
            del state.told[: bisect_left(state.told, engine.cursor(handle))]
        if whole and ((chunk is None and batch is None) or engine.cursor(handle) >= log.head):
            self._caught_up(handle)
            return False
        state.seen = subscription.ordinal(engine.cursor(handle))
        state.refused |= not whole
        return whole

    def _subscription(self, handle: int) -> Subscription:
        return cast(Subscription, self._engine.subscription(handle))

    def _chunk(self, subscription: Subscription, cursor: int) -> Chunk | None:
        """Return what follows the cursor, shared with the streams that are near."""
        log = self._log
        if len(subscription.indexes) > 1:
            key: object = (subscription, cursor, log.head)
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._join(log.merge(subscription.indexes, cursor, log.head, SEGMENT_BYTES))
                self._keep(key, chunk)
            return chunk
        index: Index = subscription.indexes[0]
        number = index.segment(max(cursor, log.tail))
        if number is None:
            return None
        # A segment gets older rows when the index is completed further back.
        key = (index, number, index.since)
        chunk = self._chunks.get(key)
        # The last segment grows. With an older part of it, of many streams under a steady feed few would ever be live.
        if chunk is None or chunk.cursor <= cursor or index.segment(chunk.cursor) == number:
            sequences, finished = index.rows(number, log.tail)
            chunk = Chunk(log.pick(sequences), sequences, sequences[-1] + 1 if finished else log.head)
            self._keep(key, chunk)
        return chunk

    def _join(self, batch: Batch | None) -> Chunk | None:
        if batch is None or not batch.sequences:
            return None
        return Chunk(self._log.pick(batch.sequences), batch.sequences, batch.cursor)

    def _keep(self, key: object, chunk: Chunk | None) -> None:
        if chunk is None:
            return
        older = self._chunks.pop(key, None)
        self._chunks_bytes += len(chunk.data) - (0 if older is None else len(older.data))
        self._chunks[key] = chunk
        while self._chunks_bytes > CHUNK_CACHE_BYTES:
            self._chunks_bytes -= len(self._chunks.popitem(last=False)[1].data)

    def _conflated(
        self, handle: int, state: Lagging, subscription: Subscription, cursor: int
    ) -> tuple[Batch | None, Chunk | None]:
        """Read only what is newest of its key, and tell of the rest, each event once."""
        log = self._log
        batch = log.merge(subscription.indexes, cursor, log.head, SEGMENT_BYTES, conflate=True)
        untold = [] if batch is None else sorted(set(batch.superseded).difference(state.told))
        if untold:
            told = notice.gap("conflated", len(untold), log.id(untold[0]), log.id(untold[-1]))
            self._engine.skip(handle, cursor, told)
            state.told = array("Q", sorted((*state.told, *untold)))
        return batch, self._join(batch)

    # Judging

    def lag(self, subscription: Subscription, cursor: int, now_s: float) -> Lag:
        """Return how far behind the head a cursor is, for a subscription."""
        if cursor >= self._log.head:
            return Lag(0, 0, 0.0)
        events, size, first = subscription.indexes[0].lag(cursor)
        for index in subscription.indexes[1:]:
            more_events, more_bytes, found = index.lag(cursor)
            events += more_events
            size += more_bytes
            if found is not None and (first is None or found < first):
                first = found
        return Lag(events, size, 0.0 if first is None else now_s - self._log.time_s(max(first, self._log.tail)))

    def _broken(self, state: Lagging, rule: Rule, lag: Lag, now_s: float) -> bool:
        """Say whether a limit is passed for long enough.

        The lag with which a stream came is not its fault, nor is that of a burst that it was not yet offered.
        """
        if not rule.soft.passed(lag):
            state.soft_since_s = None
        elif state.soft_since_s is None:
            state.soft_since_s = now_s
        return state.refused and not state.replaying and rule.broken(lag, state.soft_since_s, now_s)

    def _judge(self, handle: int, state: Lagging, subscription: Subscription, now_s: float) -> bool:
        """Let the policy act, if it has to; return whether the stream goes on."""
        log, rule, cursor = self._log, subscription.rule, self._engine.cursor(handle)
        missed = subscription.ordinal(log.tail) - state.seen if cursor < log.tail else 0
        lag = self.lag(subscription, max(cursor, log.tail), now_s)
        broken = self._broken(state, rule, lag, now_s)
        if missed > 0:
            if rule.policy in (Policy.DISCONNECT, Policy.BLOCK) and not state.replaying:
                self._disconnect(handle, rule, now_s)
                return False
            self._skip(handle, state, subscription, log.tail, missed)
        if broken and rule.policy is Policy.DISCONNECT:
            self._disconnect(handle, rule, now_s)
            return False
        if broken and rule.policy is Policy.DROP_OLDEST:
            self._skip(handle, state, subscription, self._fit(subscription, max(cursor, log.tail), now_s))
        elif broken and rule.policy is Policy.CONFLATE and not state.conflating:
            self.actions[rule.policy.value] += 1
            state.conflating = True
        elif rule.policy is Policy.DROP_NEWEST:
            self._limit(handle, state, subscription, broken)
        return True

    def _disconnect(self, handle: int, rule: Rule, now_s: float) -> None:
        self.actions[rule.policy.value] += 1
        self.close(handle, CloseReason.SLOW, now_s)

    def _skip(
        self, handle: int, state: Lagging, subscription: Subscription, cursor: int, missed: int | None = None
    ) -> None:
        """Move a cursor forward and tell of what is missed."""
        before = self._engine.cursor(handle)
        if missed is None:
            missed = subscription.ordinal(cursor) - subscription.ordinal(before)
        told_already = bisect_left(state.told, cursor)
        missed -= told_already
        del state.told[:told_already]
        told = b""
        if missed > 0:
            self.actions[subscription.rule.policy.value] += 1
            told = notice.gap("slow", missed, *self._ends(subscription, before, cursor))
        self._engine.skip(handle, cursor, told)
        state.seen = subscription.ordinal(cursor)

    def _ends(self, subscription: Subscription, before: int, cursor: int) -> tuple[str, str]:
        """Return the ids of the first and the last event that a stream misses when it skips from `before` to `cursor`.

        Where they are evicted, default ids stand for the ends of the range: they name no event of another topic.
        """
        log, indexes = self._log, subscription.indexes
        if cursor == log.tail:
            return log.id(before), log.id(cursor - 1)
        first = min(first for index in indexes if (first := index.first(max(before, log.tail))) is not None)
        last = max(last for index in indexes if (last := index.last(cursor)) is not None)
        return log.id(first), log.id(last)

    def _fit(self, subscription: Subscription, cursor: int, now_s: float) -> int:
        """Return the first cursor from which the lag is within the limits."""
        rule, places = subscription.rule, range(cursor, self._log.head)
        fits = bisect_left(places, True, key=lambda place: rule.fits(self.lag(subscription, place, now_s)))
        return cursor + fits

    def _limit(self, handle: int, state: Lagging, subscription: Subscription, broken: bool) -> None:
        """`drop-newest`: end the backlog where the limit was passed; at its end, tell of what came since."""
        log, rule, cursor = self._log, subscription.rule, self._engine.cursor(handle)
        if state.ceiling is None and broken:
            whole = self.lag(subscription, cursor, 0.0)

            def over(place: int) -> bool:
                rest = self.lag(subscription, place, 0.0)
                age_s = whole.age_s - rest.age_s if rest.events else 0.0
                return not rule.fits(Lag(whole.events - rest.events, whole.bytes - rest.bytes, age_s))

            state.ceiling = cursor + 1 + bisect_left(range(cursor + 1, log.head), True, key=over)
        if state.ceiling is None:
            return
        firsts = (index.first(cursor) for index in subscription.indexes)
        if all(first is None or first >= state.ceiling for first in firsts):
            ceiling, state.ceiling = state.ceiling, None
            self._engine.skip(handle, max(cursor, ceiling), b"")
            self._skip(handle, state, subscription, log.head)

    # By the clock

    def tick(self, now_s: float) -> None:
        """Disconnect what cannot even be written to, and cut the closing streams that do not read what is half sent."""
        if not self.streams:
            # Chunks outlive retention; while nobody reads them they would hold what the log has let go of.
            self._chunks.clear()
            self._chunks_bytes = 0
        for handle in islice(self.streams, LAGS_A_TICK):
            self._lag_s.observe(self.lag(self._subscription(handle), self._engine.cursor(handle), now_s).age_s)
        for handle, state in list(self.streams.items()):
            subscription = self._subscription(handle)
            rule = subscription.rule
            if rule.policy is not Policy.DISCONNECT and rule.soft == Limits():
                continue
            broken = self._broken(
                state, rule, self.lag(subscription, self._engine.cursor(handle), now_s), now_s
            )
            if broken and rule.policy is Policy.DISCONNECT:
                self._disconnect(handle, rule, now_s)
        for handle, stop_s in list(self._closing.items()):
            if now_s >= stop_s:
                del self._closing[handle]
                self._engine.abort(handle, CloseReason.SLOW.value)
        self.watch(now_s)

    def watch(self, now_s: float) -> None:
        """Find the `block` streams that are in arrears: their topics are held, their entries stay."""
        if not self._blocking and not self._holds.audiences:
            return
        held: set[Audience] = set()
        floor: int | None = None
        for handle in list(self._blocking):
            state, subscription = self.streams[handle], self._subscription(handle)
            cursor = self._engine.cursor(handle)
            if state.replaying:
                continue
            if not self._broken(state, subscription.rule, self.lag(subscription, cursor, now_s), now_s):
                state.over_since_s = None
            elif state.over_since_s is None:
                state.over_since_s = now_s
                self.actions[Policy.BLOCK.value] += 1
            elif now_s - state.over_since_s >= self._block_timeout_s:
                self.close(handle, CloseReason.BLOCKED, now_s)
                continue
            for index in subscription.indexes:
                first = index.first(cursor)
                if first is not None and (floor is None or first < floor):
                    floor = first
            if state.over_since_s is not None:
                held.update(subscription.audiences)
        self.floor = floor
        self._holds.hold_audiences(held)

    def slowest(self, count: int, now_s: float) -> list[tuple[int, Lag]]:
        """Return the handles and lags of the streams that are furthest behind."""
        cursors = {handle: self._engine.cursor(handle) for handle in self.streams}
        furthest = heapq.nsmallest(count, cursors, key=cursors.__getitem__)
        return [(handle, self.lag(self._subscription(handle), cursors[handle], now_s)) for handle in furthest]
