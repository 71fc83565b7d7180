"""The log is text on a terminal and JSON elsewhere. One record is one line. Its reader never stops the server."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from relay.telemetry import logs
from relay.telemetry.logs import QUEUED_BYTES_MAX, QUEUED_LINES_MAX, QueueingHandler, set_up
from tests.running import TIMEOUT_S, TOKEN, Stream, command, environment, eventually


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("relay")
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:], root.level, own.level = before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_receives_text() -> None:
    stream = Terminal()
    set_up("info", "auto", stream)
    logging.getLogger("relay.hub").warning("lapped %d", 3, extra={"topic": "news"})
    assert stream.getvalue()[8:] == " warning hub: lapped 3 topic=news\n"


def test_other_outputs_receive_json() -> None:
    stream = io.StringIO()
    set_up("info", "auto", stream)
    logging.getLogger("relay.hub").info("lapped %d", 3, extra={"topic": "news"})
    record = json.loads(stream.getvalue())
    assert record.pop("time").endswith("+00:00")
    assert record == {"level": "INFO", "logger": "relay.hub", "message": "lapped 3", "topic": "news"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_untrusted_text_cannot_forge_a_line_or_control_a_terminal(form: str) -> None:
    stream = Terminal()
    set_up("info", form, stream)
    logging.getLogger("relay.front").info("refused %s", "a\r\n12:00:00 info hub: all is well\x1b[2J")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_a_traceback_follows_its_line() -> None:
    stream = Terminal()
    set_up("info", "text", stream)
    try:
        raise ValueError("here")
    except ValueError:
        logging.getLogger("relay").exception("closing the connection")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   relay: closing the connection")
    assert rest[-1] == "ValueError: here"


def test_the_level_applies_to_relay_and_libraries_log_only_warnings() -> None:
    stream = io.StringIO()
    set_up("debug", "text", stream)
    logging.getLogger("relay.hub").debug("seen")
    logging.getLogger("httpx").info("not seen")
    assert "seen" in stream.getvalue()
    assert "not seen" not in stream.getvalue()


def test_repeated_calls_configure_logging_once() -> None:
    stream = io.StringIO()
    set_up("info", "text", stream)
    set_up("info", "text", stream)
    logging.getLogger("relay").info("once")
    assert stream.getvalue().count("once") == 1


class Pipe:
    """A pipe whose reader stalls until the test reads."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        self.read = b""

    def fill(self) -> None:
        """Fill the pipe. Its descriptor never becomes non-blocking meanwhile."""
        free = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ) - fcntl_unread(self.reader)
        os.write(self.writer, b"-" * (free - 1) + b"\n")

    def read_until(self, text: str) -> list[str]:
        """Read lines until one contains the text; return them all."""
        while text.encode() not in self.read:
            assert select.select([self.reader], [], [], TIMEOUT_S)[0], self.read[-1000:]
            self.read += os.read(self.reader, 65536)
        return self.read.decode().splitlines()

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def fcntl_unread(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def handler(pipe: Pipe) -> Iterator[QueueingHandler]:
    handler = QueueingHandler(pipe.writer)
    handler.setFormatter(logging.Formatter("%(message)s"))
    yield handler
    pipe.read_until("")
    handler.close()
    handler._thread.join(TIMEOUT_S)


def log(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.LogRecord("relay", logging.INFO, "", 0, text, None, None))


def test_lines_logged_while_the_reader_stalls_are_written_later_in_order(pipe: Pipe, handler: QueueingHandler) -> None:
    pipe.fill()
    for number in range(1000):
        log(handler, f"line {number}")
    lines = pipe.read_until("line 999\n")
    assert lines[1:] == [f"line {number}" for number in range(1000)]
    assert handler.dropped == 0


@pytest.mark.parametrize("size", [1, 4096])
def test_lines_beyond_the_bound_are_dropped_and_their_number_is_logged_once(
    pipe: Pipe, handler: QueueingHandler, size: int
) -> None:
    pipe.fill()
    count = min(QUEUED_LINES_MAX, QUEUED_BYTES_MAX // size) + 100
    for number in range(count):
        log(handler, f"{number} ".ljust(size, "."))
    assert 50 < handler.dropped <= 101
    lines = pipe.read_until("were dropped")
    assert lines[-1] == f"{handler.dropped} lines of the log were dropped, because its reader stalled"
    assert len(lines) == 1 + count - handler.dropped + 1
    log(handler, "it recovered")
    assert pipe.read_until("it recovered")[-1] == "it recovered"


def test_the_exit_waits_only_briefly_for_a_stalled_reader(
    pipe: Pipe, handler: QueueingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    pipe.fill()
    log(handler, "last")
    began_s = time.monotonic()
    handler.flush()
    handler.close()
    assert time.monotonic() - began_s < TIMEOUT_S / 2
    assert pipe.read_until("last")[-1] == "last"


def test_a_closed_reader_stops_nothing(pipe: Pipe, handler: QueueingHandler) -> None:
    other, pipe.reader = pipe.reader, os.open("/dev/zero", os.O_RDONLY)
    os.close(other)
    for _ in range(3):
        log(handler, "to nobody")
    handler.flush()
    assert handler.dropped == 3


def test_a_descriptor_that_became_non_blocking_loses_nothing(pipe: Pipe, handler: QueueingHandler) -> None:
    os.set_blocking(pipe.writer, False)
    for number in range(1000):
        log(handler, f"line {number}")
    assert pipe.read_until("line 999\n") == [f"line {number}" for number in range(1000)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_serves_and_exits_while_the_reader_of_its_log_stalls(pipe: Pipe, workers: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipe.fill()
    serve = command("serve", "--listen", f"127.0.0.1:{port}", "--workers", workers, "--log-level", "debug")
    variables = environment(RELAY_PUBLISH_TOKEN=TOKEN)
    with subprocess.Popen(serve, stdin=subprocess.DEVNULL, stderr=pipe.writer, env=variables) as process:
        try:
            for _ in range(3):
                eventually(lambda: connects(port), "it serves")
                with Stream(port) as stream:
                    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
                    urlopen(Request(f"http://127.0.0.1:{port}/publish", b"x", headers), timeout=TIMEOUT_S).close()
                    assert stream.next().data == "x"
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
    except ConnectionError:
        return False
    return True


def test_the_last_lines_of_a_crash_are_written() -> None:
    code = "from relay.telemetry import logs; logs.set_up('info', 'json'); raise ValueError('at the end')"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    record = json.loads(done.stderr)
    assert record["message"] == "relay failed"
    assert "ValueError: at the end" in record["exc_info"]
