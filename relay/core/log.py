"""The log: all retained entries in one global order, with an index for each subscription term.

Theory of operation. An entry is a row across parallel columns (frame, topic, id, key, time, superseded); its position
is its sequence minus `_base`. With an object per entry, the garbage collector would traverse half a million objects.
Sequences increase by one and never wrap. `tail` is the oldest retained sequence, `head` the next sequence. Retention
moves `tail` and drops the frames at once; it removes dead rows from the columns when they are an eighth of the rows.
A full log evicts a batch each time, because to evict a single entry takes longer than to append one.
Each topic has its own index (`relay.core.index`); the index of a pattern is attached to every topic that matches.

Owns retention, ids and the topics. Never knows the readers, encodes, opens a file or reads a clock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from math import inf
from typing import NamedTuple

from relay.core.evicted import NOTHING, Mark, Marks
from relay.core.index import Index, Topic
from relay.core.own_ids import OwnIds
from relay.ids import default_sequence

READ_ENTRIES_MAX = 1024
"""Maximum number of entries that one merging read examines."""

EVICTED_SHARE = 256
"""A full log evicts entries until it is below the limit by the limit divided by this."""

_DEAD_ROWS_MIN = 1024


class Batch(NamedTuple):
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


class Log:
    """The retained entries.

    Args:
        epoch: the prefix of default ids; different in every run.
        bytes_max: maximum bytes of retained frames.
        events_max: maximum number of retained entries; 0 for no limit.
        age_s_max: maximum age of an entry in seconds; 0 for no limit.
    """

    def __init__(
        self,
        epoch: str,
        *,
        bytes_max: int,
        events_max: int = 0,
        age_s_max: float = 0.0,
    ) -> None:
        self.epoch = epoch
        self.bytes_max = bytes_max
        self.events_max = events_max
        self.age_s_max = age_s_max
        self.head = 1
        self.tail = 1
        self.bytes = 0
        self.floor: int | None = None  # entries from this sequence on are exempt from retention
        self.topics: dict[str, Topic] = {}
        self.generation = 0  # increases when a pattern is added or removed
        self._resolve: Callable[[Topic], None] = lambda _: None  # without patterns
        self.marks = Marks()
        self._base = 1
        self._frames: list[bytes | None] = []
        self._topics: list[Topic] = []
        self._ids: list[str | None] = []
        self._keys: list[str | None] = []
        self._times = array("d")
        self._superseded = bytearray()
        self.ids = OwnIds(self.topic_of)

    def __len__(self) -> int:
        return self.head - self.tail

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
        del self._frames[:], self._topics[:], self._ids[:], self._keys[:], self._times[:], self._superseded[:]
        self.epoch, self.floor = epoch, None
        self._base = self.tail = self.head = sequence
        self.marks.begin(Mark(sequence - 1, evicted_s))
        self.ids.begin()
        for index in indexes:
            index.begin(sequence, evicted_s)

    def topic(self, name: str) -> Topic:
        """Return the topic of this name; create it if missing."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, self.head, *self.marks.take(name))
        return topic

    def append(self, topic: Topic, frame: bytes, id: str | None, key: str | None, now_s: float) -> int:
        """Append an entry and apply the limits of bytes and events.

        Args:
            topic: one of `self.topics`.
            frame: the encoded event; at most `bytes_max` bytes.
            id: the id that the publisher chose, or None for the default id.
            key: the key for `conflate`; events of a topic without a key share the key None.
            now_s: time of the entry in seconds; never less than the time of the previous entry.

        Returns:
            the entry's sequence.
        """
        sequence = self.head
        self.head = sequence + 1
        size = len(frame)
        self._frames.append(frame)
        self._topics.append(topic)
        self._ids.append(id)
        self._keys.append(key)
        self._times.append(now_s)
        self._superseded.append(0)
        if id is not None:
            self.ids.add(id, topic.name, sequence)
        older = topic.newest.get(key)
        if older is not None:
            self._superseded[older - self._base] = 1
        topic.newest[key] = sequence
        if topic.generation != self.generation:
            self._resolve(topic)
        topic.append(sequence, size)
        for index in topic.patterns:
            index.append(sequence, size)
        self.bytes += size
        if self.bytes > self.bytes_max or self.head - self.tail > self.events_max > 0:
            self.retain(now_s)
        return sequence

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
        over = self.tail
        if self.head - over > self.events_max > 0:
            over = self.head - self.events_max + self.events_max // EVICTED_SHARE
        if self.bytes > self.bytes_max:
            excess = self.bytes - self.bytes_max + self.bytes_max // EVICTED_SHARE
            over = max(over, min(self._after_bytes(excess), self.head - 1))
        if self.age_s_max:
            over = max(over, self.since(now_s - self.age_s_max))
        self.evict_before(min(over, stop))
        dead = self.tail - self._base
        if dead > _DEAD_ROWS_MIN and dead * 8 > len(self._frames):
            del self._frames[:dead], self._topics[:dead], self._ids[:dead], self._keys[:dead]
            del self._times[:dead], self._superseded[:dead]
            self._base = self.tail

    def _after_bytes(self, size: int) -> int:
        """Return the sequence after the oldest entries that have at least this many bytes together."""
        row, count = self.tail - self._base, 16
        while row < len(self._frames):
            ends = list(accumulate(map(len, self._frames[row : row + count])))  # type: ignore[arg-type]
            if ends[-1] >= size:
                return self._base + row + bisect_left(ends, size) + 1
            size -= ends[-1]
            row += len(ends)
            count *= 2
        return self.head

    def evict_before(self, sequence: int) -> None:
        """Evict the entries before a sequence."""
        stop = min(sequence, self.head)
        if stop <= self.tail:
            return
        base, rows = self._base, slice(self.tail - self._base, stop - self._base)
        frames, topics = self._frames[rows], self._topics[rows]
        self._frames[rows] = [None] * len(frames)
        self.bytes -= sum(map(len, frames))  # type: ignore[arg-type]
        columns = zip(topics, self._ids[rows], self._keys[rows], strict=True)
        for each, (topic, id, key) in enumerate(columns, self.tail):
            if id is not None:
                self.ids.evict(id, topic.name)
            if key is not None and topic.newest.get(key) == each:
                topic.lost = topic.newest.pop(key)
        last = dict(zip(topics, range(self.tail, stop), strict=True))
        self.tail = stop
        for topic, evicted in last.items():
            if topic.newest.get(None, stop) < stop:
                topic.lost = max(topic.lost, topic.newest.pop(None))
            if topic.generation != self.generation:
                self._resolve(topic)
            time_s = self._times[evicted - base]
            topic.evict(stop, evicted, time_s)
            for index in topic.patterns:
                index.evict(stop, evicted, time_s)
                index.lost = max(index.lost, topic.lost)
            self.forget(topic)

    def forget(self, topic: Topic) -> None:
        """Drop a topic if it has neither entries nor readers."""
        if not topic.retained and not topic.pinned:
            self.marks.put(topic.name, Mark(topic.evicted, topic.evicted_s))
            self.topics.pop(topic.name, None)

    def evicted(self) -> Iterator[tuple[str, int, float]]:
        """Return the current marks of evicted entries: each topic's name, and its last one's sequence and time."""
        marks, topics, last = dict(self.marks.items()), list(self.topics.values()), self.tail - 1
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
        return Index(self.head, *NOTHING, evicted_known=self.tail == 1)

    # Reading

    def frame(self, sequence: int) -> bytes:
        """Return the frame of a retained entry."""
        frame = self._frames[sequence - self._base]
        assert frame is not None, "the entry is evicted"
        return frame

    def entry(self, sequence: int) -> Entry:
        """Return a retained entry with all its fields."""
        row = sequence - self._base
        return Entry(
            sequence,
            self._times[row],
            self._topics[row].name,
            self._ids[row],
            self._keys[row],
            self.frame(sequence),
        )

    def rows_reversed(self, start: int, stop: int) -> Iterator[tuple[int, Topic, int]]:
        """Return sequence, topic and size of the retained entries in [start, stop), the newest first."""
        rows = slice(start - self._base, stop - self._base)
        topics, frames = self._topics[rows], self._frames[rows]
        return zip(range(stop - 1, start - 1, -1), reversed(topics), map(len, reversed(frames)), strict=True)  # type: ignore[arg-type]

    def time_s(self, sequence: int) -> float:
        """Return the time of a retained entry."""
        return self._times[sequence - self._base]

    def topic_of(self, sequence: int) -> str:
        """Return the topic of a retained entry."""
        return self._topics[sequence - self._base].name

    def pick(self, sequences: Sequence[int]) -> list[bytes]:
        """Return the frames of retained entries."""
        base, frames = self._base, self._frames
        return [frames[sequence - base] for sequence in sequences]  # type: ignore[misc]

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
        for index in indexes:
            part = index.part(cursor, until, READ_ENTRIES_MAX)
            wanted += part
            if len(part) == READ_ENTRIES_MAX:
                cut = min(cut, part[-1] + 1)
        if not wanted:
            return None
        return self._batch(wanted, cut, bytes_max, conflate=conflate)

    def read_newest(self, indexes: Iterable[Index], cursor: int, until: int, bytes_max: int) -> Batch:
        """Read the entries that are the newest of their topic and key, as `merge` reads all entries.

        Entries that a later entry supersedes during the replay are omitted, because the stream receives the later one.
        """
        cursor, cut = max(cursor, self.tail), until
        wanted: list[int] = []
        for index in indexes:
            part, after = index.newest_part(cursor, until, READ_ENTRIES_MAX, self._superseded, self._base)
            wanted += part
            cut = min(cut, after)
        return self._batch(wanted, cut, bytes_max)

    def _batch(self, wanted: list[int], cut: int, bytes_max: int, *, conflate: bool = False) -> Batch:
        """Return the entries before `cut` that fit; `wanted` has the sequences of each index, one after the other."""
        wanted.sort()  # The part of each index is sorted; timsort merges the parts.
        base, frames, flags, size = self._base, self._frames, self._superseded, 0
        sequences: list[int] = []
        superseded: list[int] = []
        if len(wanted) > READ_ENTRIES_MAX:
            cut = min(cut, wanted[READ_ENTRIES_MAX])
        for sequence in wanted:
            if sequence >= cut:
                break
            if conflate and flags[sequence - base]:
                superseded.append(sequence)
                continue
            size += len(frames[sequence - base])  # type: ignore[arg-type]
            if sequences and size > bytes_max:
                cut = sequence
                break
            sequences.append(sequence)
        return Batch(sequences, superseded, cut)

    # Ids

    def id(self, sequence: int) -> str:
        """Return the id of an entry; the default id if the entry is not retained or has no own id."""
        if self.tail <= sequence < self.head:
            own = self._ids[sequence - self._base]
            if own is not None:
                return own
        return f"{self.epoch}-{sequence}"

    def newest(self, topic: str) -> Iterator[tuple[str | None, bytes]]:
        """Yield the own id, if any, and the frame of each retained entry of a topic, the newest first."""
        known = self.topics.get(topic)
        for sequence in reversed(known.sequences if known is not None else ()):
            if sequence < self.tail:
                return
            yield self._ids[sequence - self._base], self.frame(sequence)

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
        return bisect_left(self._times, time_s, lo=self.tail - self._base) + self._base
