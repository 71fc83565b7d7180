"""relay starts, serves and stops in every environment.

Covers relay.process.startup and relay.process.orphans.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.process.startup import HELD
from tests.running import TIMEOUT_S, Stream, command, environment, eventually, free_port, relay

CLOSED = [
    " ".join(closed) for count in (1, 2, 3) for closed in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]
UNSHARE = shutil.which("unshare")


def can_unshare() -> bool:
    """Return whether this machine lets the tests create a process namespace."""
    return UNSHARE is not None and not subprocess.run(
        [UNSHARE, "--pid", "--fork", "true"], stderr=subprocess.DEVNULL, check=False
    ).returncode


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return client.recv(15) == b"HTTP/1.1 200 OK"
    except ConnectionError:
        return False


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program during a test."""
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("closed", "workers"), [*((closed, 1) for closed in CLOSED), (CLOSED[-1], 2)])
def test_relay_serves_and_drains_with_closed_standard_descriptors(closed: str, workers: int) -> None:
    port = free_port()
    serve = shlex.join(command("serve", "--listen", f"127.0.0.1:{port}", "--workers", str(workers)))
    with started("sh", "-c", f"exec {serve} {closed}") as process:
        eventually(lambda: answers(port), "relay serves")
        for pid in [process.pid, *children(process.pid)]:
            assert not any(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in range(3))
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_an_upgrade_works_with_closed_standard_descriptors() -> None:
    port = free_port()
    serve = shlex.join(command("serve", "--listen", f"127.0.0.1:{port}"))
    with started("sh", "-c", f"exec {serve} <&- >&- 2>&-") as old:
        eventually(lambda: answers(port), "relay serves")
        upgrading = subprocess.Popen(command("upgrade", str(old.pid)), env=environment())
        eventually(lambda: bool(children(old.pid)), "the new process starts")
        [new] = children(old.pid)
        try:
            assert upgrading.wait(TIMEOUT_S) == 0
            assert old.wait(TIMEOUT_S) == 0
            eventually(lambda: answers(port), "the new process serves")
            assert [os.readlink(f"/proc/{new}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
        finally:
            os.kill(new, signal.SIGTERM)


def test_commands_run_with_closed_standard_descriptors() -> None:
    with started("sh", "-c", f"exec {shlex.join(command('--version'))} {CLOSED[-1]}") as process:
        assert process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_without_a_meaning_end_no_process(workers: str) -> None:
    with relay("--workers", workers) as server:
        pids = [server.pid, *children(server.pid)]
        for pid in pids:
            for number in (signal.SIGHUP, signal.SIGPIPE):
                os.kill(pid, number)
        assert server.request("GET", "/healthz")[0] == 200
        assert server.stop() == 0
    assert server.messages("worker") == []


def test_signals_before_the_handlers_exist_are_handled_later() -> None:
    code = (
        "import os, sys; from relay import __main__; from relay.process import startup; startup.prepare();"
        "[os.kill(os.getpid(), number) for number in startup.HELD[:2]];"
        "sys.argv = ['relay', *sys.argv[4:]]; __main__.main()"
    )
    with relay(before=(sys.executable, "-c", code)) as server:
        eventually(lambda: bool(server.messages("SIGUSR1: the log level is now debug")), "the signal arrives")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigusr1_switches_the_log_level_of_all_processes(workers: str) -> None:
    def closes(level: str) -> bool:
        """Open and close a stream in each process; return whether the log has a line for it."""
        known = len(server.messages("stream closed:"))
        for _ in range(8):  # The kernel chooses the worker.
            Stream(server.port).close()
        eventually(lambda: server.stats()["streams"] == 0, f"the streams are closed at the level {level}")
        return len(server.messages("stream closed:")) > known

    with relay("--workers", workers) as server:
        assert not closes("info")
        os.kill(server.pid, signal.SIGUSR1)
        eventually(lambda: closes("debug"), "the level is debug")
        os.kill(server.pid, signal.SIGUSR1)
        eventually(lambda: not closes("info"), "the level is info again")
    assert server.messages("SIGUSR1:") == [f"SIGUSR1: the log level is now {level}" for level in ("debug", "info")]


def limit_descriptors(number: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -n {number}; exec "$0" "$@"')


@pytest.mark.parametrize(
    ("arguments", "streams"),
    [((), 300 - 128), (("--streams-max", "5"), 5), (("--workers", "2"), 2 * (300 - 128))],
)
def test_the_log_states_how_many_streams_fit(arguments: tuple[str, ...], streams: int) -> None:
    with relay(*arguments, before=limit_descriptors(300)) as server:
        [line] = server.messages("room for")
        expected = rf"room for {streams} streams \(300 descriptors per process; ulimit -Hn\); memory for about \d+ \("
        assert re.match(expected, line), line
        assert bool(server.messages("running as root")) == (os.geteuid() == 0)


def test_the_log_states_that_an_address_without_a_host_is_ipv4_only() -> None:
    with relay("--listen", ":0") as server:
        assert server.messages(":0 is") == [":0 is every IPv4 address; [::]:0 is every IPv4 and IPv6 address"]


@pytest.mark.parametrize("number", HELD)
def test_the_signals_of_a_server_end_a_command_too(number: signal.Signals) -> None:
    code = (
        "import os, sys; from relay import __main__; from relay.process import startup; startup.prepare();"
        f"os.kill(os.getpid(), {number}); sys.argv = ['relay', 'publish', '--help']; __main__.main()"
    )
    with started(sys.executable, "-c", code) as process:
        assert process.wait(TIMEOUT_S) == -number


@pytest.mark.skipif(not can_unshare(), reason="needs the right to create a process namespace")
def test_as_process_1_relay_reaps_orphans_handles_signals_and_rejects_an_upgrade() -> None:
    assert UNSHARE is not None
    orphans = "for i in 1 2 3; do sleep 0.01 & done; exec \"$0\" \"$@\""
    with relay(before=(UNSHARE, "--pid", "--fork", "--kill-child", "sh", "-c", orphans)) as server:
        [pid] = children(server.pid)
        eventually(lambda: not children(pid), "the orphans are reaped")
        os.kill(pid, signal.SIGUSR2)
        eventually(lambda: bool(server.messages("the upgrade failed")), "it rejects the upgrade")
        assert server.request("GET", "/healthz")[0] == 200
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.skipif(not can_unshare(), reason="needs the right to create a process namespace")
def test_process_1_can_be_stopped_before_it_serves() -> None:
    assert UNSHARE is not None
    code = "import os, signal; from relay.process import startup; startup.prepare(); os.kill(1, signal.SIGTERM)"
    with started(UNSHARE, "--pid", "--fork", sys.executable, "-c", code + "; import time; time.sleep(60)") as process:
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A directory with a checkout of relay, and a module that fails when it is imported."""
    (tmp_path / "relay" / "relay").mkdir(parents=True)
    (tmp_path / "msgspec.py").write_text("raise SystemExit('the current directory was on the path')")
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [("-c", "import relay; relay.encode; print(relay.__version__)"), ("-m", "relay", "--help")]
)
def test_relay_can_be_imported_beside_its_checkout(parent: Path, arguments: tuple[str, ...]) -> None:
    (parent / "msgspec.py").unlink()
    subprocess.run([sys.executable, *arguments], cwd=parent, env=environment(), check=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_modules_of_the_current_directory_are_not_imported(parent: Path, workers: str) -> None:
    program, port = str(Path(sys.executable).with_name("relay")), free_port()
    serve = shlex.join([program, "serve", "--listen", f"127.0.0.1:{port}", "--workers", workers])
    with started("sh", "-c", f"cd {shlex.quote(str(parent))}; exec {serve}") as process:
        eventually(lambda: answers(port) or process.poll() is not None, "relay serves")
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_a_server_imports_only_the_parts_that_its_settings_name() -> None:
    code = "import sys; from relay import cli; from relay.server import server; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment(), timeout=TIMEOUT_S, text=True)
    optional = {f"relay.{name}" for name in ("brokers", "client", "cluster", "commands", "sources.feeds")}
    assert optional & set(loaded.split()) == set()
