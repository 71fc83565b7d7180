"""Judge one subscriber: track the numbers that it must see, the events that gap events reported, and the faults.

Receives the numbered events of this package's publishers, over all connections of one subscriber. Never touches a
socket and never counts for other subscribers. `tests/oracle.py` compares relay's events with the published ones. The
judge needs only the numbers, so it works on any stream of a load test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson

from relay.event import Event


class Judge:
    """Follows one subscriber.

    Args:
        wants: returns whether the event with that number belongs to the subscriber's topics.
        first: number of the first event; None accepts any number first.
        gaps_allowed: gap events are allowed; otherwise each gap event is a fault.
    """

    def __init__(
        self, wants: Callable[[int], bool], *, first: int | None = None, gaps_allowed: bool = False
    ) -> None:
        self.wants = wants
        self.next = first
        self.gaps_allowed = gaps_allowed
        self.seen = 0
        self.missed: list[int] = []
        self.told = 0
        self.order: list[int] = []  # in order of arrival; kept only if gaps are allowed, because such streams are few
        self._untold_for = 0

    def gap(self, event: Event) -> str | None:
        """Take a relay.gap event; return the fault if there is one."""
        missed = orjson.loads(event.data)["missed"]
        if not self.gaps_allowed or not missed:
            return f"told of a gap: {event.data}"
        self.told += missed
        return None

    def number(self, number: int) -> str | None:
        """Take the event with that number; return the fault if there is one."""
        self.seen += 1
        if not self.wants(number):
            return "an event of another topic"
        if self.gaps_allowed:
            self.order.append(number)
        if self.next is not None and number < self.next:
            return "an event twice, or out of order"
        skipped = [] if self.next is None else [n for n in range(self.next, number) if self.wants(n)]
        self.next = number + 1
        return self._miss(skipped)

    def _miss(self, numbers: Iterable[int]) -> str | None:
        self.missed += numbers
        untold = len(self.missed) - self.told
        if untold <= self._untold_for:
            return None
        self._untold_for = untold  # report each missing event only once
        return "events missing that it was not told of"

    def whole(self, last: int) -> bool:
        """Return whether it has seen or skipped all of its events up to that number."""
        return self.next is not None and not any(map(self.wants, range(self.next, last + 1)))


def broken_promise(policy: str, judge: Judge, last: int, key_of: Callable[[int], int]) -> str | None:
    """Check the events of a slow stream against its policy, event by event, after it has read everything.

    Args:
        policy: relay's policy.
        judge: the stream's judge.
        last: number of the last published event.
        key_of: returns the key of the event with that number.

    Returns:
        The way in which the policy was broken, or None.
    """
    if not judge.whole(last):
        return f"stands at {judge.next}, not at {last}"
    if len(judge.missed) != judge.told:
        return f"told of {judge.told} events missing, not {len(judge.missed)}"
    if policy in ("disconnect", "block"):
        return f"lost {len(judge.missed)} events" if judge.missed else None
    if policy == "conflate":
        newest: dict[int, int] = {}
        for number in judge.order:
            newest[key_of(number)] = number
        superseded = all(newest.get(key_of(number), 0) > number for number in judge.missed)
        return None if superseded else "misses an event that was the newest of its key"
    return None if judge.missed else "was never slow"
