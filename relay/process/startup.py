"""The start of a process: the preparations before any other code of relay runs.

Owns the three standard descriptors and the signals until the server handles them. Imports almost nothing, because
a signal that arrives during the imports would end the process.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn, TextIO

HELD = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that request an action of a running server. By default, each of them ends a process."""


def prepare() -> None:
    """Open missing standard descriptors and hold back the signals in `HELD`."""
    hold_signals()
    if os.getpid() == 1:
        # The kernel drops signals to process 1 that have no handler: `docker stop` would wait for its time limit.
        signal.signal(signal.SIGTERM, _exit)
    open_standard_descriptors()


def hold_signals() -> None:
    """Hold back the signals in `HELD`; signals that arrive remain pending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def release_signals() -> None:
    """Deliver the signals that were held back, and from now on deliver them at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def open_standard_descriptors() -> None:
    """Open /dev/null at each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next socket or file gets that number, and all printed output goes into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python sets these to None if the descriptor was closed when it started, although its stubs deny that.
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(fd: int, mode: str) -> TextIO:
    return open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[return-value]


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
