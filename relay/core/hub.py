"""The hub: accepts events, keeps the log, and makes the engine send.

Publishing marks, the flush writes. `publish` appends to the log and marks the audiences of the topic. `turn` does one
slice of the pending work: first the flush to the live streams, then the streams that catch up.

Owns the life of a stream, from the receipt of its descriptor to its one close reason. Never parses, opens a socket or
reads the system's time: the caller passes descriptors, `now_s`, a clock and a wake-up function.

The module is longer than 400 lines because opening, serving, passing on and closing streams use the same parts.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import cast

from relay.config.model import Config
from relay.config.topic_retention import parse_history
from relay.core import notice
from relay.core.admission import Admission
from relay.core.audience import Audiences, Subscription
from relay.core.catchup import CatchUp
from relay.core.close_reason import CLEAN, CloseReason
from relay.core.compression import Compression
from relay.core.ended import Ended, is_end
from relay.core.expiry import HistoryRules
from relay.core.flush import SLICE_S, Flush
from relay.core.forms.form import Form
from relay.core.forms.registry import POLL, all_forms
from relay.core.gaps import GapReason
from relay.core.grant import Grant
from relay.core.histogram_protocols import Measures
from relay.core.holds import Holds
from relay.core.leases import Leases
from relay.core.log import Entry, Log
from relay.core.policy import Rule, Rules
from relay.core.polls import NO_POLICY, PollResult, Polls
from relay.core.replays import Done, Replays
from relay.core.stream import PackedStream, PackedSubscription, Subscribe
from relay.core.writer import Writer
from relay.errors import RETRY_SOON, RequestError
from relay.event import Event
from relay.ids import unknown_since
from relay.speedups import Engine
from relay.sse import comment, priming
from relay.topic import disjoint, is_pattern

BLOCK_HISTORIES_MAX = 2
"""Maximum size of the log, in multiples of `history-bytes`, while a `block` stream needs old entries."""

ENDED_A_TICK = 200
"""Maximum number of expired streams that one tick closes, so that their clients reconnect over several seconds."""

ENDED_A_TURN = 1000
"""Maximum number of streams of ended topics that one turn moves to catching up."""

CHOICES_CACHED = 1024
"""Number of requests whose disjoint terms, rule and form are kept, for clients that reconnect."""

RESUMES = ("hit", "gap", "missed")
"""The results of a resume: relay replayed all events, some are no longer retained, or the id is unknown."""

GiveBack = Callable[[int, str, bytes, bool], None]
"""Receives an answered poll: its descriptor, its address, the bytes to send, and whether the connection stays open."""

_GREETING = comment("")
_PADDING = comment(" " * notice.PADDING_BYTES)

_logger = logging.getLogger("relay.hub")


class Hub:
    """One log, its audiences and its streams.

    Args:
        config: the settings.
        engine: the engine that holds the streams.
        epoch: the prefix of default ids.
        streams_max: maximum number of open streams.
        measures: histograms.
        clock: the clock of `now_s`, which measures time within a call.
        wake: called once when `turn` has work to do.
        draw: returns a random number in [0, 1); used for reconnection times.
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
            limits_of=HistoryRules(map(parse_history, config.history_for)).limits,
        )
        self.forms = all_forms()
        self.audiences = Audiences(self.log)
        self.polls = Polls(self.log, self.forms[POLL])
        self._give_back: GiveBack | None = None  # set by the front that opens polls
        self.replays = Replays(self.log, self.audiences, clock)
        self.holds = Holds(self.audiences)
        self.catchup = CatchUp(
            self.log, engine, self.holds, config.block_timeout_s, self._caught_up, measures.lag_s, clock
        )
        self.draining = False
        self._input_ended = False
        self.fed = False  # another hub or a broker sends the entries, and nothing is published here
        self.begun = True  # the log is readable; in a fed hub, once the snapshot is complete
        self.knows_evicted = True  # at an edge that starts a new log: the marks of the hub's log have arrived
        self.snapshot = 0  # entries before this sequence belong to the snapshot
        self.linked = True  # the hub or the broker that feeds this one is connected
        self.acknowledged = 0  # in a cluster: head of the broker's log after the last publish of this node
        self._on_entry: Callable[[], None] | None = None
        self.closes: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()
        self._config = config
        self._rules = Rules(config)
        self._chosen = lru_cache(CHOICES_CACHED)(self._choose)
        self._clock = clock
        self._wake = wake
        self._draw = draw
        heartbeat = notice.heartbeat(config.heartbeat_as)
        self._heartbeats = [form.notice(heartbeat) for form in self.forms.values()]
        self._heartbeat_contents = [
            form.notice_content(heartbeat) if form.compressed else b"" for form in self.forms.values()
        ]
        self._heartbeat_place = 0  # where the next slice of the heartbeat begins; 0 when it is complete
        self.leases = Leases()
        self.admission = Admission(config, streams_max, self.audiences, self.leases)
        self._closes_told: Counter[str] = Counter()
        self._drained: Callable[[], None] | None = None
        self._staying: deque[int] = deque()  # streams that the drain has not closed yet
        self._woken = False
        self.ended = Ended()
        self._ending: deque[int] = deque()  # live streams of topics that have ended
        self._leaving: deque[Subscription] = deque()  # of closed streams that their audiences still count
        self.writer = Writer(config, self.log, self._append, self.ended, self.end_topic)
        self.publish_one = self.writer.publish_one  # an alias, to save a call for each event
        self.compression = Compression(config.compress_level, config.compress_contexts)
        self._flush = Flush(
            self.log, engine, self._fall_behind, self.compression, measures.flush_s, measures.written_s, clock
        )

    # Publishing

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        """Publish events, all or none, and return their ids; see `relay.core.writer.Writer.publish`."""
        return self.writer.publish(events, now_s)

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once, when everything published so far may be acknowledged; possibly within this call."""
        self.writer.confirm(callback)

    def confirm_stored(self, callback: Callable[[], None]) -> None:
        """Call back once, when everything published so far is on the disk; without a file, at once."""
        self.writer.confirm_stored(callback)

    @property
    def refusal(self) -> str:
        """The reason why events are rejected now; empty if they are accepted."""
        return "the server is draining" if self._input_ended else self.writer.refusal

    def end_input(self) -> None:
        """Accept no more events; a drain delivers the events accepted so far."""
        self._input_ended = True
        self.holds.release()  # Waiting requests are rejected.

    @property
    def flushed(self) -> int:
        """The sequence before which live streams have received everything."""
        return self._flush.flushed

    @property
    def head(self) -> int:
        """Sequence of the next event. An acknowledged event may not be in the log yet."""
        journal = self.writer.journal
        return max(self.log.head, self.acknowledged) if journal is None else journal.head

    def _append(
        self, topic: str, frame: bytes, id: str | None, key: str | None, now_s: float, ttl_s: float | None = None
    ) -> int:
        known = self.log.topics.get(topic)
        if known is None:
            known = self.audiences.add_topic(topic)
        sequence = self.log.append(known, frame, id, key, now_s, ttl_s)
        if known.audiences and self._flush.mark(known.audiences, sequence):
            self._set_floor()
            self._wake_up()
        if self._on_entry is not None:
            self._on_entry()
        return sequence

    def on_entry(self, callback: Callable[[], None] | None) -> None:
        """Call back after each entry; None ends the calls."""
        self._on_entry = callback

    def end_topic(self, topic: str) -> None:
        """Close the streams of a topic once they have received the log, unless they follow other topics too."""
        self.ended.note(topic)
        for audience in self.audiences.of_term(topic):
            self._ending.extend(self.engine.listed(audience.members))
            self._wake_up()

    def held(self, topic: str) -> bool:
        """Return whether publishers have to wait for a `block` stream of this topic or for the disk."""
        journal = self.writer.journal
        if journal is not None and journal.full:
            return True
        return self.holds.held(topic)

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, when a topic is released."""
        self.holds.on_release(callback)

    # Being fed

    def feed(self, on_hold_change: Callable[[], None]) -> None:
        """Declare that another hub or a broker feeds this one: the log is unreadable until a snapshot is complete.

        Args:
            on_hold_change: called when the streams of this process hold or release a topic.
        """
        self.fed, self.begun, self.linked = True, False, False
        self.holds.on_change(on_hold_change)

    def set_linked(self, linked: bool) -> None:
        """Record whether the hub that feeds this one is connected and is not leaving."""
        self.linked = linked

    def know_evicted(
        self, topics: Iterable[tuple[str, int, float]], ids: Iterable[tuple[str, str]], rest: tuple[int, float] | None
    ) -> None:
        """Import marks of evicted entries from the hub that feeds this one; see `relay.core.log.Log.know_evicted`."""
        self.log.know_evicted(topics, ids, rest)
        if rest is not None:
            for index in self.audiences.indexes():
                index.evicted_known = False  # The marks of patterns follow from those of topics.
            self.knows_evicted = True

    def continue_from(self, head: int) -> None:
        """Keep the log; the feeding hub sends the missing entries up to its head."""
        self.snapshot = head

    def end_snapshot(self) -> bool:
        """Make the log readable if the snapshot is complete; return whether it is."""
        complete = self.log.head >= self.snapshot
        if complete:
            self.begun = True
        return complete

    def begin(self, epoch: str, sequence: int, head: int, evicted_s: float, now_s: float) -> None:
        """Drop all entries and continue as the log of another hub.

        All streams are closed. Clients reconnect with their last id, and a gap then reports the missed events.

        Args:
            epoch: the prefix of the other log's default ids.
            sequence: sequence of the next entry.
            head: head of the other log; entries before it belong to the snapshot.
            evicted_s: time of the last entry before `sequence`, or `-math.inf`.
            now_s: the time.
        """
        for handle in self.engine.handles():
            self._close(handle, CloseReason.LAPPED, now_s, notice.come_back(self.draw_retry_ms()))
        self._settle(now_s)
        self.ended.topics.clear()
        self.begun = not self.fed
        self.snapshot, self.acknowledged = head, 0
        self._flush.begin(sequence)
        self.log.begin(epoch, sequence, evicted_s, self.audiences.indexes())
        self.replays.begin()
        self.catchup.begin()

    def take(self, entry: Entry, now_s: float) -> None:
        """Append an encoded entry from another hub or from the disk; its sequence must be the next one.

        Raises:
            EventError: its topic is invalid.
        """
        self._append(entry.topic, entry.frame, entry.id, entry.key, now_s, entry.ttl_s)
        if is_end(entry.frame):
            self.end_topic(entry.topic)

    def skip(self, sequence: int) -> None:
        """Leave out the next entry, which no subscriber receives."""
        self.log.skip_to(sequence + 1)
        if self._on_entry is not None:
            self._on_entry()

    @property
    def ready(self) -> bool:
        """Whether this hub can serve new streams."""
        return self.begun and self.linked and not self.draining

    def find(self, terms: tuple[str, ...], ids: Sequence[str]) -> int | None:
        """Return the sequence of the last id of a subscription; None if this log does not know the id.

        Args:
            terms: checked terms of the subscription.
            ids: the readings of the last id.
        """
        return self.log.find(ids, disjoint(terms))

    # Handing streams over to another process

    def pack(self, now_s: float) -> tuple[list[PackedSubscription], list[tuple[int, PackedStream]]]:
        """Describe all streams, with their descriptors, and the subscriptions that they refer to.

        All live streams begin to catch up, which continues with the next turn.
        """
        self._settle(now_s)
        for handle in self.engine.handles():
            self._fall_behind(handle, self._flush.flushed)
        self._wake_up()
        places: dict[PackedSubscription, int] = {}
        streams = []
        for handle, fd, cursor, pending, written_s, reason in self.engine.pack():
            subscription: Subscription = self.engine.subscription(handle)
            stream = PackedStream(
                places.setdefault((subscription.terms, subscription.rule, subscription.form.name), len(places)),
                cast(str, self.engine.address(handle)),
                cursor,
                pending,
                written_s,
                reason,
                self.leases.pack(handle),
                self.catchup.pack(handle) if reason is None else None,
                self.engine.content(handle),
            )
            streams.append((fd, stream))
        return list(places), streams

    def adopt(self, fd: int, stream: PackedStream, terms: tuple[str, ...], rule: Rule, form: str) -> int:
        """Add a stream from another process with the same log; write nothing to it before the next turn.

        Args:
            fd: the socket of the stream; the engine owns it from now on.
            stream: the state of the stream.
            terms: the checked and disjoint terms of the stream.
            rule: the rule of the stream.
            form: the name of the form.

        Returns:
            the handle. If the stream has a close reason, the caller passes both to `go_on`.
        """
        subscription = self.audiences.get(terms, rule, self.forms[form])
        if stream.cursor < self.log.head:
            # The gaps of polls follow from the marks of evicted entries alone.
            self.audiences.complete(subscription, stream.cursor, evicted=subscription.form.once)
        address = sys.intern(stream.address)
        handle = self.engine.add(
            fd,
            subscription,
            address,
            stream.cursor,
            stream.pending,
            stream.written_s,
            subscription.form.number,
            subscription.joins,
        )
        self.engine.continue_content(handle, *stream.content)
        self._enter(handle, subscription, address)
        if subscription.form.once:
            self.polls.wait(handle, 0.0)  # Its time is unknown, so the first tick answers it.
        if stream.lease is not None:
            self.leases.add(handle, *stream.lease)
        if stream.behind is not None:
            self.catchup.adopt(handle, stream.behind)
        return handle

    def go_on(self, closing: Iterable[tuple[int, str]], now_s: float) -> None:
        """Begin to serve the adopted streams; close those that were closing, given with their reasons."""
        for handle, reason in closing:
            self.catchup.close(handle, reason, now_s)
        self._settle(now_s)
        self._wake_up()

    # Opening streams

    def prepare(self, request: Subscribe, now_s: float, done: Done) -> Callable[[], None]:
        """Complete the indexes that a replay of patterns reads, in slices; `subscribe` alone does it in one turn.

        Args:
            request: the request, with a last id or a time.
            now_s: the time.
            done: called once, possibly within this call.

        Returns:
            a function that cancels the work.
        """
        if not any(map(is_pattern, request.terms)):
            done(None)
            return lambda: None
        subscription, cursor, evicted = self._replay(request, now_s)
        cancel = self.replays.prepare(subscription, cursor, done, evicted=evicted)
        if self.replays.due:
            self._wake_up()
        return cancel

    def can_replay(self, request: Subscribe, now_s: float) -> bool:
        """Return whether the indexes that a replay reads are complete, so that `prepare` has nothing to do."""
        if not any(map(is_pattern, request.terms)):
            return True
        subscription, cursor, evicted = self._replay(request, now_s)
        complete = not self.audiences.wanted(subscription, cursor, evicted=evicted)
        self.audiences.release(subscription)
        return complete

    def _replay(self, request: Subscribe, now_s: float) -> tuple[Subscription, int, bool]:
        """Return the subscription of a replay, and the result of `_reach`."""
        terms, rule, form = self._chosen(request.terms, request.policy, request.form)
        return self.audiences.get(terms, rule, form), *self._reach(request, self._sequence(request, terms), now_s)

    def subscribe(self, fd: int, request: Subscribe, address: str, now_s: float) -> None:
        """Open a stream.

        Args:
            fd: a connected, non-blocking socket. The engine owns it after the return; after an error, the caller does.
            request: the request.
            address: the peer's address.
            now_s: the time.

        Raises:
            RequestError: as `relay.core.admission.Admission.check`; 503 during a drain and before `knows_evicted`; 204
                if all topics have ended.
            OSError: the descriptor is not a socket.
        """
        if self.draining:
            raise RequestError(503, "the server is draining", RETRY_SOON)
        if not self.knows_evicted:
            raise RequestError(503, "the server has just connected to its hub", RETRY_SOON)
        terms, rule, form = self._chosen(request.terms, request.policy, request.form)
        self.admission.check(self.engine.open, address, request.grant, terms)
        if request.replays:  # Other streams receive no entry that may have expired.
            self.log.expire(now_s)
        subscription = self.audiences.get(terms, rule, form)
        try:
            cursor, gap, resume = self._start(request, subscription, now_s)
            told = gap if self._config.prime else b""  # without a priming id, each reconnect would report the gap again
            if self.begun and self.ended.all(terms) and not told and not subscription.has(cursor):
                raise RequestError(204, "its topics have ended for good")
            # The gap precedes the priming id. A client that is cut off between the two receives the gap again.
            primed = b""
            if self._config.prime:
                primed = priming(self.draw_retry_ms(), f"{self.log.epoch}-{cursor - 1}")
            content, pending = b"", request.head
            if not form.once:
                content = form.notice_content(_PADDING if request.padding else _GREETING, gap, primed)
                pending = b"".join((pending, form.framing.start, form.framing.wrap(content)))
            handle = self.engine.add(
                fd, subscription, address, cursor, pending, now_s, form.number, subscription.joins
            )
            if form.compressed:
                self.engine.count_content(handle, content)
            if (gap or resume) and not form.once:
                self._count(gap, resume)
        except (OSError, RequestError):
            self.audiences.release(subscription)
            raise
        self._enter(handle, subscription, address)
        self.leases.begin(handle, request.grant, request.ends_s, self._config.max_age_s, now_s, self._draw)
        if form.once:
            self.polls.wait(handle, now_s + request.wait_s, request.events_max)
        newest_until = self.log.head if request.newest and cursor < self.log.head else None
        if not self.catchup.begin_stream(handle, subscription, cursor, now_s, newest_until) or form.once:
            self._wake_up()
            self._sweep()

    def answer(self, request: Subscribe, events_max: int, now_s: float, *, newest: bool = False) -> PollResult:
        """Return the events that a poll can receive now.

        Args:
            request: the request, in a form of polls.
            events_max: maximum number of events.
            now_s: the time.
            newest: whether to return the newest events and not the first ones.

        Raises:
            RequestError: 503 while another hub has not sent its log; 400 for an unknown id in `since`.
        """
        if not (self.begun and self.knows_evicted):  # Without the marks of evicted entries, a gap would be missing.
            raise RequestError(503, "the server is waiting for its hub", RETRY_SOON)
        terms, rule, form = self._chosen(request.terms, request.policy, request.form)
        subscription = self.audiences.get(terms, rule, form)
        try:
            cursor, gap, resume = self._start(request, subscription, now_s)
            if newest:
                cursor = self.polls.newest(subscription, events_max)
            answer = self.polls.answer(subscription, cursor, gap, events_max)
        finally:
            self.audiences.release(subscription)
        self._count(gap, resume)
        return answer

    def on_answer(self, give_back: GiveBack) -> None:
        """Set the function that receives the answered polls."""
        self._give_back = give_back

    def _choose(self, terms: tuple[str, ...], policy: str | None, form: str) -> tuple[tuple[str, ...], Rule, Form]:
        """Return the disjoint terms of a request, its rule and its form."""
        rule = NO_POLICY if self.forms[form].once else self._rules.choose(terms, policy)
        return disjoint(terms), rule, self.forms[form]

    def _enter(self, handle: int, subscription: Subscription, address: str) -> None:
        self.audiences.enter(subscription)
        self.admission.enter(address)
        for audience in subscription.audiences:
            self.engine.join(handle, audience.members)
            self._flush.compact(audience)

    def _start(self, request: Subscribe, subscription: Subscription, now_s: float) -> tuple[int, bytes, str]:
        """Return the first cursor of a stream, the gap event to send before it, and the result of a resume.

        The gap is empty if nothing is missing. The result is empty if the client sent no last id.
        """
        log, gap, resume, sequence = self.log, b"", "", self._sequence(request, subscription.terms)
        cursor, evicted = self._reach(request, sequence, now_s)
        if cursor < log.head or evicted:
            self.audiences.complete(subscription, cursor, evicted=evicted)
        if sequence is not None:
            gap = self.polls.history_gap(subscription, cursor)
            resume = "gap" if gap else "hit"
            if cursor < log.tail:
                cursor = log.tail
        elif request.last_ids and not request.must_know:
            gap = notice.gap(GapReason.UNKNOWN, None, None, None)
            resume = "missed"
        elif request.since_s is not None:
            if evicted and any(index.evicted_s >= now_s - request.since_s for index in subscription.indexes):
                gap = notice.gap(GapReason.HISTORY, None, None, log.id(subscription.evicted))
        elif request.must_know:
            raise unknown_since(request.last_ids)
        return cursor, gap, resume

    def _count(self, gap: bytes, resume: str) -> None:
        """Count the gap that a stream or an answer begins with, and the result of a resume, as `_start` returned."""
        if gap:
            self.catchup.gaps.count(GapReason.UNKNOWN if resume == "missed" else GapReason.HISTORY)
        if resume:
            self.resumes[resume] += 1

    def _sequence(self, request: Subscribe, terms: tuple[str, ...]) -> int | None:
        """Return the sequence of the last event that a client received; None if unknown."""
        if request.last_ids and request.after is None:
            return self.log.find(request.last_ids, terms)
        return request.after

    def _reach(self, request: Subscribe, sequence: int | None, now_s: float) -> tuple[int, bool]:
        """Return the first cursor, possibly before the tail, and whether evictions after it matter.

        Args:
            request: the request.
            sequence: sequence of the last event that the client received, if known.
            now_s: the time.
        """
        log = self.log
        if sequence is not None:
            return sequence + 1, sequence + 1 < log.tail or sequence < log.evicted_early
        if request.last_ids and not request.must_know:
            return log.tail, False
        if request.since_s is not None:
            if request.since_s == math.inf:
                return log.tail, False
            cursor = log.since(now_s - request.since_s)
            return cursor, cursor == log.tail or log.evicted_early > 0
        return max(log.head, self.snapshot), False  # the remaining entries of a snapshot are not new

    def draw_retry_ms(self) -> int:
        """Draw the reconnection time of one client."""
        low, high = self._config.retry_min_s, self._config.retry_max_s
        return round(1000 * (low + (high - low) * self._draw()))

    # Serving streams

    def turn(self, now_s: float) -> bool:
        """Do one slice of the pending work; return whether more is pending."""
        self._woken = True
        self._flush.turn(now_s)
        if self._ending:
            for _ in range(min(len(self._ending), ENDED_A_TURN)):
                self._fall_behind(self._ending.popleft(), self._flush.flushed)
        more = self.catchup.turn(now_s)
        if self.replays.due:
            more = self.replays.turn() or more
        self._settle(now_s)
        more = self.log.expire(now_s) or more
        self._woken = more = more or self._flush.due or bool(self._ending or self._leaving)
        return more

    def poll(self, now_s: float) -> None:
        """Process the readiness events of the engine's descriptor."""
        more = True
        while more:
            writable, more = self.engine.poll()
            for handle in writable:
                self.catchup.ready(handle)
                self._wake_up()
        self._settle(now_s)

    def tick(self, now_s: float) -> None:
        """Do the timed work; called a few times per second while streams are behind, else once per second."""
        self.log.retain(now_s)
        if self.log.expire(now_s):
            self._wake_up()
        self.writer.seen.expire(now_s)
        self.catchup.tick(now_s)
        self.compression.tick()
        self._answer_polls(self.polls.ended(now_s))
        for handle, reason in self.leases.ended(now_s, ENDED_A_TICK):
            self._end(handle, reason, now_s)
        self._settle(now_s)
        self._tell_closes()

    def heartbeat(self, now_s: float) -> bool:
        """Send heartbeats to idle streams for one slice; return whether more streams are left."""
        self._heartbeat_place = self.engine.heartbeat(
            self._heartbeats,
            self._heartbeat_place,
            self._config.heartbeat_s,
            now_s,
            SLICE_S,
            self._heartbeat_contents,
            self._flush.flushed,
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
        """Retain the entries that the flush has yet to send or a `block` stream needs."""
        floor = self.catchup.floor
        if self.log.bytes > BLOCK_HISTORIES_MAX * self.log.bytes_max:
            floor = None
        unsent = self._flush.unsent
        if unsent is not None and (floor is None or unsent < floor):
            floor = unsent
        self.log.keep_from(floor)

    def _fall_behind(self, handle: int, cursor: int) -> None:
        """Make a live stream catch up from a cursor."""
        if self.engine.fall_behind(handle, cursor):
            self.catchup.add(handle)
            self.catchup.ready(handle)

    # Closing streams

    def _caught_up(self, handle: int, subscription: Subscription) -> None:
        if self.draining:
            after_ms = round(1000 * (self._config.retry_min_s + self._config.drain_spread_s * self._draw()))
            self._close(handle, CloseReason.DRAIN, self._clock(), notice.come_back(after_ms))
        elif subscription.form.once and self.polls.due(handle, subscription, self.engine.cursor(handle)):
            self._close(handle, CloseReason.ANSWERED, self._clock())
        elif self.ended.all(subscription.terms):
            self._close(handle, CloseReason.ENDED, self._clock())
        else:
            if self.log.evicted_early:
                # It may have passed events that were evicted early, and that a shared compressor was fed.
                self.engine.skip(handle, self.engine.cursor(handle), b"")
            # A client may have reconnected from another edge whose log was further ahead.
            self.engine.live(handle, self.log.head)

    def _end(self, handle: int, reason: str, now_s: float) -> None:
        """Close a stream after the current frame; its client can reconnect and resume."""
        self.engine.fall_behind(handle, self._flush.flushed)
        self._close(handle, reason, now_s, notice.come_back(self.draw_retry_ms()))

    def _close(self, handle: int, reason: str, now_s: float, last: bytes = b"") -> None:
        """Close a stream after the current frame and a last notice; complete its body if the reason is clean."""
        form: Form = self.engine.subscription(handle).form
        if form.once:
            self._answer(handle, reason)
            return
        content, end = form.notice_content(last), b""
        if reason in CLEAN:
            if form.compressed:
                self.engine.count_content(handle, content)
            end = form.framing.end(*self.engine.content(handle))
        self.catchup.close(handle, reason, now_s, form.part(content) + end)

    def _answer_polls(self, handles: Iterable[int]) -> None:
        """Answer waiting polls in the next turns."""
        for handle in handles:
            self._fall_behind(handle, self._flush.flushed)
            self._wake_up()

    def _answer(self, handle: int, reason: str) -> None:
        """End a waiting poll, and give its descriptor and its answer back to the front."""
        engine = self.engine
        engine.fall_behind(handle, self._flush.flushed)
        if not engine.is_behind(handle):
            return  # The connection is lost.
        subscription: Subscription = engine.subscription(handle)
        cursor = engine.cursor(handle)
        form, address = subscription.form, cast(str, engine.address(handle))
        gap = self.polls.history_gap(subscription, cursor)
        self._count(gap, "")
        answer = self.polls.answer(subscription, cursor, gap, self.polls.events_max(handle))
        fd, unsent, interrupted = engine.release(handle, reason)
        self.catchup.drop(handle)
        assert self._give_back is not None
        data = unsent + form.part(answer.body) + form.framing.end(0, 0)
        self._give_back(fd, address, data, form.name == POLL and not interrupted and not self.draining)

    def revoke(self, valid: Callable[[Grant], bool], now_s: float) -> int:
        """Close the streams whose grant is no longer valid; return their number."""
        ended = self.leases.invalid(valid)
        for handle in ended:
            self._end(handle, CloseReason.REVOKED, now_s)
        self._settle(now_s)
        return len(ended)

    def drain(self, now_s: float, drained: Callable[[], None]) -> None:
        """Stop accepting streams; `end_some` closes the open streams once they have received the log.

        Args:
            now_s: the time.
            drained: called once, when all streams are closed.
        """
        self.draining = True
        self._drained = drained
        self._staying.extend(self.engine.handles())
        self._answer_polls(self.polls.end_all())
        self._settle(now_s)

    def end_some(self, count: int) -> bool:
        """Close `count` more streams of a drain; return whether others are left."""
        for _ in range(min(count, len(self._staying))):
            self._fall_behind(self._staying.popleft(), self._flush.flushed)
        self._wake_up()
        return bool(self._staying)

    def abort(self, now_s: float) -> None:
        """Close all open streams at once."""
        for handle in self.engine.handles():
            self.engine.abort(handle, CloseReason.SHUTDOWN)
        self._settle(now_s)
        self._tell_closes()

    def _sweep(self) -> None:
        for handle, subscription, address, cursor, reason in self.engine.sweep():
            self.catchup.drop(handle)
            self.leases.drop(handle)
            subscription = cast(Subscription, subscription)
            if subscription.form.once:
                self.polls.drop(handle)
            self._leaving.append(subscription)
            self.admission.leave(cast(str, address))
            self.closes[reason] += 1
            if _logger.isEnabledFor(logging.DEBUG):
                # This counts entries of all topics; counting only those of the stream would cost a search per stream.
                extra = {"address": address, "reason": reason, "entries_behind": self.log.head - cursor}
                _logger.debug("stream closed: %s", reason, extra=extra)
        if self._leaving:
            self._leave()
        if self._drained is not None and not self.engine.open:
            drained, self._drained = self._drained, None
            drained()

    def _leave(self) -> None:
        """Remove closed streams from their audiences for one slice; each may have a thousand audiences."""
        stop_s = self._clock() + SLICE_S
        while self._leaving:
            self.audiences.leave(self._leaving.popleft())
            if self._leaving and self._clock() >= stop_s:
                self._wake_up()
                return

    def _tell_closes(self) -> None:
        """Log the number of closed streams per reason since the last call, without the ordinary reasons."""
        closed = self.closes - self._closes_told
        del closed[CloseReason.CLIENT], closed[CloseReason.ANSWERED]
        if closed:
            _logger.info("streams closed: %s", ", ".join(f"{count} {reason}" for reason, count in closed.items()))
        self._closes_told = self.closes.copy()
