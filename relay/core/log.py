"""The log: all retained entries in one global order, with an index for each subscription term.

Theory of operation. An entry is a row across parallel columns (`relay.core.rows`). Sequences increase by one and never
wrap. `tail` is the oldest retained sequence, `head` the next sequence. The overall limits evict the oldest entries and
move `tail`. A full log evicts a batch each time, because to evict a single entry takes longer than to append one. An
entry with a `ttl`, or of a topic with limits of its own, may be evicted earlier (`relay.core.expiry`).

Each topic has its own index (`relay.core.index`); the index of a pattern is attached to every topic that matches.

Owns retention, ids and the topics. Never knows the readers, encodes, opens a file or reads a clock.

The module is longer than 400 lines because retention, reads and ids use the same rows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress
from math import inf
from typing import NamedTuple, TypeVar

import msgspec

from relay.config.topic_retention import TopicLimits
from relay.core.evicted import NOTHING, Mark, Marks
from relay.core.expiry import Expiry
from relay.core.index import Index, Topic
from relay.core.own_ids import OwnIds
from relay.core.rows import Rows
from relay.ids import default_sequence

T = TypeVar("T")

READ_ENTRIES_MAX = 1024
"""Maximum number of entries that one merging read examines."""

EVICTED_SHARE = 64
"""A full log evicts entries until it is below the limit by the limit divided by this."""

EXPIRED_A_CALL = 512
"""Maximum number of entries that one call evicts before their turn, in less than 2 ms."""

EXPIRED_AN_APPEND = 8
"""The same for each appended entry; more than it adds, so that entries to evict cannot accumulate."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The result of a read: sequences in log order, omitted superseded sequences, and the next cursor."""

    sequences: list[int]
    superseded: list[int]
    cursor: int


class Entry(NamedTuple):
    """A retained entry, in the form that links transfer."""

    sequence: int
    time_s: float
    topic: str
    id: str | None
    key: str | None
    frame: bytes
    ttl_s: float | None = None


def _without_limits(topic: str) -> None:
    """Return None: without `history-for`, no topic has limits of its own."""


def _pick(column: Iterable[T], alive: list[bool]) -> list[T]:
    return list(compress(column, alive))


class Log:
    """The retained entries.

    Args:
        epoch: the prefix of default ids; different in every run.
        bytes_max: maximum bytes of retained frames.
        events_max: maximum number of retained entries; 0 for no limit.
        age_s_max: maximum age of an entry in seconds; 0 for no limit.
        limits_of: returns the limits of a topic; None if it has only the overall limits.
    """

    def __init__(
        self,
        epoch: str,
        *,
        bytes_max: int,
        events_max: int = 0,
        age_s_max: float = 0.0,
        limits_of: Callable[[str], TopicLimits | None] = _without_limits,
    ) -> None:
        self.epoch = epoch
        self.bytes_max = bytes_max
        self.events_max = events_max
        self.age_s_max = age_s_max
        self.head = 1
        self.tail = 1
        self.bytes = 0
        self.retained = 0  # number of entries
        self.evicted_early = 0  # last sequence that was evicted before its turn; 0 if none was
        self.expired = 0  # number of entries that were evicted before their turn
        self.floor: int | None = None  # entries from this sequence on are exempt from retention
        self.needed: dict[object, int] = {}  # reader → sequence from which on no entry is evicted early
        self.topics: dict[str, Topic] = {}
        self.generation = 0  # increases when a pattern is added or removed
        self._resolve: Callable[[Topic], None] = lambda _: None  # without patterns
        self.marks = Marks()
        self._limits_of = limits_of
        self._rows = Rows(1)
        self._expiry = Expiry(self.topics, self.time_s)
        self.ids = OwnIds(self.topic_of)

    def __len__(self) -> int:
        return self.retained

    @property
    def evicted_s(self) -> float:
        """Time up to which entries may have been evicted; the oldest retained entry is not older."""
        return self.time_s(self.tail) if 1 < self.tail < self.head else -inf

    # Writing

    def begin(self, epoch: str, sequence: int, evicted_s: float, indexes: Iterable[Index] = ()) -> None:
        """Drop all entries and continue as the log of another epoch.

        Args:
            epoch: the new prefix of default ids.
            sequence: the next sequence.
            evicted_s: time of the last entry before it, or `-math.inf`.
            indexes: all indexes that have readers, including those of patterns. The cursors of readers become invalid.
        """
        self.evict_before(self.head)
        self._rows = Rows(sequence)
        self._expiry.begin()
        self.epoch, self.floor, self.evicted_early = epoch, None, 0
        self.tail = self.head = sequence
        self.marks.begin(Mark(sequence - 1, evicted_s))
        self.ids.begin()
        for index in indexes:
            index.begin(sequence, evicted_s)

    def topic(self, name: str) -> Topic:
        """Return the topic of this name; create it if missing."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, self.head, *self.marks.take(name), self._limits_of(name))
        return topic

    def append(
        self, topic: Topic, frame: bytes, id: str | None, key: str | None, now_s: float, ttl_s: float | None = None
    ) -> int:
        """Append an entry and apply the limits of bytes and events, and those of the topic.

        Args:
            topic: one of `self.topics`.
            frame: the encoded event; at most `bytes_max` bytes.
            id: the id that the publisher chose, or None for the default id.
            key: the key for `conflate`; events of a topic without a key share the key None.
            now_s: time of the entry in seconds; never less than the time of the previous entry.
            ttl_s: time after which the entry is evicted, in seconds; None for no such time.

        Returns:
            the entry's sequence.
        """
        sequence = self.head
        self.head = sequence + 1
        size, rows = len(frame), self._rows
        rows.frames.append(frame)
        rows.topics.append(topic)
        rows.ids.append(id)
        rows.keys.append(key)
        rows.times.append(now_s)
        rows.superseded.append(0)
        if rows.sequences is not None:
            rows.sequences.append(sequence)
        if id is not None:
            self.ids.add(id, topic.name, sequence)
        older = topic.newest.get(key)
        if older is not None:
            rows.superseded[older - rows.base if rows.sequences is None else rows.row(older)] = 1
        topic.newest[key] = sequence
        self.retained += 1
        if topic.generation != self.generation:
            self._resolve(topic)
        topic.append(sequence, size)
        for index in topic.patterns:
            index.append(sequence, size)
        self.bytes += size
        if ttl_s is not None or topic.limits is not None:
            self._expiry.add(topic, sequence, now_s, ttl_s)
            self.expire(now_s, EXPIRED_AN_APPEND, sequence)
        if self.bytes > self.bytes_max or self.retained > self.events_max > 0:
            self.retain(now_s)
        return sequence

    def skip_to(self, sequence: int) -> None:
        """Continue with a later sequence, because another log with the same entries has evicted those before it."""
        if sequence > self.head:
            self._rows.list_sequences()
            if self.tail == self.head:
                self.tail = sequence
            self.head = sequence

    def keep_from(self, sequence: int | None) -> None:
        """Exempt entries from this sequence on from retention; None ends the exemption."""
        self.floor = sequence

    def retain(self, now_s: float) -> None:
        """Evict entries over the limits, oldest first, but none from `floor` on, nor the newest for its size.

        Call this regularly too: appending does not apply the limit of age.
        """
        stop = self.head if self.floor is None else min(self.floor, self.head)
        if stop <= self.tail:
            return
        rows = self._rows
        first = over = rows.row(self.tail)
        if self.retained > self.events_max > 0:
            over = rows.after_entries(first, self.retained - self.events_max + self.events_max // EVICTED_SHARE)
        if self.bytes > self.bytes_max:
            excess = self.bytes - self.bytes_max + self.bytes_max // EVICTED_SHARE
            over = max(over, min(rows.after_bytes(first, excess), len(rows) - 1))
        if self.age_s_max:
            over = max(over, bisect_left(rows.times, now_s - self.age_s_max, first))
        self._evict_rows(first, min(over, rows.row(stop)))
        rows.remove_front(rows.row(self.tail))

    def evict_before(self, sequence: int) -> None:
        """Evict the entries before a sequence."""
        self._evict_rows(self._rows.row(self.tail), self._rows.row(min(sequence, self.head)))

    def _evict_rows(self, first: int, until: int) -> None:
        """Evict the entries of the rows in [first, until); `first` is the row of the tail."""
        if until <= first:
            return
        rows, part = self._rows, slice(first, until)
        stop = rows.sequence(until - 1) + 1
        sequences: Sequence[int] = range(self.tail, stop) if rows.sequences is None else rows.sequences[part]
        frames, topics, ids, keys = rows.frames[part], rows.topics[part], rows.ids[part], rows.keys[part]
        rows.frames[part] = [None] * len(frames)
        if rows.holes:
            alive = [frame is not None for frame in frames]
            for place, is_alive in enumerate(alive, first):
                if not is_alive:
                    self._evict_id(place)
            rows.holes -= alive.count(False)
            frames, topics, sequences = _pick(frames, alive), _pick(topics, alive), _pick(sequences, alive)
            ids, keys = _pick(ids, alive), _pick(keys, alive)
        self.bytes -= sum(map(len, frames))  # type: ignore[arg-type]
        self.retained -= len(frames)
        for each, topic, id, key in zip(sequences, topics, ids, keys, strict=True):
            if id is not None:
                self.ids.evict(id, topic.name)
            if key is not None and topic.newest.get(key) == each:
                topic.lost = max(topic.lost, topic.newest.pop(key))  # A later one may have been evicted early.
        if self._expiry.ttls:
            self._expiry.forget(sequences)
        last = dict(zip(topics, sequences, strict=True))
        self.tail = stop
        for topic, evicted in last.items():
            if topic.newest.get(None, stop) < stop:
                topic.lost = max(topic.lost, topic.newest.pop(None))
            if topic.generation != self.generation:
                self._resolve(topic)
            time_s = rows.times[rows.row(evicted)]
            topic.evict(stop, evicted, time_s)
            for index in topic.patterns:
                index.evict(stop, evicted, time_s)
                index.lost = max(index.lost, topic.lost)
            self.forget(topic)
        self._move_tail(until)

    def expire(self, now_s: float, count_max: int = EXPIRED_A_CALL, stop: int | None = None) -> bool:
        """Evict entries whose `ttl` has passed or whose topic exceeds its own limits.

        Args:
            now_s: the time.
            count_max: maximum number of entries to evict.
            stop: entries from this sequence on are exempt, as are those from `floor` on and those that are `needed`.

        Returns:
            whether others have to be evicted.
        """
        if not (self._expiry.due or self._expiry.over):
            return False
        stop = min(self.head if stop is None else stop, *self.needed.values(), self.floor or self.head)
        for _ in range(count_max):
            sequence = self._expiry.next(now_s, stop)
            if sequence is None:
                return False
            self._evict_early(sequence)
        return True

    def _evict_early(self, sequence: int) -> None:
        """Evict an entry before its turn. A client can resume from its id until its row is removed."""
        rows = self._rows
        row = rows.row(sequence)
        topic, frame, key, time_s = rows.topics[row], rows.frames[row], rows.keys[row], rows.times[row]
        assert frame is not None
        self.bytes -= len(frame)
        self.retained -= 1
        if topic.generation != self.generation:
            self._resolve(topic)
        is_newest = topic.newest.get(key) == sequence
        if is_newest:
            del topic.newest[key]
        for index in (topic, *topic.patterns):
            index.evict_early(sequence, time_s)
            if is_newest:
                index.lost = max(index.lost, sequence)
        self._expiry.forget((sequence,))
        self.forget(topic)
        self.evicted_early = max(self.evicted_early, sequence)
        self.expired += 1
        rows.clear(row)
        rows.holes += 1
        if sequence == self.tail:
            self._move_tail(row)
            rows.remove_front(rows.row(self.tail))
        elif rows.full_of_holes:
            for dead in rows.next_holes(rows.row(self.tail)):
                self._evict_id(dead)
            rows.remove_holes()

    def _evict_id(self, row: int) -> None:
        """Forget the publisher's id of an entry that was evicted before its turn."""
        id = self._rows.ids[row]
        if id is not None:
            self.ids.evict(id, self._rows.topics[row].name)

    def _move_tail(self, row: int) -> None:
        """Move the tail to the first retained entry from a row on."""
        rows = self._rows
        if rows.holes:
            living = rows.living(row)
            for dead in range(row, living):
                self._evict_id(dead)
            rows.holes -= living - row
            row = living
        self.tail = rows.sequence(row) if row < len(rows) else self.head

    def forget(self, topic: Topic) -> None:
        """Drop a topic if it has neither entries nor readers."""
        if not topic.retained and not topic.pinned:
            self.marks.put(topic.name, Mark(topic.evicted, topic.evicted_s))
            self.topics.pop(topic.name, None)

    def evicted(self) -> Iterator[tuple[str, int, float]]:
        """Return the current marks of evicted entries: each topic's name, and its last one's sequence and time."""
        marks, topics = dict(self.marks.items()), list(self.topics.values())
        # Entries may be evicted while the caller reads the marks. Those before this sequence are evicted now.
        last = max(self.tail - 1, self.evicted_early)
        forgotten = ((name, *mark) for name, mark in marks.items())
        return chain(forgotten, ((topic.name, min(topic.evicted, last), topic.evicted_s) for topic in topics))

    def know_evicted(
        self,
        topics: Iterable[tuple[str, int, float]],
        ids: Iterable[tuple[str, str]],
        rest: tuple[int, float] | None = None,
    ) -> None:
        """Import the marks of evicted entries of another log with the same entries.

        This adds no topics to the log.

        Args:
            topics: as `evicted` returns them.
            ids: as `OwnIds.evicted` returns them.
            rest: the mark of all topics that were not named; None while other topics follow.
        """
        for name, sequence, time_s in topics:
            self.evicted_early = max(self.evicted_early, sequence)  # Not all marks are before the tail.
            topic = self.topics.get(name)
            if topic is None:
                self.marks.know(name, Mark(sequence, time_s))
            else:
                topic.evicted, topic.evicted_s = sequence, time_s
        for pair in ids:
            self.ids.evict(*pair)
        if rest is not None:
            self.marks.rest = Mark(*rest)

    # Indexes

    def resolve_with(self, resolve: Callable[[Topic], None]) -> None:
        """Set the function that updates `patterns` and `generation` of a topic of an older generation."""
        self._resolve = resolve

    def new_index(self) -> Index:
        """Make an index for a pattern, complete from the head on; `relay.core.backfill` adds older entries."""
        return Index(self.head, *NOTHING, evicted_known=self.tail == 1 and not self.evicted_early)

    # Reading

    def frame(self, sequence: int) -> bytes:
        """Return the frame of a retained entry."""
        frame = self._rows.frames[self._rows.row(sequence)]
        assert frame is not None, "the entry is evicted"
        return frame

    def has(self, sequence: int) -> bool:
        """Return whether the log retains an entry."""
        return self.tail <= sequence < self.head and self._rows.has(sequence)

    def entry(self, sequence: int) -> Entry:
        """Return a retained entry with all its fields."""
        rows, frame = self._rows, self.frame(sequence)
        row = rows.row(sequence)
        ttl_s = self._expiry.ttls.get(sequence)
        return Entry(
            sequence, rows.times[row], rows.topics[row].name, rows.ids[row], rows.keys[row], frame, ttl_s
        )

    def following(self, cursor: int) -> int:
        """Return the first retained sequence at or after a cursor, which is not before the tail; the head if none."""
        row = self._rows.living(self._rows.row(cursor))
        return self._rows.sequence(row) if row < len(self._rows) else self.head

    def rows_reversed(self, start: int, stop: int) -> Iterator[tuple[int, Topic, int]]:
        """Return sequence, topic and size of the retained entries in [start, stop), the newest first."""
        return self._rows.newest_first(start, stop)

    def time_s(self, sequence: int) -> float:
        """Return the time of a retained entry."""
        rows = self._rows
        return rows.times[sequence - rows.base if rows.sequences is None else rows.row(sequence)]

    def topic_of(self, sequence: int) -> str:
        """Return the topic of a retained entry."""
        return self._rows.topics[self._rows.row(sequence)].name

    def pick(self, sequences: Sequence[int]) -> list[bytes]:
        """Return the frames of retained entries."""
        rows = self._rows
        base, frames = rows.base, rows.frames
        if rows.sequences is None:
            return [frames[sequence - base] for sequence in sequences]  # type: ignore[misc]
        return [frames[rows.row(sequence)] for sequence in sequences]  # type: ignore[misc]

    def current(self, sequences: Iterable[int]) -> array[int]:
        """Return those of some sequences whose entries are retained and not superseded."""
        tail = self.tail
        return self._rows.current([each for each in sequences if each >= tail])

    def merge(
        self, indexes: Iterable[Index], cursor: int, until: int, bytes_max: int, *, conflate: bool = False
    ) -> Batch | None:
        """Read several indexes in log order.

        Args:
            indexes: indexes of disjoint terms: no entry is in two of them.
            cursor: first sequence to read; sequences below `tail` are skipped.
            until: sequence to stop before.
            bytes_max: maximum bytes of frames; one entry is always returned. Reads at most `READ_ENTRIES_MAX` entries.
            conflate: omit entries that a later entry of the same topic and key supersedes.

        Returns:
            a batch, or None without entries. With `conflate` a batch may be empty although its cursor moves.
        """
        cursor, cut = max(cursor, self.tail), until
        if cursor >= until:
            return None
        wanted: list[int] = []
        size = 0
        for index in indexes:
            part, part_bytes = index.part(cursor, until, READ_ENTRIES_MAX)
            wanted += part
            size += part_bytes
            if len(part) == READ_ENTRIES_MAX:
                cut = min(cut, part[-1] + 1)
        if not wanted:
            return None
        if size <= bytes_max and len(wanted) < READ_ENTRIES_MAX and not conflate:
            wanted.sort()
            return Batch(wanted, [], until)  # All entries fit, as is usual in a flush.
        return self._batch(wanted, cut, bytes_max, conflate=conflate)

    def read_newest(self, indexes: Iterable[Index], cursor: int, until: int, bytes_max: int) -> Batch:
        """Read the entries that are the newest of their topic and key, as `merge` reads all entries.

        Entries that a later entry supersedes during the replay are omitted, because the stream receives the later one.
        """
        cursor, cut = max(cursor, self.tail), until
        wanted: list[int] = []
        for index in indexes:
            part, after = index.newest_part(self.current, self.tail, cursor, until, READ_ENTRIES_MAX)
            wanted += part
            cut = min(cut, after)
        return self._batch(wanted, cut, bytes_max)

    def _batch(self, wanted: list[int], cut: int, bytes_max: int, *, conflate: bool = False) -> Batch:
        """Return the entries before `cut` that fit; `wanted` has the sequences of each index, one after the other."""
        wanted.sort()  # The part of each index is sorted; timsort merges the parts.
        rows, size = self._rows, 0
        base = rows.base if rows.sequences is None else None
        frames, flags = rows.frames, rows.superseded
        sequences: list[int] = []
        superseded: list[int] = []
        if len(wanted) > READ_ENTRIES_MAX:
            cut = min(cut, wanted[READ_ENTRIES_MAX])
        if wanted and wanted[-1] >= cut:
            del wanted[bisect_left(wanted, cut) :]
        for sequence in wanted:
            row = rows.row(sequence) if base is None else sequence - base
            if conflate and flags[row]:
                superseded.append(sequence)
                continue
            size += len(frames[row])  # type: ignore[arg-type]
            if sequences and size > bytes_max:
                cut = sequence
                break
            sequences.append(sequence)
        return Batch(sequences, superseded, cut)

    # Ids

    def id(self, sequence: int) -> str:
        """Return the id of an entry; the default id if the entry is not retained or has no own id."""
        if self.has(sequence):
            own = self._rows.ids[self._rows.row(sequence)]
            if own is not None:
                return own
        return self.default_id(sequence)

    def default_id(self, sequence: int) -> str:
        """Return the default id of an entry."""
        return f"{self.epoch}-{sequence}"

    def newest(self, topic: str) -> Iterator[tuple[str | None, bytes]]:
        """Yield the own id, if any, and the frame of each retained entry of a topic, the newest first."""
        known = self.topics.get(topic)
        for sequence in reversed(known.last_rows(known.retained) if known is not None else ()):
            yield self._rows.ids[self._rows.row(sequence)], self.frame(sequence)

    def find(self, ids: Sequence[str], terms: tuple[str, ...]) -> int | None:
        """Return the sequence of the last event that a subscriber received; None if unknown.

        A default id of this epoch is found even if its entry is evicted, so that a gap can report the missed events.

        Args:
            ids: the readings of the subscriber's last id.
            terms: the disjoint terms of its subscription.
        """
        sequence = default_sequence(ids, self.epoch)
        if sequence is None:
            return self.ids.find(ids, terms)
        return sequence if sequence < self.head else None

    def since(self, time_s: float) -> int:
        """Return the first retained sequence whose time is at or after `time_s`."""
        rows = self._rows
        row = bisect_left(rows.times, time_s, rows.row(self.tail))
        return rows.sequence(row) if row < len(rows) else self.head
