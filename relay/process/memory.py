"""The memory that this process may still use.

Owns the reading of the machine's free memory and of the limits of control groups. Never limits anything.
"""

from __future__ import annotations

from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that is available to this process; None if the system does not state it.

    The result is the minimum of the machine's available memory and of the remaining memory of each control group
    (version 2) that contains the process.

    Args:
        root: the root of the file system, for tests.
    """
    known = [*_machine(root), *_groups(root)]
    return max(0, min(known)) if known else None


def _machine(root: Path) -> list[int]:
    """Return the available memory of the machine, in a list that is empty if it is unknown."""
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines()]
    return [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]


def _groups(root: Path) -> list[int]:
    """Return the remaining memory of each group with a limit, from the group of this process up to the root."""
    top = root / "sys/fs/cgroup"
    paths = [line[3:] for line in _read(root / "proc/self/cgroup").splitlines() if line.startswith("0::")]
    left = []
    for path in paths:
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            limit, used = _read(each / "memory.max").strip(), _read(each / "memory.current").strip()
            if limit.isdigit() and used.isdigit():
                left.append(int(limit) - int(used))
            if each == top:
                break
    return left


def _read(path: Path) -> str:
    """Return the content of a file; empty if it cannot be read, because not every system has these files."""
    try:
        return path.read_text()
    except OSError:
        return ""
