"""The checks of the machine: descriptors, the kernel's limits, memory and the clock.

Owns the recommended values. Never changes a limit.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

from relay.config.formats import size_text
from relay.config.load import worker_count
from relay.config.model import Config
from relay.doctor.finding import Finding, fault, ok, warning
from relay.errors import ConfigError
from relay.process.memory import available_bytes
from relay.server.descriptors import stream_bytes, streams_available

STREAMS_WANTED = 10_000
"""Room for fewer streams is a warning, unless `streams-max` asks for fewer."""
STALLED_BUFFERS = 5
"""Kernel memory of a stalled stream, in client buffers: 0.3 MB with the default of 64 KiB (docs/architecture)."""
STALLED_WANTED = 1000
PORTS_WANTED = 20_000
CONNTRACK_SPARE = 1024

_TIME_ERROR = 5  # the state that adjtimex(2) returns for an unsynchronised clock
_TIMEX_BYTES = 512  # more than the size of struct timex
_PAGE = resource.getpagesize()


def check_machine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Check the limits of this machine.

    Args:
        config: the settings of the server.
        root: the root of the file system, for tests.
    """
    proc = root / "proc"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = config.streams_max or STREAMS_WANTED
    checks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("backlog", lambda: [check_backlog(config, proc)]),
        ("tcp memory", lambda: [check_tcp_memory(config, proc)]),
        ("ports", lambda: [check_ports(proc)]),
        ("firewall", lambda: check_conntrack(wanted, proc)),
        ("memory", lambda: [check_memory(config, wanted, root)]),
    )
    findings = [check_descriptors(config, hard)]
    for subject, check in checks:
        try:
            findings += check()
        except OSError as error:  # Some containers hide the kernel's settings.
            text = f"cannot read {error.filename}: {error.strerror}"
            findings.append(warning(subject, text, "check it on the host of the container"))
    return [*findings, check_clock()]


def check_descriptors(config: Config, hard: int) -> Finding:
    """Check that the limit of open descriptors has room for the streams; `hard` is the hard limit of a process."""
    remedy = "raise the hard limit: LimitNOFILE=1048576 in systemd, `ulimits` of the container, or ulimit -Hn"
    try:
        room = streams_available(config, hard) * worker_count(config)
    except ConfigError as error:
        return fault("descriptors", str(error), remedy)
    text = f"{hard:,} per process: room for {room:,} streams"
    if room < (config.streams_max or STREAMS_WANTED):
        return warning("descriptors", text, remedy)
    return ok("descriptors", text)


def check_backlog(config: Config, proc: Path) -> Finding:
    """Check that the kernel permits the backlog of the settings."""
    largest = _number(proc, "net.core.somaxconn")
    text = f"net.core.somaxconn is {largest:,}, and backlog is {config.backlog:,}"
    if largest < config.backlog:
        return warning("backlog", text, f"sysctl -w net.core.somaxconn={config.backlog}, or lower backlog")
    queue = _number(proc, "net.ipv4.tcp_max_syn_backlog")
    if queue < min(config.backlog, 1024):
        return warning(
            "backlog", f"net.ipv4.tcp_max_syn_backlog is {queue:,}", "sysctl -w net.ipv4.tcp_max_syn_backlog=4096"
        )
    return ok("backlog", text)


def check_tcp_memory(config: Config, proc: Path) -> Finding:
    """Check how many stalled streams the memory limit of TCP permits."""
    pages = _numbers(proc, "net.ipv4.tcp_mem")[2]
    stalled = pages * _PAGE // (STALLED_BUFFERS * config.client_buffer)
    text = f"net.ipv4.tcp_mem permits {_size(pages * _PAGE)}: about {stalled:,} stalled streams"
    if stalled < STALLED_WANTED:
        return warning("tcp memory", text, "raise the third number of net.ipv4.tcp_mem, or lower client-buffer")
    return ok("tcp memory", text)


def check_ports(proc: Path) -> Finding:
    """Check the ports of outgoing connections, which a proxy on this machine needs."""
    first, last = _numbers(proc, "net.ipv4.ip_local_port_range")
    count = last - first + 1
    text = f"a proxy on this machine can open {count:,} connections to one address of relay"
    if count < PORTS_WANTED:
        return warning("ports", text, 'sysctl -w net.ipv4.ip_local_port_range="15000 65000", or several addresses')
    return ok("ports", text)


def check_conntrack(wanted: int, proc: Path) -> list[Finding]:
    """Check the table of connections of the firewall, if the kernel has one."""
    if not (proc / "sys/net/netfilter/nf_conntrack_max").exists():
        return []
    largest = _number(proc, "net.netfilter.nf_conntrack_max")
    text = f"the firewall tracks at most {largest:,} connections"
    if largest < wanted + CONNTRACK_SPARE:
        needed = 2 * wanted
        return [warning("firewall", text, f"sysctl -w net.netfilter.nf_conntrack_max={needed}, or exempt relay's port")]
    return [ok("firewall", text)]


def check_memory(config: Config, wanted: int, root: Path) -> Finding:
    """Check that the history and the streams fit into the memory of the machine or of the container."""
    available = available_bytes(root)
    if available is None:
        return warning("memory", "the available memory is unknown", "check it on the host of the container")
    # The log counts the bytes of frames. Their objects and the indexes need about as much again for small events.
    needed = 2 * config.history_bytes + wanted * stream_bytes(config)
    text = f"{_size(available)} available; history-bytes and {wanted:,} streams need about {_size(needed)}"
    remedy = "lower history-bytes or streams-max, or add memory"
    if available < config.history_bytes:
        return fault("memory", text, remedy)
    return warning("memory", text, remedy) if available < needed else ok("memory", text)


def check_clock() -> Finding:
    """Check that the clock is synchronised. JWTs, tickets and `since` depend on it."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _TIME_ERROR:
        return warning("clock", "the kernel's clock is not synchronised", "run chrony, systemd-timesyncd or ntpd")
    if state < 0:
        return warning(
            "clock", f"its state is unknown: {os.strerror(ctypes.get_errno())}", "check it on the host of the container"
        )
    return ok("clock", "it is synchronised")


def _number(proc: Path, name: str) -> int:
    return _numbers(proc, name)[0]


def _numbers(proc: Path, name: str) -> list[int]:
    """Return the numbers of a kernel setting."""
    return [int(word) for word in (proc / "sys" / name.replace(".", "/")).read_text().split()]


def _size(size: int) -> str:
    """Format a number of bytes in whole MiB, or exactly if it is smaller."""
    return f"{size // 1024**2:,} MiB" if size >= 1024**2 else size_text(size)
