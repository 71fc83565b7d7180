"""The log equals a plain list: after any appends, evictions and fillings, reads return the same entries as the list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.core import evicted
from relay.core import log as log_module
from relay.core.backfill import Wanted, backfill
from relay.core.evicted import MARKS_MAX
from relay.core.index import SEGMENT_BYTES, Index, Topic
from relay.core.log import EVICTED_SHARE, Log
from relay.topic import disjoint
from tests.oracle import matches

TOPICS = ("a", "b", "o.x", "o.y", "o.x.z")
PATTERNS = ("**", "o.*", "o.**", "*")
KEYS = (None, "k", "l")
IDS = st.none() | st.sampled_from(["own-1", "own-2", "own-3"])
SIZES = st.sampled_from([1, 2, 50, 900, 30_000, 70_000])


@dataclass(frozen=True)
class Entry:
    """One entry of the list."""

    sequence: int
    topic: str
    size: int
    id: str | None
    key: str | None
    time_s: float


class LogMachine(RuleBasedStateMachine):
    """One log, the list of all appended entries, and indexes of patterns that are created, filled and deleted."""

    @initialize(
        bytes_max=st.sampled_from([70_000, 200_000, 1 << 30]),
        events_max=st.sampled_from([0, 1, 7, 200]),
        age_s_max=st.sampled_from([0.0, 3.0]),
        marks_max=st.sampled_from([1, 4096]),
    )
    def start(self, bytes_max: int, events_max: int, age_s_max: float, marks_max: int) -> None:
        self.marks_max = evicted.MARKS_MAX = marks_max
        self.log = Log("e", bytes_max=bytes_max, events_max=events_max, age_s_max=age_s_max)
        self.log.resolve_with(self.resolve)
        self.entries: list[Entry] = []
        self.tail = 1
        self.now_s = 0.0
        self.patterns: dict[str, Index] = {}
        self.since: dict[str, int] = {}  # the sequence from which the index of a pattern is complete
        self.seen: dict[tuple[str, int], int] = {}  # ordinals of cursors, recorded while they were retained

    def resolve(self, topic: Topic) -> None:
        topic.patterns = [index for pattern, index in self.patterns.items() if matches(pattern, topic.name)]
        topic.generation = self.log.generation

    def teardown(self) -> None:
        evicted.MARKS_MAX = MARKS_MAX

    # The results of the list

    def retained(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.sequence >= self.tail]

    def of(self, term: str, cursor: int, until: int) -> list[Entry]:
        return [
            entry
            for entry in self.retained()
            if cursor <= entry.sequence < until and (entry.topic == term or matches(term, entry.topic))
        ]

    def superseded(self, entry: Entry) -> bool:
        return any((e.topic, e.key) == (entry.topic, entry.key) for e in self.entries[entry.sequence :])

    def evict(self, *, age: bool) -> None:
        """Apply retention to the list; a full list is emptied below its limits by a share of them."""
        log = self.log
        stop = log.head if log.floor is None else log.floor
        left = self.retained()
        if log.age_s_max and age:
            self.drop(stop, lambda left: self.now_s - left[0].time_s > log.age_s_max)
        if 0 < log.events_max < len(left):
            events = log.events_max - log.events_max // EVICTED_SHARE
            self.drop(stop, lambda left: len(left) > events)
        if sum(entry.size for entry in left) > log.bytes_max:
            size = log.bytes_max - log.bytes_max // EVICTED_SHARE
            self.drop(min(stop, log.head - 1), lambda left: sum(entry.size for entry in left) > size)

    def drop(self, stop: int, is_over: Callable[[list[Entry]], bool]) -> None:
        """Evict the oldest entries before a sequence while there are too many."""
        while (left := self.retained()) and left[0].sequence < stop and is_over(left):
            self.tail = left[0].sequence + 1

    def indexes(self) -> dict[str, Index]:
        """Return all indexes by their terms."""
        return {**self.log.topics, **self.patterns}

    # Steps

    @rule(topic=st.sampled_from(TOPICS), size=SIZES, id=IDS, key=st.sampled_from(KEYS), times=st.integers(1, 30))
    def append(self, topic: str, size: int, id: str | None, key: str | None, times: int) -> None:
        for _ in range(times if size < 1000 else 1):
            known = self.log.topics.get(topic)
            if known is None:
                known = self.log.topic(topic)
            self.entries.append(Entry(len(self.entries) + 1, topic, size, id, key, self.now_s))
            assert self.log.append(known, bytes(size), id, key, self.now_s) == len(self.entries)
            self.evict(age=False)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.log.retain(self.now_s)
        self.evict(age=True)

    @rule(back=st.none() | st.integers(0, 20))
    def set_floor(self, back: int | None) -> None:
        self.log.floor = None if back is None else max(1, self.log.head - back)
        self.log.retain(self.now_s)
        self.evict(age=True)

    @rule(topic=st.sampled_from(TOPICS), pinned=st.booleans())
    def pin(self, topic: str, pinned: bool) -> None:
        known = self.log.topics.get(topic)
        if known is not None:
            known.pinned = pinned
            self.log.forget(known)

    @rule(pattern=st.sampled_from(PATTERNS))
    def attach(self, pattern: str) -> None:
        if pattern not in self.patterns:
            self.patterns[pattern] = self.log.new_index()
            self.since[pattern] = self.log.head
            self.log.generation += 1

    @rule(pattern=st.sampled_from(PATTERNS), marks=st.booleans())
    def fill(self, pattern: str, marks: bool = False) -> None:
        if pattern in self.patterns:
            for _ in backfill(self.log, [Wanted(pattern, self.patterns[pattern])], self.tail, evicted=marks):
                pass
            self.since[pattern] = min(self.since[pattern], self.tail)

    @rule(pattern=st.sampled_from(PATTERNS))
    def detach(self, pattern: str) -> None:
        if pattern in self.patterns:
            del self.patterns[pattern]
            self.log.generation += 1
            self.seen = {(term, cursor): ordinal for (term, cursor), ordinal in self.seen.items() if term != pattern}

    @rule(back=st.integers(0, 60))
    def note_ordinals(self, back: int) -> None:
        """Record the position of a stream. The later difference is the number of events that it missed."""
        for term, index in self.patterns.items():
            cursor = max(self.log.head - back, self.tail, self.since[term])
            self.seen[term, cursor] = index.ordinal(cursor)

    @precondition(lambda self: self.entries)
    @rule(
        terms=st.sets(st.sampled_from(TOPICS + PATTERNS), min_size=1, max_size=4),
        back=st.integers(0, 80),
        short=st.integers(0, 5),
        bytes_max=st.sampled_from([0, 100, 65_536, 1 << 30]),
        entries_max=st.sampled_from([1, 3, 1024]),
        conflate=st.booleans(),
    )
    def read(self, terms: set[str], back: int, short: int, bytes_max: int, entries_max: int, conflate: bool) -> None:
        """Reading from any cursor returns the same entries as the list, each once, in order."""
        start = max(1, self.log.head - back)
        until = max(start, self.log.head - short)
        known = self.indexes()
        indexes = {term: known[term] for term in disjoint(tuple(sorted(terms & known.keys())))}
        for term in indexes:
            if term in self.patterns and self.since[term] > max(start, self.tail):
                self.fill(term)
        wanted = sorted({e for term in indexes for e in self.of(term, start, until)}, key=lambda e: e.sequence)
        cursor, kept, superseded = start, list[int](), list[int]()
        default, log_module.READ_ENTRIES_MAX = log_module.READ_ENTRIES_MAX, entries_max
        try:
            while (batch := self.log.merge(indexes.values(), cursor, until, bytes_max, conflate=conflate)) is not None:
                sizes = [len(frame) for frame in self.log.pick(batch.sequences)]
                assert len(sizes) <= 1 or sum(sizes) <= bytes_max
                assert cursor < batch.cursor <= until
                assert all(cursor <= each < batch.cursor for each in (*batch.sequences, *batch.superseded))
                assert conflate or (batch.sequences and not batch.superseded)
                kept += batch.sequences
                superseded += batch.superseded
                cursor = batch.cursor
        finally:
            log_module.READ_ENTRIES_MAX = default
        out = [entry.sequence for entry in wanted if conflate and self.superseded(entry)]
        assert superseded == out
        assert kept == [entry.sequence for entry in wanted if entry.sequence not in out]

    @rule(back=st.integers(0, 80))
    def look_up(self, back: int) -> None:
        cursor = max(self.log.head - back, self.tail)
        for term, index in self.indexes().items():
            if term in self.patterns and self.since[term] > cursor:
                continue
            wanted = self.of(term, cursor, self.log.head)
            first = wanted[0].sequence if wanted else None
            assert index.lag(cursor) == (len(wanted), sum(entry.size for entry in wanted), first)
            assert index.first(cursor) == first
            assert list(index.part(cursor, self.log.head, 5)[0]) == [entry.sequence for entry in wanted[:5]]
            self.check_segments(index, cursor, wanted)

    def check_segments(self, index: Index, cursor: int, wanted: list[Entry]) -> None:
        """Reading from segment to segment returns each entry once."""
        read: list[int] = []
        while (number := index.segment(cursor)) is not None:
            part, finished = index.rows(number, self.tail)
            assert part
            assert part[0] >= self.tail
            assert finished == (part[-1] != index.sequences[-1])
            sizes = [self.entries[sequence - 1].size for sequence in part]
            assert sum(sizes[1:]) <= SEGMENT_BYTES
            read += [sequence for sequence in part if sequence >= cursor]
            cursor = part[-1] + 1
        assert read == [entry.sequence for entry in wanted]

    # Invariants

    @invariant()
    def the_log_equals_the_list(self) -> None:
        retained = self.retained()
        log = self.log
        assert (log.tail, log.head, len(log)) == (self.tail, len(self.entries) + 1, len(retained))
        assert log.bytes == sum(entry.size for entry in retained)
        for entry in retained[:3] + retained[-3:]:
            assert len(log.frame(entry.sequence)) == entry.size
            assert log.time_s(entry.sequence) == entry.time_s
            assert log.id(entry.sequence) == (entry.id or f"e-{entry.sequence}")

    @rule(terms=st.sets(st.sampled_from(TOPICS + PATTERNS), min_size=1, max_size=4))
    def find(self, terms: set[str]) -> None:
        """An id means its oldest use among the topics of a subscription, unless that use may be evicted."""
        wanted = disjoint(tuple(sorted(terms)))
        for id in ("own-1", "own-2", "own-3"):
            uses = [
                entry.sequence
                for entry in self.entries
                if entry.id == id and any(matches(term, entry.topic) for term in terms)
            ]
            unambiguous = uses and uses[0] >= self.tail
            assert self.log.find((id,), wanted) == (uses[0] if unambiguous else None)

    @invariant()
    def since_finds_the_first_entry_of_a_time(self) -> None:
        for time_s in (self.now_s - 2.0, self.now_s, self.now_s + 1.0):
            found = [entry.sequence for entry in self.retained() if entry.time_s >= time_s]
            assert self.log.since(time_s) == (found[0] if found else self.log.head)

    @invariant()
    def topics_are_known_while_they_are_retained_or_pinned(self) -> None:
        retained = {entry.topic for entry in self.retained()}
        pinned = {name for name, topic in self.log.topics.items() if topic.pinned}
        assert set(self.log.topics) == retained | pinned
        for name, topic in self.log.topics.items():
            assert topic.retained == len(self.of(name, self.tail, self.log.head))
            assert len(topic.newest) <= len(KEYS)

    @invariant()
    def differences_of_ordinals_stay_correct(self) -> None:
        for (term, cursor), ordinal in self.seen.items():
            index = self.patterns[term]
            passed = [
                entry
                for entry in self.entries
                if cursor <= entry.sequence < self.log.head and matches(term, entry.topic)
            ]
            assert index.ordinal(self.log.head) - ordinal == len(passed)
            lost = [entry for entry in passed if entry.sequence < self.tail]
            if cursor <= self.tail:
                assert index.ordinal(self.tail) - ordinal == len(lost)

    @invariant()
    def an_index_knows_its_last_evicted_entry(self) -> None:
        for term, index in self.indexes().items():
            evicted = [e.sequence for e in self.entries if e.sequence < self.tail and matches(term, e.topic)]
            assert index.evicted < self.tail
            if not index.evicted_known:
                continue
            assert index.evicted >= (evicted[-1] if evicted else -1)
            if self.marks_max > len(TOPICS):
                assert index.evicted == (evicted[-1] if evicted else -1)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
