"""The clients of the matrix: programs that run a snippet for each job, and pages of a browser.

Each client reports a record at once for each line or event: `{"at", "line"}` or `{"at", "id", "event", "data"}`. At the
end of the stream, it reports `{"at", "end"}`. `at` is CLOCK_REALTIME in seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests import ROOT
from tests.browser import Browser
from tests.running import TIMEOUT_S, environment, eventually

SNIPPETS = Path(__file__).parent / "snippets"
TYPES = ("message", "price", "relay.end")
"""Types of the events of the matrix. An EventSource has a listener for each type."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One stream to read.

    Args:
        url: of the stream.
        headers: of the request.
        h2: the client has to use HTTP/2.
        compressed: the client has to accept gzip.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    h2: bool = False
    compressed: bool = False


class Client(Protocol):
    """A client that runs one job after another."""

    def begin(self, job: Job) -> None:
        """Start a job; its records replace those of the last job."""

    def records(self) -> list[Record]:
        """Return the records so far."""

    def close(self) -> None:
        """End the program."""


class Worker:
    """A program that reads jobs from standard input.

    Args:
        command: the program and its arguments.
        variables: of its environment.
    """

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._records: list[Record] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Wait until the program reads jobs."""
        eventually(lambda: bool(self._records), f"{self._process.args!r} has started")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._records.append(json.loads(line))

    def begin(self, job: Job) -> None:
        """Send the job to the program."""
        assert self._process.stdin is not None
        self._records = []
        text = json.dumps({"url": job.url, "headers": job.headers, "h2": job.h2, "types": TYPES})
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def records(self) -> list[Record]:
        """Return the records so far."""
        return list(self._records)

    def close(self) -> None:
        """End the program."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.communicate()
        self._reader.join(TIMEOUT_S)


class Curl:
    """curl, one process per job.

    Args:
        variables: of its environment.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables
        self._records: list[Record] = []
        self._process: subprocess.Popen[str] | None = None

    def begin(self, job: Job) -> None:
        """Start curl."""
        self._records = []
        options = [option for name, value in job.headers.items() for option in ("--header", f"{name}: {value}")]
        options += ["--compressed"] * job.compressed
        command = [str(SNIPPETS / "curl.sh"), job.url, *options]
        process = subprocess.Popen(
            command, env=environment(**self._variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._process = process
        threading.Thread(target=self._read, args=(process, self._records), daemon=True).start()

    @staticmethod
    def _read(process: subprocess.Popen[str], records: list[Record]) -> None:
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                if line.endswith("\n"):
                    records.append({"at": time.time(), "line": line[:-1]})
            error = process.stderr.read()
        records.append({"at": time.time(), "end": f"error: {error}" if process.returncode else "clean"})

    def records(self) -> list[Record]:
        """Return the records so far."""
        return list(self._records)

    def close(self) -> None:
        """End a running curl."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _script(name: str) -> str:
    """Return a snippet for a page, which has no modules and its own EventSource."""
    text = (SNIPPETS / name).read_text()
    return re.sub(r"^import .*\n", "", text.replace("export ", ""), flags=re.MULTILINE)


class Page:
    """One of the clients in Chromium's page. The test opens the page from the server of the job.

    Args:
        browser: the browser, with a page open.
        name: `fetch` or `eventsource`.
    """

    def __init__(self, browser: Browser, name: str) -> None:
        self.browser = browser
        self._name = name

    def begin(self, job: Job) -> None:
        """Start the client in the page."""
        start = {
            "fetch": f"""
                (async () => {{
                    try {{
                        for await (const line of lines({json.dumps(job.url)}, {{ headers: {json.dumps(job.headers)} }}))
                            report({{ line }});
                        report({{ end: "clean" }});
                    }} catch (error) {{ report({{ end: "error: " + error }}); }}
                }})();
            """,
            "eventsource": f"""
                const take = (event) => report({{ id: event.lastEventId, event: event.type, data: event.data }});
                const source = follow({json.dumps(job.url)}, {json.dumps(TYPES)}, take);
                source.onerror = () => {{ if (source.readyState === source.CLOSED) report({{ end: "clean" }}); }};
            """,
        }[self._name]
        self.browser.value(f"""(() => {{
            const records = (window.records ??= {{}})[{json.dumps(self._name)}] = [];
            const report = (record) => records.push({{ at: Date.now() / 1000, ...record }});
            {_script(self._name + ".mjs")}
            {start}
        }})()""")

    def records(self) -> list[Record]:
        """Return the records so far."""
        records: list[Record] = self.browser.value(f"records[{json.dumps(self._name)}]")
        return records

    def close(self) -> None:
        """Do nothing: the browser is closed by its fixture."""
