"""The engine broadcasts to audiences and to combinations of audiences."""

from __future__ import annotations

import pytest

from tests.engines import FOREVER_S, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]
FRAMES = frames_of([700, 900, 1100, 1300, 1500, 1700, 1900, 2100])
DATA = b"".join(FRAMES)


def test_only_a_stream_with_nothing_pending_can_be_live(rig: Rig) -> None:
    handle = rig.open()
    with pytest.raises(RuntimeError):
        rig.engine.live(handle, 1)
    assert rig.engine.write(handle, None, 0.0)
    rig.engine.live(handle, 3)
    assert rig.engine.cursor(handle) == 3
    assert rig.is_open(handle)
    assert not rig.engine.is_behind(handle)
    with pytest.raises(RuntimeError):
        rig.engine.live(handle, 3)


def test_a_stream_added_with_nothing_to_send_can_be_live_immediately(rig: Rig) -> None:
    handle = rig.open(pending=b"")
    assert rig.engine.write(handle, None, 0.0)
    rig.engine.live(handle, 1)
    assert not rig.engine.is_behind(handle)


def test_a_broadcast_sends_every_live_member_the_chunk_from_its_cursor(rig: Rig) -> None:
    handles = [rig.open_live(cursor) for cursor in (1, 2, 3, 4, 9)]
    rig.broadcast(rig.chunk([b"a", b"b", b"c"]))
    assert [rig.read(handle) for handle in handles] == [b"abc", b"bc", b"c", b"", b""]
    assert [rig.engine.cursor(handle) for handle in handles] == [4, 4, 4, 4, 9]
    assert rig.engine.deliveries == 6
    assert rig.engine.lagging() == []


def test_a_broadcast_before_any_combination_includes_every_member(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.broadcast(rig.members, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
    assert rig.read(handle) == b"a"


def test_a_broadcast_skips_streams_that_are_behind_closing_or_dead(rig: Rig) -> None:
    behind, closing, dead, live = (rig.open_live() for _ in range(4))
    rig.engine.fall_behind(behind, 1)
    rig.engine.fall_behind(closing, 1)
    rig.stall(closing)
    rig.engine.close(closing, "slow")
    rig.engine.abort(dead, "slow")
    rig.broadcast(rig.chunk([b"a"]))
    assert rig.read(behind) == rig.read(dead) == b""
    assert b"a" not in rig.read(closing)
    assert rig.read(live) == b"a"


def test_a_member_that_accepts_too_little_is_reported_as_lagging_once(rig: Rig) -> None:
    slow, fast = rig.open_live(), rig.open_live()
    rig.broadcast(rig.chunk(FRAMES))
    rig.read(fast)
    assert sorted(rig.engine.lagging()) == sorted([slow, fast])
    assert rig.engine.lagging() == []
    assert rig.engine.is_behind(slow)
    cursor = rig.engine.cursor(slow)
    rig.broadcast(rig.chunk([b"later"], 9))
    assert rig.engine.cursor(slow) == cursor
    assert rig.finish(slow, rig.chunk([*FRAMES, b"later"])) == DATA + b"later"


def test_a_member_that_dies_in_a_broadcast_is_closed_and_not_lagging(rig: Rig) -> None:
    gone, live = rig.open_live(), rig.open_live()
    rig.peers[gone].close()
    rig.broadcast(rig.chunk([b"a"]))
    assert rig.engine.lagging() == []
    assert not rig.is_open(gone)
    assert rig.closes() == [(gone, "client")]
    assert rig.read(live) == b"a"


def test_a_broadcast_without_time_continues_from_its_returned_place(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(50)]
    rig.engine.combine([])
    chunk, place, turns = rig.chunk([b"a"]), 0, 0
    while place < len(rig.members):
        after = rig.engine.broadcast(rig.members, place, chunk, False, 0.0, 0.0)
        assert place < after <= place + 16
        place, turns = after, turns + 1
    assert turns == 4
    assert [rig.read(handle) for handle in handles] == [b"a"] * 50


def test_a_repeated_broadcast_sends_nothing_twice(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(3)]
    for _ in range(2):
        rig.broadcast(rig.chunk([b"a", b"b"]))
    assert [rig.read(handle) for handle in handles] == [b"ab"] * 3


def test_falling_behind_keeps_the_later_cursor_and_is_only_for_live_streams(rig: Rig) -> None:
    early, late = rig.open_live(3), rig.open_live(9)
    assert rig.engine.fall_behind(early, 5)
    assert rig.engine.fall_behind(late, 5)
    assert (rig.engine.cursor(early), rig.engine.cursor(late)) == (5, 9)
    assert not rig.engine.fall_behind(early, 7)
    assert rig.engine.cursor(early) == 5
    assert not rig.engine.fall_behind(1 << 40, 7)


def test_streams_in_several_due_audiences_receive_only_their_combination(rig: Rig) -> None:
    audiences = [rig.twin.members() for _ in range(3)]
    wanted = [(0,), (1,), (0, 1), (0, 1), (0, 2), (0, 1, 2), (2,), (1, 2)]
    handles = [rig.open_live() for _ in wanted]
    for handle, places in zip(handles, wanted, strict=True):
        for place in places:
            rig.engine.join(handle, audiences[place])
    groups = dict(rig.engine.combine(audiences))
    assert {places: sorted(rig.engine.listed(members)) for places, members in groups.items()} == {
        places: sorted(handle for handle, own in zip(handles, wanted, strict=True) if own == places)
        for places in ((0, 1), (0, 2), (0, 1, 2), (1, 2))
    }
    for place, members in enumerate(audiences):
        rig.engine.broadcast(members, 0, rig.chunk([b"%d" % place]), False, 0.0, FOREVER_S)
    for places, members in groups.items():
        data = "+".join(map(str, places)).encode()
        rig.engine.broadcast(members, 0, rig.chunk([data]), True, 0.0, FOREVER_S)
    assert [rig.read(handle) for handle in handles] == ["+".join(map(str, places)).encode() for places in wanted]


def test_a_combination_lasts_until_the_next_call(rig: Rig) -> None:
    one, two = rig.twin.members(), rig.twin.members()
    handle = rig.open_live()
    rig.engine.join(handle, one)
    rig.engine.join(handle, two)
    assert len(rig.engine.combine([one, two])) == 1
    rig.engine.broadcast(one, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
    assert rig.read(handle) == b""
    assert rig.engine.combine([one]) == []
    rig.engine.broadcast(one, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
    assert rig.read(handle) == b"a"


def test_streams_that_are_behind_or_closed_are_in_no_combination(rig: Rig) -> None:
    one, two = rig.twin.members(), rig.twin.members()
    behind, gone = rig.open_live(), rig.open_live()
    for handle in (behind, gone):
        rig.engine.join(handle, one)
        rig.engine.join(handle, two)
    rig.engine.fall_behind(behind, 1)
    rig.engine.abort(gone, "slow")
    assert rig.engine.combine([one, two]) == []
    rig.engine.sweep()
    assert rig.engine.combine([one, two]) == []


def test_a_new_stream_in_the_row_of_a_combined_one_is_not_combined(rig: Rig) -> None:
    one, two = rig.twin.members(), rig.twin.members()
    old = rig.open_live()
    rig.engine.join(old, one)
    rig.engine.join(old, two)
    rig.engine.combine([one, two])
    rig.engine.abort(old, "slow")
    rig.engine.sweep()
    new = rig.open_live(members=one)
    rig.engine.broadcast(one, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
    assert rig.read(new) == b"a"


def test_streams_in_more_than_sixteen_due_audiences_share_one_combination(rig: Rig) -> None:
    audiences = [rig.twin.members() for _ in range(1000)]
    everywhere, once = rig.open_live(), rig.open_live()
    for members in audiences:
        rig.engine.join(everywhere, members)
    rig.engine.join(once, audiences[500])
    [(places, members)] = rig.engine.combine(audiences)
    assert places == ()
    assert rig.engine.listed(members) == [everywhere]
    [(places, members)] = rig.engine.combine(audiences[:16])
    assert places == tuple(range(16))
    assert rig.engine.listed(members) == [everywhere]


def test_compacting_an_audience_removes_the_handles_of_closed_streams(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(5)]
    for handle in handles[::2]:
        rig.engine.abort(handle, "slow")
    rig.engine.compact(rig.members)
    assert rig.engine.listed(rig.members) == handles
    rig.engine.sweep()
    reused = rig.open()
    rig.engine.compact(rig.members)
    assert rig.engine.listed(rig.members) == handles[1::2]
    assert len(rig.members) == 2
    assert reused not in rig.engine.listed(rig.members)
