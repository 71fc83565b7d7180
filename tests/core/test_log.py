"""The log: retention, the order of reads, and the search for ids."""

from __future__ import annotations

import sys
from array import array

import pytest

from relay.core import evicted
from relay.core.backfill import Wanted, backfill
from relay.core.index import SEGMENT_BYTES, Index, Topic
from relay.core.log import EVICTED_SHARE, READ_ENTRIES_MAX, Batch, Log


def make_log(**limits: float) -> Log:
    """Make a log that has only these limits."""
    return Log("e", **{"bytes_max": 1 << 30, **limits})  # type: ignore[arg-type]


def put(
    log: Log, topic: str, size: int = 10, *, id: str | None = None, key: str | None = None, now_s: float = 0
) -> int:
    """Append one entry."""
    return log.append(log.topic(topic), b"x" * size, id, key, now_s)


def rows(log: Log, topic: str) -> list[int]:
    """Return the sequences in the topic's index, from the tail on."""
    return list(log.topics[topic].part(log.tail, log.head, 1 << 30)[0])


def follow_all(log: Log) -> Index:
    """Make the index of the pattern `**`, which receives the events of every topic from now on."""
    index = log.new_index()

    def resolve(topic: Topic) -> None:
        topic.patterns, topic.generation = (index,), log.generation

    log.resolve_with(resolve)
    log.generation += 1
    return index


def leave_all(log: Log) -> None:
    """Stop adding events to the index of `follow_all`."""

    def resolve(topic: Topic) -> None:
        topic.patterns, topic.generation = (), log.generation

    log.resolve_with(resolve)
    log.generation += 1


def fill(log: Log, index: Index) -> None:
    """Complete the index of `follow_all` with all retained entries."""
    for _ in backfill(log, [Wanted("**", index)], log.tail, evicted=False):
        pass


def evicted_of(log: Log, pattern: str) -> int:
    """Return the number of evicted entries in the index of a new pattern."""
    index = log.new_index()
    for _ in backfill(log, [Wanted(pattern, index)], log.tail, evicted=True):
        pass
    assert index.evicted_known
    return index.evicted


def test_sequences_start_at_one_and_increase_by_one_across_topics() -> None:
    log = make_log()
    assert (log.tail, log.head, len(log)) == (1, 1, 0)
    assert [put(log, topic) for topic in "abacb"] == [1, 2, 3, 4, 5]
    assert (log.tail, log.head, len(log), log.bytes) == (1, 6, 5, 50)
    assert [rows(log, topic) for topic in "abc"] == [[1, 3], [2, 5], [4]]


# Retention


def test_bytes_are_retained_exactly_up_to_the_limit() -> None:
    log = make_log(bytes_max=100)
    for size in (40, 30, 30):
        put(log, "a", size)
    assert (log.tail, log.bytes) == (1, 100)
    put(log, "a", 1)
    assert (log.tail, log.bytes) == (2, 61)
    put(log, "a", 100)
    assert (log.tail, log.head, log.bytes, len(log)) == (5, 6, 100, 1)


def test_events_are_retained_exactly_up_to_the_limit() -> None:
    log = make_log(events_max=3)
    for _ in range(10):
        put(log, "a")
        assert len(log) <= 3
    assert (log.tail, log.head, log.bytes) == (8, 11, 30)


def test_a_full_log_evicts_a_batch_but_never_the_newest_entry() -> None:
    log = make_log(events_max=1000)
    for _ in range(1000):
        put(log, "a")
    assert len(log) == 1000
    put(log, "a")
    assert len(log) == 1000 - 1000 // EVICTED_SHARE
    log = make_log(bytes_max=2560)
    for _ in range(256):
        put(log, "a")
    put(log, "a", 1)
    assert 2560 - 10 < log.bytes + 2560 // EVICTED_SHARE <= 2560
    put(log, "a", 2560)
    assert (len(log), log.bytes) == (1, 2560)


def test_age_is_checked_when_time_passes() -> None:
    log = make_log(age_s_max=10)
    for now_s in (0.0, 1.0, 2.0, 11.0):
        put(log, "a", now_s=now_s)
    log.retain(11.0)  # An age of exactly ten seconds does not exceed ten seconds.
    assert log.tail == 2
    log.retain(12.5)
    assert log.tail == 4
    log.retain(1000.0)
    assert (log.tail, log.head, len(log), log.bytes) == (5, 5, 0, 0)


def test_no_entry_at_or_after_the_floor_is_evicted() -> None:
    log = make_log(bytes_max=30)
    for _ in range(3):
        put(log, "a")
    log.floor = 2
    for _ in range(5):
        put(log, "a")
    assert (log.tail, log.bytes) == (2, 70)
    log.floor = 4
    log.retain(0.0)
    assert (log.tail, log.bytes) == (4, 50)
    log.floor = None
    log.retain(0.0)
    assert (log.tail, log.bytes) == (6, 30)


def test_a_floor_before_the_tail_or_after_the_head_has_no_effect() -> None:
    log = make_log(events_max=2)
    for _ in range(4):
        put(log, "a")
    log.floor = 1
    put(log, "a")
    assert log.tail == 3
    log.floor = 99
    put(log, "a")
    assert log.tail == 5


def test_an_evicted_entry_and_its_frame_are_released_immediately() -> None:
    log = make_log(events_max=1)
    frame = bytes(bytearray(1000))
    log.append(log.topic("a"), frame, None, None, 0.0)
    before = sys.getrefcount(frame)
    put(log, "a")
    assert sys.getrefcount(frame) == before - 1
    with pytest.raises(AssertionError):
        log.frame(1)


def test_rows_of_evicted_entries_do_not_accumulate() -> None:
    log = make_log(events_max=100)
    for number in range(20_000):
        put(log, "a" if number % 3 else "b", id=f"own-{number}", key=str(number))
    assert len(log._rows) < 2000
    assert len(log.topics["a"].sequences) < 400
    assert sum(len(topic.newest) for topic in log.topics.values()) == 100
    assert len(log.ids) == 100
    assert rows(log, "a") == [n + 1 for n in range(19_900, 20_000) if n % 3]


def test_the_lag_stays_exact_while_rows_of_evicted_entries_are_removed() -> None:
    log = make_log(events_max=100)
    for number in range(1000):
        put(log, "a", 1 + number % 7)
        tail = log.tail
        assert log.topics["a"].lag(tail) == (log.head - tail, log.bytes, tail)
        assert log.topics["a"].lag(log.head - 1) == (1, 1 + number % 7, log.head - 1)


# Topics


def test_a_topic_is_deleted_with_its_last_entry() -> None:
    log = make_log(events_max=2)
    for topic in ("a", "b", "a", "c"):
        put(log, topic)
    assert sorted(log.topics) == ["a", "c"]
    assert put(log, "b") == 5
    assert rows(log, "b") == [5]


def test_a_topic_is_kept_while_it_is_pinned_or_retained() -> None:
    log = make_log(events_max=1)
    topic = log.topic("a")
    topic.pinned = True
    put(log, "a")
    put(log, "b")
    log.forget(topic)
    assert sorted(log.topics) == ["a", "b"]
    topic.pinned = False
    log.forget(topic)
    assert sorted(log.topics) == ["b"]
    log.forget(log.topics["b"])
    assert sorted(log.topics) == ["b"]


def test_a_hundred_thousand_topics_of_one_event_leave_nothing() -> None:
    log = make_log(events_max=10)
    for number in range(100_000):
        put(log, f"user.{number}", key=str(number), id=f"own-{number}")
    assert len(log.topics) == 10
    assert len(log.ids) == 10
    assert len(log._rows) < 2000


def test_a_topic_that_returns_counts_only_its_own_evicted_entries() -> None:
    log = make_log(events_max=1)
    assert log.topic("a").evicted == -1
    put(log, "a", now_s=1.0)
    put(log, "b", now_s=2.0)  # deletes `a` with entry 1
    put(log, "c", now_s=3.0)  # deletes `b` with entry 2
    assert (log.topic("a").evicted, log.topic("a").evicted_s) == (1, 1.0)
    assert log.topics["c"].evicted == -1
    assert log.topic("d").evicted == -1


def test_an_index_of_a_new_pattern_counts_the_evicted_entries_of_its_topics() -> None:
    log = make_log(events_max=1)
    for topic in "abcd":
        put(log, topic)
    assert [evicted_of(log, pattern) for pattern in ("a\nb", "x\na", "x", "*")] == [2, 1, -1, 3]


def test_marks_that_overflow_their_table_are_merged_into_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evicted, "MARKS_MAX", 2)
    log = make_log(events_max=1)
    for topic in "abcde":
        put(log, topic)
    assert [log.topic(topic).evicted for topic in "xabcd"] == [2, 2, 2, 3, 4]
    assert evicted_of(log, "never") == 2


def test_marks_of_evicted_entries_pass_to_another_log_without_new_topics() -> None:
    log, other = make_log(events_max=2), make_log()
    for topic in "abac":
        put(log, topic)
    log.topic("silent").pinned = True
    other.begin("e", log.tail, 0.0)
    for sequence in range(log.tail, log.head):
        put(other, log.entry(sequence).topic)
    other.know_evicted(log.evicted(), (), log.marks.rest)
    assert sorted(other.topics) == ["a", "c"]
    topics = ("a", "b", "c", "silent", "new")
    assert [other.topic(topic).evicted for topic in topics] == [1, 2, -1, -1, -1]


# Indexes


def test_lag_first_part_and_ordinal_start_at_the_cursor() -> None:
    log = make_log()
    for topic, size in (("a", 1), ("b", 100), ("a", 2), ("b", 100), ("a", 4)):
        put(log, topic, size)
    index = log.topics["a"]
    assert [index.lag(cursor) for cursor in range(7)] == [
        *[(3, 7, 1), (3, 7, 1), (2, 6, 3), (2, 6, 3), (1, 4, 5), (1, 4, 5), (0, 0, None)],
    ]
    assert [index.first(cursor) for cursor in range(7)] == [1, 1, 3, 3, 5, 5, None]
    assert [index.ordinal(cursor) - index.ordinal(0) for cursor in range(7)] == [0, 0, 1, 1, 2, 2, 3]
    assert index.part(2, 5, 9) == (array("Q", [3]), 2)
    assert index.part(1, 6, 2) == (array("Q", [1, 3]), 3)
    assert index.part(4, 2, 9) == (array("Q"), 0)


def test_an_index_of_a_pattern_has_later_entries_and_after_filling_all() -> None:
    log = make_log()
    for topic in "abab":
        put(log, topic)
    index = follow_all(log)
    put(log, "a")
    put(log, "b")
    assert (list(index.sequences), index.since) == ([5, 6], 5)
    before = index.ordinal(6)
    fill(log, index)
    assert (list(index.sequences), index.since) == ([1, 2, 3, 4, 5, 6], 1)
    assert index.ordinal(6) == before
    assert index.ordinal(6) - index.ordinal(1) == 5
    assert index.lag(3) == (4, 40, 3)
    fill(log, index)
    assert list(index.sequences) == [1, 2, 3, 4, 5, 6]
    leave_all(log)
    put(log, "a")
    assert index.lag(log.tail)[0] == 6


def test_an_unfilled_index_ignores_entries_evicted_before_it() -> None:
    log = make_log(events_max=4)
    for _ in range(4):
        put(log, "a")
    index = follow_all(log)
    for _ in range(4):
        put(log, "a")
    assert log.tail == 5
    assert (index.lag(log.tail), index.evicted) == ((4, 40, 5), 4)
    put(log, "a")
    assert (index.lag(log.tail), index.evicted) == ((4, 40, 6), 5)


def test_segments_cover_an_index_without_overlap_and_are_the_same_for_neighbours() -> None:
    log = make_log()
    sizes = [1, 30_000, 30_000, 10_000, 65_536, 65_536, 200_000, 1, 1, 65_533, 1, 1]
    for size in sizes:
        put(log, "b", 7)
        put(log, "a", size)
    index = log.topics["a"]
    cursor, covered, numbers = 1, list[int](), list[int]()
    while (number := index.segment(cursor)) is not None:
        part, finished = index.rows(number, log.tail)
        assert part[0] >= cursor
        assert finished == (part[-1] != index.sequences[-1])
        assert sum(len(log.frame(sequence)) for sequence in part[1:]) <= SEGMENT_BYTES
        assert {index.segment(neighbour) for neighbour in part} == {number}
        covered += part
        numbers.append(number)
        cursor = part[-1] + 1
    assert covered == list(index.sequences)
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 4


def test_a_complete_segment_does_not_change_when_entries_are_added_or_evicted() -> None:
    log = make_log()
    for _ in range(100):
        put(log, "a", 1000)
    index = log.topics["a"]
    number = index.segment(1)
    assert number is not None
    whole, finished = index.rows(number, log.tail)
    assert finished
    log.events_max = 90
    while log.tail <= whole[-1]:
        put(log, "a", 1000)
        assert index.segment(max(log.tail, whole[0])) == (number if log.tail <= whole[-1] else number + 1)
        part, finished = index.rows(number, log.tail)
        assert list(part) == [sequence for sequence in whole if sequence >= log.tail]
        assert finished


def test_filling_an_index_does_not_change_its_segments() -> None:
    log = make_log()
    for _ in range(100):
        put(log, "a", 999)
    index = follow_all(log)
    for _ in range(100):
        put(log, "a", 999)
    numbers = [index.segment(sequence) for sequence in range(101, 201)]
    parts = {number: index.rows(number, log.tail) for number in numbers if number is not None}
    fill(log, index)
    assert [index.segment(sequence) for sequence in range(101, 201)] == numbers
    assert {number: index.rows(number, log.tail) for number in parts} == parts
    assert not {index.segment(sequence) for sequence in range(1, 101)} & set(numbers)


def test_a_segment_never_starts_before_the_tail() -> None:
    log = make_log(events_max=3)
    for _ in range(40):
        put(log, "a")
        number = log.topics["a"].segment(log.tail)
        assert number is not None
        part, finished = log.topics["a"].rows(number, log.tail)
        assert list(part) == list(range(log.tail, log.head))
        assert not finished


def test_an_index_has_no_segment_after_its_last_entry() -> None:
    assert Index(1, -1).segment(1) is None
    log = make_log()
    put(log, "a")
    assert log.topics["a"].segment(2) is None


# Reading


def test_a_merge_reads_in_log_order() -> None:
    log = make_log()
    for topic in "abcabc":
        put(log, topic)
    indexes = [log.topics["b"], log.topics["a"]]
    assert log.merge(indexes, 1, 7, 1000) == Batch([1, 2, 4, 5], [], 7)
    assert log.merge(indexes, 2, 5, 1000) == Batch([2, 4], [], 5)
    assert log.merge(indexes, 7, 7, 1000) is None
    assert log.merge([log.topics["c"]], 4, 6, 1000) is None
    assert log.merge([], 1, 7, 1000) is None


def test_a_merge_ends_at_its_byte_limit_but_returns_at_least_one_entry() -> None:
    log = make_log()
    for size in (10, 10, 10, 500, 10):
        put(log, "a", size)
    index = log.topics["a"]
    assert log.merge([index], 1, 6, 25) == Batch([1, 2], [], 3)
    assert log.merge([index], 1, 6, 30) == Batch([1, 2, 3], [], 4)
    assert log.merge([index], 3, 6, 30) == Batch([3], [], 4)
    assert log.merge([index], 4, 6, 30) == Batch([4], [], 5)
    assert log.merge([index], 5, 6, 0) == Batch([5], [], 6)


def test_a_merge_of_many_entries_is_split_and_continues_without_loss() -> None:
    log = make_log()
    count = 3 * READ_ENTRIES_MAX
    for number in range(count):
        put(log, "a" if number % 5 else "b")
    indexes = [log.topics["a"], log.topics["b"]]
    cursor, read = 1, list[int]()
    while (batch := log.merge(indexes, cursor, log.head, 1 << 30)) is not None:
        assert 0 < len(batch.sequences) <= READ_ENTRIES_MAX
        read += batch.sequences
        cursor = batch.cursor
    assert read == list(range(1, count + 1))
    assert cursor == log.head


def test_a_merge_fits_by_the_bytes_of_retained_entries() -> None:
    log = make_log()
    put(log, "a", 10)
    log.append(log.topic("a"), b"x" * 90, None, None, 0.0, 1.0)  # evicted early
    put(log, "a", 10)
    assert log.expire(2.0) is False
    index = log.topics["a"]
    assert index.part(1, 4, 9) == (array("Q", [1, 3]), 110)  # an upper bound
    assert log.merge([index], 1, 4, 20) == Batch([1, 3], [], 4)
    assert log.merge([index], 1, 4, 19) == Batch([1], [], 3)


def test_a_merge_skips_evicted_entries() -> None:
    log = make_log(events_max=2)
    for _ in range(5):
        put(log, "a")
    assert log.merge([log.topics["a"]], 1, 6, 1000) == Batch([4, 5], [], 6)


def test_a_conflating_merge_keeps_the_newest_entry_of_each_topic_and_key() -> None:
    log = make_log()
    for topic, key in (("a", "x"), ("a", "y"), ("b", "x"), ("a", "x"), ("a", None), ("b", None), ("a", None)):
        put(log, topic, key=key)
    indexes = [log.topics["a"], log.topics["b"]]
    assert log.merge(indexes, 1, 8, 1000, conflate=True) == Batch([2, 3, 4, 6, 7], [1, 5], 8)
    assert log.merge(indexes, 1, 8, 1000) == Batch([1, 2, 3, 4, 5, 6, 7], [], 8)


def test_a_conflating_merge_of_only_superseded_entries_advances_the_cursor() -> None:
    log = make_log()
    for topic in ("a", "a", "b", "a"):
        put(log, topic)
    batch = log.merge([log.topics["a"]], 1, 3, 1000, conflate=True)
    assert batch == Batch([], [1, 2], 3)


def test_a_conflating_merge_counts_each_superseded_entry_once_at_every_split() -> None:
    log = make_log()
    for number in range(50):
        put(log, "a", key=str(number % 7))
    cursor, kept, superseded = 1, list[int](), list[int]()
    while (batch := log.merge([log.topics["a"]], cursor, log.head, 25, conflate=True)) is not None:
        kept += batch.sequences
        superseded += batch.superseded
        cursor = batch.cursor
    assert kept == list(range(44, 51))
    assert superseded == list(range(1, 44))


def test_a_key_whose_newest_entry_was_evicted_starts_again() -> None:
    log = make_log(events_max=1)
    put(log, "a", key="x")
    put(log, "b")
    put(log, "a", key="x")
    log.events_max = 2
    put(log, "a", key="x")
    assert log.merge([log.topics["a"]], 1, 5, 1000, conflate=True) == Batch([4], [3], 5)


def test_frames_and_times_are_returned_as_appended() -> None:
    log = make_log(events_max=1500)
    for number in range(4000):
        log.append(log.topic("a"), b"%d" % number, None, None, float(number))
    assert log.frame(3999) == b"3998"
    assert log.time_s(3999) == 3998.0
    assert log.pick(array("Q", [log.tail, 4000])) == [b"%d" % (log.tail - 1), b"3999"]


# Ids


def find(log: Log, id: str, *terms: str) -> int | None:
    """Look up an id for a subscription, by default for all topics."""
    return log.find((id,), terms or ("**",))


def test_a_default_id_is_found_before_and_after_eviction() -> None:
    log = make_log(events_max=2)
    for _ in range(5):
        put(log, "a")
    assert log.id(5) == "e-5"
    assert [find(log, f"e-{sequence}") for sequence in (0, 1, 5)] == [0, 1, 5]


@pytest.mark.parametrize(
    "id",
    ["e-6", "e-99999999999999999999", "f-1", "e-", "e-x", "e--1", "e-+1", "e-1 ", "e-²", "e-١", "1", "", "e", "-1"],
)
def test_an_id_that_this_log_never_assigned_is_not_found(id: str) -> None:
    log = make_log()
    for _ in range(5):
        put(log, "a")
    assert find(log, id) is None


def test_an_id_with_leading_zeros_is_not_found() -> None:
    log = make_log()
    put(log, "a")
    assert find(log, "e-01") is None


def test_an_epoch_can_contain_the_separator() -> None:
    log = Log("a-b", bytes_max=1000)
    put(log, "t")
    assert find(log, log.id(1)) == 1
    assert find(log, "b-1") is None


def test_a_publishers_own_id_is_found_while_it_is_retained() -> None:
    log = make_log(events_max=2)
    put(log, "a", id="mine")
    assert (log.id(1), find(log, "mine"), find(log, "e-1")) == ("mine", 1, 1)
    put(log, "a")
    put(log, "a")
    assert (log.id(1), find(log, "mine")) == ("e-1", None)


def test_an_own_id_in_the_form_of_a_default_id_from_an_earlier_version_is_found() -> None:
    log = make_log()
    for _ in range(2):
        put(log, "a", id="e-1")
    assert find(log, "e-1") == 1
    assert find(log, "e-2") == 2


def test_since_is_the_first_retained_entry_at_or_after_a_time() -> None:
    log = make_log(events_max=4)
    for now_s in (0.0, 1.0, 1.0, 2.0, 2.0, 5.0):
        put(log, "a", now_s=now_s)
    assert log.tail == 3
    assert [log.since(time_s) for time_s in (-1.0, 0.0, 1.0, 1.5, 2.0, 2.1, 5.0, 5.1)] == [3, 3, 3, 4, 4, 6, 6, 7]
