"""Publishers' own ids: the event that a last id identifies, among the topics of one subscription."""

from __future__ import annotations

import time

import pytest

from relay.core import own_ids
from relay.core.own_ids import SHARING_TOPICS_MAX, OwnIds


class Table:
    """A table, and the topics of its entries."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.ids = OwnIds(self.topics.__getitem__)

    def add(self, id: str, topic: str) -> int:
        """Add the next entry; return its sequence."""
        self.topics.append(topic)
        self.ids.add(id, topic, len(self.topics) - 1)
        return len(self.topics) - 1

    def evict(self, id: str, topic: str) -> None:
        """Add an entry and evict it."""
        self.add(id, topic)
        self.ids.evict(id, topic)

    def find(self, id: str, *terms: str) -> int | None:
        """Find one id."""
        return self.ids.find((id,), terms)


def test_an_id_is_found_only_among_the_topics_of_the_subscription() -> None:
    table = Table()
    first, second = table.add("1", "a"), table.add("1", "b")
    assert (table.find("1", "a"), table.find("1", "b"), table.find("1", "c")) == (first, second, None)
    assert (table.find("1", "b", "a"), table.find("1", "*"), table.find("1", "x.*")) == (first, first, None)
    assert table.find("2", "a", "*") is None


def test_an_id_that_a_topic_reuses_means_its_oldest_event() -> None:
    table = Table()
    first = table.add("1", "a")
    table.add("1", "a")
    assert table.find("1", "a") == first
    table.ids.evict("1", "a")
    assert table.find("1", "a") is None


def test_an_evicted_id_is_not_found_when_its_topic_reuses_it() -> None:
    table = Table()
    table.evict("1", "a")
    table.add("1", "a")
    second = table.add("1", "b")
    assert table.find("1", "a") is None
    assert table.find("1", "b") == second
    assert table.find("1", "a", "b") is None
    assert table.find("1", "*") is None


def test_an_id_with_two_readings_for_different_events_is_not_found() -> None:
    table = Table()
    plus, space = table.add("a+b", "t"), table.add("a b", "t")
    assert table.ids.find(("a+b", "a b"), ("t",)) is None
    assert table.ids.find(("a+b", "x"), ("t",)) == plus
    assert table.ids.find(("x", "a b"), ("*",)) == space


def test_an_id_that_too_many_topics_share_is_not_found_through_a_pattern() -> None:
    table = Table()
    for number in range(SHARING_TOPICS_MAX + 1):
        table.add("1", f"a.{number}")
    assert table.find("1", "a.*") is None
    assert table.find("1", "a.7") == 7
    assert table.find("1", *(f"a.{number}" for number in range(5, 100))) == 5


def test_the_cost_of_a_lookup_does_not_grow_with_the_uses_in_other_topics() -> None:
    table = Table()
    for number in range(50_000):
        table.add("1", f"other.{number}")
    wanted = table.add("1", "mine")
    began_s = time.perf_counter()
    for _ in range(100):
        assert table.find("1", "mine") == wanted
        assert table.find("1", "none.*") is None
    assert time.perf_counter() - began_s < 1.0  # 100 scans of all topics would take longer


@pytest.mark.parametrize("limit", ["EVICTED_PAIRS_MAX", "EVICTED_CHARACTERS_MAX"])
def test_the_number_of_evicted_ids_is_bounded_and_the_newest_are_kept(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_ids, limit, 100)
    table = Table()
    for number in range(1000):
        table.evict(f"{number:04}", "a")
    known = list(table.ids.evicted())
    assert 10 <= len(known) <= 202
    assert known[-1] == ("0999", "a")
    table.add("0999", "a")
    assert table.find("0999", "a") is None
    again = table.add("0000", "a")
    assert table.find("0000", "a") == again


def test_evicted_ids_pass_to_another_table() -> None:
    table, other = Table(), Table()
    for topic in ("a", "b"):
        table.evict("1", topic)
    other.add("1", "b")
    for pair in table.ids.evicted():
        other.ids.evict(*pair)
    assert sorted(other.ids.evicted()) == [("1", "a"), ("1", "b")]
    other.add("1", "a")
    assert (other.find("1", "a"), other.find("1", "b")) == (None, None)
