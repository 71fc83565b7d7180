"""Compile the C programs, start them, and exchange lines with them.

Owns the compiler's command line and one child process per `Program`. Never interprets a measurement.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

HERE = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
LINE_BYTES_MAX = 64 * 1024
CLOSE_S = 5.0


class ProgramError(Exception):
    """A program could not be built, did not report in time, or ended too soon."""


def build(source: Path) -> Path:
    """Compile one C file into `bin/` beside it, unless the program there is newer than its sources.

    Args:
        source: the file with `main`; it may include headers from its own folder.

    Returns:
        The program's path.

    Raises:
        ProgramError: there is no C compiler, or the source does not compile.
    """
    binary = source.parent / "bin" / source.stem
    newest = max(path.stat().st_mtime_ns for path in (source, *source.parent.glob("*.h")))
    if binary.exists() and binary.stat().st_mtime_ns > newest:
        return binary
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ProgramError("no C compiler found (cc); set CC")
    binary.parent.mkdir(exist_ok=True)
    # Build under a unique name: another build or a running program may use the final name.
    fresh = binary.with_name(f"{binary.name}.{os.getpid()}")
    made = subprocess.run(
        [*compiler.split(), *FLAGS, str(source), "-o", str(fresh)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise ProgramError(f"{source.name}: {made.stderr.strip()}")
    fresh.replace(binary)
    return binary


class Program:
    """A running program that prints one JSON object per line; the key `report` holds the report's name.

    Args:
        command: the program and its arguments.
        cpus: the cores that the program may use; all if empty.
    """

    def __init__(self, command: Sequence[str], *, cpus: Collection[int] = ()) -> None:
        self.name = Path(command[0]).name
        self._pending = b""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if cpus:
            os.sched_setaffinity(self._process.pid, cpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Send the program one line. If the program has ended, the next `report` raises the error."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def report(self, name: str, timeout_s: float) -> bytes:
        """Wait for the next report of that name; discard others.

        Returns:
            The line, a JSON object.

        Raises:
            ProgramError: the report did not arrive within `timeout_s` seconds, or the program ended first.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._line(deadline)
            if line is None:
                raise ProgramError(f"{self.name}: no {name!r} report (exit code {self._process.poll()})")
            if msgspec.json.decode(line, type=_Name).report == name:
                return line

    def _line(self, deadline: float) -> bytes | None:
        """Return the next line, or None at the end of the output or at the deadline."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            more = os.read(fd, LINE_BYTES_MAX)
            if not more:
                return None
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def close(self) -> None:
        """Terminate the program, kill it if it does not end in time, and close the pipes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _Name(msgspec.Struct):
    report: str
