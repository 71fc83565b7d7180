"""The socket pair between a pump and the front.

Owns the options of its sockets. Never reads or writes.
"""

from __future__ import annotations

import socket


def open_pair(send_bytes: int) -> tuple[socket.socket, socket.socket]:
    """Return the end of the pump and the end of the front, both non-blocking.

    Connect both with `loop.connect_accepted_socket`. If a transport of `create_unix_connection` closes before that call
    returns, uvloop closes a descriptor twice.

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
