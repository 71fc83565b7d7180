"""The connection to the service manager: readiness, the watchdog, and inherited listeners.

Owns the protocols of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3): datagrams and a few environment
variables. Never decides when to send a state. Without a service manager it sends nothing and returns no listeners.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from relay.errors import ConfigError

FIRST_FD = 3
"""Number of the first inherited descriptor (SD_LISTEN_FDS_START)."""

VARIABLES = frozenset({"LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_PID"})
"""Environment variables that apply to one process only, and that its child processes must not inherit."""

_logger = logging.getLogger("relay.systemd")


class Service:
    """This process as a service.

    Args:
        environ: the environment.
        pid: the id of this process. Variables for another process are ignored.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._environ = environ
        self._pid = pid
        self.ping_s = self._interval_s()

    def _interval_s(self) -> float | None:
        """Return half of the watchdog's interval, as sd_watchdog_enabled(3) recommends; None without a watchdog."""
        text = self._environ.get("WATCHDOG_USEC", "")
        mine = self._environ.get("WATCHDOG_PID", str(self._pid)) == str(self._pid)
        return int(text) / 2e6 if mine and text.isascii() and text.isdigit() and int(text) else None

    def tell(self, *states: str) -> None:
        """Send states, such as `READY=1`; log an error of the manager's socket and continue."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.connect(self._address)
                channel.send("\n".join(states).encode())
        except OSError as error:
            _logger.warning("cannot send %s to the service manager: %s", states[0], error.strerror)

    def inherited(self) -> dict[str, str]:
        """Return the environment for a process that replaces this one."""
        return {name: text for name, text in self._environ.items() if name not in VARIABLES}

    def reloading(self) -> None:
        """Report that a reload has started; `READY=1` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def listeners(self) -> tuple[list[socket.socket], socket.socket | None]:
        """Return the listeners that the manager has opened: the TCP listeners, and the Unix socket, if there is one.

        Raises:
            ConfigError: a descriptor is not a listening socket, or there are several Unix sockets.
        """
        if self._environ.get("LISTEN_PID") != str(self._pid):
            return [], None
        given, names = self._environ.get("LISTEN_FDS", ""), self._environ.get("LISTEN_FDNAMES", "").split(":")
        if not given.isascii() or not given.isdigit():
            raise ConfigError(f"LISTEN_FDS={given} is not a number")
        tcp: list[socket.socket] = []
        unix: list[socket.socket] = []
        for place in range(int(given)):
            listener = _take(FIRST_FD + place, names[place] if place < len(names) else "unknown")
            (unix if listener.family == socket.AF_UNIX else tcp).append(listener)
        if len(unix) > 1:
            raise ConfigError("LISTEN_FDS: the service manager passed several Unix sockets, and relay accepts only one")
        return tcp, unix[0] if unix else None


def _take(fd: int, name: str) -> socket.socket:
    """Return the TCP or Unix stream listener of an inherited descriptor."""
    origin = f"descriptor {fd} ({name}) of the service manager"
    try:
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"{origin}: {error.strerror}") from None
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if listener.family not in families or listener.type != socket.SOCK_STREAM or not listens:
        listener.close()
        raise ConfigError(f"{origin}: this is not a listening stream socket")
    listener.setblocking(False)
    return listener
