"""Real `relay` processes for tests of the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.config import SETTINGS
from relay.settings import variable

TIMEOUT_S = 20.0


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without settings of relay, and without proxies for this machine."""
    ours = {variable(name) for name in SETTINGS} | {"RELAY_CONFIG"}
    kept = {name: text for name, text in os.environ.items() if name not in ours}
    return kept | {"NO_PROXY": "*", "no_proxy": "*"} | changes


def command(*arguments: str) -> list[str]:
    """Return the command line of `relay`."""
    return [sys.executable, "-m", "relay", *arguments]


def relay(*arguments: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` to its end."""
    return subprocess.run(
        command(*arguments),
        input=input,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(**variables),
        check=False,
    )


@dataclass
class Server:
    """A running server."""

    url: str
    path: str
    token: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run `relay` on a free port and a Unix socket; it has to drain and exit with 0 in the end."""
    path = str(folder / "relay.sock")
    options: Sequence[str] = ("--listen", "127.0.0.1:0", "--unix", path, "--stdin", "off", "--publish-token", "sesame")
    process = subprocess.Popen(
        command(*options, "--log-format", "json", *arguments),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    try:
        with process.stderr as log:
            for line in log:
                message = str(json.loads(line)["message"])
                if message.startswith("serving at "):
                    break
            else:
                raise AssertionError("the server did not start")
            yield Server(message.removeprefix("serving at ").rstrip("/"), path, "sesame", process)
            process.send_signal(signal.SIGTERM)
            log.read()
            assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
