"""The engine writes chunks, notices and heartbeats, and completes each half-sent frame."""

from __future__ import annotations

import os
import sys

import pytest

from bench.implementations import EngineTypes
from tests.engines import FOREVER_S, ROOM, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]
FRAMES = frames_of([700, 900, 1100, 1300, 1500, 1700, 1900, 2100])
DATA = b"".join(FRAMES)


def test_a_chunk_needs_a_frame_and_one_sequence_per_frame(twin: EngineTypes) -> None:
    for frames, sequences in (([], []), ([b"a"], []), ([b"a"], [1, 2])):
        with pytest.raises(ValueError, match="sequence"):
            twin.chunk(frames, sequences, 9)


def test_a_chunk_of_one_frame_does_not_copy_it(twin: EngineTypes) -> None:
    frame = os.urandom(100)
    assert twin.chunk([frame], [1], 2).data is frame
    assert twin.chunk([frame, b"b"], [1, 5], 9).data == frame + b"b"
    assert len(twin.chunk([frame, b"b"], [1, 5], 9)) == 2


def test_a_new_stream_is_open_and_behind_and_keeps_its_arguments(rig: Rig) -> None:
    subscription, address = object(), "192.0.2.1"
    handle = rig.open(7, subscription=subscription, address=address)
    assert rig.is_open(handle)
    assert rig.engine.is_behind(handle)
    assert rig.engine.cursor(handle) == 7
    assert rig.engine.subscription(handle) is subscription
    assert rig.engine.address(handle) is address
    assert rig.engine.handles() == [handle]
    assert rig.engine.open == 1
    assert rig.read(handle) == b""


def test_pending_data_and_the_chunk_are_sent_in_one_write(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.write(handle, rig.chunk([b"one", b"two"]), 0.0)
    assert rig.read(handle) == b"headonetwo"
    assert rig.engine.cursor(handle) == 3
    assert (rig.engine.writes, rig.engine.short_writes, rig.engine.deliveries, rig.engine.bytes) == (1, 0, 2, 10)


def test_a_chunk_is_sent_from_the_cursor_of_the_stream(rig: Rig) -> None:
    chunk = rig.twin.chunk([b"a", b"b", b"c"], [10, 20, 30], 40)
    for cursor, data in ((1, b"abc"), (10, b"abc"), (11, b"bc"), (20, b"bc"), (30, b"c"), (31, b""), (50, b"")):
        handle = rig.open(cursor)
        assert rig.engine.write(handle, chunk, 0.0)
        assert rig.read(handle) == b"head" + data
        assert rig.engine.cursor(handle) == max(40, cursor)


def test_writing_nothing_to_a_stream_with_nothing_pending_makes_no_system_call(rig: Rig) -> None:
    handle = rig.open()
    rig.engine.write(handle, None, 0.0)
    assert rig.engine.write(handle, None, 0.0)
    assert rig.engine.writes == 1


def test_a_short_write_keeps_the_rest_of_one_frame_and_continues_there(rig: Rig) -> None:
    handle = rig.open()
    chunk = rig.chunk(FRAMES)
    assert not rig.engine.write(handle, chunk, 0.0)
    assert rig.engine.is_behind(handle)
    cursor = rig.engine.cursor(handle)
    assert 1 < cursor < 9
    assert rig.engine.short_writes == 1
    assert rig.engine.deliveries == cursor - 1
    first = rig.read(handle)
    assert rig.engine.bytes == len(first)
    # Only the rest of the half-sent frame follows.
    assert rig.engine.write(handle, None, 0.0)
    begun = b"head" + b"".join(FRAMES[: cursor - 1])
    assert first + rig.read(handle) == begun
    assert rig.engine.cursor(handle) == cursor
    assert begun + rig.finish(handle, chunk) == b"head" + DATA
    assert rig.engine.deliveries == len(FRAMES)


def test_a_stalled_stream_holds_the_half_sent_frame_and_not_the_joined_chunk(rig: Rig) -> None:
    handle = rig.open()
    frames = frames_of([2001 + number for number in range(8)])
    chunk = rig.chunk(frames)
    data = chunk.data
    data_before, before = sys.getrefcount(data), [sys.getrefcount(frame) for frame in frames]
    assert not rig.engine.write(handle, chunk, 0.0)
    assert sys.getrefcount(data) == data_before
    after = [sys.getrefcount(frame) for frame in frames]
    held = [now - then for now, then in zip(after, before, strict=True)]
    half_sent = rig.engine.cursor(handle) - 2
    assert held == [int(row == half_sent) for row in range(len(frames))]


def test_a_stream_that_accepts_no_byte_keeps_its_cursor(rig: Rig) -> None:
    handle = rig.open()
    rig.stall(handle)
    sent = rig.engine.bytes
    assert not rig.engine.write(handle, rig.chunk(FRAMES), 0.0)
    assert rig.engine.cursor(handle) == 1
    assert rig.engine.bytes == sent
    assert rig.engine.deliveries == 0


def test_a_skip_completes_the_half_sent_frame_then_sends_the_notice_then_continues(rig: Rig) -> None:
    handle = rig.open()
    chunk = rig.chunk(FRAMES)
    assert not rig.engine.write(handle, chunk, 0.0)
    cursor = rig.engine.cursor(handle)
    rig.engine.skip(handle, 8, b"[gap]")
    assert rig.engine.cursor(handle) == 8
    assert rig.finish(handle, chunk) == b"head" + b"".join(FRAMES[: cursor - 1]) + b"[gap]" + FRAMES[7]


def test_notices_of_several_skips_are_all_sent_in_order(rig: Rig) -> None:
    handle = rig.open()
    assert not rig.engine.write(handle, rig.chunk(FRAMES), 0.0)
    cursor = rig.engine.cursor(handle)
    rig.engine.skip(handle, 7, b"[one]")
    rig.engine.skip(handle, 8, b"")
    rig.engine.skip(handle, 9, b"[two]")
    assert rig.finish(handle, None) == b"head" + b"".join(FRAMES[: cursor - 1]) + b"[one][two]"


def test_a_skip_without_notice_leaves_nothing_pending(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.write(handle, None, 0.0)
    rig.engine.skip(handle, 5, b"")
    rig.engine.live(handle, 5)
    assert not rig.engine.is_behind(handle)


def test_one_call_writes_a_chunk_to_many_streams_from_the_cursor_of_each(rig: Rig) -> None:
    chunk = rig.twin.chunk([b"a", b"b", b"c"], [10, 20, 30], 40)
    handles = {rig.open(cursor): data for cursor, data in ((1, b"abc"), (11, b"bc"), (20, b"bc"), (30, b"c"))}
    assert rig.engine.write_each(list(handles), chunk, 7.0) == (list(handles), [])
    for handle, data in handles.items():
        assert rig.read(handle) == b"head" + data
        assert rig.engine.cursor(handle) == 40
        assert rig.engine.is_behind(handle)
    assert (rig.engine.writes, rig.engine.deliveries) == (4, 8)


def test_one_call_tells_the_streams_that_must_wait_from_those_that_received_everything(rig: Rig) -> None:
    wide, narrow, stalled = rig.open(8), rig.open(), rig.open()
    rig.stall(stalled)
    chunk = rig.chunk(FRAMES)
    assert rig.engine.write_each([narrow, stalled, wide], chunk, 0.0) == ([wide], [narrow, stalled])
    assert rig.read(wide) == b"head" + FRAMES[7]
    assert rig.finish(narrow, chunk) == b"head" + DATA
    assert rig.engine.cursor(stalled) == 1


def test_one_call_omits_streams_that_are_not_behind_any_more(rig: Rig) -> None:
    live, gone, broken, last = rig.open_live(), rig.open(), rig.open(), rig.open()
    rig.engine.abort(gone, "test")
    rig.peers[broken].close()
    assert rig.engine.write_each([live, gone, broken, last], rig.chunk([b"a"]), 0.0) == ([last], [])
    assert sorted(rig.closes()) == sorted([(gone, "test"), (broken, "client")])
    assert rig.engine.write_each([gone, last], rig.chunk([b"b"], first=2), 0.0) == ([last], [])
    assert rig.read(last) == b"headab"
    assert rig.read(live) == b""


def test_a_stall_at_any_byte_leaves_the_frames_whole(rig: Rig) -> None:
    frames = [b"<%d %s>" % (number, b"x" * 60) for number in range(200)]
    chunk, data = rig.chunk(frames), b"".join(frames)
    stalled_at = set()
    for size in range(1, 140):
        handle = rig.open(pending=b"h" * size)
        assert not rig.engine.write(handle, chunk, 0.0)
        got = rig.read(handle)
        stalled_at.add((len(got) - size) % len(frames[100]))
        assert got + rig.finish(handle, chunk) == b"h" * size + data
        assert rig.engine.cursor(handle) == 201
        rig.engine.abort(handle, "test")
        rig.peers.pop(handle).close()
        rig.engine.sweep()
    assert len(stalled_at) > 60
    assert rig.engine.deliveries == 139 * 200


def test_only_idle_live_streams_receive_heartbeats(rig: Rig) -> None:
    idle, busy, behind = (rig.open_live(now_s=100.0) for _ in range(3))
    rig.engine.fall_behind(busy, 1)
    assert rig.engine.write(busy, rig.chunk([b"a"]), 110.0)
    rig.engine.live(busy, 2)
    rig.engine.fall_behind(behind, 1)
    rig.read(busy)
    assert rig.engine.heartbeat([b":\n"], 0, 15.0, 114.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b"", b"", b""]
    assert rig.engine.heartbeat([b":\n"], 0, 15.0, 116.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b":\n", b"", b""]
    # A heartbeat also counts as a write.
    assert rig.engine.heartbeat([b":\n"], 0, 15.0, 126.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b"", b":\n", b""]


def test_a_partly_sent_heartbeat_is_completed_before_the_next_frame(rig: Rig) -> None:
    handle = rig.open_live()
    assert rig.engine.heartbeat([ROOM], 0, 0.0, 10.0, FOREVER_S) == 0
    assert rig.engine.lagging() == [handle]
    assert rig.engine.is_behind(handle)
    assert rig.finish(handle, rig.chunk([b"a"])) == ROOM + b"a"
    assert rig.engine.cursor(handle) == 2


def test_a_heartbeat_is_never_sent_inside_a_frame(rig: Rig) -> None:
    handle = rig.open_live()
    rig.broadcast(rig.chunk(FRAMES))
    rig.engine.heartbeat([b":\n"], 0, 0.0, 1000.0, FOREVER_S)
    assert rig.finish(handle, rig.chunk(FRAMES)) == DATA


def test_heartbeats_without_time_continue_until_every_stream_has_one(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(100)]
    place = rig.engine.heartbeat([b":\n"], 0, 10.0, 20.0, 0.0)
    turns = 1
    while place:
        place = rig.engine.heartbeat([b":\n"], place, 10.0, 20.0, 0.0)
        turns += 1
    assert 1 < turns <= 8
    assert [rig.read(handle) for handle in handles] == [b":\n"] * 100


def test_a_heartbeat_to_a_disconnected_client_closes_its_stream(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].close()
    rig.engine.heartbeat([b":\n"], 0, 0.0, 10.0, FOREVER_S)
    assert rig.closes() == [(handle, "client")]
