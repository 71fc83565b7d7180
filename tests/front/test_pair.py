"""The socket pair between a pump and the front (`relay.front.pair`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import cast

import pytest

from relay.front.pair import connect_pair, open_pair
from tests.front.site import on_uvloop

TURNS = 20
"""Turns of the event loop within which the other end sees the close and closes too."""


class AbortsAtOnce(asyncio.Protocol):
    """Aborts its transport as soon as it is connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def keep_pairs(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return a list that receives both ends of each pair."""
    ends: list[socket.socket] = []

    def open_and_keep(send_bytes: int) -> tuple[socket.socket, socket.socket]:
        pair = open_pair(send_bytes)
        ends.extend(pair)
        return pair

    monkeypatch.setattr("relay.front.pair.open_pair", open_and_keep)
    return ends


def check_closed_once(ends: list[socket.socket]) -> None:
    """Check that no socket still has its descriptor: it would close it a second time, after its transport."""
    assert [end.detach() for end in ends] == [-1, -1]


@pytest.mark.parametrize("end", ["pump", "front", "both"])
@on_uvloop
async def test_an_end_that_is_aborted_at_once_is_closed_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = keep_pairs(monkeypatch)
    pump = asyncio.Protocol if end == "front" else AbortsAtOnce
    front = asyncio.Protocol if end == "pump" else AbortsAtOnce
    await connect_pair(asyncio.get_running_loop(), 16 * 1024, pump, front)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    check_closed_once(ends)


def test_a_send_to_either_end_never_waits_and_fills_a_bounded_buffer() -> None:
    for sender, receiver in (open_pair(16 * 1024), open_pair(16 * 1024)[::-1]):
        with sender, receiver:
            assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 32 * 1024, "Linux doubles the value"
            with pytest.raises(BlockingIOError):
                receiver.recv(1)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < 1 << 20:
                    sent += sender.send(b"x" * 4096)
            assert 0 < sent <= 64 * 1024
