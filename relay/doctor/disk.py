"""The checks of the disk that `data` uses: the folder, the file system, the free space, and the time of a write.

Owns the temporary file of the measurement. Never opens the data file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from relay.config.model import Config
from relay.doctor.finding import Finding, fault, ok, warning

WRITES = 20
WRITE_BYTES = 4096
SLOW_S = 0.02
"""Median time of a synchronous write above which `durable` publishing is slow."""
SPACE_FACTOR = 3
"""Free space that the file needs, in sizes of the history: the events, SQLite's pages, and the write-ahead log."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs")


def check_disk(config: Config) -> list[Finding]:
    """Check the disk of the data file.

    Args:
        config: the settings of the server.
    """
    if not config.data:
        return [ok("disk", "not used: data is not set")]
    folder = Path(config.data).absolute().parent
    if not folder.is_dir():
        return [fault("disk", f"the folder {folder} does not exist", f"create it: mkdir -p {folder}")]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [fault("disk", f"this user cannot write to {folder}", "run relay doctor as relay's user, or chown it")]
    return [check_file_system(folder), check_space(config, folder), check_writes(config, folder)]


def check_file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> Finding:
    """Check that the file system is local, because SQLite's write-ahead log needs shared memory."""
    best, kind = "", "unknown"
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and folder.is_relative_to(point):
            best, kind = point, found
    if kind in _NETWORK:
        return fault("file system", f"{folder} is on {kind}, a network file system", "put data on a local disk")
    if kind in ("tmpfs", "ramfs"):
        return warning("file system", f"{folder} is on {kind}, which a reboot empties", "put data on a disk")
    return ok("file system", f"{folder} is on {kind}")


def check_space(config: Config, folder: Path) -> Finding:
    """Check the free space."""
    free, needed = shutil.disk_usage(folder).free, SPACE_FACTOR * config.history_bytes
    text = f"{free // 1024**2:,} MiB free; the data file may need {needed // 1024**2:,} MiB"
    if free >= needed:
        return ok("disk space", text)
    return (fault if free < config.history_bytes else warning)("disk space", text, "free space, or lower history-bytes")


def check_writes(config: Config, folder: Path, clock: Callable[[], float] = time.monotonic) -> Finding:
    """Measure synchronous writes to a temporary file in the folder."""
    try:
        times_s = _time_writes(folder, clock)
    except OSError as error:
        remedy = "free space on the disk" if error.errno in _FULL else "check the disk and how it is mounted"
        return fault("disk writes", f"cannot write to {folder}: {error.strerror}", remedy)
    median_s, most_s = statistics.median(times_s), max(times_s)
    text = f"a synchronous write takes {1000 * median_s:.1f} ms (median of {WRITES}), at most {1000 * most_s:.1f} ms"
    if median_s < SLOW_S:
        return ok("disk writes", text)
    waits = "publishers wait for it, because durable is on" if config.durable else "events wait for it"
    return warning("disk writes", f"{text}; {waits}", "use a local SSD")


def _time_writes(folder: Path, clock: Callable[[], float]) -> list[float]:
    """Return the times of synchronous writes to a temporary file in the folder, in seconds."""
    times_s = []
    descriptor, path = tempfile.mkstemp(prefix=".relay-doctor-", dir=folder)
    try:
        for _ in range(WRITES):
            began_s = clock()
            os.write(descriptor, bytes(WRITE_BYTES))
            os.fsync(descriptor)
            times_s.append(clock() - began_s)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):  # Another program has removed it.
            os.unlink(path)
    return times_s
