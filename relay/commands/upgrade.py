"""`relay upgrade`: replaces a running relay with the installed version without disconnecting clients.

Owns the signal and the wait until the old process exits. Never performs the upgrade: the two processes do
(`relay.upgrade.give`).
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from relay.config.formats import parse_duration
from relay.errors import RelayError

CAUGHT = "SigCgt:"
STEP_S = 0.05
"""Time between two looks at the new process."""
EXIT_S = 1.0
"""Time for the old process to exit after the new one is no longer its child."""


@click.command(
    short_help="Replace a running relay with the installed version.",
    epilog="Example: pip install --upgrade . && relay upgrade $(systemctl show -p MainPID --value relay)",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.option("--wait", metavar="DURATION", default="90s", show_default=True, help="Longest wait.")
def upgrade(pid: int, wait: str) -> None:
    """Replace the relay that runs as process PID with the installed version.

    The new process takes over the listeners, streams, feeders and history. No client is disconnected. If the upgrade
    fails, the old process continues and logs the reason.
    """
    try:
        wait_s = parse_duration(wait)
    except ValueError as error:
        raise click.UsageError(f"--wait: {error}") from None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise RelayError(f"process {pid} does not exist") from None
    try:
        if not _catches(pid, signal.SIGUSR2):
            raise RelayError(f"process {pid} is not a relay that can be upgraded")
        before = _children(pid)
        signal.pidfd_send_signal(process, signal.SIGUSR2)
        _wait_for_exit(process, pid, before, wait_s)
    finally:
        os.close(process)


def _wait_for_exit(process: int, pid: int, before: set[str], wait_s: float) -> None:
    """Wait until the old process exits.

    Raises:
        RelayError: the new process has ended instead, or the time has passed.
    """
    until_s = time.monotonic() + wait_s
    started: set[str] = set()
    while not select.select([process], [], [], STEP_S)[0]:
        children = _children(pid)
        started |= children - before
        if started and not started & children and not select.select([process], [], [], EXIT_S)[0]:
            raise RelayError(f"the upgrade failed, and process {pid} continues; its log gives the reason")
        if time.monotonic() > until_s:
            raise RelayError(f"process {pid} still runs after {wait_s:g} s; its log gives the reason")


def _children(pid: int) -> set[str]:
    """Return the child processes that the first thread of a process has started (proc(5)).

    The set is empty if the kernel does not list them, or if the process has exited.
    """
    try:
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return set()


def _catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal (proc(5)). The signal would kill a process that does not."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [int(line.removeprefix(CAUGHT), 16) for line in lines if line.startswith(CAUGHT)]
    return bool(mask >> (number - 1) & 1)
