"""The socket pair between a pump and the front (`relay.front.pair`)."""

from __future__ import annotations

import contextlib
import socket

import pytest

from relay.front.pair import open_pair


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
