"""Catching up: serves the streams that lag or replay, and applies the policy of each.

Owns the state of each stream that is behind, the order in which these streams are served, and the chunks that
streams with nearby cursors share. A live stream has no state here. Never marks an audience, opens a stream or parses.

The policy of a stream is applied when the stream is about to be written to. A stalled stream needs no check, because
it holds no memory except the half-sent frame. Each tick checks only `disconnect`, `block` and soft limits.

The module is longer than 400 lines because serving a stream and applying its policy share the state `Lagging`.
"""

from __future__ import annotations

import heapq
import logging
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import islice

from msgspec.structs import replace

from relay.core import notice
from relay.core.audience import Audience, Subscription
from relay.core.close_reason import CloseReason
from relay.core.gaps import GapReason, Gaps
from relay.core.histogram_protocols import Observer
from relay.core.holds import Holds
from relay.core.index import SEGMENT_BYTES, Index
from relay.core.log import Batch, Log
from relay.core.policy import Lag, Policy, Rule
from relay.core.stream import PackedLag
from relay.speedups import Chunk, Engine

_logger = logging.getLogger("relay.catchup")

SLICE_S = 0.001
"""Duration after which a turn takes no more streams from the queue. With `SERVED_AT_ONCE`, a turn takes about 2 ms."""

SERVED_AT_ONCE = 32
"""Maximum number of streams taken from the queue at once: 32 writes of 64 KiB take about a millisecond."""

CHUNK_CACHE_BYTES = 16 * 1024 * 1024
"""Maximum size of the cached chunks. Streams that read the same part of the log at the same time share a chunk."""

LAGS_A_TICK = 100
"""Maximum number of streams whose lag one tick adds to the histogram."""

CLOSE_GRACE_S = 5.0
"""Time for the client of a closing stream to read the rest of a half-sent frame."""


class Lagging:
    """The state of one stream that is behind."""

    __slots__ = (
        "ceiling",
        "conflating",
        "newest_until",
        "over_since_s",
        "queued",
        "refused",
        "replaying",
        "seen",
        "soft_since_s",
        "told",
    )

    def __init__(self, seen: int | None, replaying: bool, refused: bool) -> None:
        self.seen = seen  # ordinal of the cursor at the last write; None if the log ended before the cursor
        self.replaying = replaying  # the stream began before the head and has not been live yet
        self.refused = refused  # the kernel did not accept a whole chunk, so the client is slow
        self.queued = False
        self.soft_since_s: float | None = None
        self.over_since_s: float | None = None  # `block`: time since which it has held up its publishers
        self.ceiling: int | None = None  # `drop-newest`: the end of its backlog
        self.conflating = False
        # `conflate`: superseded events that a gap has reported and the cursor has not passed, at most of one read.
        self.told = array("Q")
        self.newest_until: int | None = None  # before this sequence, the stream receives only the newest events

    @property
    def limited(self) -> bool:
        """Whether the limits apply; not to a replay, nor to a burst that has not been offered to the stream yet."""
        return self.refused and not self.replaying

    @property
    def alone(self) -> bool:
        """Whether the stream is served alone: it omits events, a policy acts on it, or a soft limit is exceeded."""
        return (
            self.conflating
            or self.ceiling is not None
            or self.soft_since_s is not None
            or self.newest_until is not None
        )


class CatchUp:
    """Serves the streams that are behind, round robin, one chunk at a time.

    Args:
        log: the log that the streams read.
        engine: the engine that holds the streams.
        holds: receives the audiences whose publishers have to wait.
        block_timeout_s: maximum time for which one stream may hold up publishers.
        caught_up: called with a stream that has received the whole log, and its subscription.
        lag_s: histogram of the lag of these streams; each tick observes some.
        clock: the time in seconds.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        holds: Holds,
        block_timeout_s: float,
        caught_up: Callable[[int, Subscription], None],
        lag_s: Observer,
        clock: Callable[[], float],
    ) -> None:
        self.actions: Counter[str] = Counter()
        self.gaps = Gaps()
        self.streams: dict[int, Lagging] = {}
        self.floor: int | None = None  # sequence of the oldest entry that a `block` stream needs
        self._log = log
        self._engine = engine
        self._subscription: Callable[[int], Subscription] = engine.subscription
        self._holds = holds
        self._block_timeout_s = block_timeout_s
        self._caught_up = caught_up
        self._lag_s = lag_s
        self._clock = clock
        self._ready: deque[int] = deque()
        self._blocking: set[int] = set()
        self._timed: set[int] = set()  # those that each tick checks
        self._closing: dict[int, float] = {}
        self._chunks: OrderedDict[object, Chunk] = OrderedDict()
        self._chunks_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether frequent ticks are needed."""
        return bool(self.streams or self._closing or self._holds.audiences)

    def begin(self) -> None:
        """Drop the cached chunks, because the log continues from another sequence."""
        self._chunks.clear()
        self._chunks_bytes = 0

    # Adding and removing streams

    def add(self, handle: int, *, replaying: bool = False, refused: bool = False) -> None:
        """Add a stream that is behind.

        Args:
            handle: the stream.
            replaying: whether the stream is new and begins before the head.
            refused: whether the kernel did not accept a whole chunk.
        """
        subscription = self._subscription(handle)
        seen = self._ordinal(subscription, self._engine.cursor(handle))
        self.streams[handle] = Lagging(seen, replaying, refused)
        if subscription.rule.policy is Policy.BLOCK:
            self._blocking.add(handle)
        if subscription.timed:
            self._timed.add(handle)

    def begin_stream(
        self, handle: int, subscription: Subscription, cursor: int, now_s: float, newest_until: int | None = None
    ) -> bool:
        """Write the first chunk to a new stream; add the stream unless it has received the whole log.

        Args:
            handle: the stream.
            subscription: its subscription.
            cursor: its cursor.
            now_s: the time.
            newest_until: send only the newest events of each topic and key before this sequence; None sends all events.

        Returns:
            whether the stream has received the whole log.
        """
        if newest_until is not None:
            self.add(handle, replaying=True)
            self.streams[handle].newest_until = newest_until
            if self.serve(handle, now_s):
                self.ready(handle)
            return handle not in self.streams
        engine, chunk = self._engine, None
        try:
            if cursor < self._log.head and not subscription.form.once:
                chunk = self._chunk(subscription, cursor)
            whole = engine.write(handle, chunk, now_s)
        except Exception:
            _logger.exception("cannot open a stream")
            engine.abort(handle, CloseReason.ERROR)
            return False
        if whole and (chunk is None or chunk.cursor >= self._log.head):
            self._caught_up(handle, subscription)
            return True
        self.add(handle, replaying=True, refused=not whole)
        if whole:
            self.ready(handle)
        return False

    def pack(self, handle: int) -> PackedLag:
        """Describe a stream that is behind."""
        state = self.streams[handle]
        return PackedLag(
            state.replaying,
            state.refused,
            None if state.seen is None else self._subscription(handle).ordinal(self._log.head) - state.seen,
            state.soft_since_s,
            state.over_since_s,
            state.ceiling,
            state.conflating,
            list(state.told),
            state.newest_until,
        )

    def adopt(self, handle: int, packed: PackedLag) -> None:
        """Add a stream that was behind in another process; the logs of both processes have the same head."""
        self.add(handle, replaying=packed.replaying, refused=packed.refused)
        state = self.streams[handle]
        if packed.owed is not None:
            state.seen = self._subscription(handle).ordinal(self._log.head) - packed.owed
        state.soft_since_s, state.over_since_s = packed.soft_since_s, packed.over_since_s
        state.ceiling, state.conflating = packed.ceiling, packed.conflating
        state.told = array("Q", packed.told)
        state.newest_until = packed.newest_until
        evicted = max(self._log.tail - 1, self._log.evicted_early)
        if state.newest_until is not None and self._engine.cursor(handle) <= evicted:
            # The other process did not say which of the evicted entries were the newest of their topic and key.
            for index in self._subscription(handle).indexes:
                index.lost = max(index.lost, evicted)
        self.ready(handle)

    def ready(self, handle: int) -> None:
        """Queue a stream for one of the next turns, because it is probably writable."""
        state = self.streams.get(handle)
        if state is not None and not state.queued:
            state.queued = True
            self._ready.append(handle)

    def drop(self, handle: int) -> None:
        """Remove a stream that is live or closed."""
        self.streams.pop(handle, None)
        self._closing.pop(handle, None)
        self._blocking.discard(handle)
        self._timed.discard(handle)

    def close(self, handle: int, reason: str, now_s: float, last: bytes = b"") -> None:
        """Close a stream after the half-sent frame; abort it if the client does not read this in `CLOSE_GRACE_S`."""
        self._engine.close(handle, reason, last)
        self.drop(handle)
        self._closing[handle] = now_s + CLOSE_GRACE_S

    # Serving

    def turn(self, now_s: float) -> bool:
        """Serve queued streams, each at most once, for one slice; return whether others are left."""
        left = len(self._ready)
        if not left:
            return False
        stop_s = self._clock() + SLICE_S
        while left and self._clock() < stop_s:
            count = min(left, SERVED_AT_ONCE)
            self._serve_next(count, now_s)
            left -= count
        return bool(self._ready)

    def _serve_next(self, count: int, now_s: float) -> None:
        """Serve the next `count` queued streams, and those of one subscription together."""
        groups: dict[tuple[Subscription, bool], list[int]] = {}
        ready, streams, is_behind, log = self._ready, self.streams, self._engine.is_behind, self._log
        for _ in range(count):
            handle = ready.popleft()
            state = streams.get(handle)
            if state is None:
                continue
            state.queued = False
            if not is_behind(handle):
                continue
            subscription = self._subscription(handle)
            if subscription.form.once:
                self._serve_poll(handle, subscription, now_s)
            elif not (state.alone or (log.evicted_early and self._missed(handle, state) != 0)):
                groups.setdefault((subscription, state.limited), []).append(handle)
            elif self.serve(handle, now_s):
                self.ready(handle)
        for (subscription, limited), handles in groups.items():
            try:
                self._serve_together(subscription, limited, handles, now_s)
            except Exception:
                _logger.exception("cannot serve streams")
                for handle in handles:
                    self._engine.abort(handle, CloseReason.ERROR)

    def _serve_poll(self, handle: int, subscription: Subscription, now_s: float) -> None:
        """Report a poll as caught up once its response head is sent, because the hub answers it."""
        try:
            if self._engine.write(handle, None, now_s):
                self.drop(handle)
                self._caught_up(handle, subscription)
        except Exception:
            _logger.exception("cannot serve a poll")
            self._engine.abort(handle, CloseReason.ERROR)

    def _serve_together(self, subscription: Subscription, limited: bool, handles: list[int], now_s: float) -> None:
        """Write one chunk to each stream; the streams that read the same segment share the chunk and the checks.

        The lag decreases as the cursor increases. If it is within the limits at one cursor, it is so at later cursors.

        Args:
            subscription: the subscription of the streams.
            limited: whether the hard limits apply to them.
            handles: streams that need not be served alone; those that were served are removed.
            now_s: the time.
        """
        engine = self._engine
        handles.sort(key=engine.cursor)
        while handles:
            cursor = engine.cursor(handles[0])
            chunk = self._chunk(subscription, cursor) if self._fits(subscription, limited, cursor, now_s) else None
            if chunk is None:
                if self.serve(handles[0], now_s):
                    self.ready(handles[0])
                del handles[0]
                continue
            stop = bisect_left(handles, chunk.cursor, key=engine.cursor)
            whole, short = engine.write_each(handles[:stop], chunk, now_s)
            del handles[:stop]
            for handle in short:
                state = self.streams[handle]
                state.seen, state.refused = self._ordinal(subscription, engine.cursor(handle)), True
            if chunk.cursor >= self._log.head:
                for handle in whole:
                    self.drop(handle)
                    self._caught_up(handle, subscription)
                continue
            seen = self._ordinal(subscription, chunk.cursor)
            for handle in whole:
                state = self.streams[handle]
                state.seen, state.queued = seen, True
            self._ready.extend(whole)

    def _fits(self, subscription: Subscription, limited: bool, cursor: int, now_s: float) -> bool:
        """Return whether no policy acts on a stream at this cursor; `limited` as in `_serve_together`."""
        if cursor < self._log.tail:
            return False
        rule, lag = subscription.rule, self.lag(subscription, cursor, now_s)
        return not (rule.soft.passed(lag) or (limited and rule.hard.passed(lag)))

    def serve(self, handle: int, now_s: float) -> bool:
        """Write one chunk to a stream; return whether the kernel accepted all of it and more is due.

        An exception closes only this stream.
        """
        try:
            return self._serve(handle, now_s)
        except Exception:
            _logger.exception("cannot serve a stream")
            self._engine.abort(handle, CloseReason.ERROR)
            return False

    def _serve(self, handle: int, now_s: float) -> bool:
        engine, log, state = self._engine, self._log, self.streams[handle]
        subscription = self._subscription(handle)
        if not self._judge(handle, state, subscription, now_s):
            return False
        cursor = engine.cursor(handle)
        if state.newest_until is not None and cursor >= state.newest_until:
            state.newest_until = None
            engine.skip(handle, cursor, b"")  # It has not received each event before its cursor.
        batch: Batch | None = None
        if state.newest_until is not None:
            batch = log.read_newest(subscription.indexes, cursor, state.newest_until, SEGMENT_BYTES)
            chunk = self._join(subscription, batch)
        elif state.conflating:
            batch, chunk = self._conflated(handle, state, subscription, cursor)
        elif state.ceiling is not None:
            batch = log.merge(subscription.indexes, cursor, state.ceiling, SEGMENT_BYTES)
            chunk = self._join(subscription, batch)
        else:
            chunk = self._chunk(subscription, cursor)
        whole = engine.write(handle, chunk, now_s)
        if whole and batch is not None and chunk is None:
            engine.skip(handle, batch.cursor, b"")
        if state.told:
            del state.told[: bisect_left(state.told, engine.cursor(handle))]
        if whole and ((chunk is None and batch is None) or engine.cursor(handle) >= log.head):
            if state.conflating or state.newest_until is not None:
                engine.skip(handle, engine.cursor(handle), b"")  # It has not received each event before its cursor.
            self.drop(handle)
            self._caught_up(handle, subscription)
            return False
        state.seen = self._ordinal(subscription, engine.cursor(handle))
        state.refused |= not whole
        return whole

    def _chunk(self, subscription: Subscription, cursor: int) -> Chunk | None:
        """Return the chunk that follows the cursor; streams with nearby cursors share it."""
        log = self._log
        if len(subscription.indexes) > 1:
            key: object = (subscription, cursor, log.head, len(log))
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._join(subscription, log.merge(subscription.indexes, cursor, log.head, SEGMENT_BYTES))
                self._keep(key, chunk)
            return chunk
        index: Index = subscription.indexes[0]
        number = index.segment(cursor)
        if number is None:
            return None
        # A backfill adds older rows to a segment, and an entry may be evicted before its turn.
        key = (subscription.form, index, number, index.since, index.early)
        chunk = self._chunks.get(key)
        # The last segment grows. If streams received an outdated chunk of it, few would be live under a steady feed.
        if chunk is None or chunk.cursor <= cursor or index.segment(chunk.cursor) == number:
            sequences, finished = index.rows(number, log.tail)
            chunk = subscription.form.chunk(log, sequences, sequences[-1] + 1 if finished else log.head)
            self._keep(key, chunk)
        return chunk

    def _join(self, subscription: Subscription, batch: Batch | None) -> Chunk | None:
        if batch is None or not batch.sequences:
            return None
        return subscription.form.chunk(self._log, batch.sequences, batch.cursor)

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
        """Read only the newest event of each key, and report each superseded event once."""
        log = self._log
        batch = log.merge(subscription.indexes, cursor, log.head, SEGMENT_BYTES, conflate=True)
        known = set(state.told)
        if batch is not None and not known.isdisjoint(batch.sequences):
            # Another process reported these events. This process never had the later events, which were evicted.
            batch = replace(batch, sequences=[each for each in batch.sequences if each not in known])
        untold = [] if batch is None else sorted(set(batch.superseded) - known)
        if untold:
            told = self._gap(GapReason.CONFLATED, len(untold), (log.id(untold[0]), log.id(untold[-1])))
            self._tell(handle, subscription, cursor, told)
            state.told = array("Q", sorted((*state.told, *untold)))
        return batch, self._join(subscription, batch)

    # Policies

    def lag(self, subscription: Subscription, cursor: int, now_s: float) -> Lag:
        """Return the lag of a subscription from a cursor to the head."""
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
        """Return whether a limit applies and the lag exceeds it for long enough."""
        if not rule.soft.passed(lag):
            state.soft_since_s = None
        elif state.soft_since_s is None:
            state.soft_since_s = now_s
        return state.limited and rule.broken(lag, state.soft_since_s, now_s)

    def _judge(self, handle: int, state: Lagging, subscription: Subscription, now_s: float) -> bool:
        """Apply the policy if a limit is exceeded; return whether the stream stays open."""
        log, rule, cursor = self._log, subscription.rule, self._engine.cursor(handle)
        missed = self._missed(handle, state)
        lag = self.lag(subscription, max(cursor, log.tail), now_s)
        broken = self._broken(state, rule, lag, now_s)
        if missed is not None and missed <= 0:
            state.seen = self._ordinal(subscription, cursor)
        elif state.newest_until is not None:
            self._skip_newest(handle, state, subscription, max(cursor, log.tail), state.newest_until)
        else:
            if rule.policy in (Policy.DISCONNECT, Policy.BLOCK) and not state.replaying:
                self._disconnect(handle, rule, now_s)
                return False
            self._skip_evicted(handle, state, subscription, max(cursor, log.tail), missed)
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

    def _ordinal(self, subscription: Subscription, cursor: int) -> int | None:
        """Return the ordinal of a cursor; None if the log ends before it, because later entries would change it."""
        return subscription.ordinal(cursor) if cursor <= self._log.head else None

    def _missed(self, handle: int, state: Lagging) -> int | None:
        """Return the number of events that were evicted before the stream received them; None if it is unknown."""
        subscription, cursor = self._subscription(handle), self._engine.cursor(handle)
        if state.seen is None:
            return None if subscription.evicted >= cursor else 0
        return subscription.ordinal(cursor) - state.seen

    def _disconnect(self, handle: int, rule: Rule, now_s: float) -> None:
        self.actions[rule.policy.value] += 1
        self.close(handle, CloseReason.SLOW, now_s)

    def _skip(self, handle: int, state: Lagging, subscription: Subscription, cursor: int) -> None:
        """Move a cursor forward and report the retained events that the stream misses."""
        before, told = self._engine.cursor(handle), b""
        missed = subscription.ordinal(cursor) - subscription.ordinal(before)
        if missed > 0:
            self.actions[subscription.rule.policy.value] += 1
            told = self._gap(GapReason.SLOW, missed, self._ends(subscription, before, cursor))
        self._tell(handle, subscription, cursor, told)
        state.seen = self._ordinal(subscription, cursor)

    def _skip_evicted(
        self, handle: int, state: Lagging, subscription: Subscription, cursor: int, missed: int | None
    ) -> None:
        """Report evicted events, of which some may be after the cursor; `missed` is as `_missed` returns it."""
        log, before, told = self._log, self._engine.cursor(handle), b""
        if state.told:
            untold = array("Q", [each for each in state.told if each >= cursor and log.has(each)])
            if missed is not None:
                missed -= len(state.told) - len(untold)
            state.told = untold
        if missed is None or missed > 0:
            self.actions[subscription.rule.policy.value] += 1
            told = self._gap(GapReason.SLOW, missed, self._evicted_ends(subscription, before, cursor))
        self._tell(handle, subscription, cursor, told)
        state.seen = self._ordinal(subscription, cursor)

    def _skip_newest(
        self, handle: int, state: Lagging, subscription: Subscription, cursor: int, until: int
    ) -> None:
        """Move the cursor of a stream that receives only the newest events past evicted events.

        Superseded events are not missed, because the stream receives the later event. The number of the others is
        unknown.
        """
        before, told = self._engine.cursor(handle), b""
        if any(index.lost >= before or index.evicted >= until for index in subscription.indexes):
            self.actions[subscription.rule.policy.value] += 1
            told = self._gap(GapReason.SLOW, None, self._evicted_ends(subscription, before, cursor))
        self._tell(handle, subscription, cursor, told)
        state.seen = self._ordinal(subscription, cursor)

    def _gap(self, reason: GapReason, missed: int | None, ends: tuple[str | None, str | None]) -> bytes:
        """Count and encode a gap."""
        self.gaps.count(reason, missed)
        return notice.gap(reason, missed, *ends)

    def _tell(self, handle: int, subscription: Subscription, cursor: int, frame: bytes) -> None:
        """Move a cursor, and send a notice, if any, before the event at the cursor."""
        form = subscription.form
        content = form.notice_content(frame)
        self._engine.skip(handle, cursor, form.part(content))
        if form.compressed:
            self._engine.count_content(handle, content)

    def _ends(self, subscription: Subscription, before: int, cursor: int) -> tuple[str | None, str | None]:
        """Return the ids of the first and the last retained event that a stream skips from `before` to `cursor`."""
        log, indexes = self._log, subscription.indexes
        first = min(first for index in indexes if (first := index.first(max(before, log.tail))) is not None)
        last = max(last for index in indexes if (last := index.last(cursor)) is not None)
        return log.id(first), log.id(last)

    def _evicted_ends(self, subscription: Subscription, before: int, cursor: int) -> tuple[str, str]:
        """Return ids of the ends of a range that contains all evicted events from `before` on.

        These are default ids, which name no event of another topic.
        """
        log, last = self._log, max(cursor - 1, subscription.evicted)
        if not all(index.evicted_known for index in subscription.indexes):
            last = max(last, log.evicted_early)  # another process may have evicted these entries
        return log.default_id(before), log.default_id(last)

    def _fit(self, subscription: Subscription, cursor: int, now_s: float) -> int:
        """Return the first cursor whose lag is within the limits."""
        rule, places = subscription.rule, range(cursor, self._log.head)
        fits = bisect_left(places, True, key=lambda place: rule.fits(self.lag(subscription, place, now_s)))
        return cursor + fits

    def _limit(self, handle: int, state: Lagging, subscription: Subscription, broken: bool) -> None:
        """`drop-newest`: end the backlog at the limit; after its last event, report the events dropped since then."""
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

    # Ticks

    def tick(self, now_s: float) -> None:
        """Apply `disconnect` to stalled streams; abort closing streams whose clients do not read a half-sent frame."""
        if not self.streams:
            # Cached chunks would keep evicted frames in memory while no stream reads them.
            self._chunks.clear()
            self._chunks_bytes = 0
        for handle in islice(self.streams, LAGS_A_TICK):
            self._lag_s.observe(self.lag(self._subscription(handle), self._engine.cursor(handle), now_s).age_s)
        for handle in list(self._timed):
            state, subscription = self.streams[handle], self._subscription(handle)
            lag = self.lag(subscription, self._engine.cursor(handle), now_s)
            if self._broken(state, subscription.rule, lag, now_s) and subscription.rule.policy is Policy.DISCONNECT:
                self._disconnect(handle, subscription.rule, now_s)
        for handle, stop_s in list(self._closing.items()):
            if now_s >= stop_s:
                del self._closing[handle]
                self._engine.abort(handle, CloseReason.SLOW)
        self.watch(now_s)

    def watch(self, now_s: float) -> None:
        """Find the `block` streams that exceed their limits; hold their topics and retain their entries."""
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
        """Return the handles and lags of the streams with the oldest cursors."""
        cursors = {handle: self._engine.cursor(handle) for handle in self.streams}
        furthest = heapq.nsmallest(count, cursors, key=cursors.__getitem__)
        return [(handle, self.lag(self._subscription(handle), cursors[handle], now_s)) for handle in furthest]
