"""The engine's handles and descriptors, its polling, and the transfer of its streams to another engine."""

from __future__ import annotations

import gc
import os
import select
import socket
import tempfile
from collections.abc import Callable

import pytest

from bench.implementations import EngineTypes
from relay.config.model import SETTINGS
from tests.engines import DISCARD_BYTES_MAX, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]
FRAMES = frames_of([700, 900, 1100, 1300, 1500, 1700, 1900, 2100])
DATA = b"".join(FRAMES)


def test_a_stale_handle_refers_to_no_stream(rig: Rig) -> None:
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


def test_a_stream_that_becomes_live_keeps_a_later_cursor(rig: Rig) -> None:
    ahead, level = rig.open(cursor=5), rig.open(cursor=2)
    for handle in (ahead, level):
        assert rig.engine.write(handle, None, 0.0)
        rig.engine.live(handle, 3)
    assert (rig.engine.cursor(ahead), rig.engine.cursor(level)) == (5, 3)


def test_streams_keep_separate_rows_while_half_of_them_are_replaced(rig: Rig) -> None:
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


def test_a_descriptor_that_epoll_rejects_stays_open_and_changes_nothing(rig: Rig) -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(OSError, match=r".") as refused:
            rig.engine.add(file.fileno(), None, None, 1, b"head", 0.0)
        assert not isinstance(refused.value, BlockingIOError)
        os.fstat(file.fileno())
    assert rig.engine.open == 0
    assert rig.engine.handles() == []
    assert rig.engine.poll() == ([], False)


def test_a_repeated_descriptor_is_rejected_and_the_first_stream_continues(rig: Rig) -> None:
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


def test_a_poll_returns_a_stream_that_is_behind_only_when_it_becomes_writable(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.poll() == ([handle], False)
    assert rig.engine.poll() == ([], False)
    rig.stall(handle)
    assert rig.engine.poll() == ([], False)
    rig.read(handle)
    assert rig.engine.poll() == ([handle], False)
    assert rig.engine.poll() == ([], False)


def test_a_poll_does_not_return_a_live_stream(rig: Rig) -> None:
    rig.open_live()
    assert rig.engine.poll() == ([], False)


def test_several_polls_return_all_writable_streams(rig: Rig) -> None:
    handles = [rig.open() for _ in range(520)]
    first, more = rig.engine.poll()
    assert (len(first), more) == (512, True)
    rest, more = rig.engine.poll()
    assert not more
    assert sorted(first + rest) == sorted(handles)


def test_data_from_a_client_is_discarded_up_to_a_limit(rig: Rig) -> None:
    handle = rig.open_live()
    for size in (1, 4095, 4096, DISCARD_BYTES_MAX - 8192):
        rig.peers[handle].send(b"x" * size)
        rig.engine.poll()
        assert rig.is_open(handle)
    rig.peers[handle].send(b"x")
    rig.engine.poll()
    assert not rig.is_open(handle)
    assert rig.closes() == [(handle, "input")]


def test_every_limit_that_the_settings_allow_is_accepted(twin: EngineTypes) -> None:
    largest = SETTINGS["discard-bytes-max"].metadata["most"]
    for bound in (0, largest):
        assert twin.engine(bound).open == 0


def test_an_engine_that_fails_to_initialise_closes_nothing(twin: EngineTypes) -> None:
    before = os.fstat(0)
    make: Callable[[], object] = twin.engine
    with pytest.raises(TypeError):
        make()
    gc.collect()
    assert os.fstat(0) == before


def test_the_close_of_a_client_is_detected_in_every_state(rig: Rig) -> None:
    live, behind, stalled = rig.open_live(), rig.open(), rig.open()
    rig.stall(stalled)
    for handle in (live, behind, stalled):
        rig.peers[handle].close()
    rig.engine.poll()
    assert sorted(rig.closes()) == sorted([(live, "client"), (behind, "client"), (stalled, "client")])
    assert rig.engine.open == 0


def test_a_close_after_some_input_has_the_reason_client(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].send(b"x" * 100)
    rig.peers[handle].close()
    rig.engine.poll()
    assert rig.closes() == [(handle, "client")]


def test_a_closed_stream_with_a_duplicated_descriptor_causes_no_more_events(rig: Rig) -> None:
    """The transport of the handshake may close its duplicate of the descriptor after the engine has closed its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handle = rig.engine.add(os.dup(ours.fileno()), None, None, 1, b"", 0.0)
        rig.engine.poll()
        rig.engine.abort(handle, "slow")
        assert rig.closes() == [(handle, "slow")]
        theirs.send(b"late")
        assert rig.engine.poll() == ([], False)


def test_a_duplicated_descriptor_of_a_closed_stream_does_not_affect_a_new_one(rig: Rig) -> None:
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


def test_the_engines_descriptor_is_readable_when_a_client_disconnects(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.poll()
    assert select.select([rig.engine.fileno()], [], [], 0)[0] == []
    rig.peers[handle].close()
    assert select.select([rig.engine.fileno()], [], [], 0)[0] == [rig.engine.fileno()]


def test_another_engine_continues_the_streams_at_the_same_byte(rig: Rig) -> None:
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
