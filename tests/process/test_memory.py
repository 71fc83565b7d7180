"""relay.process.memory reads the memory of the machine and of control groups."""

from __future__ import annotations

from pathlib import Path

from relay.process.memory import available_bytes

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> None:
    """Write some files below a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_smallest_rest_of_the_machine_and_of_all_groups_is_available(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n"})
    assert available_bytes(tmp_path) == 8 * MIB
    group = "sys/fs/cgroup/system.slice/relay.service"
    write(tmp_path, {"proc/self/cgroup": "0::/system.slice/relay.service\n"})
    write(tmp_path, {f"{group}/memory.max": "max\n", f"{group}/memory.current": "1\n"})
    assert available_bytes(tmp_path) == 8 * MIB
    write(tmp_path, {"sys/fs/cgroup/system.slice/memory.max": f"{5 * MIB}\n"})
    write(tmp_path, {"sys/fs/cgroup/system.slice/memory.current": f"{3 * MIB}\n"})
    assert available_bytes(tmp_path) == 2 * MIB
    write(tmp_path, {f"{group}/memory.max": "5\n", f"{group}/memory.current": "7\n"})
    assert available_bytes(tmp_path) == 0


def test_the_memory_of_this_machine_is_known() -> None:
    assert available_bytes() is not None
