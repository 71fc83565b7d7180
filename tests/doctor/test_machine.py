"""The checks of the machine compare its limits with the settings (`relay.doctor.machine`, `relay.doctor.finding`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.config.model import Config
from relay.doctor import machine
from relay.doctor.finding import Finding, Level

GOOD = {
    "sys/net/core/somaxconn": "4096",
    "sys/net/ipv4/tcp_max_syn_backlog": "4096",
    "sys/net/ipv4/tcp_mem": "188000\t250000\t377000",
    "sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB",
}


def kernel(folder: Path, **changes: str) -> Path:
    """Write a /proc with good values and some others, and return the root that contains it."""
    for name, text in (GOOD | {key.replace("__", "/"): value for key, value in changes.items()}).items():
        path = folder / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_good_machine_has_no_finding_but_its_clock(tmp_path: Path) -> None:
    findings = machine.check_machine(Config(streams_max=100), kernel(tmp_path))
    assert [each.subject for each in findings] == ["descriptors", "backlog", "tcp memory", "ports", "memory", "clock"]
    assert {each.level for each in findings[:-1]} == {Level.OK}
    assert findings[-1].level in (Level.OK, Level.WARNING)  # not every test machine synchronises its clock


@pytest.mark.parametrize(
    ("changes", "subject", "text"),
    [
        ({"sys__net__core__somaxconn": "128"}, "backlog", "net.core.somaxconn=4096"),
        ({"sys__net__ipv4__tcp_max_syn_backlog": "128"}, "backlog", "tcp_max_syn_backlog=4096"),
        ({"sys__net__ipv4__tcp_mem": "1 2 3000"}, "tcp memory", "third number of net.ipv4.tcp_mem"),
        ({"sys__net__ipv4__ip_local_port_range": "50000 60999"}, "ports", "ip_local_port_range"),
        ({"sys__net__netfilter__nf_conntrack_max": "2000"}, "firewall", "nf_conntrack_max=20000"),
        ({"meminfo": "MemAvailable: 100000 kB"}, "memory", "lower history-bytes"),
    ],
)
def test_each_low_limit_is_a_warning_with_a_remedy(
    changes: dict[str, str], subject: str, text: str, tmp_path: Path
) -> None:
    found = warnings(machine.check_machine(Config(), kernel(tmp_path, **changes)))
    assert text in found[subject].remedy
    assert set(found) - {"clock", "descriptors"} == {subject}


def test_a_setting_that_a_container_hides_is_a_warning(tmp_path: Path) -> None:
    root = kernel(tmp_path)
    (root / "proc/sys/net/core/somaxconn").unlink()
    found = warnings(machine.check_machine(Config(streams_max=100), root))
    assert "somaxconn: No such file" in found["backlog"].text


def warnings(findings: list[Finding]) -> dict[str, Finding]:
    return {each.subject: each for each in findings if each.level is not Level.OK}


def test_a_container_without_memory_for_the_history_is_a_fault(tmp_path: Path) -> None:
    root = kernel(tmp_path, self__cgroup="0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text(str(40 * 1024**2))
    (root / "sys/fs/cgroup/memory.current").write_text(str(8 * 1024**2))
    found = machine.check_memory(Config(), 10, root)
    assert (found.level, "32 MiB available" in found.text) == (Level.FAULT, True)


def test_memory_that_the_system_does_not_state_is_a_warning(tmp_path: Path) -> None:
    found = machine.check_memory(Config(), 10, tmp_path)
    assert (found.level, found.text) == (Level.WARNING, "the available memory is unknown")


def test_descriptors_limit_the_streams() -> None:
    assert machine.check_descriptors(Config(), 1_048_576).level is Level.OK
    assert "room for 3,968 streams" in machine.check_descriptors(Config(), 4096).text
    assert machine.check_descriptors(Config(), 4096).level is Level.WARNING
    assert machine.check_descriptors(Config(streams_max=1000), 4096).level is Level.OK
    too_many = machine.check_descriptors(Config(streams_max=5000), 4096)
    assert (too_many.level, "5000 streams need more" in too_many.text) == (Level.FAULT, True)


def test_the_state_of_the_real_clock_is_known() -> None:
    found = machine.check_clock()
    assert found.subject == "clock"
    assert os.strerror(22) not in found.text  # EINVAL: the buffer has the wrong form
