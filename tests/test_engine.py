"""The engine of streams: the bytes that it writes, the streams that receive them, and the ways in which streams end."""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import sys
import tempfile
from collections.abc import Callable

import pytest

from bench.implementations import EngineTypes
from relay.config.model import SETTINGS
from tests.engines import DISCARD_BYTES_MAX, FOREVER_S, ROOM, SEND_BUFFER, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]

FRAMES = frames_of([700, 900, 1100, 1300, 1500, 1700, 1900, 2100])
DATA = b"".join(FRAMES)


def test_a_chunk_needs_one_sequence_for_each_frame_and_a_frame(twin: EngineTypes) -> None:
    for frames, sequences in (([], []), ([b"a"], []), ([b"a"], [1, 2])):
        with pytest.raises(ValueError, match="sequence"):
            twin.chunk(frames, sequences, 9)


def test_a_chunk_of_one_frame_is_that_frame_and_not_a_copy(twin: EngineTypes) -> None:
    frame = os.urandom(100)
    assert twin.chunk([frame], [1], 2).data is frame
    assert twin.chunk([frame, b"b"], [1, 5], 9).data == frame + b"b"
    assert len(twin.chunk([frame, b"b"], [1, 5], 9)) == 2


def connected(*, receive_buffer: int) -> tuple[socket.socket, socket.socket]:
    """Connect two TCP sockets: one for a stream, and one for a subscriber with this receive buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


# Lagging


def test_a_new_stream_is_open_and_behind_and_remembers_what_it_was_added_with(rig: Rig) -> None:
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


def test_what_is_pending_and_the_chunk_leave_in_one_write(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.write(handle, rig.chunk([b"one", b"two"]), 0.0)
    assert rig.read(handle) == b"headonetwo"
    assert rig.engine.cursor(handle) == 3
    assert (rig.engine.writes, rig.engine.short_writes, rig.engine.deliveries, rig.engine.bytes) == (1, 0, 2, 10)


def test_a_chunk_is_sent_from_the_cursor_of_the_stream_on(rig: Rig) -> None:
    chunk = rig.twin.chunk([b"a", b"b", b"c"], [10, 20, 30], 40)
    for cursor, data in ((1, b"abc"), (10, b"abc"), (11, b"bc"), (20, b"bc"), (30, b"c"), (31, b""), (50, b"")):
        handle = rig.open(cursor)
        assert rig.engine.write(handle, chunk, 0.0)
        assert rig.read(handle) == b"head" + data
        assert rig.engine.cursor(handle) == max(40, cursor)


def test_writing_nothing_to_a_stream_with_nothing_pending_is_no_system_call(rig: Rig) -> None:
    handle = rig.open()
    rig.engine.write(handle, None, 0.0)
    assert rig.engine.write(handle, None, 0.0)
    assert rig.engine.writes == 1


def test_a_short_write_keeps_the_rest_of_one_frame_and_goes_on_there(rig: Rig) -> None:
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


def test_a_stream_that_takes_nothing_keeps_its_cursor(rig: Rig) -> None:
    handle = rig.open()
    rig.stall(handle)
    sent = rig.engine.bytes
    assert not rig.engine.write(handle, rig.chunk(FRAMES), 0.0)
    assert rig.engine.cursor(handle) == 1
    assert rig.engine.bytes == sent
    assert rig.engine.deliveries == 0


def test_a_skip_finishes_the_half_sent_frame_then_gives_the_notice_then_goes_on(rig: Rig) -> None:
    handle = rig.open()
    chunk = rig.chunk(FRAMES)
    assert not rig.engine.write(handle, chunk, 0.0)
    cursor = rig.engine.cursor(handle)
    rig.engine.skip(handle, 8, b"[gap]")
    assert rig.engine.cursor(handle) == 8
    assert rig.finish(handle, chunk) == b"head" + b"".join(FRAMES[: cursor - 1]) + b"[gap]" + FRAMES[7]


def test_notices_of_several_skips_all_come_and_in_order(rig: Rig) -> None:
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


def test_a_stall_at_every_byte_of_the_frames_leaves_them_whole(rig: Rig) -> None:
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


# Live


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


def test_a_stream_added_with_nothing_to_send_can_be_live_at_once(rig: Rig) -> None:
    handle = rig.open(pending=b"")
    assert rig.engine.write(handle, None, 0.0)
    rig.engine.live(handle, 1)
    assert not rig.engine.is_behind(handle)


def test_a_broadcast_gives_every_live_member_the_chunk_from_its_own_cursor(rig: Rig) -> None:
    handles = [rig.open_live(cursor) for cursor in (1, 2, 3, 4, 9)]
    rig.broadcast(rig.chunk([b"a", b"b", b"c"]))
    assert [rig.read(handle) for handle in handles] == [b"abc", b"bc", b"c", b"", b""]
    assert [rig.engine.cursor(handle) for handle in handles] == [4, 4, 4, 4, 9]
    assert rig.engine.deliveries == 6
    assert rig.engine.lagging() == []


def test_a_broadcast_before_anything_was_combined_leaves_out_nobody(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.broadcast(rig.members, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
    assert rig.read(handle) == b"a"


def test_a_broadcast_leaves_out_streams_that_are_behind_closing_or_dead(rig: Rig) -> None:
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


def test_a_member_that_takes_too_little_is_told_of_as_lagging_once(rig: Rig) -> None:
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


def test_a_member_that_died_in_a_broadcast_is_not_lagging_but_closed(rig: Rig) -> None:
    gone, live = rig.open_live(), rig.open_live()
    rig.peers[gone].close()
    rig.broadcast(rig.chunk([b"a"]))
    assert rig.engine.lagging() == []
    assert not rig.is_open(gone)
    assert rig.closes() == [(gone, "client")]
    assert rig.read(live) == b"a"


def test_a_broadcast_of_no_time_goes_on_from_the_place_it_returned_until_all_have_it(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(50)]
    rig.engine.combine([])
    chunk, place, turns = rig.chunk([b"a"]), 0, 0
    while place < len(rig.members):
        after = rig.engine.broadcast(rig.members, place, chunk, False, 0.0, 0.0)
        assert place < after <= place + 16
        place, turns = after, turns + 1
    assert turns == 4
    assert [rig.read(handle) for handle in handles] == [b"a"] * 50


def test_a_broadcast_twice_gives_nobody_anything_twice(rig: Rig) -> None:
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


# Combinations


def test_streams_in_several_due_audiences_are_sent_their_combination_and_nothing_else(rig: Rig) -> None:
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


def test_streams_that_are_behind_or_gone_are_in_no_combination(rig: Rig) -> None:
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


def test_a_new_stream_in_the_row_of_a_combined_one_is_not_taken_for_it(rig: Rig) -> None:
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


def test_streams_in_more_than_sixteen_audiences_that_are_due_are_told_apart_no_further(rig: Rig) -> None:
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


# Handles


def test_a_stale_handle_is_nobody(rig: Rig) -> None:
    old = rig.open_live()
    rig.engine.abort(old, "slow")
    rig.engine.sweep()
    new = rig.open_live()
    assert new != old
    assert not rig.is_open(old)
    assert not rig.engine.is_behind(old)
    assert not rig.engine.fall_behind(old, 1)
    calls: list[Callable[[], object]] = [
        lambda: rig.engine.cursor(old),
        lambda: rig.engine.subscription(old),
        lambda: rig.engine.address(old),
        lambda: rig.engine.write(old, None, 0.0),
        lambda: rig.engine.live(old, 1),
        lambda: rig.engine.skip(old, 1, b"x"),
        lambda: rig.engine.close(old, "slow"),
        lambda: rig.engine.abort(old, "slow"),
    ]
    for call in calls:
        with pytest.raises(KeyError):
            call()
    assert rig.is_open(new)
    rig.broadcast(rig.chunk([b"a"]))
    assert rig.read(new) == b"a"
    assert rig.engine.deliveries == 1


def test_an_audience_is_compacted_of_handles_of_streams_that_are_no_more(rig: Rig) -> None:
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


def test_two_hundred_streams_keep_their_rows_apart_while_half_of_them_are_replaced(rig: Rig) -> None:
    rig.sends = 1 << 16
    handles = [rig.open_live() for _ in range(200)]
    for handle in handles[::2]:
        rig.engine.abort(handle, "slow")
        rig.peers.pop(handle).close()
    assert len(rig.closes()) == 100
    handles[::2] = [rig.open_live() for _ in range(100)]
    assert len(set(handles)) == 200
    assert sorted(rig.engine.handles()) == sorted(handles)
    rig.broadcast(rig.chunk([b"a"]))
    assert [rig.read(handle) for handle in handles] == [b"a"] * 200


def test_a_descriptor_that_epoll_refuses_stays_the_callers_and_changes_nothing(rig: Rig) -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(OSError, match=r".") as refused:
            rig.engine.add(file.fileno(), None, None, 1, b"head", 0.0)
        assert not isinstance(refused.value, BlockingIOError)
        os.fstat(file.fileno())
    assert rig.engine.open == 0
    assert rig.engine.handles() == []
    assert rig.engine.poll() == ([], False)


def test_the_same_descriptor_twice_is_refused_and_the_first_stream_goes_on(rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = ours.detach()
        handle = rig.engine.add(fd, None, None, 1, b"head", 0.0)
        with pytest.raises(OSError, match=r"."):
            rig.engine.add(fd, None, None, 1, b"again", 0.0)
        assert rig.engine.poll() == ([handle], False)
        assert rig.engine.write(handle, None, 0.0)
        assert theirs.recv(100) == b"head"
        rig.engine.abort(handle, "test")
        rig.engine.sweep()


# Polling


def test_a_stream_that_is_behind_is_named_when_it_becomes_writable_and_only_then(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.poll() == ([handle], False)
    assert rig.engine.poll() == ([], False)
    rig.stall(handle)
    assert rig.engine.poll() == ([], False)
    rig.read(handle)
    assert rig.engine.poll() == ([handle], False)
    assert rig.engine.poll() == ([], False)


def test_a_live_stream_is_not_named_as_writable(rig: Rig) -> None:
    rig.open_live()
    assert rig.engine.poll() == ([], False)


def test_more_streams_than_one_poll_takes_are_all_named_in_the_end(rig: Rig) -> None:
    handles = [rig.open() for _ in range(520)]
    first, more = rig.engine.poll()
    assert (len(first), more) == (512, True)
    rest, more = rig.engine.poll()
    assert not more
    assert sorted(first + rest) == sorted(handles)


def test_what_a_client_sends_is_thrown_away_up_to_a_bound(rig: Rig) -> None:
    handle = rig.open_live()
    for size in (1, 4095, 4096, DISCARD_BYTES_MAX - 8192):
        rig.peers[handle].send(b"x" * size)
        rig.engine.poll()
        assert rig.is_open(handle)
    rig.peers[handle].send(b"x")
    rig.engine.poll()
    assert not rig.is_open(handle)
    assert rig.closes() == [(handle, "input")]


def test_every_bound_that_the_settings_allow_is_taken(twin: EngineTypes) -> None:
    largest = SETTINGS["discard-bytes-max"].metadata["most"]
    for bound in (0, largest):
        assert twin.engine(bound).open == 0


def test_an_engine_that_cannot_be_made_closes_nothing(twin: EngineTypes) -> None:
    before = os.fstat(0)
    make: Callable[[], object] = twin.engine
    with pytest.raises(TypeError):
        make()
    gc.collect()
    assert os.fstat(0) == before


def test_a_clients_close_is_seen_in_every_state(rig: Rig) -> None:
    live, behind, stalled = rig.open_live(), rig.open(), rig.open()
    rig.stall(stalled)
    for handle in (live, behind, stalled):
        rig.peers[handle].close()
    rig.engine.poll()
    assert sorted(rig.closes()) == sorted([(live, "client"), (behind, "client"), (stalled, "client")])
    assert rig.engine.open == 0


def test_a_close_after_some_input_is_the_clients(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].send(b"x" * 100)
    rig.peers[handle].close()
    rig.engine.poll()
    assert rig.closes() == [(handle, "client")]


def test_a_closed_stream_whose_socket_lives_on_elsewhere_is_heard_of_no_more(rig: Rig) -> None:
    """The transport of the handshake may close its duplicate of the descriptor after the engine has closed its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handle = rig.engine.add(os.dup(ours.fileno()), None, None, 1, b"", 0.0)
        rig.engine.poll()
        rig.engine.abort(handle, "slow")
        assert rig.closes() == [(handle, "slow")]
        theirs.send(b"late")
        assert rig.engine.poll() == ([], False)


def test_a_new_stream_is_not_taken_for_a_closed_one_whose_socket_lives_on_elsewhere(rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handle = rig.engine.add(os.dup(ours.fileno()), None, None, 1, b"", 0.0)
        rig.engine.abort(handle, "slow")
        rig.engine.sweep()
        new = rig.open_live()  # has the same descriptor number
        rig.engine.poll()
        theirs.shutdown(socket.SHUT_RDWR)
        rig.engine.poll()
        assert rig.is_open(new)


# Passing to another process


def test_another_engine_goes_on_with_the_streams_where_this_one_stopped(rig: Rig) -> None:
    chunk = rig.chunk(FRAMES)
    live, half, closing, ended = rig.open_live(now_s=3.0), rig.open(), rig.open(), rig.open_live()
    assert not rig.engine.write(half, chunk, 7.0)
    cursor = rig.engine.cursor(half)
    rig.stall(closing)
    rig.engine.close(closing, "slow", b"bye")
    rig.engine.close(ended, "drain", b"")
    rig.engine.abort(rig.open(), "gone")
    packed = {handle: (fd, at, rest, at_s, why) for handle, fd, at, rest, at_s, why in rig.engine.pack()}
    assert list(packed) == [live, half, closing, ended]
    assert [rest[4] for rest in packed.values()] == [None, None, "slow", "drain"]
    assert (packed[live][1:3], packed[half][1]) == ((1, b""), cursor)
    assert packed[half][3] == pytest.approx(7.0, abs=0.01)  # stored as a float
    other = rig.twin.engine(DISCARD_BYTES_MAX)
    adopted = {}
    for handle, (fd, its_cursor, pending, written_s, _) in packed.items():
        adopted[handle] = other.add(os.dup(fd), None, None, its_cursor, pending, written_s)
    got = rig.read(half)
    while not other.write(adopted[half], chunk, 8.0):
        got += rig.read(half)
    assert got + rig.read(half) == b"head" + DATA
    other.close(adopted[closing], "slow")
    tail = b""
    while piece := rig.read(closing):
        tail += piece
        other.poll()
    assert tail.endswith(b"xbye")
    other.close(adopted[ended], "drain")
    assert rig.ended(ended)
    for handle in adopted.values():
        other.abort(handle, "test")
    other.sweep()


# Heartbeats


def test_heartbeats_go_only_to_live_streams_that_were_idle(rig: Rig) -> None:
    idle, busy, behind = (rig.open_live(now_s=100.0) for _ in range(3))
    rig.engine.fall_behind(busy, 1)
    assert rig.engine.write(busy, rig.chunk([b"a"]), 110.0)
    rig.engine.live(busy, 2)
    rig.engine.fall_behind(behind, 1)
    rig.read(busy)
    assert rig.engine.heartbeat(b":\n", 0, 15.0, 114.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b"", b"", b""]
    assert rig.engine.heartbeat(b":\n", 0, 15.0, 116.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b":\n", b"", b""]
    # A heartbeat also counts as a write.
    assert rig.engine.heartbeat(b":\n", 0, 15.0, 126.0, FOREVER_S) == 0
    assert [rig.read(handle) for handle in (idle, busy, behind)] == [b"", b":\n", b""]


def test_a_heartbeat_that_is_not_taken_whole_is_finished_before_the_next_frame(rig: Rig) -> None:
    handle = rig.open_live()
    assert rig.engine.heartbeat(ROOM, 0, 0.0, 10.0, FOREVER_S) == 0
    assert rig.engine.lagging() == [handle]
    assert rig.engine.is_behind(handle)
    assert rig.finish(handle, rig.chunk([b"a"])) == ROOM + b"a"
    assert rig.engine.cursor(handle) == 2


def test_a_heartbeat_never_stands_inside_a_frame(rig: Rig) -> None:
    handle = rig.open_live()
    rig.broadcast(rig.chunk(FRAMES))
    rig.engine.heartbeat(b":\n", 0, 0.0, 1000.0, FOREVER_S)
    assert rig.finish(handle, rig.chunk(FRAMES)) == DATA


def test_heartbeats_of_no_time_go_on_until_every_stream_had_one(rig: Rig) -> None:
    handles = [rig.open_live() for _ in range(100)]
    place = rig.engine.heartbeat(b":\n", 0, 10.0, 20.0, 0.0)
    turns = 1
    while place:
        place = rig.engine.heartbeat(b":\n", place, 10.0, 20.0, 0.0)
        turns += 1
    assert 1 < turns <= 8
    assert [rig.read(handle) for handle in handles] == [b":\n"] * 100


def test_a_heartbeat_to_a_stream_whose_peer_is_gone_closes_it(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].close()
    rig.engine.heartbeat(b":\n", 0, 0.0, 10.0, FOREVER_S)
    assert rig.closes() == [(handle, "client")]


# Closing


def test_a_close_sends_the_last_words_and_then_the_end(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.close(handle, "drain", b"bye")
    assert not rig.is_open(handle)
    assert rig.engine.handles() == []
    assert rig.read(handle) == b"bye"
    assert rig.ended(handle)
    assert rig.closes() == []
    rig.leave(handle)
    assert rig.closes() == [(handle, "drain")]


def test_a_close_lets_the_half_sent_frame_leave_first(rig: Rig) -> None:
    handle = rig.open()
    assert not rig.engine.write(handle, rig.chunk(FRAMES), 0.0)
    cursor = rig.engine.cursor(handle)
    rig.engine.close(handle, "slow", b"bye")
    assert rig.closes() == []
    assert not rig.is_open(handle)
    assert not rig.engine.is_behind(handle)
    assert rig.engine.open == 1
    data = b""
    while piece := rig.read(handle):
        data += piece
        assert rig.engine.poll() == ([], False)
    assert data == b"head" + b"".join(FRAMES[: cursor - 1]) + b"bye"
    assert rig.ended(handle)
    rig.leave(handle)
    assert rig.closes() == [(handle, "slow")]


def test_the_first_reason_counts_and_a_stream_is_swept_once(rig: Rig) -> None:
    handle = rig.open()
    rig.stall(handle)
    rig.engine.close(handle, "slow")
    rig.engine.close(handle, "drain", b"again")
    rig.engine.abort(handle, "shutdown")
    rig.engine.abort(handle, "shutdown")
    rig.engine.close(handle, "drain")
    rig.peers[handle].close()
    rig.engine.poll()
    assert rig.closes() == [(handle, "slow")]
    assert rig.closes() == []
    assert rig.engine.open == 0


@pytest.mark.parametrize("sends_too_much", [False, True])
def test_what_a_client_does_to_a_closing_stream_does_not_change_its_reason(rig: Rig, sends_too_much: bool) -> None:
    handle = rig.open()
    rig.stall(handle)
    rig.engine.close(handle, "slow")
    if sends_too_much:
        rig.peers[handle].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        rig.peers[handle].send(b"x" * (DISCARD_BYTES_MAX + 1))
    else:
        rig.peers[handle].close()
    rig.engine.poll()
    assert rig.closes() == [(handle, "slow")]


@pytest.mark.parametrize("reason", ["timeout", "client"])
def test_a_connection_that_the_kernel_gives_up_is_told_from_one_that_the_client_resets(rig: Rig, reason: str) -> None:
    ours, theirs = connected(receive_buffer=SEND_BUFFER)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
    handle = rig.engine.add(ours.detach(), None, None, 1, b"", 0.0)
    rig.peers[handle] = theirs
    rig.stall(handle)
    rig.engine.poll()
    if reason == "client":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    closes: list[tuple[int, str]] = []
    while not closes:
        assert select.select([rig.engine.fileno()], [], [], 30)[0]
        rig.engine.poll()
        closes = rig.closes()
    assert closes == [(handle, reason)]


def test_an_abort_does_not_wait_for_the_half_sent_frame(rig: Rig) -> None:
    handle = rig.open()
    rig.stall(handle)
    rig.engine.abort(handle, "shutdown")
    assert rig.closes() == [(handle, "shutdown")]
    assert rig.read(handle)
    assert rig.ended(handle)


def test_a_sweep_tells_what_the_stream_was_and_how_far_it_came(rig: Rig) -> None:
    subscription, address = object(), "192.0.2.1"
    handle = rig.open(4, subscription=subscription, address=address)
    rig.engine.abort(handle, "slow")
    assert rig.engine.cursor(handle) == 4
    [(swept, its_subscription, its_address, cursor, reason)] = rig.engine.sweep()
    assert (swept, cursor, reason) == (handle, 4, "slow")
    assert its_subscription is subscription
    assert its_address is address


def test_a_stream_closed_with_input_unread_still_gets_its_tail(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].send(b"x" * 1000)
    rig.engine.close(handle, "drain", b"bye")
    rig.closes()
    assert rig.peers[handle].recv(100) == b"bye"
    assert rig.peers[handle].recv(100) == b""


def test_a_client_that_goes_on_sending_and_reads_later_still_gets_its_tail(rig: Rig) -> None:
    """A closed socket answers data with a reset, which discards the unsent tail."""
    ours, theirs = connected(receive_buffer=SEND_BUFFER)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    tail = b"".join(b"%07d\n" % number for number in range(8000))
    handle = rig.engine.add(ours.detach(), None, None, 1, b"head", 0.0)
    rig.peers[handle] = theirs
    rig.engine.close(handle, "drain", tail)
    read = b""
    while len(read) < len(tail) + 4:
        theirs.send(b"more")
        rig.engine.poll()
        assert rig.closes() == []
        read += theirs.recv(1000)
    assert read == b"head" + tail
    assert theirs.recv(1) == b""
    rig.leave(handle)
    assert rig.closes() == [(handle, "drain")]


def test_a_client_that_never_closes_after_the_end_is_cut_by_an_abort(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.close(handle, "drain", b"bye")
    rig.engine.poll()
    assert rig.closes() == []
    rig.engine.abort(handle, "slow")
    assert rig.closes() == [(handle, "drain")]


def test_a_dead_stream_gets_not_one_byte_more(rig: Rig) -> None:
    live, behind = rig.open_live(), rig.open()
    for handle in (live, behind):
        rig.engine.abort(handle, "slow")
    rig.broadcast(rig.chunk([b"a"]))
    rig.engine.heartbeat(b":\n", 0, 0.0, 100.0, FOREVER_S)
    rig.engine.poll()
    assert rig.engine.lagging() == []
    rig.engine.sweep()
    assert rig.read(live) == rig.read(behind) == b""


def test_the_engines_descriptor_is_readable_when_a_client_has_gone(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.poll()
    assert select.select([rig.engine.fileno()], [], [], 0)[0] == []
    rig.peers[handle].close()
    assert select.select([rig.engine.fileno()], [], [], 0)[0] == [rig.engine.fileno()]
