"""The hub: takes events in, keeps the log, and lets the engine send.

Publishing marks, the flush writes. `publish` appends to the log and marks the audiences of the topic; `turn` does a
slice of what is due: the flush to the live streams, then those that catch up.

Owns the life of a stream from the hand-over of its descriptor to its one close reason. It never parses, opens a socket
or asks the system for the time: it is given descriptors, `now_s` and a clock, and a function to call when there is
something to do.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from relay.config.model import Config
from relay.core import notice
from relay.core.admission import Admission
from relay.core.audience import Audiences, Subscription
from relay.core.catchup import CatchUp
from relay.core.close_reason import CloseReason
from relay.core.ended import Ended, is_end
from relay.core.flush import SLICE_S, Flush
from relay.core.grant import Grant
from relay.core.holds import Holds
from relay.core.leases import Leases
from relay.core.log import Entry, Log
from relay.core.measures import Measures
from relay.core.policy import Rule, Rules
from relay.core.replays import Done, Replays
from relay.core.stream import PackedStream, Subscribe
from relay.core.writer import Writer
from relay.errors import RETRY_SOON, RequestError
from relay.event import Event
from relay.ids import unknown_since
from relay.speedups import Engine
from relay.sse import comment, priming
from relay.topic import disjoint, is_pattern

BLOCK_HISTORIES_MAX = 2
"""How many times its bound in bytes the log may reach for what a `block` stream needs; then the stream is lapped."""

ENDED_A_TICK = 200
"""Streams whose lease is over that one tick ends: those that came together come back spread over seconds."""

ENDED_A_TURN = 1000
"""Streams of a topic that has ended which one turn leaves to catching up."""

_logger = logging.getLogger("relay.hub")


class Hub:
    """One log, its audiences and its streams.

    Args:
        config: the settings.
        engine: what holds the streams.
        epoch: what this run's ids begin with.
        streams_max: open streams in all.
        measures: histograms.
        clock: what `now_s` is taken from, for what has to be timed within a call.
        wake: called when `turn` has something to do, once until it did it.
        draw: a random number in [0, 1) for each stream's own reconnection time.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        *,
        epoch: str,
        streams_max: int,
        measures: Measures,
        clock: Callable[[], float],
        wake: Callable[[], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.engine = engine
        self.log = Log(
            epoch,
            bytes_max=config.history_bytes,
            events_max=config.history_events,
            age_s_max=config.history_age_s,
        )
        self.audiences = Audiences(self.log)
        self.replays = Replays(self.log, self.audiences, clock)
        self.holds = Holds(self.audiences)
        self.catchup = CatchUp(self.log, engine, self.holds, config.block_timeout_s, self._caught_up, measures.lag_s)
        self.draining = False
        self._input_ended = False
        self.fed = False  # the log is another hub's: entries come over a link, and nothing is published here
        self.begun = True  # the log can be read; that of a fed hub once the snapshot is in
        self.snapshot = 0  # what comes before it is of the snapshot
        self.linked = True  # who feeds this hub is there
        self.on_entry: Callable[[], None] | None = None  # called after each entry, for the links that read the log
        self.closes: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()
        self._config = config
        self._rules = Rules(config)
        self._clock = clock
        self._wake = wake
        self._draw = draw
        self._heartbeat = notice.heartbeat(config.heartbeat_as)
        self._heartbeat_place = 0  # where the engine goes on; 0 when a round is done
        self.leases = Leases()
        self.admission = Admission(config, streams_max, self.audiences, self.leases)
        self._closes_told: Counter[str] = Counter()
        self._drained: Callable[[], None] | None = None
        self._staying: deque[int] = deque()  # streams that a drain has not ended yet
        self._woken = False
        self.ended = Ended()
        self._ending: deque[int] = deque()  # live streams of topics that have ended
        self._leaving: deque[Subscription] = deque()  # of closed streams, still counted in their audiences
        self.writer = Writer(config, self.log, self._append, self.ended, self.end_topic)
        self.publish_one = self.writer.publish_one  # without a call in between, since each event passes here
        self._flush = Flush(self.log, engine, self._fall_behind, measures.flush_s, measures.written_s, clock)

    # Publishing

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        """Publish events, all or none, and return their ids; see `relay.core.writer.Writer.publish`."""
        return self.writer.publish(events, now_s)

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once, when what was published until now may be acknowledged; maybe within this call."""
        self.writer.confirm(callback)

    @property
    def refusal(self) -> str:
        """Why nothing can be published now; empty when it can."""
        return "the server is draining" if self._input_ended else self.writer.refusal

    def end_input(self) -> None:
        """Take no more events: what has been taken by now is all that a drain has to deliver."""
        self._input_ended = True
        self.holds.release()  # Requests that wait for a topic are refused.

    @property
    def head(self) -> int:
        """Sequence of the next event; one that is acknowledged may still be on its way to the log."""
        journal = self.writer.journal
        return self.log.head if journal is None else journal.head

    def _append(self, topic: str, frame: bytes, id: str | None, key: str | None, now_s: float) -> int:
        known = self.log.topics.get(topic)
        if known is None:
            known = self.audiences.add_topic(topic)
        sequence = self.log.append(known, frame, id, key, now_s)
        if known.audiences and self._flush.mark(known.audiences, sequence):
            self._set_floor()
            self._wake_up()
        if self.on_entry is not None:
            self.on_entry()
        return sequence

    def end_topic(self, topic: str) -> None:
        """Let the streams of a topic end once they have what is in the log, unless they follow others too."""
        self.ended.note(topic)
        members = self.audiences.members(topic)
        if members is not None:
            self._ending.extend(self.engine.listed(members))
            self._wake_up()

    def held(self, topic: str) -> bool:
        """Say whether publishers have to wait: a `block` stream of this topic is in arrears, or the disk is."""
        journal = self.writer.journal
        if journal is not None and journal.full:
            return True
        return self.holds.held(topic)

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, when some topic is held no longer."""
        self.holds.on_release(callback)

    # Being fed

    def feed(self, on_hold_change: Callable[[], None]) -> None:
        """Declare that another hub feeds this one: the log is unreadable until a snapshot is complete.

        Args:
            on_hold_change: called each time the topics that streams of this process hold change.
        """
        self.fed, self.begun, self.linked = True, False, False
        self.holds.on_change(on_hold_change)

    def set_linked(self, linked: bool) -> None:
        """Record whether the hub that feeds this one is connected and stays."""
        self.linked = linked

    def continue_from(self, head: int) -> None:
        """Keep the log; the feeding hub sends what is missing up to its head."""
        self.snapshot = head

    def end_snapshot(self) -> bool:
        """Make the log readable if the snapshot is complete; return whether it is."""
        complete = self.log.head >= self.snapshot
        if complete:
            self.begun = True
        return complete

    def begin(self, epoch: str, sequence: int, head: int, evicted_s: float, now_s: float) -> None:
        """Go on as the log of another hub's epoch, from a sequence on.

        What came before is let go of, and all streams are closed: they come back with their last id, and are then told
        what they have missed.

        Args:
            epoch: what its ids begin with.
            sequence: of the next entry.
            head: the other log's; what comes before it is the snapshot.
            evicted_s: time of the last one before it, as far as that is known.
            now_s: the time.
        """
        for handle in self.engine.handles():
            self.catchup.close(handle, CloseReason.LAPPED, now_s, notice.come_back(self.draw_retry_ms()))
        self._settle(now_s)
        self.ended.topics.clear()
        self.begun = not self.fed
        self.snapshot = head
        self._flush.begin(sequence)
        self.log.begin(epoch, sequence, evicted_s, self.audiences.indexes())
        self.replays.begin()
        self.catchup.begin()

    def take(self, entry: Entry, now_s: float) -> None:
        """Append an entry as it is: encoded already, its sequence the next one; of another hub, or from the disk.

        Raises:
            EventError: its topic is none.
        """
        self._append(entry.topic, entry.frame, entry.id, entry.key, now_s)
        if is_end(entry.frame):
            self.end_topic(entry.topic)

    @property
    def ready(self) -> bool:
        """Whether new streams are well served here."""
        return self.begun and self.linked and not self.draining

    def find(self, terms: tuple[str, ...], ids: Sequence[str]) -> int | None:
        """Return the sequence of the last id of a subscription; None where this log does not know it.

        Args:
            terms: of the subscription, checked.
            ids: the readings of the last id.
        """
        return self.log.find(ids, disjoint(terms))

    # Streams pass to another process

    def pack(self, now_s: float) -> tuple[list[tuple[tuple[str, ...], Rule]], list[tuple[int, PackedStream]]]:
        """Describe all streams, with their descriptors, and the subscriptions that they refer to.

        All live ones are left to catching up, which goes on as soon as a turn is run.
        """
        self._settle(now_s)
        for handle in self.engine.handles():
            self._fall_behind(handle, self._flush.flushed)
        self._wake_up()
        places: dict[tuple[tuple[str, ...], Rule], int] = {}
        streams = []
        for handle, fd, cursor, pending, written_s, reason in self.engine.pack():
            subscription = cast(Subscription, self.engine.subscription(handle))
            stream = PackedStream(
                places.setdefault((subscription.terms, subscription.rule), len(places)),
                cast(str, self.engine.address(handle)),
                cursor,
                pending,
                written_s,
                reason,
                self.leases.pack(handle),
                self.catchup.pack(handle) if reason is None else None,
            )
            streams.append((fd, stream))
        return list(places), streams

    def adopt(self, fd: int, stream: PackedStream, terms: tuple[str, ...], rule: Rule) -> int:
        """Take a stream of another process, whose log is this one's; nothing is written to it before the next turn.

        Args:
            fd: its socket; the engine's from now on.
            stream: what it is.
            terms: its terms, checked and disjoint.
            rule: what it has chosen, or was given.

        Returns:
            its handle; one that was closing there is still to be closed here.
        """
        subscription = self.audiences.get(terms, rule)
        if stream.cursor < self.log.head:
            self.audiences.complete(subscription, stream.cursor, evicted=False)
        address = sys.intern(stream.address)
        handle = self.engine.add(fd, subscription, address, stream.cursor, stream.pending, stream.written_s)
        self._enter(handle, subscription, address)
        if stream.lease is not None:
            self.leases.add(handle, *stream.lease)
        if stream.behind is not None:
            self.catchup.adopt(handle, stream.behind)
        return handle

    def go_on(self, closing: Iterable[tuple[int, str]], now_s: float) -> None:
        """Begin to serve the streams that were adopted; those that were closing, with these reasons, close."""
        for handle, reason in closing:
            self.catchup.close(handle, reason, now_s)
        self._settle(now_s)
        self._wake_up()

    # Streams come

    def prepare(self, request: Subscribe, now_s: float, done: Done) -> Callable[[], None]:
        """Complete what a replay of patterns reads, in slices; `subscribe` would do it within one turn.

        Args:
            request: what the client wants, with a last id or a time.
            now_s: the time.
            done: called back once, maybe within this call.

        Returns:
            what cancels it.
        """
        if not any(map(is_pattern, request.terms)):
            done(None)
            return lambda: None
        terms = disjoint(request.terms)
        subscription = self.audiences.get(terms, self._rules.choose(request.terms, request.policy))
        cursor, evicted = self._reach(request, self._sequence(request, terms), now_s)
        cancel = self.replays.prepare(subscription, cursor, done, evicted=evicted)
        if self.replays.due:
            self._wake_up()
        return cancel

    def subscribe(self, fd: int, request: Subscribe, address: str, now_s: float) -> None:
        """Open a stream.

        Args:
            fd: a connected, non-blocking socket; the engine's when this returns, the caller's if it raises.
            request: what the client wants.
            address: the peer's address.
            now_s: the time.

        Raises:
            RequestError: as `relay.core.admission.Admission.check`, 503 in a drain, 204 after the end of all it
            follows. OSError: the descriptor is not one of a socket.
        """
        if self.draining:
            raise RequestError(503, "the server is draining", RETRY_SOON)
        terms = disjoint(request.terms)
        self.admission.check(self.engine.open, address, request.grant, terms)
        subscription = self.audiences.get(terms, self._rules.choose(request.terms, request.policy))
        try:
            cursor, gap = self._start(request, subscription, now_s)
            told = gap if self._config.prime else b""  # without an id behind it, a gap would be told for ever
            if self.begun and self.ended.all(terms) and not told and not subscription.has(cursor):
                raise RequestError(204, "its topics have ended for good")
            pending = [request.head, comment(" " * notice.PADDING_BYTES) if request.padding else comment("")]
            # The gap goes before the id behind it: a client cut between the two is told again.
            pending.append(gap)
            if self._config.prime:
                pending.append(priming(self.draw_retry_ms(), f"{self.log.epoch}-{cursor - 1}"))
            handle = self.engine.add(fd, subscription, address, cursor, b"".join(pending), now_s)
        except (OSError, RequestError):
            self.audiences.release(subscription)
            raise
        self._enter(handle, subscription, address)
        self.leases.begin(handle, request.grant, request.ends_s, self._config.max_age_s, now_s, self._draw)
        self.catchup.add(handle, replaying=True)
        if self.catchup.serve(handle, now_s):
            self.catchup.ready(handle)
            self._wake_up()
        self._sweep()

    def _enter(self, handle: int, subscription: Subscription, address: str) -> None:
        self.audiences.enter(subscription)
        self.admission.enter(address)
        for audience in subscription.audiences:
            self.engine.join(handle, audience.members)
            self._flush.compact(audience)

    def _start(self, request: Subscribe, subscription: Subscription, now_s: float) -> tuple[int, bytes]:
        """Return the cursor at which a stream begins, and what it has to be told of a gap before it."""
        log, gap, sequence = self.log, b"", self._sequence(request, subscription.terms)
        cursor, evicted = self._reach(request, sequence, now_s)
        if cursor < log.head or evicted:
            self.audiences.complete(subscription, cursor, evicted=evicted)
        if sequence is not None:
            if (last := subscription.evicted) >= cursor:
                gap = notice.gap("history", None, log.id(cursor), log.id(last))
            cursor = max(cursor, log.tail)
            self.resumes["gap" if gap else "hit"] += 1
        elif request.last_ids and not request.must_know:
            gap = notice.gap("unknown", None, None, None)
            self.resumes["missed"] += 1
        elif request.since_s is not None:
            if evicted and any(index.evicted_s >= now_s - request.since_s for index in subscription.indexes):
                gap = notice.gap("history", None, None, log.id(subscription.evicted))
        elif request.must_know:
            raise unknown_since(request.last_ids)
        return cursor, gap

    def _sequence(self, request: Subscribe, terms: tuple[str, ...]) -> int | None:
        """Return the sequence of the event that a client has seen last; None where that is not known."""
        if request.last_ids and request.after is None:
            return self.log.find(request.last_ids, terms)
        return request.after

    def _reach(self, request: Subscribe, sequence: int | None, now_s: float) -> tuple[int, bool]:
        """Return where a stream begins, maybe before the tail, and whether it matters what was evicted from there on.

        Args:
            request: what the client wants.
            sequence: of the event that it has seen last, if that is known.
            now_s: the time.
        """
        log = self.log
        if sequence is not None:
            return sequence + 1, sequence + 1 < log.tail
        if request.last_ids and not request.must_know:
            return log.tail, False
        if request.since_s is not None:
            cursor = log.since(now_s - request.since_s)
            return cursor, cursor == log.tail and not math.isinf(request.since_s)
        return max(log.head, self.snapshot), False  # what a snapshot is still to bring is not new

    def draw_retry_ms(self) -> int:
        """Draw the time after which one client shall come back."""
        low, high = self._config.retry_min_s, self._config.retry_max_s
        return round(1000 * (low + (high - low) * self._draw()))

    # Streams are served

    def turn(self, now_s: float) -> bool:
        """Do a slice of what is due; return whether there is more to do at once."""
        self._woken = True
        self._flush.turn(now_s)
        for _ in range(min(len(self._ending), ENDED_A_TURN)):
            self._fall_behind(self._ending.popleft(), self._flush.flushed)
        more = self.catchup.turn(now_s)
        if self.replays.due:
            more = self.replays.turn() or more
        self._settle(now_s)
        self._woken = more = more or self._flush.due or bool(self._ending or self._leaving)
        return more

    def poll(self, now_s: float) -> None:
        """Take what the engine's descriptor has to tell."""
        more = True
        while more:
            writable, more = self.engine.poll()
            for handle in writable:
                self.catchup.ready(handle)
                self._wake_up()
        self._settle(now_s)

    def tick(self, now_s: float) -> None:
        """Do what goes by the clock alone; a few times a second while streams are behind, else once."""
        self.log.retain(now_s)
        self.writer.seen.expire(now_s)
        self.catchup.tick(now_s)
        for handle, reason in self.leases.ended(now_s, ENDED_A_TICK):
            self._end(handle, reason, now_s)
        self._settle(now_s)
        self._tell_closes()

    def heartbeat(self, now_s: float) -> bool:
        """Write to the streams that were idle for too long; return whether a slice is left to do."""
        self._heartbeat_place = self.engine.heartbeat(
            self._heartbeat, self._heartbeat_place, self._config.heartbeat_s, now_s, SLICE_S
        )
        self._settle(now_s)
        return self._heartbeat_place > 0

    def _wake_up(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake()

    def _settle(self, now_s: float) -> None:
        for handle in self.engine.lagging():
            if self.engine.is_behind(handle):
                self.catchup.add(handle, refused=True)
        self.catchup.watch(now_s)
        self._set_floor()
        self._sweep()

    def _set_floor(self) -> None:
        """Keep what the flush has yet to send, and what a `block` stream needs."""
        floor = self.catchup.floor
        if self.log.bytes > BLOCK_HISTORIES_MAX * self.log.bytes_max:
            floor = None
        if self._flush.due:
            floor = self._flush.flushed if floor is None else min(floor, self._flush.flushed)
        self.log.keep_from(floor)

    def _fall_behind(self, handle: int, cursor: int) -> None:
        """Leave a live stream to catching up."""
        if self.engine.fall_behind(handle, cursor):
            self.catchup.add(handle)
            self.catchup.ready(handle)

    # Streams go

    def _caught_up(self, handle: int) -> None:
        self.catchup.drop(handle)
        if self.draining:
            after_ms = round(1000 * (self._config.retry_min_s + self._config.drain_spread_s * self._draw()))
            self.catchup.close(handle, CloseReason.DRAIN, self._clock(), notice.come_back(after_ms))
        elif self.ended.all(cast(Subscription, self.engine.subscription(handle)).terms):
            self.catchup.close(handle, CloseReason.ENDED, self._clock())
        else:
            # A stream may have come from another edge, which had more of the log already.
            self.engine.live(handle, max(self.engine.cursor(handle), self.log.head))

    def _end(self, handle: int, reason: str, now_s: float) -> None:
        """Close a stream at the end of the frame that it is in; what it has not got yet, it may come back for."""
        self.engine.fall_behind(handle, self._flush.flushed)
        self.catchup.close(handle, reason, now_s, notice.come_back(self.draw_retry_ms()))

    def revoke(self, valid: Callable[[Grant], bool], now_s: float) -> int:
        """End the streams whose grant is valid no more; return how many."""
        ended = self.leases.invalid(valid)
        for handle in ended:
            self._end(handle, CloseReason.REVOKED, now_s)
        self._settle(now_s)
        return len(ended)

    def drain(self, now_s: float, drained: Callable[[], None]) -> None:
        """Stop taking streams; those that are open end once they have what is in the log and `end_some` came to them.

        Args:
            now_s: the time.
            drained: called once, when no stream is left.
        """
        self.draining = True
        self._drained = drained
        self._staying.extend(self.engine.handles())
        self._settle(now_s)

    def end_some(self, count: int) -> bool:
        """Let a drain end `count` more streams; return whether others are left."""
        for _ in range(min(count, len(self._staying))):
            self._fall_behind(self._staying.popleft(), self._flush.flushed)
        self._wake_up()
        return bool(self._staying)

    def abort(self, now_s: float) -> None:
        """Close what is still open, without waiting."""
        for handle in self.engine.handles():
            self.engine.abort(handle, CloseReason.SHUTDOWN.value)
        self._settle(now_s)
        self._tell_closes()

    def _sweep(self) -> None:
        for handle, subscription, address, cursor, reason in self.engine.sweep():
            self.catchup.drop(handle)
            self.leases.drop(handle)
            self._leaving.append(cast(Subscription, subscription))
            self.admission.leave(cast(str, address))
            self.closes[reason] += 1
            if _logger.isEnabledFor(logging.DEBUG):
                # Entries of all topics: how many of them are its own would cost a search for each stream.
                extra = {"address": address, "reason": reason, "entries_behind": self.log.head - cursor}
                _logger.debug("stream closed: %s", reason, extra=extra)
        if self._leaving:
            self._leave()
        if self._drained is not None and not self.engine.open:
            drained, self._drained = self._drained, None
            drained()

    def _leave(self) -> None:
        """Take closed streams out of their audiences for one slice: each may have a thousand, which go with it."""
        stop_s = self._clock() + SLICE_S
        while self._leaving:
            self.audiences.leave(self._leaving.popleft())
            if self._leaving and self._clock() >= stop_s:
                self._wake_up()
                return

    def _tell_closes(self) -> None:
        """Log how many streams were closed for what since the last time; those that left by themselves are no news."""
        closed = self.closes - self._closes_told
        del closed[CloseReason.CLIENT]
        if closed:
            _logger.info("streams closed: %s", ", ".join(f"{count} {reason}" for reason, count in closed.items()))
        self._closes_told = self.closes.copy()
