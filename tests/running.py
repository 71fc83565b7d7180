"""Real processes for tests: a `relay serve` per test, other commands of `relay`, and small clients.

Every wait is for an observable condition (a line, a byte, an answer, an exit), for at most `TIMEOUT_S`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast
from weakref import WeakSet

from relay.config.load import variable
from relay.config.model import SETTINGS
from relay.event import Event
from tests.readers import Reader

TIMEOUT_S = 30.0
TOKEN = "a-token-for-tests"
ASIDE_BYTES = 1 << 29 if "libasan" in os.environ.get("LD_PRELOAD", "") else 0
"""Memory that ASan adds to a process when the tests run under it: quarantined freed memory, and its metadata."""
TCP_LISTEN = "0A"  # a state in /proc/net/tcp


def free_port() -> int:
    """Return a free port for a server that a test restarts on the same port.

    The port is below the range that the kernel uses for outgoing connections. Other tests open many of those.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without relay's settings, and without proxies for this machine."""
    ours = {variable(name) for name in SETTINGS} | {"RELAY_CONFIG"}
    kept = {name: text for name, text in os.environ.items() if name not in ours}
    return kept | {"NO_PROXY": "*", "no_proxy": "*"} | changes


def command(*arguments: str) -> list[str]:
    """Return the command line of `relay`."""
    return [sys.executable, "-m", "relay", *arguments]


def run(*arguments: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` until it exits."""
    return subprocess.run(
        command(*arguments),
        input=input,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(**variables),
        check=False,
    )


class Relay:
    """One `relay serve` process.

    Args:
        arguments: more settings, as flags.
        stdin: the standard input of the process.
        environ: more environment variables.
        before: a command that receives relay's command line as arguments and executes it.
        pass_fds: descriptors that the process inherits.
        context: the TLS context of the clients, if the server uses TLS.
    """

    def __init__(
        self,
        *arguments: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        environ: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        pass_fds: Collection[int] = (),
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.context = context
        self.process = subprocess.Popen(
            [*before, *command("serve", "--listen", "127.0.0.1:0", "--log-format", "json", *arguments)],
            stdin=stdin,
            stderr=subprocess.PIPE,
            env=environment(RELAY_PUBLISH_TOKEN=TOKEN, PYTHONWARNINGS="error") | dict(environ or {}),
            pass_fds=pass_fds,
        )
        self.pid = self.process.pid  # the process that serves; changes with each upgrade
        self.log: list[dict[str, Any]] = []
        self.port = 0
        self._serving = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if not self._serving.wait(TIMEOUT_S) or not self.port:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"relay did not start: {self.log}")

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    @property
    def unix_path(self) -> Path:
        """The path of the Unix socket."""
        [message] = [r["message"] for r in self.log if r["message"].startswith("feeders at unix:")]
        return Path(message.removeprefix("feeders at unix:"))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"message": line.decode(errors="replace").rstrip()}
            self.log.append(record)
            found = re.search(r"serving at https?://.*:(\d+)/", record["message"])
            if found:
                self.port = int(found[1])
                self._serving.set()
        self._serving.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the exit and return the exit code."""
        if self.pid != self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        elif self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def kill_successors(self) -> None:
        """Kill all processes that replaced this one. They hold its standard error open."""
        for record in list(self.log):
            found = re.search(r"^relay .*, pid (\d+)$", record["message"])
            if found and int(found[1]) != self.process.pid:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{found[1]}/cmdline").read_bytes().split(b"\0")[:-1]
                    if line == [os.fsencode(part) for part in cast(list[str], self.process.args)]:
                        os.kill(int(found[1]), signal.SIGKILL)

    def upgrade(self) -> None:
        """Upgrade the process. Wait until the old process has exited and the new one serves."""
        count = len(self.messages("took over"))
        done = run("upgrade", str(self.pid))
        assert done.returncode == 0, (done.stderr, self.log)
        self.expect_successor(count + 1)

    def expect_successor(self, upgrades: int = 1) -> None:
        """Wait for this number of upgrades. The old and the new process log each upgrade in either order."""
        both = ("took over", "handed over")
        eventually(lambda: all(len(self.messages(each)) >= upgrades for each in both), "the new process serves")
        self.pid = int(self.messages("handed over")[-1].rpartition(" ")[2])

    def messages(self, beginning: str) -> list[str]:
        """Return the log's messages that begin with this text."""
        return [record["message"] for record in list(self.log) if record["message"].startswith(beginning)]

    def wait(self) -> int:
        """Wait for the exit and return the exit code."""
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one ordinary request; return the status, the headers (names in lower case) and the body."""
        if self.context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=TIMEOUT_S, context=self.context
            )
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def publish(self, data: str, topic: str = "default", content_type: str = "text/plain") -> list[str]:
        """Publish over HTTP and return the ids."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type}
        status, _, body = self.request("POST", f"/publish?topic={topic}", data.encode(), headers)
        assert status == 200, body
        ids: list[str] = json.loads(body)["ids"]
        return ids

    def stats(self) -> dict[str, Any]:
        """Return /stats."""
        stats: dict[str, Any] = json.loads(self.request("GET", "/stats")[2])
        return stats

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        text = self.request("GET", "/metrics")[2].decode()
        values = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def open_descriptors(self) -> int:
        """Return the number of open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def connections(self) -> int:
        """Return the number of open TCP connections to the server's port in the process."""
        mine = set()
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                mine.add(os.readlink(f"/proc/{self.pid}/fd/{fd}"))
        ours = f":{self.port:04X}"
        # The file has the closed connections of all tests of the last minute, too: often ten thousand lines.
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines() if ours in line]
        return sum(
            row[3] != TCP_LISTEN and row[1].endswith(ours) and f"socket:[{row[9]}]" in mine for row in rows
        )

    def memory_bytes(self) -> int:
        """Return the resident memory of the process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until a condition holds. For conditions without a notification.

    The interval grows with the wait, because a condition often sends a request to a server, which costs both processes
    two milliseconds.
    """
    began_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(min(max(0.005, waited_s / 10), 0.05))


@contextlib.contextmanager
def relay(*arguments: str, **process: Any) -> Iterator[Relay]:
    """Run a relay during a test. The arguments are those of `Relay`."""
    server = Relay(*arguments, **process)
    try:
        yield server
        if server.process.poll() is None:
            check_nothing_is_left(server)
    finally:
        server.kill_successors()
        server.stop(signal.SIGKILL)


def check_nothing_is_left(server: Relay) -> None:
    """Close the test's streams; check that the server then holds no stream, half-sent frame, chunk or connection."""
    for stream in list(OPEN_STREAMS):
        if stream.port == server.port:
            stream.close()
    nothing = {"chunks": 0, "frames": 0, "streams": 0}
    eventually(lambda: server.stats()["held"] == nothing, "the engine holds nothing")
    eventually(lambda: server.connections() == 0, "no connection is left")


OPEN_STREAMS: WeakSet[Stream] = WeakSet()


class Stream:
    """One open stream, read from a raw socket.

    Args:
        port: of the server.
        query: after `/events?`.
        headers: more request headers.
        receive_buffer: SO_RCVBUF, for slow clients.
        context: the TLS context, if the server uses TLS.
        version: of HTTP.
        form: the name of the form; None to read it from the head.
        timeout_s: longest time without data.
    """

    def __init__(
        self,
        port: int,
        query: str = "topic=default",
        headers: dict[str, str] | None = None,
        receive_buffer: int | None = None,
        context: ssl.SSLContext | None = None,
        version: str = "1.1",
        form: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.port = port
        self.socket = socket.socket()
        OPEN_STREAMS.add(self)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.head = b""
        self._form = form
        self._reader = Reader()
        self._events: list[Event] = []
        try:
            self._open(query, headers or {}, context, version)
        except BaseException:
            self.socket.close()
            raise

    def _open(self, query: str, headers: dict[str, str], context: ssl.SSLContext | None, version: str) -> None:
        self.socket.connect(("127.0.0.1", self.port))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"GET /events?{query} HTTP/{version}\r\nHost: localhost\r\n{lines}\r\n".encode())
        while b"\r\n\r\n" not in self.head:
            data = self.socket.recv(65536)
            assert data, f"closed within the head: {self.head!r}"
            self.head += data
        self.head, _, rest = self.head.partition(b"\r\n\r\n")
        self._reader = Reader(self._form or form_of(self.head))
        self.take_bytes(rest)

    def take_bytes(self, data: bytes) -> None:
        """Accept bytes that other code has read from the socket."""
        self._events += self._reader.feed(data)

    @property
    def raw(self) -> bytes:
        """The content that has been read so far, without chunks."""
        return self._reader.content

    @property
    def complete(self) -> bool:
        """Whether the body has ended in order."""
        return self._reader.complete

    @property
    def last_event_id(self) -> str:
        """The last event id that a client would send to resume."""
        return self._reader.last_event_id

    def read_until(self, mark: bytes) -> bytes:
        """Read until these bytes have arrived; return all bytes so far."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while mark not in self.raw:
            data = self._receive(deadline_s, f"bytes {mark!r}")
            assert data, f"closed before {mark!r}: {self.raw!r}"
            self.take_bytes(data)
        return self.raw

    def next(self) -> Event:
        """Wait for the next event."""
        return self.take(1)[0]

    def take(self, count: int) -> list[Event]:
        """Wait for `count` events."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while len(self._events) < count:
            data = self._receive(deadline_s, f"{count} events, of which {len(self._events)} came: {self._events}")
            assert data, f"closed before {count} events: {self._events}"
            self.take_bytes(data)
        taken, self._events = self._events[:count], self._events[count:]
        return taken

    def _receive(self, deadline_s: float, what: str) -> bytes:
        """Receive bytes before a deadline. Heartbeats do not extend it."""
        timeout_s = self.socket.gettimeout() or TIMEOUT_S
        left_s = deadline_s - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(min(left_s, timeout_s))
            return self.socket.recv(65536)
        except TimeoutError:
            raise TimeoutError(f"waited in vain for {what}") from None
        finally:
            self.socket.settimeout(timeout_s)

    def events(self) -> list[Event]:
        """Return the events that have been read so far."""
        events, self._events = self._events, []
        return events

    def rest(self) -> list[Event]:
        """Read to the end of the connection; return the remaining events."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while data := self._receive(deadline_s, "the end of the stream"):
            self.take_bytes(data)
        return self.events()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def form_of(head: bytes) -> str:
    """Return the form of a stream with this response head; an envelope is read as an event stream."""
    text = head.decode("latin-1").lower()
    syntax = "ndjson" if "application/x-ndjson" in text else "sse"
    if "content-encoding: gzip" in text:
        return f"{syntax}/gzip"
    return syntax if "transfer-encoding: chunked" in text else f"{syntax}/plain"


class Feeder:
    """One connection to the Unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._answers = self.socket.makefile("rb")

    def send(self, *lines: dict[str, Any] | bytes) -> None:
        """Write some lines."""
        self.socket.sendall(
            b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line: dict[str, Any] = json.loads(self._answers.readline())
        return line

    def publish(self, **fields: Any) -> str:
        """Publish one event, wait for its acknowledgement and return the id."""
        self.send({**fields, "ack": 1})
        answer = self.answer()
        assert "id" in answer, answer
        return str(answer["id"])

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self.socket.close()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
