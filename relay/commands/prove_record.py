"""The check of `relay demo --prove`: the events that one client received, compared with the published ones.

The events of a topic are numbered from 1. All events together have a place, which increases. A client must receive each
number of its topics once, in the order of the places. A `relay.gap` event must count all missed numbers.

Owns this check, its sums, and the messages between the process of the clients and the process that runs the faults.
Never connects and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import add

import msgspec
from msgspec.structs import astuple

from relay.client.subscribe import read_gap
from relay.event import Event


class Sums(msgspec.Struct):
    """The received and missed events of a group of clients.

    Args:
        clients: the number of clients.
        received: events received.
        unreported: events that were missed, and that no gap counted.
        repeated: events received again.
        disordered: events received after a later one.
        reported: missed events that a gap counted.
    """

    clients: int = 0
    received: int = 0
    unreported: int = 0
    repeated: int = 0
    disordered: int = 0
    reported: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*map(add, astuple(self), astuple(other)))


def total(groups: Iterable[Sums]) -> Sums:
    """Return the sums of all groups together."""
    return sum(groups, Sums())


def event_data(topic: str, number: int, place: int, padding: str = "") -> str:
    """Return the data of a published event.

    Args:
        topic: the topic.
        number: the number of the event in its topic, from 1.
        place: the number of the event among all events.
        padding: makes the event larger.
    """
    return f"{topic} {number} {place} {padding}"


class Record:
    """The events that one client received.

    Args:
        topics: the topics of the client.
    """

    __slots__ = ("_disordered", "_missed", "_next", "_place", "_received", "_repeated", "_reported")

    def __init__(self, topics: Sequence[str]) -> None:
        self._next = dict.fromkeys(topics, 1)
        self._place = 0
        self._received = self._repeated = self._disordered = self._missed = self._reported = 0

    def take(self, event: Event) -> None:
        """Check one event."""
        gap = read_gap(event)
        if gap is not None:
            self._reported += gap.missed or 0
            return
        topic, number_text, place_text, _ = str(event.data).split(" ", 3)
        number, place, expected = int(number_text), int(place_text), self._next[topic]
        if number < expected:
            self._repeated += 1
            return
        if place < self._place:
            self._disordered += 1
        self._place = place
        self._missed += number - expected
        self._next[topic] = number + 1
        self._received += 1

    def is_complete(self, published: Mapping[str, int]) -> bool:
        """Return whether the client has received the last event of each topic.

        Args:
            published: the number of published events of each topic.
        """
        return all(self._next[topic] > published.get(topic, 0) for topic in self._next)

    def sums(self, published: Mapping[str, int]) -> Sums:
        """Return the result of the check. Events that have not arrived are missed."""
        absent = sum(max(0, published.get(topic, 0) + 1 - expected) for topic, expected in self._next.items())
        missed = self._missed + absent
        return Sums(
            clients=1,
            received=self._received,
            unreported=max(0, missed - self._reported),
            repeated=self._repeated,
            disordered=self._disordered,
            reported=min(missed, self._reported),
        )


class Crowd(msgspec.Struct):
    """The first message to the clients.

    Args:
        host, port: the address of the server.
        clients: the topics of each client, by group.
    """

    host: str
    port: int
    clients: dict[str, list[list[str]]]


class Command(msgspec.Struct):
    """A message to the clients: `cut`, `stall` or `resume` for a group, or `end` for all.

    Args:
        do: the command.
        group: the group of clients.
        published: with `end`, the number of published events of each topic.
    """

    do: str
    group: str = ""
    published: dict[str, int] = {}


class CrowdState(msgspec.Struct):
    """A message from the clients: their state.

    Args:
        open: clients with an open stream.
        lost: connections that were lost, except by `cut`.
        resumed: streams that were opened with a last event id.
        groups: the result, after `end`.
    """

    open: int = 0
    lost: int = 0
    resumed: int = 0
    groups: dict[str, Sums] = {}
