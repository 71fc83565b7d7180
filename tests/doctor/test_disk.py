"""The checks of the disk (`relay.doctor.disk`)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from relay.config.model import Config
from relay.doctor import disk
from relay.doctor.finding import Level


def test_a_disk_that_is_not_used_is_not_checked() -> None:
    [found] = disk.check_disk(Config())
    assert (found.level, found.text) == (Level.OK, "not used: data is not set")


def test_a_disk_is_measured_and_left_clean(tmp_path: Path) -> None:
    findings = disk.check_disk(Config(data=str(tmp_path / "relay.db"), history_bytes=1 << 20))
    assert [each.subject for each in findings] == ["file system", "disk space", "disk writes"]
    assert findings[1].level is Level.OK
    assert "a synchronous write takes" in findings[2].text
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_fault(tmp_path: Path) -> None:
    [found] = disk.check_disk(Config(data=str(tmp_path / "missing" / "relay.db")))
    assert (found.level, "mkdir -p" in found.remedy) == (Level.FAULT, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_read_only_folder_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    [found] = disk.check_disk(Config(data=str(tmp_path / "relay.db")))
    assert (found.level, "cannot write" in found.text) == (Level.FAULT, True)


@pytest.mark.parametrize(
    ("kind", "level"), [("ext4", Level.OK), ("nfs4", Level.FAULT), ("cifs", Level.FAULT), ("tmpfs", Level.WARNING)]
)
def test_the_file_system_of_the_folder_matters(kind: str, level: Level, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / xfs rw 0 0\nserver:/x /srv/my\\040data {kind} rw 0 0\nproc /srv/myd proc rw 0 0\n")
    found = disk.check_file_system(Path("/srv/my data/relay"), mounts)
    assert (found.level, f"is on {kind}" in found.text) == (level, True)


def test_too_little_space_is_a_fault(tmp_path: Path) -> None:
    assert disk.check_space(Config(history_bytes=1 << 60), tmp_path).level is Level.FAULT


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free space on the disk"), (errno.EROFS, "check the disk")]
)
def test_a_failed_write_is_a_fault(code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    found = disk.check_writes(Config(data="x"), tmp_path)
    assert (found.level, found.text) == (Level.FAULT, f"cannot write to {tmp_path}: {os.strerror(code)}")
    assert found.remedy.startswith(remedy)
    assert list(tmp_path.iterdir()) == []


def test_slow_writes_are_a_warning(tmp_path: Path) -> None:
    times = iter(range(2 * disk.WRITES))
    found = disk.check_writes(Config(durable=True, data="x"), tmp_path, lambda: next(times) / 10)
    assert (found.level, "100.0 ms" in found.text) == (Level.WARNING, True)
    assert "publishers wait" in found.text
