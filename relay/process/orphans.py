"""Orphans: the ended processes that process 1 must reap, such as those of a container's health checks.

Owns the reaping. Never reaps a process that relay itself has started: asyncio needs its exit code.
"""

from __future__ import annotations

import os
from collections.abc import Collection


def reap_orphans(own: Collection[int]) -> None:
    """Reap the ended child processes that relay has not started.

    The kernel makes process 1 the parent of every process whose parent has ended.

    Args:
        own: ids of the processes that relay has started.
    """
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in own:
                return  # It hides the others until asyncio has reaped it.
            os.waitpid(ended.si_pid, os.WNOHANG)
    except ChildProcessError:
        return  # There are no child processes.
