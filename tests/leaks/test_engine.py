"""Closed streams leave nothing: no descriptor, no object, no reference."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from bench.implementations import EngineTypes
from tests.engines import DISCARD_BYTES_MAX, FOREVER_S, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]

STREAMS = 300
End: TypeAlias = Callable[[Rig, int], None]


class Subscription:
    """Replaces the object that the hub shares between streams."""


def descriptors() -> int:
    """Count the open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def objects() -> int:
    """Count the objects that the garbage collector tracks."""
    gc.collect()
    return len(gc.get_objects())


def close_all(rig: Rig) -> None:
    """Sweep the streams, and close the subscribers' ends."""
    rig.engine.sweep()
    for peer in rig.peers.values():
        peer.close()
    rig.peers.clear()
    rig.engine.compact(rig.members)


def abort(rig: Rig, handle: int) -> None:
    rig.engine.abort(handle, "slow")


def close(rig: Rig, handle: int) -> None:
    rig.engine.close(handle, "drain", b"bye" * 100)
    rig.engine.abort(handle, "slow")


def skip_and_abort(rig: Rig, handle: int) -> None:
    if rig.engine.is_behind(handle):
        rig.engine.skip(handle, 100, b"gap" * 100)
    rig.engine.abort(handle, "slow")


def leave(rig: Rig, handle: int) -> None:
    rig.peers[handle].close()
    rig.engine.poll()
    if rig.engine.is_behind(handle):
        rig.engine.write(handle, rig.chunk([b"a"], 50), 0.0)


def talk(rig: Rig, handle: int) -> None:
    rig.peers[handle].send(b"x" * (DISCARD_BYTES_MAX + 1))
    rig.engine.poll()


def read_all_and_close(rig: Rig, handle: int) -> None:
    rig.read(handle)
    rig.engine.close(handle, "drain")
    while rig.read(handle):
        rig.engine.poll()
    rig.leave(handle)


ENDS: list[End] = [abort, close, skip_and_abort, leave, talk, read_all_and_close]


@pytest.mark.parametrize("end", ENDS)
def test_every_kind_of_close_releases_descriptors_objects_and_references(rig: Rig, end: End) -> None:
    subscription, address = Subscription(), "192.0.2." + str(len(ENDS))
    head = bytes(bytearray(b"head" * 100))
    frames = frames_of([2001 + number for number in range(8)])
    chunk = rig.chunk(frames)
    heartbeat = bytes(bytearray(b":" * 20_000))
    shared: list[object] = [subscription, address, head, chunk, chunk.data, heartbeat, *frames]

    def run(count: int) -> None:
        for number in range(count):
            handle = rig.open(subscription=subscription, address=address, pending=head)
            rig.engine.join(handle, rig.members)
            if number % 4 == 0:
                rig.engine.write(handle, chunk, 0.0)
            elif number % 4 < 3:
                rig.engine.write(handle, None, 0.0)
                rig.engine.live(handle, 1)
        rig.broadcast(chunk)
        rig.engine.heartbeat([heartbeat], 0, 0.0, 10.0, FOREVER_S)
        rig.engine.lagging()
        handles = list(rig.peers)
        for handle in handles:
            end(rig, handle)
        close_all(rig)
        assert rig.engine.open == 0
        assert len(rig.members) == 0

    run(20)
    gc.collect()
    references = [sys.getrefcount(each) for each in shared]
    before = descriptors(), objects()
    run(STREAMS)
    assert descriptors() == before[0]
    assert abs(objects() - before[1]) <= 5
    assert [sys.getrefcount(each) for each in shared] == references


def test_a_stream_keeps_one_reference_to_its_subscription_address_and_head(rig: Rig) -> None:
    subscription, address, head = Subscription(), "192.0.2.77" + str(id(rig)), bytes(bytearray(b"head" * 50))
    before = [sys.getrefcount(each) for each in (subscription, address, head)]
    handles = [rig.open(subscription=subscription, address=address, pending=head) for _ in range(10)]
    assert [sys.getrefcount(each) for each in (subscription, address, head)] == [count + 10 for count in before]
    for handle in handles:
        rig.engine.write(handle, None, 0.0)
    assert [sys.getrefcount(each) for each in (subscription, address, head)] == [
        before[0] + 10,
        before[1] + 10,
        before[2],
    ]
    for handle in handles:
        rig.engine.abort(handle, "slow")
    swept = rig.engine.sweep()
    assert len(swept) == 10
    del swept
    assert [sys.getrefcount(each) for each in (subscription, address, head)] == before


@pytest.mark.parametrize("how", ["finish", "skip", "close", "abort", "peer"])
def test_the_half_sent_frame_is_released_when_it_is_not_needed(rig: Rig, how: str) -> None:
    frames = frames_of([2001 + number for number in range(8)])
    chunk = rig.chunk(frames)
    before = [sys.getrefcount(frame) for frame in frames]
    handle = rig.open()
    assert not rig.engine.write(handle, chunk, 0.0)
    held = [sys.getrefcount(frame) for frame in frames]
    assert sum(held) == sum(before) + 1
    if how == "finish":
        rig.finish(handle, chunk)
    elif how == "skip":
        # The stream copies the rest of the frame and appends the notice, so it no longer refers to the frame.
        rig.engine.skip(handle, 50, b"gap")
    elif how == "close":
        rig.engine.close(handle, "drain", b"bye")
    elif how == "abort":
        rig.engine.abort(handle, "slow")
        rig.engine.sweep()
    else:
        rig.peers[handle].close()
        rig.engine.poll()
        rig.engine.sweep()
    assert [sys.getrefcount(frame) for frame in frames] == before


def test_the_garbage_collector_tracks_no_idle_stream_of_the_compiled_engine(rig: Rig) -> None:
    if rig.twin.name == "native":
        pytest.skip("only the compiled engine stores streams without objects")
    peers = [socket.socketpair() for _ in range(100)]
    descriptors_of = [ours.detach() for ours, _ in peers]
    subscription, address = Subscription(), "192.0.2.1"
    before = objects()
    handles = [rig.engine.add(fd, subscription, address, 1, b"", 0.0) for fd in descriptors_of]
    assert objects() - before <= 3
    for handle in handles:
        rig.engine.abort(handle, "test")
    rig.engine.sweep()
    for _, theirs in peers:
        theirs.close()


def test_a_deleted_engine_closes_its_descriptors_and_releases_its_objects(twin: EngineTypes) -> None:
    if twin.name == "native":
        pytest.skip("the native engine's sockets warn when they are not closed")
    subscription, pending = Subscription(), bytes(bytearray(b"head" * 50))
    before = descriptors(), sys.getrefcount(subscription), sys.getrefcount(pending)
    engine = twin.engine(100)
    pairs = [socket.socketpair() for _ in range(70)]
    for ours, _ in pairs:
        engine.add(ours.detach(), subscription, "192.0.2.1", 1, pending, 0.0)
    del engine
    assert all(theirs.recv(1) == b"" for _, theirs in pairs)
    for _, theirs in pairs:
        theirs.close()
    assert (descriptors(), sys.getrefcount(subscription), sys.getrefcount(pending)) == before


def test_rejected_chunks_leave_nothing(twin: EngineTypes) -> None:
    frame = bytes(bytearray(b"frame" * 50))
    before = sys.getrefcount(frame)
    for _ in range(100):
        with pytest.raises(ValueError, match="sequence"):
            twin.chunk([frame], [1, 2], 3)
    assert sys.getrefcount(frame) == before
