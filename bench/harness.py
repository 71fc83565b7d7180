"""Servers under measurement: started, awaited, read through /proc, ended.

Owns the server processes and what the kernel says about them; never opens a stream and never judges a figure.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loadtest.native import build

HERE = Path(__file__).parent
START_S = 20.0
CLOSE_S = 10.0
POLL_S = 0.02
# The bound on a server's life should the harness itself be killed.
LIFE_S = 600
# What relay sets on its listener, given to the floor too, so that both wait for the kernel alike.
CLIENT_BUFFER = 64 * 1024
NOTSENT_LOWAT = 64 * 1024


class MeasureError(Exception):
    """A server did not start, or what was measured is not what was meant."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that can be measured.

    Args:
        name: how results call it.
        command: makes its command line from a TCP port, the path of the feeder's Unix socket and extra
            arguments.
        path: request target of a stream that gets every event.
    """

    name: str
    command: Callable[[int, Path, tuple[str, ...]], list[str]]
    path: str = "/events?topic=default"


def _floor(port: int, unix: Path, extra: tuple[str, ...]) -> list[str]:
    # Of the floor nothing but its life can be set here; `extra` is meant for relay.
    del extra
    return [
        str(build(HERE / "floor.c")),
        *("--port", str(port), "--unix", str(unix), "--seconds", str(LIFE_S)),
        *("--client-buffer", str(CLIENT_BUFFER), "--notsent-lowat", str(NOTSENT_LOWAT)),
    ]


def _relay(port: int, unix: Path, extra: tuple[str, ...]) -> list[str]:
    return [
        *(sys.executable, "-m", "relay", "serve", "--listen", f"127.0.0.1:{port}", "--unix", str(unix)),
        *("--stdin", "off", "--log-format", "json", *extra),
    ]


TARGETS = {target.name: target for target in (Target("floor", _floor), Target("relay", _relay))}


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server and the load may use; empty sets leave it to the kernel."""

    server: frozenset[int] = frozenset()
    load: frozenset[int] = frozenset()


def pinned() -> Cores:
    """The server alone on the first core, the load on the others; on one core there is nothing to pin."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores()
    return Cores(frozenset(cores[:1]), frozenset(cores[1:]))


class Server:
    """One running server, from start to ready to end.

    Args:
        target: which server.
        cpus: the cores it may use; all when empty.
        extra: more arguments for relay.

    Raises:
        MeasureError: it did not become ready; the end of what it wrote is in the message.
    """

    def __init__(self, target: Target, *, cpus: Collection[int] = (), extra: tuple[str, ...] = ()) -> None:
        self.target = target
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.unix = folder / "feed.sock"
        self.port = _free_port()
        self._log = self._stack.enter_context((folder / "log").open("w+b"))
        environment = {name: value for name, value in os.environ.items() if _is_neutral(name)}
        self._process = subprocess.Popen(
            target.command(self.port, self.unix, extra),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )
        self._stack.callback(self._end)
        if cpus:
            os.sched_setaffinity(self._process.pid, cpus)
        try:
            self._wait_ready()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def get(self, path: str) -> tuple[int, bytes]:
        """Answer of one GET request: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stats(self) -> dict[str, Any]:
        """What the server says of itself on /stats; nothing from one that has no such page."""
        if self.target.name != "relay":
            return {}
        status, body = self.get("/stats")
        stats: dict[str, Any] = msgspec.json.decode(body) if status == 200 else {}
        return stats

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of the server's process and its children so far."""
        return sum(cpu_s(pid) for pid in tree(self.pid))

    def pss_bytes(self) -> int:
        """Memory of the server's process and its children; what is shared is divided among its sharers."""
        return sum(pss_bytes(pid) for pid in tree(self.pid))

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/readyz")[0] == 200 and self.unix.exists():
                    return
            time.sleep(POLL_S)
        self._log.seek(0)
        tail = self._log.read()[-2000:].decode(errors="replace")
        raise MeasureError(f"{self.target.name} did not become ready: {tail}")

    def _end(self) -> None:
        # A stalled stream would hold up a drain; a second signal ends it at once.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S / 10)
                return
        self._process.wait()


def _is_neutral(name: str) -> bool:
    """Settings from the environment must not decide a measurement; which engine runs may."""
    return not name.startswith("RELAY_") or name == "RELAY_ENGINE"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def raise_descriptor_limit() -> None:
    """Let this process, and so its children, have as many descriptors as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# What the kernel says


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of one process so far, all threads, to the nanosecond.

    The process's CPU clock (clock_getcpuclockid(3)): the same sum as utime and stime in /proc/PID/stat, which
    has only hundredths of a second.
    """
    return time.clock_gettime((~pid << 3) | 2)


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise MeasureError(f"no Pss for process {pid}")


def tcp_memory_bytes() -> int:
    """Memory of all TCP sockets of this machine, both ends of loopback connections, in whole pages."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    raise MeasureError("no TCP memory in /proc/net/sockstat")


def busy_s() -> float:
    """Seconds that all cores together were busy since the machine started."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle, iowait = int(words[3]), int(words[4])
    # The guest columns repeat what is in user and nice.
    return (sum(map(int, words[:8])) - idle - iowait) / float(os.sysconf("SC_CLK_TCK"))
