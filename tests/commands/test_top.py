"""The terminal of `relay.commands.top` shows the state of the server, and is restored at the end."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pyte
import pytest

from relay.commands.top_display import HEAD_LINES, NodeState, render, share
from relay.config.formats import size_text
from relay.telemetry.stats_schema import ServerStats
from tests.running import TIMEOUT_S, Relay, Stream, command, environment, eventually, free_port, relay, run


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    with relay() as running:
        yield running


def test_top_prints_once_without_a_terminal(server: Relay) -> None:
    done = run("top", server.url, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("ready", "streams", "events/s", "deliveries/s", "slowest", "policies acted"):
        assert text in done.stdout


def test_top_shows_the_figures_of_a_server() -> None:
    with relay("--workers", "2") as server, contextlib.ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(Stream(server.port, "topic=news"))
        for _ in range(7):
            server.publish("x", "news")
        eventually(lambda: server.stats()["deliveries"] == 21, "every stream has every event")
        stats = server.stats()
        text = run("top", server.url, "--once", COLUMNS="140").stdout
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:4] == ["relay", stats["version"], "engine", stats["engine"]]
    assert ["streams", "3", "events/s"] in [row[:3] for row in rows]
    assert ["log", "7", "events"] in [row[:3] for row in rows]
    assert f"of {size_text(stats['log']['bytes_max'])}" in text
    assert ["news", "3", "7"] in [[*row[:2], *row[3:]] for row in rows]
    workers = [row for row in rows if row[:1] in (["0"], ["1"], ["2"])]
    assert len(workers) == 2
    assert sum(int(row[1]) for row in workers) == 3


def test_top_shows_each_node_even_if_one_does_not_answer(server: Relay) -> None:
    missing = f"http://127.0.0.1:{free_port()}"
    done = run("top", server.url, missing, "--once", "--sort", "name", COLUMNS="140")
    assert done.returncode == 0, done.stderr
    assert "2 nodes  1 ready" in done.stdout
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    rows = {line.split()[0]: line for line in lines if line.startswith("127.0.0.1:")}
    assert rows[server.url.removeprefix("http://")].endswith("ready")
    assert rows[missing.removeprefix("http://")].endswith("does not answer")
    assert run("top", missing, "--once").returncode == 1


def test_top_reports_a_server_that_is_not_relay(server: Relay) -> None:
    done = run("top", server.url + "/healthz", "--once")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not from a relay" in done.stderr


STATS: dict[str, Any] = {
    "version": "9.9",
    "of_a_later_version": 1,
    "engine": "native",
    "uptime_s": 90061.0,
    "ready": False,
    "streams": 10000,
    "lagging": 2,
    "topics": [{"topic": "[bold]news", "subscribers": 9000, "retained": 7}],
    "events": 1000,
    "deliveries": 5_000_000,
    "bytes": 10,
    "log": {"events": 7, "bytes": 32, "bytes_max": 64},
    "policy_actions": {"drop-oldest": 3, "block": 0},
    "closes": {"client": 4},
    "slowest": [
        {
            "address": "::1\x1b[2J",
            "topics": list("abcd"),
            "lag_events": 5,
            "lag_bytes": 2048,
            "lag_s": 1.5,
            "policy": "block",
        }
    ],
}


def decoded(stats: dict[str, Any]) -> ServerStats:
    """Return statistics of another version: fields are unknown, and others are absent."""
    return msgspec.convert(stats, ServerStats)


def drawn(stats: dict[str, Any], before: dict[str, Any] | None) -> str:
    return drawn_nodes([NodeState("node", decoded(stats), None if before is None else decoded(before))])


def drawn_nodes(nodes: list[NodeState], order: str = "streams", *, reverse: bool = False) -> str:
    from rich.console import Console

    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(render(nodes, None, order, reverse=reverse))
    return capture.get()


def test_top_draws_rates_since_the_last_frame_and_unchanged_text() -> None:
    before = STATS | {"uptime_s": 90059.0, "events": 500, "deliveries": 0}
    text = drawn(STATS, before)
    for part in ("1d 1h", "not ready", "10,000", "250", "2,500,000", "[bold]news", "drop-oldest 3", "client 4"):
        assert part in text
    for part in ("50% of 64 B", "::1?[2J", "a, b, c, …", "5 events, 2KiB, 1.5 s"):
        assert part in text
    assert "block 0" not in text


def test_top_draws_means_in_the_first_frame_and_after_a_restart() -> None:
    young = STATS | {"uptime_s": 10.0}
    assert "500,000" in drawn(young, None)
    assert "500,000" in drawn(young, STATS)
    assert "ready" in drawn({"streams": 0}, None)


def test_top_draws_a_row_for_each_source() -> None:
    sources = [
        {"source": "redis://a/0?stream=orders", "connected": True, "events": 12345, "errors": 2},
        {"source": "mqtt://b?filter=#", "lost": 7, "error": "connection refused"},
        {"source": "kafka://c/prices", "events": 1, "error": "", "ended": "cannot publish a message"},
        {"source": "nats://d/new"},
    ]
    rows = [line.rstrip().split(maxsplit=4) for line in drawn(STATS | {"sources": sources}, None).splitlines()]
    assert ["redis://a/0?stream=orders", "12,345", "2", "0", "connected"] in rows
    assert ["mqtt://b?filter=#", "0", "0", "7", "connection refused"] in rows
    assert ["kafka://c/prices", "1", "0", "0", "cannot publish a message"] in rows
    assert ["nats://d/new", "0", "0", "0", "not connected"] in rows


def topics(**named: tuple[int, int]) -> list[dict[str, Any]]:
    """Return topics with their numbers of subscribers and events."""
    return [{"topic": name, "subscribers": some, "events": events} for name, (some, events) in named.items()]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("streams", ["quiet", "busy", "other"]),
        ("rate", ["busy", "other", "quiet"]),
        ("name", ["busy", "other", "quiet"]),
    ],
)
def test_topics_have_rates_and_are_sorted(order: str, names: list[str]) -> None:
    before = {"version": "9", "uptime_s": 1.0, "topics": topics(busy=(0, 0), quiet=(9, 50), other=(0, 70))}
    stats = {"version": "9", "uptime_s": 3.0, "topics": topics(busy=(5, 500), quiet=(9, 50), other=(1, 100))}
    node = NodeState("node", decoded(stats), decoded(before))
    lines = [line.split() for line in drawn_nodes([node], order).splitlines()]
    rows = [row for row in lines if row and row[0] in names]
    assert [row[0] for row in rows] == names
    assert {row[0]: row[2] for row in rows} == {"busy": "250", "quiet": "0.0", "other": "15"}
    backwards = [line.split() for line in drawn_nodes([node], order, reverse=True).splitlines()]
    assert [row[0] for row in backwards if row and row[0] in names] == names[::-1]


def test_several_nodes_have_a_row_each_and_share_the_other_tables() -> None:
    first = STATS | {"ready": True, "workers": [{"worker": 1, "answered": True, "streams": 7, "uptime_s": 9.0}]}
    second = STATS | {"streams": 20000, "cluster": {"lag_events": 42}, "topics": [{"topic": "x", "subscribers": 1}]}
    nodes = [NodeState("a:1", decoded(first)), NodeState("b:2", decoded(second))]
    nodes.append(NodeState("c:3", problem="c:3: refused"))
    text = drawn_nodes(nodes)
    assert "3 nodes  1 ready" in text
    assert "c:3: refused; trying again" in text
    rows = [line.split() for line in text.splitlines() if line]
    assert [row[0] for row in rows if row[0] in ("a:1", "b:2", "c:3")] == ["b:2", "a:1", "c:3", "a:1"]
    assert ["a:1", "1", "7"] in [row[:3] for row in rows]
    assert "42 events" in text
    assert "does not answer" in text
    assert ["x", "1"] in [row[:2] for row in rows]
    assert [row[0] for row in rows].count("::1?[2J") == 2


def test_sections_receive_lines_in_rotation() -> None:
    assert share([3, 9, 1], 8) == [3, 4, 1]
    assert share([1, 1], 100) == [1, 1]
    assert share([5, 5], 3) == [2, 1]
    assert share([5], -2) == [0]


class Terminal:
    """`relay top` in a terminal of 80 × 24, whose screen can be read.

    The environment contains the first size too, as in a child of a program that uses GNU readline.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.fd, self.theirs = os.openpty()
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        termios.tcsetwinsize(self.theirs, (24, 80))
        self.modes = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            command("top", url, "--interval", "0.1"),
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env=environment(TERM="xterm", COLUMNS="80", LINES="24"),
        )

    def read(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Read new output; return whether there was any."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return False
        data = os.read(self.fd, 65536)
        self.raw += data
        self._stream.feed(data)
        return True

    def wait(self, text: str) -> list[str]:
        """Wait until a text is on the screen and the figures are in their place; return the lines of the screen."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while text not in "\n".join(self.screen.display) or not self._is_in_place():
            if not self.read(max(0.0, deadline_s - time.monotonic())):
                state = f"exit code {self.process.poll()}, last bytes {self.raw[-300:]!r}"
                raise AssertionError("\n".join((f"no {text!r} on the screen; {state}", *self.screen.display)))
        return list(self.screen.display)

    def _is_in_place(self) -> bool:
        """Return whether no line above the figures is missing or wraps."""
        return self.screen.display[0].startswith("relay ") and self.screen.display[HEAD_LINES].startswith("streams ")

    def ended(self) -> int:
        """Wait for the exit; return the exit code."""
        while self.process.poll() is None:
            self.read(0.05)
        while self.read(0):
            pass
        return self.process.returncode

    def resize(self, lines: int, columns: int) -> None:
        """Change the size of the terminal."""
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self.theirs, (lines, columns))
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        """End the program if it still runs, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self.theirs)


@contextlib.contextmanager
def terminal(url: str) -> Iterator[Terminal]:
    started = Terminal(url)
    try:
        yield started
    finally:
        started.close()


def is_restored(shown: Terminal) -> bool:
    """Return whether the terminal has its modes, its first screen and its cursor again."""
    modes = termios.tcgetattr(shown.theirs) == shown.modes
    screen = shown.raw.rfind(b"\x1b[?1049l") > shown.raw.rfind(b"\x1b[?1049h")
    return modes and screen and not shown.screen.cursor.hidden and b"Traceback" not in shown.raw


def test_keys_sort_the_tables() -> None:
    with relay() as server, contextlib.ExitStack() as streams:
        streams.enter_context(Stream(server.port, "topic=many"))
        for _ in range(50):
            server.publish("x", "few")
        with terminal(server.url) as shown:
            shown.wait("sorted by streams")
            assert first_topic(shown.wait("few")) == "many"
            os.write(shown.fd, b"n")
            shown.wait("sorted by name")
            assert first_topic(shown.wait("few")) == "few"
            os.write(shown.fd, b"n")
            shown.wait("sorted by name, reversed")
            assert first_topic(shown.wait("few")) == "many"
            os.write(shown.fd, b"q")
            assert shown.ended() == 0
            assert is_restored(shown)


def first_topic(lines: list[str]) -> str:
    """Return the first topic on the screen."""
    header = next(number for number, line in enumerate(lines) if line.startswith("topic "))
    return lines[header + 1].split()[0]


def test_q_quits_immediately_and_restores_the_terminal(server: Relay) -> None:
    with terminal(server.url) as shown:
        shown.wait("slowest streams")
        assert termios.tcgetattr(shown.theirs) != shown.modes
        os.write(shown.fd, b"xq")
        assert shown.ended() == 0
        assert is_restored(shown)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_top_and_restores_the_terminal(server: Relay, number: signal.Signals) -> None:
    with terminal(server.url) as shown:
        shown.wait("slowest streams")
        shown.process.send_signal(number)
        assert shown.ended() == 0
        assert is_restored(shown)


def test_the_frame_fits_the_terminal_or_is_truncated() -> None:
    with relay() as server, contextlib.ExitStack() as streams:
        for number in range(30):
            topic = f"a.topic.with.a.long.name.{number:02d}." + "x" * 80
            streams.enter_context(Stream(server.port, f"topic={topic}"))
            server.publish("x", topic)
        with terminal(server.url) as shown:
            lines = shown.wait("slowest streams")
            # A line that wraps, or an extra line, would scroll the first line off the screen.
            assert lines[0].startswith("relay ")
            assert sum("a.topic.with" in line for line in lines) >= 8
            assert all("…" in line for line in lines if "a.topic.with" in line)
            shown.resize(14, 50)
            shown.screen.reset()
            lines = shown.wait("a.topic.with")
            assert len(lines) == 14
            assert lines[0].startswith("relay ")
            os.write(shown.fd, b"q")
            assert shown.ended() == 0


def test_top_reports_an_unavailable_server_and_continues_when_it_returns() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as started:
        first = Relay("--listen", address)
        started.callback(first.stop, signal.SIGKILL)
        shown = started.enter_context(terminal(f"http://{address}"))
        shown.wait("slowest streams")
        first.stop(signal.SIGKILL)
        lines = shown.wait("trying again")
        assert lines[0].startswith("relay ")
        assert f"http://{address}/stats" in lines[1]
        second = Relay("--listen", address)
        started.callback(second.stop, signal.SIGKILL)
        deadline_s = time.monotonic() + TIMEOUT_S
        while "trying again" in "\n".join(shown.screen.display):
            assert time.monotonic() < deadline_s
            assert shown.read()
        os.write(shown.fd, b"q")
        assert shown.ended() == 0
        assert is_restored(shown)


def test_q_quits_while_the_server_does_not_answer() -> None:
    with relay() as server, terminal(server.url) as shown:
        shown.wait("slowest streams")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            os.write(shown.fd, b"q")
            begun_s = time.monotonic()
            assert shown.ended() == 0
            assert time.monotonic() - begun_s < 4  # less than the time limit of a request
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_an_error_ends_top_and_restores_the_terminal() -> None:
    too_large_for_a_float = STATS | {"log": {"bytes": 10**400}}
    answers = [json.dumps(STATS).encode(), json.dumps(too_large_for_a_float).encode()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with terminal(f"http://127.0.0.1:{server.server_port}") as shown:
                assert shown.ended() == 1
                assert termios.tcgetattr(shown.theirs) == shown.modes
                restored = shown.raw.rfind(b"\x1b[?1049l")
                assert 0 < restored < shown.raw.rfind(b"OverflowError")
        finally:
            server.shutdown()
        thread.join(TIMEOUT_S)
