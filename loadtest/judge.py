"""The judge of one subscriber: which numbers it must see, what it was told it missed, and what is a fault.

Sees numbered events as the publishers of this package make them, over all connections of one subscriber. Never touches
a socket, and never counts for others. `tests/oracle.py` holds relay's events against what was published; this one needs
no more than the numbers, so that it can stand at any stream of a load test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson

from relay.event import Event


class Judge:
    """Follows one subscriber.

    Args:
        wants: whether the event of that number is one of its topics.
        first: number of the first event; None takes any as the first.
        gaps_allowed: it may be told that it missed events; else that is a fault.
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
        self.order: list[int] = []  # the numbers as they came, kept where gaps are allowed: there they are few
        self._untold_for = 0

    def gap(self, event: Event) -> str | None:
        """A relay.gap event arrives; return the fault, if it is one."""
        missed = orjson.loads(event.data)["missed"]
        if not self.gaps_allowed or not missed:
            return f"told of a gap: {event.data}"
        self.told += missed
        return None

    def number(self, number: int) -> str | None:
        """The event of that number arrives; return the fault, if it is one."""
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
        self._untold_for = untold  # each missing event is a fault once
        return "events missing that it was not told of"

    def whole(self, last: int) -> bool:
        """Say whether it has seen, or passed over, all of its events up to that number."""
        return self.next is not None and not any(map(self.wants, range(self.next, last + 1)))


def broken_promise(policy: str, judge: Judge, last: int, key_of: Callable[[int], int]) -> str | None:
    """Hold what a slow stream got against the policy, event by event, once it has read everything.

    Args:
        policy: of relay.
        judge: of the stream.
        last: number of the last event published.
        key_of: key of the event of that number.

    Returns:
        What it should not have got, or None.
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
