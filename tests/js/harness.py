"""Runs clients/js in tests: a source in Node, and a folder with the built package for pages.

Owns the processes. Never starts a relay.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.running import environment, eventually

DIST = ROOT / "clients" / "js" / "dist"
MODULES = ROOT / "tests" / "clients" / "node_modules"
TYPES = ("price", "relay.gap", "relay.end")
Record = dict[str, Any]


def need_built() -> None:
    """Skip the test if the package is not built."""
    if not (DIST / "index.js").exists():
        pytest.skip("clients/js is not built: `make clients` builds it, and needs npm")


def need_node() -> None:
    """Skip the test if Node is not installed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")


class NodeSource:
    """A source in a process of Node.

    Args:
        url: of the server.
        options: of the source, and those of source.mjs.
    """

    def __init__(self, url: str, **options: Any) -> None:
        need_built()
        need_node()
        self.records: list[Record] = []
        self._process = subprocess.Popen(
            ["node", str(Path(__file__).with_name("source.mjs"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        defaults = {"url": url, "types": TYPES, "topics": ["news"], "backoffLeastMs": 10, "backoffMostMs": 100}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(defaults | options) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.records.append(json.loads(line))

    def events(self) -> list[Record]:
        """Return the events so far."""
        return [record for record in list(self.records) if "type" in record]

    def data(self) -> list[str]:
        """Return the data of the events so far."""
        return [record["data"] for record in self.events()]

    def states(self) -> list[Record]:
        """Return the changes of the state so far."""
        return [record for record in list(self.records) if "state" in record]

    def wait(self, holds: Callable[[NodeSource], bool], what: str) -> None:
        """Wait until a condition holds."""

        def check() -> bool:
            assert self._process.poll() is None, "the program has exited"
            return holds(self)

        try:
            eventually(check, f"the source {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the newest records: {self.records[-10:]}") from None

    def wait_open(self, times: int = 1) -> None:
        """Wait until the source has opened a connection this number of times."""
        self.wait(lambda it: [each["state"] for each in it.states()].count("open") >= times, f"has opened {times}")

    def wait_data(self, *data: str) -> None:
        """Wait for events, and check that these are all."""
        self.wait(lambda it: len(it.events()) >= len(data), f"has {len(data)} events")
        assert self.data() == list(data)

    def wait_closed(self) -> Record:
        """Wait until the source is closed, and return the record."""
        self.wait(lambda it: bool(it.states()) and it.states()[-1]["state"] == "closed", "is closed")
        return self.states()[-1]

    def close(self) -> None:
        """End the process."""
        if self._process.returncode is not None:
            return
        self._process.kill()
        self._process.communicate()
        self._reader.join()

    def __enter__(self) -> NodeSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve a folder, and return the origin. The server is a secure context for a browser."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
