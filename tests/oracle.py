"""The oracle of the promise: each event of the topics in order, exactly once, or a gap event that reports it as missed.

One `Oracle` follows one subscriber over all of its connections. The test reports each published event, each connection
and each received event to it. The oracle raises AssertionError at the first violation of the promise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import orjson

from relay.event import Event


def matches(term: str, topic: str) -> bool:
    """Return whether a term matches a topic. Compares levels, independently of relay's implementation."""
    wild, levels = term.split("."), topic.split(".")
    if wild[-1] == "**":
        wild[-1:] = ["*"] * max(1, len(levels) - len(wild) + 1)
    return len(wild) == len(levels) and all(own in ("*", level) for own, level in zip(wild, levels, strict=True))


def _position(id: str) -> int | None:
    """Return the sequence in a default id, as in a priming block; None for a publisher's id."""
    epoch, _, digits = id.rpartition("-")
    return int(digits) if digits.isdigit() and not epoch.startswith("own") else None


@dataclass
class Published:
    """The published events by sequence; shared by all oracles of one server."""

    events: dict[int, Event] = field(default_factory=dict)
    uses: dict[str, list[int]] = field(default_factory=dict)
    """The sequences of the events with each id. Publishers may reuse an id."""
    next_of_key: dict[int, int] = field(default_factory=dict)
    """The sequence of the next event of the same topic and key."""
    _newest: dict[tuple[str | None, str | None], int] = field(default_factory=dict)

    def add(self, event: Event, id: str) -> None:
        """Record an event and its acknowledged id."""
        sequence = len(self.events) + 1
        self.events[sequence] = event
        self.uses.setdefault(id, []).append(sequence)
        older = self._newest.get((event.topic, event.key))
        if older is not None:
            self.next_of_key[older] = sequence
        self._newest[event.topic, event.key] = sequence


class Oracle:
    """Checks the events that one subscriber receives.

    Args:
        published: the events that the server accepted.
        terms: the terms of the subscription.
    """

    def __init__(self, published: Published, terms: tuple[str, ...]) -> None:
        self.published = published
        self.terms = terms
        self.next: int | None = None  # the next sequence that the subscriber needs; None while unknown
        self.skipped = 0  # events that were skipped in this connection
        self.reported = 0  # missed events that gaps have reported in this connection
        self.open_ended = False  # a gap of unknown size was received, and no event since
        self.unsure = False  # this connection had a gap of unknown size, so the counts may differ
        self.newest_until = 0  # before this sequence, the connection omits superseded events
        self.excused_until = 0  # a gap of unknown size reports missed events up to this sequence
        self.evicted: Collection[int] = ()  # events that the server did not retain when the connection began
        self.forgotten: Collection[int] = ()  # events that the process which took the stream over never had
        self.promised = True  # the server knows where the connection continues
        self.seen = 0
        self.gaps = 0
        self.omitted = 0

    def wants(self, sequence: int) -> bool:
        """Return whether the subscription includes the event with this sequence."""
        topic = self.published.events[sequence].topic
        assert topic is not None
        return any(matches(term, topic) for term in self.terms)

    def connect(
        self, first: int | None, last_id: str = "", newest_until: int = 0, evicted: Collection[int] = ()
    ) -> None:
        """Begin a connection. `first` is the first sequence that the server promised; None continues from the last id.

        The server did not retain the events in `evicted`, so it promised them only to a client that resumes. Before
        `newest_until`, it sends only the newest event of each topic and key.
        If several events of the subscription have that id, the stream continues after the oldest. Some may repeat.
        """
        if first is not None:
            self.next = first
        elif self.next is not None and len(uses := self._uses(last_id)) > 1:
            self.next = min(self.next, uses[0] + 1)
        self.skipped = self.reported = 0
        self.open_ended = self.unsure = False
        self.newest_until, self.evicted, self.forgotten, self.excused_until = newest_until, evicted, (), 0
        self.promised = first is None

    def _uses(self, id: str) -> list[int]:
        return [sequence for sequence in self.published.uses.get(id, ()) if self.wants(sequence)]

    def receive(self, event: Event) -> None:
        """Check one received event."""
        if event.event == "relay.gap":
            self._receive_gap(event)
        elif event.event != "relay.heartbeat":
            self._receive_event(event)

    def _receive_gap(self, event: Event) -> None:
        gap = orjson.loads(event.data)
        self.gaps += 1
        for id in (gap["from"], gap["to"]):
            assert id is None or self._uses(id) or _position(id) is not None, f"an id of another topic: {gap}"
        if gap["missed"] is None:
            self.open_ended = self.unsure = True
            to = _position(gap["to"] or "") or 0
            # Without ends, a gap of a lagging stream reports events anywhere in the rest of the replay.
            self.excused_until = max(self.excused_until, self.newest_until if gap["to"] is None else to)
            if gap["reason"] == "unknown":
                self.promised = False  # All retained events follow, also those that precede the unknown id.
                self.next = 1
        else:
            assert gap["missed"] > 0, f"an empty gap: {gap}"
            self.reported += gap["missed"]

    def _receive_event(self, event: Event) -> None:
        assert event.id is not None, f"an event without an id: {event}"
        assert event.id in self.published.uses, f"an event that was never published: {event}"
        uses = [each for each in self._uses(event.id) if self.published.events[each].data == event.data]
        assert uses, f"an event of another topic, or a changed one: {event}"
        sequence = uses[0]
        given = self.published.events[sequence]
        assert event.event == given.event, f"a changed event: {event}, not {given}"
        assert self.next is not None
        assert sequence >= self.next, f"repeated or out of order: {sequence} after {self.next - 1}"
        newer = self._next_of_key(sequence)
        # Another process may not know the newer event.
        while newer < self.newest_until and (newer in self.evicted or newer in self.forgotten):
            newer = self._next_of_key(newer)
        assert newer >= self.newest_until, f"{sequence} was superseded by {newer} when the stream began"
        self._pass(sequence)
        self.next = sequence + 1
        self.seen += 1

    def _next_of_key(self, sequence: int) -> int:
        return self.published.next_of_key.get(sequence, self.newest_until)

    def advance(self, id: str) -> None:
        """Set the subscriber's last id, from any block. The subscriber will resume from it."""
        sequence = _position(id)
        if sequence is not None and self.next is not None and sequence >= self.next:
            self._pass(sequence + 1)
            self.next = sequence + 1

    def _pass(self, until: int) -> None:
        """Account for the events before `until` that were not delivered."""
        assert self.next is not None
        missing = sum(self.wants(each) and not self._may_omit(each) for each in range(self.next, until))
        if missing and self.open_ended:
            self.open_ended = False
            return
        self.skipped += missing
        assert self.skipped <= self.reported, f"{self.skipped} events missing before {until}, {self.reported} reported"

    def _may_omit(self, sequence: int) -> bool:
        """Return whether a later event supersedes an event, the server had evicted it, or a gap covers it."""
        omits = sequence < self.newest_until and sequence in self.published.next_of_key
        self.omitted += omits
        was_evicted = not self.promised and sequence in self.evicted
        return omits or was_evicted or sequence <= self.excused_until

    def finish(self) -> None:
        """Check that each event was delivered or reported as missed, when the server is idle and all is read."""
        if self.next is None:
            return
        self._pass(len(self.published.events) + 1)
        assert self.reported == self.skipped or self.unsure, f"{self.skipped} events missing, {self.reported} reported"


def check_received(published: Published, seen: Iterable[Event | None]) -> None:
    """Check that a subscriber of all topics received each event exactly once, in order and without a gap.

    Args:
        published: the published events.
        seen: the received events; None marks the start of a connection.
    """
    oracle = Oracle(published, ("**",))
    oracle.connect(1)
    for event in seen:
        if event is None:
            oracle.connect(None)
        else:
            oracle.receive(event)
    oracle.finish()
    assert oracle.gaps == 0
