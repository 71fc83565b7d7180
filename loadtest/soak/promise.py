"""The check of one reader of the soak: each event once, in order, or a gap that reports exactly the missed events.

The events of a group are numbered from 1, and the log gives each the next sequence. So the id of an event determines
its number, and the ids in a gap determine the missed numbers. The verdict never depends on time.

Owns this check and its counts. Never connects and never publishes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.client.subscribe import Gap

CONFLATED = "conflated"


class Numbering:
    """The relation between the ids of one log and the numbers of its events."""

    def __init__(self) -> None:
        self._epoch = ""
        self._first = 0

    def number(self, id: str) -> int:
        """Return the number of the event with an id; 0 or less for an id before the first event.

        Raises:
            ValueError: the id belongs to another epoch.
        """
        epoch, _, sequence = id.rpartition("-")
        if epoch != self._epoch:
            raise ValueError(f"the id {id} does not belong to the epoch {self._epoch!r}")
        return int(sequence) - self._first

    def agrees(self, id: str, number: int) -> bool:
        """Return whether an event with this number may have this id. The first call determines the relation."""
        epoch, _, sequence = id.rpartition("-")
        if not self._epoch:
            self._epoch, self._first = epoch, int(sequence) - number
        return (epoch, int(sequence)) == (self._epoch, self._first + number)


@dataclass(slots=True)
class Interval:
    """The numbers from `first` to `last` that a gap reports, of which `missed` were missed; None if it is not known."""

    first: int
    last: int
    missed: int | None
    conflated: bool
    skipped: int = 0


@dataclass(slots=True)
class Promise:
    """Checks the events of one reader over all of its connections.

    Args:
        wants: returns whether the event with a number belongs to the reader's topics.
        key_of: returns the key of the event with a number, for the policy `conflate`.
        numbering: the numbers of the ids.
        expected: after the first event, the number after the last event.
        received: events; reported: missed events that gaps reported.
        gaps: gaps by reason; faults: broken promises.
    """

    wants: Callable[[int], bool]
    key_of: Callable[[int], str]
    numbering: Numbering
    expected: int = 0
    received: int = 0
    reported: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    _intervals: list[Interval] = field(default_factory=list)
    _superseded: dict[str, int] = field(default_factory=dict)
    """The newest number of each key that a conflated gap reported, until a newer event of the key arrives."""

    def opened(self, last_event_id: str) -> None:
        """Begin another connection. It reports a gap again, unless the last id is after the gap."""
        if self._intervals:
            resumed = self.numbering.number(last_event_id)
            self._intervals = [each for each in self._intervals if each.last <= resumed]

    def gap(self, gap: Gap) -> None:
        """Take a gap."""
        self.gaps[gap.reason] += 1
        if gap.to_id is None:
            self.faults["a gap without the last missed event"] += 1
            return
        first = self.expected if gap.from_id is None else max(self.expected, self.numbering.number(gap.from_id))
        last = self.numbering.number(gap.to_id)
        self._intervals.append(Interval(first, last, gap.missed, gap.reason == CONFLATED))

    def event(self, number: int, id: str) -> None:
        """Take the event with that number."""
        self.received += 1
        if not self.expected:
            self._intervals.clear()  # The first event may have any number, so a gap before it cannot be checked.
        if not self.numbering.agrees(id, number):
            self.faults["an id that does not continue the log"] += 1
        if not self.wants(number):
            self.faults["an event of another topic"] += 1
        if self.expected and number < self.expected:
            self.faults["an event twice, or out of order"] += 1
            return
        if self.expected:
            self._skip(number)
        self.expected = number + 1
        key = self.key_of(number)
        if self._superseded.get(key, number) < number:
            del self._superseded[key]

    def _skip(self, number: int) -> None:
        """Check that the gaps reported the events between the last one and this one."""
        for missed in filter(self.wants, range(self.expected, number)):
            interval = next((each for each in self._intervals if each.first <= missed <= each.last), None)
            if interval is None:
                self.faults["a missed event that no gap reported"] += 1
                continue
            self.reported += 1
            interval.skipped += 1
            if interval.conflated:
                self._superseded[self.key_of(missed)] = missed
        # Intervals may overlap: a stream that conflates may report events of the same interval several times.
        if self._intervals and all(each.last < number for each in self._intervals):
            counts = [each.missed for each in self._intervals]
            skipped = sum(each.skipped for each in self._intervals)
            if None not in counts and sum(filter(None, counts)) != skipped:
                self.faults["a gap with a wrong number of missed events"] += 1
            self._intervals.clear()

    def is_complete(self, last: int) -> bool:
        """Return whether the reader has received its last event, or a gap that reports it."""
        end = max([self.expected, *(each.last + 1 for each in self._intervals if not each.conflated)])
        return bool(self.expected) and not any(map(self.wants, range(end, last + 1)))

    def end(self, last: int) -> None:
        """Check the reader at the end of the run.

        Args:
            last: the number of the last published event.
        """
        if not self.is_complete(last):
            self.faults[f"the end: stands at {self.expected}, not at {last + 1}"] += 1
        if self._superseded:
            self.faults["a conflated event without a newer one of its key"] += len(self._superseded)
