"""Repeats are decided by the entries of the log and their times, in the same way at every node."""

from __future__ import annotations

import asyncio

import pytest

from relay.cluster.repeats import Repeats
from relay.errors import BrokerError

Entry = tuple[int, str, float]
"""Sequence, dedup key and time."""


def follow(repeats: Repeats, *entries: Entry) -> list[int]:
    """Check entries, and return the sequences of those that are repeats."""
    found = []
    for sequence, key, time_s in entries:
        if repeats.check(key, f"e-{sequence}", time_s):
            found.append(sequence)
        repeats.advance(sequence)
    return found


def following(after: int = 0, window_s: float = 10.0) -> Repeats:
    """Return the repeats of a node that begins to follow."""
    repeats = Repeats(window_s, 100)
    repeats.start()
    repeats.begin(after)
    return repeats


def test_an_entry_is_a_repeat_within_the_window_of_the_first_one() -> None:
    entries: list[Entry] = [(1, "a", 0.0), (2, "b", 1.0), (3, "a", 9.0), (4, "a", 10.0), (5, "a", 10.5), (6, "a", 20.0)]
    assert follow(following(), *entries) == [3, 4, 6]


def test_a_node_that_reads_the_log_later_decides_the_same() -> None:
    entries: list[Entry] = [(number, str(number % 7), number / 3) for number in range(1, 200)]
    early, late = following(), following()
    # The clock of the node that publishes is ahead of the broker's.
    found = [sequence for each in entries for sequence in follow(early, each) if early.known("0", 1e9) is None]
    assert found == follow(late, *entries) != []


def test_a_node_that_reads_the_log_again_decides_the_same() -> None:
    repeats = following()
    entries: list[Entry] = [(1, "a", 0.0), (2, "a", 1.0), (3, "a", 11.0), (4, "a", 12.0)]
    assert follow(repeats, *entries) == [2, 4]
    repeats.begin(0)
    assert follow(repeats, *entries) == [2, 4]


def test_a_node_that_continues_keeps_the_keys() -> None:
    repeats = following()
    assert follow(repeats, (1, "a", 0.0)) == []
    for after in (1, 5):  # after a lost connection, and after entries that the broker has removed
        repeats.begin(after)
        assert follow(repeats, (after + 1, "a", 1.0)) == [after + 1]


def test_without_a_window_nothing_is_a_repeat() -> None:
    assert follow(following(window_s=0.0), (1, "a", 0.0), (2, "a", 0.0)) == []


def test_a_publisher_knows_the_keys_that_were_followed() -> None:
    repeats = following()
    follow(repeats, (1, "a", 100.0))
    assert repeats.known("a", 105.0) == "e-1"
    assert repeats.known("b", 105.0) is None
    assert repeats.known("a", 111.0) is None
    follow(repeats, (2, "b", 111.0))
    assert repeats.known("a", 0.0) is None  # the clock of the node is behind that of the broker


async def test_the_first_event_is_known_when_the_follower_has_read_the_entry() -> None:
    repeats = following()
    first = asyncio.create_task(repeats.first("a", 2))
    for entry in ((1, "a", 0.0), (2, "a", 0.0)):
        await asyncio.sleep(0)
        assert not first.done()
        follow(repeats, entry)
    assert await first == "e-1"


async def test_a_wait_fails_when_the_follower_stops() -> None:
    repeats = following()
    first = asyncio.create_task(repeats.first("a", 1))
    await asyncio.sleep(0)
    repeats.stop()
    with pytest.raises(BrokerError, match="the follower has lost its connection"):
        await first
