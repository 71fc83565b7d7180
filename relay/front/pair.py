"""The socket pair between a pump and the front.

Owns the options of its sockets and their connection to the event loop. Never reads or writes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


def open_pair(send_bytes: int) -> tuple[socket.socket, socket.socket]:
    """Return the end of the pump and the end of the front, both non-blocking.

    Args:
        send_bytes: size of the send buffer of each end.

    Raises:
        OSError: no descriptor is free.
    """
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    return ends


async def connect_pair(
    loop: asyncio.AbstractEventLoop,
    send_bytes: int,
    pump: Callable[[], asyncio.BaseProtocol],
    front: Callable[[], asyncio.BaseProtocol],
) -> None:
    """Open a pair, and connect each end to a protocol.

    Args:
        loop: the event loop.
        send_bytes: size of the send buffer of each end.
        pump: returns the protocol of the pump's end, which is connected last.
        front: returns the protocol of the front's end.

    Raises:
        OSError: no descriptor is free.
    """
    ours, theirs = open_pair(send_bytes)
    try:
        # A protocol may close its transport at once. In `create_unix_connection`, uvloop then closes the descriptor
        # twice, the second time possibly after another part of the process has received the same descriptor.
        await loop.connect_accepted_socket(front, theirs)
        await loop.connect_accepted_socket(pump, ours)
    except BaseException:
        for each in (ours, theirs):
            each.close()
        raise
