"""Start a server under measurement, wait until it is ready, read its figures from /proc, and end it.

Owns the server processes and the kernel's figures for them. Never judges a figure.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadtest.rig.publisher import PublisherProgram
from loadtest.rig.targets import Place, Target

START_S = 20.0
CLOSE_S = 10.0
POLL_S = 0.02
# The kernel reports a process that has ended by ENOENT or ESRCH for its files and by EINVAL for its clock.
GONE = OSError
T = TypeVar("T", int, float)


class MeasureError(Exception):
    """A server did not start, or the run did not measure what it was set up to measure."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores that the server and the load may use; an empty set lets the kernel choose."""

    server: frozenset[int] = frozenset()
    load: frozenset[int] = frozenset()


def pinned() -> Cores:
    """Return the first core for the server and the others for the load; on a single core, pin neither."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores()
    return Cores(frozenset(cores[:1]), frozenset(cores[1:]))


class MeasuredServer:
    """One running server, from its start to its end.

    The server runs in its own session. Ending it kills every process of that session.

    Args:
        target: the server.
        cpus: the cores that the server may use; all if empty.
        extra: more arguments for relay.

    Raises:
        MeasureError: the server did not become ready; the message ends with its last output.
    """

    def __init__(self, target: Target, *, cpus: Collection[int] = (), extra: tuple[str, ...] = ()) -> None:
        self.target = target
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port, publish_port = free_ports(2)
        self._place = Place(port, publish_port, folder / "state")
        self._place.folder.mkdir()
        self.port = self._place.port
        self.unix = self._place.unix
        self._log = self._stack.enter_context((folder / "log").open("w+b"))
        environment = {name: value for name, value in os.environ.items() if _is_neutral(name)}
        self._process = subprocess.Popen(
            target.command(self._place, extra),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        self._stack.callback(self._end)
        if cpus:
            os.sched_setaffinity(self._process.pid, cpus)
        try:
            self._wait_ready()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> MeasuredServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._process.pid

    def publisher(
        self,
        *,
        rate: float,
        count: int,
        seconds: float = 60.0,
        size: int = 150,
        first: int = 1,
        topics: int = 0,
        cpus: Collection[int] = (),
    ) -> PublisherProgram:
        """Start a publisher that suits this server; the arguments are those of `PublisherProgram`."""
        http = self.target.http
        entrance = msgspec.structs.replace(http, port=self._place.publish_port) if http else self.unix
        return PublisherProgram(
            entrance, rate=rate, count=count, seconds=seconds, size=size, first=first, topics=topics, cpus=cpus
        )

    def get(self, path: str) -> tuple[int, bytes]:
        """Send one GET request; return the status and the body."""
        with self._answer(path, "*/*") as response:
            return response.status, response.read()

    @contextlib.contextmanager
    def _answer(self, path: str, accept: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Connection": "close", "Accept": accept})
            yield connection.getresponse()
        finally:
            connection.close()

    def stats(self) -> dict[str, Any]:
        """Return the server's /stats; empty for a server other than relay."""
        if self.target.name != "relay":
            return {}
        status, body = self.get("/stats")
        stats: dict[str, Any] = msgspec.json.decode(body) if status == 200 else {}
        return stats

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, of the server and all its children, including ended ones."""
        return sum(_of_each(lambda pid: cpu_s(pid) + reaped_s(pid), tree(self.pid)))

    def pss_bytes(self) -> int:
        """Return the memory of the server and its children; processes that share a page divide its size."""
        return sum(_of_each(pss_bytes, tree(self.pid)))

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._is_ready():
                    return
            time.sleep(POLL_S)
        self._log.seek(0)
        tail = self._log.read()[-2000:].decode(errors="replace")
        raise MeasureError(f"{self.target.name} did not become ready: {tail}")

    def _is_ready(self) -> bool:
        """Return whether the server accepts events and answers its readiness page, or opens a stream if it has none."""
        if self.target.http:
            socket.create_connection(("127.0.0.1", self._place.publish_port), timeout=5).close()
        elif not self.target.forwards and not self.unix.exists():
            return False
        path = self.target.ready or self.target.path.replace("{topic}", "default")
        with self._answer(path, "text/event-stream") as response:
            return response.status == 200

    def _end(self) -> None:
        # A stalled stream would hold up a drain; a second signal ends it at once.
        for _ in range(2):
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S / 10)
                break
        # Kill the processes of the session that are left: the server or its children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _is_neutral(name: str) -> bool:
    """Return whether a variable may reach the server: settings of relay may not, except the choice of the engine."""
    return not name.startswith("RELAY_") or name == "RELAY_ENGINE"


def free_ports(count: int) -> list[int]:
    """Return free ports, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def raise_descriptor_limit() -> None:
    """Raise the descriptor limit of this process and its children to the system's maximum."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# The kernel's figures


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(GONE):
                found += [int(child) for child in children.read_text().split()]
    return found


def _of_each(figure: Callable[[int], T], pids: Sequence[int]) -> Iterator[T]:
    """Yield a figure of each process; skip processes after the first that have just ended."""
    yield figure(pids[0])
    for pid in pids[1:]:
        with contextlib.suppress(GONE):
            yield figure(pid)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of one process, all threads, to the nanosecond.

    This reads the process's CPU clock (clock_getcpuclockid(3)). It equals the sum of utime and stime in
    /proc/PID/stat, which counts hundredths of a second.
    """
    return time.clock_gettime((~pid << 3) | 2)


def reaped_s(pid: int) -> float:
    """Return the CPU seconds, to a hundredth, of one process's children that ended and were waited for."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[13:15])) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of one process, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise MeasureError(f"no Pss for process {pid}")


def tcp_memory_bytes() -> int:
    """Return the memory of all TCP sockets of this machine, in bytes; both ends of loopback connections count."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    raise MeasureError("no TCP memory in /proc/net/sockstat")


def busy_s() -> float:
    """Return the busy seconds of all cores together since the machine started."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle, iowait = int(words[3]), int(words[4])
    # The columns user and nice already include the guest columns.
    return (sum(map(int, words[:8])) - idle - iowait) / float(os.sysconf("SC_CLK_TCK"))
