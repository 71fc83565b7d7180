"""The server of `relay demo --prove`: it can be killed, started again and upgraded.

All of its processes write their log to one pipe. Their standard input is another pipe, which only this process writes:
a server exits when this process ends.

Owns these processes. Never publishes and never opens a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from relay.commands.server_process import start_server
from relay.errors import RelayError

STEP_TIMEOUT_S = 30.0
"""Longest time for a start or an upgrade."""
LINE_BYTES_MAX = 1024 * 1024


class _LogLine(msgspec.Struct):
    """The part of a line of the log that this module reads."""

    message: str = ""
    level: str = ""


class ProvedServer:
    """A server with one address, one file and one Unix socket, over all of its processes.

    Args:
        arguments: the arguments of `relay serve`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = (*arguments, "--stdin", "ndjson", "--exit-on-eof", "--log-format", "json")
        self.pid = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Open the two pipes."""
        self._stack = contextlib.ExitStack()
        self._stdin, self._keeps_running = os.pipe()
        log, self._stderr = os.pipe()
        self._stack.callback(os.close, self._stdin)
        self._stack.callback(os.close, self._stderr)
        self._log = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._log), os.fdopen(log, "rb")
        )
        self._stack.callback(transport.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the server."""
        os.close(self._keeps_running)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        self._stack.close()

    async def start(self) -> int:
        """Start a process, wait until it serves, and return its id."""
        self._process = await start_server(self._arguments, stdin=self._stdin, stderr=self._stderr)
        self.pid = self._process.pid
        await self._message(r"serving at ")
        return self.pid

    async def kill(self) -> None:
        """Kill the process with SIGKILL, and wait until it has ended."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        await self._process.wait()

    async def upgrade(self) -> tuple[int, int]:
        """Replace the process by another one. Return its id and the number of streams that it took over."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGUSR2)
        found = await self._message(r"handed over (\d+) streams in \d+ ms to process (\d+)")
        self.pid = int(found[2])
        await self._process.wait()
        return self.pid, int(found[1])

    async def _message(self, pattern: str) -> re.Match[str]:
        """Wait for a message in the log.

        Raises:
            RelayError: the message does not follow in time, or an error precedes it.
        """
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                while True:
                    line = msgspec.json.decode(await self._log.readline(), type=_LogLine)
                    if line.level.lower() in ("error", "critical"):
                        raise RelayError(f"the server failed: {line.message}")
                    found = re.search(pattern, line.message)
                    if found:
                        return found
        except msgspec.DecodeError:
            raise RelayError("the server wrote a line that is not JSON to its log") from None
        except TimeoutError:
            raise RelayError(f"the server did not log {pattern!r} within {STEP_TIMEOUT_S:.0f} s") from None
