"""A dedup key is known for its window, and the newest of them when there are too many."""

from __future__ import annotations

from relay.seen import Seen


def test_a_key_is_known_for_the_window_and_new_after_it() -> None:
    seen = Seen(600.0, 10)
    seen.add("a", "e-1", 0.0)
    seen.add("b", "e-2", 100.0)
    assert seen.find("a", 600.0) == "e-1"
    assert seen.find("a", 600.5) is None
    assert seen.find("b", 600.5) == "e-2"
    assert (len(seen), seen.pushed_out) == (1, 0)


def test_a_key_may_come_again_after_its_window() -> None:
    seen = Seen(10.0, 10)
    seen.add("a", "e-1", 0.0)
    assert seen.find("a", 11.0) is None
    seen.add("a", "e-2", 11.0)
    assert seen.find("a", 12.0) == "e-2"
    assert len(seen) == 1


def test_too_many_keys_push_out_the_oldest_and_that_is_counted() -> None:
    seen = Seen(600.0, 3)
    for number in range(5):
        seen.add(str(number), f"e-{number}", 0.0)
    assert [seen.find(str(number), 0.0) for number in range(5)] == [None, None, "e-2", "e-3", "e-4"]
    assert (len(seen), seen.pushed_out) == (3, 2)
