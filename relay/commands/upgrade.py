"""`relay upgrade`: replaces a running relay with the installed version without disconnecting clients.

Owns the signal and the wait until the old process exits. Never performs the upgrade: the two processes do
(`relay.upgrade.give`).
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
    short_help="Replace a running relay with the installed version.",
    epilog="Example: pip install --upgrade . && relay upgrade $(systemctl show -p MainPID --value relay)",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.option("--wait", "wait_s", type=float, default=90.0, show_default=True, help="Longest wait in seconds.")
def upgrade(pid: int, wait_s: float) -> None:
    """Replace the relay that runs as process PID with the installed version.

    The new process takes over the listeners, streams, feeders and history. No client is disconnected. If the upgrade
    fails, the old process continues and logs the reason.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise RelayError(f"process {pid} does not exist") from None
    try:
        if not _catches(pid, signal.SIGUSR2):
            raise RelayError(f"process {pid} is not a relay that can be upgraded")
        signal.pidfd_send_signal(process, signal.SIGUSR2)
        if not select.select([process], [], [], wait_s)[0]:
            raise RelayError(f"process {pid} still runs after {wait_s:g} s; its log gives the reason")
    finally:
        os.close(process)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal (proc(5)). The signal would kill a process that does not."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [int(line.removeprefix(CAUGHT), 16) for line in lines if line.startswith(CAUGHT)]
    return bool(mask >> (number - 1) & 1)
