"""The servers of the soak: processes of relay that are upgraded, restarted and reloaded, and a Redis.

All processes of a server write their log to one pipe. Their standard input is another pipe, so they end when this
process ends.

Owns these processes and their logs. Never publishes and never subscribes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from loadtest.rig.harness import GONE, MeasureError, cpu_s, free_ports, pss_bytes, tree

TOKEN = secrets.token_urlsafe(24)
STEP_S = 180.0
"""Longest time for a start, a stop or an upgrade, on a machine whose cores are busy."""
END_S = 0.5
"""Time between two signals that end a server."""
LINE_BYTES_MAX = 1024 * 1024

LIMITS = (
    *("--history-events", "2000", "--history-bytes", "4MiB", "--dedup-max", "2000"),
    *(
        "--lag-bytes",
        "24KiB",
        "--client-buffer",
        "16KiB",
        "--block-timeout",
        "2s",
        "--compress",
        "gzip",
        "--upgrade-timeout",
        "120s",
    ),
    *("--heartbeat", "5s", "--retry-min", "500ms", "--retry-max", "3s", "--drain-spread", "3s"),
)
"""Small limits: the log, the dedup keys and the compressors soon reach their sizes, and then evict all the time."""


class _Line(msgspec.Struct):
    """The part of a line of the log that this module reads."""

    message: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One server at one moment.

    Args:
        hub_bytes, workers_bytes: memory (PSS) of the first process and of its children; without workers, the second
            is 0.
        descriptors: open descriptors of all processes.
        age_s: seconds since the first process started.
        cpu_s: CPU seconds of each process.
        stats: the answer of /stats; empty if the server did not answer.
    """

    hub_bytes: int
    workers_bytes: int
    descriptors: int
    age_s: float
    cpu_s: dict[int, float]
    stats: dict[str, Any]


class SoakServer:
    """One server, over all of its processes.

    Args:
        name: the name in the report.
        folder: for its socket, its file and its log.
        arguments: more arguments of `relay serve`.
        certificate: PEM file of the certificate and its key; None for a server without TLS.
    """

    def __init__(self, name: str, folder: Path, arguments: Sequence[str] = (), certificate: Path | None = None) -> None:
        self.name = name
        (port,) = free_ports(1)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        self.unix = folder / f"{name}.sock"
        self.errors: list[str] = []
        self.pid = 0
        self._arguments = [
            *(sys.executable, "-P", "-m", "relay", "serve", "--listen", f"127.0.0.1:{port}"),
            *("--unix", str(self.unix), "--stdin", "ndjson", "--exit-on-eof", "--log-format", "json", *LIMITS),
            *(("--tls-cert", str(certificate)) if certificate else ()),
            *arguments,
        ]
        self._log_path = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._started_s = 0.0
        self._stack = contextlib.AsyncExitStack()
        self._waiting: list[tuple[re.Pattern[str], asyncio.Future[re.Match[str]]]] = []

    async def __aenter__(self) -> SoakServer:
        """Open the pipes, and start."""
        self._stdin, keeps_running = os.pipe()
        log, self._stderr = os.pipe()
        for descriptor in (self._stdin, keeps_running, self._stderr):
            self._stack.callback(os.close, descriptor)
        lines = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(log, "rb")
        )
        self._stack.callback(transport.close)
        reading = asyncio.create_task(self._read(lines))
        self._stack.callback(reading.cancel)
        self._stack.push_async_callback(self._end)
        try:
            await self.start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        """End the server at once: a second SIGTERM ends a drain."""
        if self._process is None:
            return  # It did not start.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
                await asyncio.sleep(END_S)
        await self._process.wait()

    async def start(self) -> None:
        """Start a process, and wait until it serves."""
        names = {name: text for name, text in os.environ.items() if not name.startswith("RELAY_")}
        tokens = {"RELAY_PUBLISH_TOKEN": TOKEN, "RELAY_ADMIN_TOKEN": TOKEN}
        serves = self._message(r"serving at ")
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments, stdin=self._stdin, stderr=self._stderr, start_new_session=True, env=names | tokens
        )
        self.pid, self._started_s = self._process.pid, time.monotonic()
        ending = asyncio.create_task(self._process.wait())
        ending.add_done_callback(lambda _: serves.cancel())
        await self._within(serves, "start")

    async def restart(self) -> None:
        """Drain the server, and start it again. Its clients reconnect."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGTERM)
        async with asyncio.timeout(STEP_S):
            await self._process.wait()
        await self.start()

    async def upgrade(self) -> int:
        """Replace the process by another one, and return the number of streams that it took over."""
        handed = self._message(r"handed over (\d+) streams in \d+ ms to process (\d+)")
        os.kill(self.pid, signal.SIGUSR2)
        found = await self._within(handed, "upgrade")
        self.pid, self._started_s = int(found[2]), time.monotonic()
        return int(found[1])

    def reload(self) -> None:
        """Let the server read its files again."""
        os.kill(self.pid, signal.SIGHUP)

    async def figures(self, client: httpx.AsyncClient) -> ServerFigures:
        """Read the memory and the descriptors of the server from /proc, and its /stats."""
        stats: dict[str, Any] = {}
        with contextlib.suppress(httpx.HTTPError, msgspec.DecodeError):
            answer = await client.get(f"{self.url}/stats", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
            if answer.status_code == 200:
                stats = msgspec.json.decode(answer.content)
        first, *others = tree(self.pid)
        sizes, descriptors, cpu = [], 0, {}
        for pid in (first, *others):
            with contextlib.suppress(GONE):
                sizes.append(pss_bytes(pid))
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
                cpu[pid] = cpu_s(pid)
        age_s = time.monotonic() - self._started_s
        return ServerFigures(sizes[0], sum(sizes[1:]), descriptors, age_s, cpu, stats)

    def _message(self, pattern: str) -> asyncio.Future[re.Match[str]]:
        """Return a future of the next message in the log that contains a pattern."""
        future: asyncio.Future[re.Match[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append((re.compile(pattern), future))
        return future

    async def _within(self, found: asyncio.Future[re.Match[str]], step: str) -> re.Match[str]:
        try:
            async with asyncio.timeout(STEP_S):
                return await found
        except (TimeoutError, asyncio.CancelledError):
            if not found.cancelled():
                raise
            tail = self._log_path.read_text()[-2000:]
            raise MeasureError(f"{self.name}: the {step} failed, or took longer than {STEP_S:.0f} s: {tail}") from None

    async def _read(self, lines: asyncio.StreamReader) -> None:
        """Write the log to its file, keep the errors, and find the messages that a step waits for."""
        with self._log_path.open("ab") as file:
            while text := await lines.readline():
                file.write(text)
                file.flush()
                try:
                    line = msgspec.json.decode(text, type=_Line)
                except msgspec.DecodeError:
                    line = _Line(text.decode(errors="replace").rstrip(), "error")
                if line.level.lower() in ("error", "critical"):
                    self.errors.append(line.message)
                for pattern, future in list(self._waiting):
                    if (match := pattern.search(line.message)) and not future.done():
                        future.set_result(match)
                self._waiting = [each for each in self._waiting if not each[1].done()]


def make_certificate(folder: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1 with openssl, and return the PEM file with it and its key."""
    path = folder / "tls.pem"
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=soak", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(cert.read_bytes() + key.read_bytes())
    return path


@contextlib.asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[str]:
    """Run a Redis, and yield its address."""
    program = shutil.which("redis-server")
    if program is None:
        raise MeasureError("redis-server is not installed: `make brokers` installs it")
    (port,) = free_ports(1)
    flags = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no")
    process = await asyncio.create_subprocess_exec(program, *flags, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        await process.wait()
