"""A real `redis-server` for tests, which can be killed, paused, restarted and failed over."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.running import TIMEOUT_S, free_port

PROGRAM = "redis-server"


def need_redis() -> None:
    """Skip the test without redis-server; in CI it fails."""
    if shutil.which(PROGRAM) is None:
        reason = f"{PROGRAM} is not installed: `make brokers` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class RedisServer:
    """One server on a port of its own.

    Args:
        folder: its working directory.
        arguments: more settings, as flags of redis-server.
        port: the port; 0 to choose a free one.
        command: all arguments, instead of the usual ones.
    """

    def __init__(self, folder: Path, *arguments: str, port: int = 0, command: Sequence[str] = ()) -> None:
        self.port = port or free_port()
        self._arguments = command or (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""),
            *("--appendonly", "no", "--repl-diskless-sync-delay", "0"),
            *arguments,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Redis | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address for `--cluster`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> Any:
        """A client of the server. redis-py does not type all of its methods."""
        if self._client is None:
            self._client = Redis(port=self.port, protocol=2, socket_timeout=TIMEOUT_S)
        return self._client

    def start(self, *arguments: str) -> None:
        """Start the server, and wait until it answers. Without `--save`, it starts empty."""
        self._process = subprocess.Popen(
            [PROGRAM, *self._arguments, *arguments], stdout=subprocess.DEVNULL
        )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Wait until the server answers."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(RedisError, OSError):
                if self._answers():
                    return
            assert time.monotonic() < deadline_s, "redis-server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.closing(Redis(port=self.port, protocol=2, socket_timeout=1.0)) as client:
            try:
                return bool(client.ping())
            except RedisError as error:
                return "NOAUTH" in str(error)

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server at once. Its memory is lost."""
        self.close()

    def close(self) -> None:
        """End the server."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(TIMEOUT_S)
            self._process = None
