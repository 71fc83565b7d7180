"""curl with an upload: a publish request whose lines a test writes one by one."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import TOKEN, Relay


@contextlib.contextmanager
def curl(server: Relay, *arguments: str, target: str = "/publish/build?lines=1") -> Iterator[subprocess.Popen[bytes]]:
    """Run curl with an upload from its standard input. With `-T .`, it reads the response while it waits for input."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "--silent", "--show-error", "--no-buffer", "-X", "POST", "-T", "."]
    fields = ["-H", f"Authorization: Bearer {TOKEN}", "-H", "Content-Type: text/plain"]
    process = subprocess.Popen(
        [*command, *fields, *arguments, f"{server.url}{target}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def write(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def report(process: subprocess.Popen[bytes], *, ends: bool = True) -> dict[str, Any]:
    """Return the response; with `ends`, end the input first. Without it, the server ends the request."""
    assert process.stdin is not None
    assert process.stdout is not None
    if ends:
        process.stdin.close()
    result: dict[str, Any] = json.loads(process.stdout.read())
    return result
