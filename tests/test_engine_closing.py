"""The engine closes streams with a reason, after their half-sent frames, or aborts them."""

from __future__ import annotations

import select
import socket
import struct

import pytest

from relay.core.close_reason import CloseReason
from tests.engines import DISCARD_BYTES_MAX, FOREVER_S, SEND_BUFFER, Rig, frames_of, rig, twin

__all__ = ["rig", "twin"]
FRAMES = frames_of([700, 900, 1100, 1300, 1500, 1700, 1900, 2100])


def connected(*, receive_buffer: int) -> tuple[socket.socket, socket.socket]:
    """Connect two TCP sockets: one for a stream, and one for a subscriber with this receive buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


def test_a_close_sends_the_tail_and_then_the_end(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.close(handle, "drain", b"bye")
    assert not rig.is_open(handle)
    assert rig.engine.handles() == []
    assert rig.read(handle) == b"bye"
    assert rig.ended(handle)
    assert rig.closes() == []
    rig.leave(handle)
    assert rig.closes() == [(handle, "drain")]


def test_a_close_completes_the_half_sent_frame_first(rig: Rig) -> None:
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


def test_a_stream_keeps_its_first_close_reason_and_is_swept_once(rig: Rig) -> None:
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
def test_a_client_cannot_change_the_reason_of_a_closing_stream(rig: Rig, sends_too_much: bool) -> None:
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


@pytest.mark.parametrize("way", ["close", "abort"])
def test_a_reason_of_the_enum_is_returned_as_an_exact_str(rig: Rig, way: str) -> None:
    handle = rig.open_live()
    getattr(rig.engine, way)(handle, CloseReason.REVOKED)
    rig.leave(handle)
    [(swept, reason)] = rig.closes()
    assert (swept, reason, type(reason)) == (handle, "revoked", str)


@pytest.mark.parametrize("reason", ["timeout", "client"])
def test_a_timeout_of_the_kernel_and_a_reset_have_different_reasons(rig: Rig, reason: str) -> None:
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


def test_a_sweep_returns_the_subscription_address_and_cursor_of_a_stream(rig: Rig) -> None:
    subscription, address = object(), "192.0.2.1"
    handle = rig.open(4, subscription=subscription, address=address)
    rig.engine.abort(handle, "slow")
    assert rig.engine.cursor(handle) == 4
    [(swept, its_subscription, its_address, cursor, reason)] = rig.engine.sweep()
    assert (swept, cursor, reason) == (handle, 4, "slow")
    assert its_subscription is subscription
    assert its_address is address


def test_a_stream_closed_with_unread_input_still_sends_its_tail(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].send(b"x" * 1000)
    rig.engine.close(handle, "drain", b"bye")
    rig.closes()
    assert rig.peers[handle].recv(100) == b"bye"
    assert rig.peers[handle].recv(100) == b""


def test_a_client_that_keeps_sending_and_reads_later_still_receives_its_tail(rig: Rig) -> None:
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


def test_an_abort_ends_a_client_that_never_closes_after_the_end(rig: Rig) -> None:
    handle = rig.open_live()
    rig.engine.close(handle, "drain", b"bye")
    rig.engine.poll()
    assert rig.closes() == []
    rig.engine.abort(handle, "slow")
    assert rig.closes() == [(handle, "drain")]


def test_a_dead_stream_receives_no_further_byte(rig: Rig) -> None:
    live, behind = rig.open_live(), rig.open()
    for handle in (live, behind):
        rig.engine.abort(handle, "slow")
    rig.broadcast(rig.chunk([b"a"]))
    rig.engine.heartbeat([b":\n"], 0, 0.0, 100.0, FOREVER_S)
    rig.engine.poll()
    assert rig.engine.lagging() == []
    rig.engine.sweep()
    assert rig.read(live) == rig.read(behind) == b""


@pytest.mark.parametrize("live", [True, False])
def test_a_released_stream_gives_its_descriptor_and_its_unsent_bytes_to_the_caller(rig: Rig, live: bool) -> None:
    handle = rig.open_live() if live else rig.open(pending=b"a head")
    fd, unsent, interrupted = rig.engine.release(handle, CloseReason.ANSWERED)
    assert (unsent, interrupted) == (b"" if live else b"a head", False)
    assert not rig.is_open(handle)
    with pytest.raises(RuntimeError):
        rig.engine.release(handle, "again")
    rig.peers[handle].send(b"the next request")
    assert rig.engine.poll() == ([], False)
    assert rig.closes() == [(handle, "answered")]
    with socket.socket(fileno=fd) as released:
        assert released.recv(100) == b"the next request", "the engine reads nothing after the release"
        released.send(b"an answer")
        assert rig.read(handle) == b"an answer"


def test_a_release_reports_discarded_input(rig: Rig) -> None:
    handle = rig.open_live()
    rig.peers[handle].send(b"too early")
    rig.engine.poll()
    fd, _, interrupted = rig.engine.release(handle, "answered")
    assert interrupted
    socket.socket(fileno=fd).close()
    assert rig.closes() == [(handle, "answered")]
