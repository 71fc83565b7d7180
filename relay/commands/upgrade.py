"""`relay upgrade`: a running relay replaced by what is installed now, with nobody disconnected.

Owns the signal and the wait for the old process's end; the processes do the rest by themselves (`relay.upgrade.give`).
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import click

from relay.errors import RelayError

CAUGHT = "SigCgt:"


@click.command(
    short_help="Replace a running relay by what is installed now.",
    epilog="Example: pip install --upgrade . && relay upgrade $(systemctl show -p MainPID --value relay)",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.option("--wait", "wait_s", type=float, default=90.0, show_default=True, help="Seconds to wait at most.")
def upgrade(pid: int, wait_s: float) -> None:
    """Have the relay with this process id start what is installed now, and hand it everything.

    Its listeners, streams, feeders and history pass on, and nobody is disconnected. Where that fails it goes on, and
    its log says why.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise RelayError(f"there is no process {pid}") from None
    try:
        if not _catches(pid, signal.SIGUSR2):
            raise RelayError(f"process {pid} is no relay that can be upgraded")
        signal.pidfd_send_signal(process, signal.SIGUSR2)
        if not select.select([process], [], [], wait_s)[0]:
            raise RelayError(f"process {pid} goes on after {wait_s:g} s; its log says why")
    finally:
        os.close(process)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Say whether a process handles a signal: to all others this one would be the end (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [int(line.removeprefix(CAUGHT), 16) for line in lines if line.startswith(CAUGHT)]
    return bool(mask >> (number - 1) & 1)
