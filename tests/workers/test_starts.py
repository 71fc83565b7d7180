"""Tests of relay.workers.processes: relay restarts workers that die at their start, or exits with a clear error.

Covers `relay.server.worker`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, command, environment, eventually, free_port, relay

FATE = """
import os, pathlib, signal, sys

if "relay.server.worker" in sys.orig_argv:
    here, number = pathlib.Path(__file__).parent, 1
    while True:
        try:
            (here / f"start-{number}").touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
    (here / f"start-{number}").write_text(str(os.getpid()))
    what = here / f"fate-{number}"
    fate = what.read_text() if what.exists() else (here / "fate").read_text()
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "exit":
        os._exit(3)
    if fate == "crash":
        raise SystemExit("a crash at import")
    if fate == "wait":
        open(here / "gate").read()
"""
"""Runs at the start of each Python process; selects the fate of the n-th started worker."""


class Fates:
    """Assigns a fate to each started worker.

    Args:
        folder: an empty folder.
        fates: `kill`, `exit`, `crash`, `wait` (until `release`) or `live`, of the first workers.
        rest: the fate of all other workers.
    """

    def __init__(self, folder: Path, *fates: str, rest: str = "live") -> None:
        self._folder = folder
        self.environ = {"PYTHONPATH": str(folder)}
        (folder / "sitecustomize.py").write_text(FATE)
        (folder / "fate").write_text(rest)
        os.mkfifo(folder / "gate")
        for number, fate in enumerate(fates, 1):
            (folder / f"fate-{number}").write_text(fate)

    def started(self) -> list[int]:
        """Return the process ids of all workers that were ever started."""
        texts = [path.read_text() for path in sorted(self._folder.glob("start-*"))]
        return [int(text) for text in texts if text]

    def release(self) -> None:
        """Release a waiting worker."""
        with open(self._folder / "gate", "w"):
            pass


def start(*arguments: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    """Start relay without waiting for it."""
    return subprocess.Popen(
        command("serve", "--listen", "127.0.0.1:0", *arguments),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(**environ),
    )


def is_listening(port: int) -> bool:
    """Return whether a process accepts connections at a port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def publish_at_a_ready_worker(port: int) -> None:
    """Publish over many connections and wait for one answer; a worker that is starting does not answer yet."""
    body = f"Authorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        for connection in connections:
            connection.sendall(f"POST /publish HTTP/1.1\r\nHost: localhost\r\n{body}".encode())
        answered, _, _ = select.select(connections, [], [], TIMEOUT_S)
        assert answered, "no worker answers"
        assert answered[0].recv(4096).startswith(b"HTTP/1.1 200 ")


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("fate", ["kill", "exit", "crash"])
def test_workers_that_die_at_their_start_are_restarted(fate: str, tmp_path: Path) -> None:
    fates = Fates(tmp_path, *[fate] * 4)
    with relay("--workers", "2", environ=fates.environ) as server:
        assert server.stats()["worker_restarts"] == 4
        assert len(fates.started()) == 6
        with Stream(server.port) as stream:
            server.publish("served")
            assert stream.next().data == "served"


def test_a_worker_that_dies_before_the_others_are_ready_is_restarted(tmp_path: Path) -> None:
    fates = Fates(tmp_path, "live", "wait")
    with start("--workers", "2", "--log-format", "json", environ=fates.environ) as process:
        assert process.stderr is not None
        eventually(lambda: len(fates.started()) == 2, "both are started")
        first, second = fates.started()
        eventually(lambda: b"uvloop" in Path(f"/proc/{first}/maps").read_bytes(), "the first start has begun")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(fates.started()) == 3, "it is restarted")
        fates.release()
        for line in process.stderr:
            if "serving at" in line:
                break
        assert is_running(second)
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(TIMEOUT_S) == 0, rest
    assert not any(map(is_running, fates.started()))


@pytest.mark.parametrize("fate", ["kill", "exit"])
def test_if_every_worker_dies_at_its_start_relay_exits_with_the_reason(fate: str, tmp_path: Path) -> None:
    fates = Fates(tmp_path, rest=fate)
    with start("--workers", "2", environ=fates.environ) as process:
        _, log = process.communicate(timeout=TIMEOUT_S)
    how = "SIGKILL" if fate == "kill" else "code 3"
    assert process.returncode == 2, log
    assert log.count(f"ended by {how}; restarting it") >= 5
    assert "failed to start 5 times" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert not any(map(is_running, fates.started()))


def test_a_worker_that_died_four_times_starts_a_fifth_time_beside_a_busy_one(tmp_path: Path) -> None:
    fates, port = Fates(tmp_path, "live", *["kill"] * 4, rest="wait"), free_port()
    environ = fates.environ | {"RELAY_PUBLISH_TOKEN": TOKEN}
    with start("--workers", "2", "--listen", f"127.0.0.1:{port}", environ=environ) as process:
        eventually(lambda: len(fates.started()) == 6, "a worker is started for the fifth time")
        eventually(lambda: is_listening(port), "the other worker accepts connections")
        publish_at_a_ready_worker(port)
        fates.release()
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "serving at" in line:
                break
        process.terminate()
        log += process.stderr
        assert process.wait(TIMEOUT_S) == 0, "".join(log)
    assert any("serving at" in line for line in log)


def test_if_one_worker_never_starts_the_other_does_not_outlive_relay(tmp_path: Path) -> None:
    fates = Fates(tmp_path, "live", rest="exit")
    with start("--workers", "2", environ=fates.environ) as process:
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2, log
    assert "Traceback" not in log
    eventually(lambda: not any(map(is_running, fates.started())), "all workers have exited")


@pytest.mark.parametrize("fate", ["wait", "exit"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_start_ends_relay_immediately(fate: str, number: signal.Signals, tmp_path: Path) -> None:
    fates = Fates(tmp_path, "live", rest=fate)
    with start("--workers", "2", environ=fates.environ) as process:
        eventually(lambda: len(fates.started()) >= 2, "both are started")
        process.send_signal(number)
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert "serving at" not in log
    assert "did not exit in time" not in log
    eventually(lambda: not any(map(is_running, fates.started())), "all workers have exited")


def test_a_worker_that_dies_of_a_signal_without_a_name_is_restarted(tmp_path: Path) -> None:
    with relay("--workers", "2") as server:
        os.kill(workers(server)[0], signal.SIGRTMIN + 6)
        eventually(lambda: bool(server.messages("worker ")), "its exit is logged")
        [message] = server.messages("worker ")
        assert f"ended by signal {signal.SIGRTMIN + 6}" in message
        eventually(lambda: len(server.stats()["workers"]) == 2, "it is ready")


def test_a_reload_while_a_worker_starts_does_not_end_it(tmp_path: Path) -> None:
    fates = Fates(tmp_path, "live", "live", "wait")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind(str(tmp_path / "notify"))
        variables = fates.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with relay("--workers", "2", environ=variables) as server:
            assert manager.recv(4096).startswith(b"READY=1")
            os.kill(fates.started()[0], signal.SIGKILL)
            eventually(lambda: len(fates.started()) == 3, "a worker is restarted")
            os.kill(server.pid, signal.SIGHUP)
            assert manager.recv(4096).startswith(b"RELOADING=1")
            assert manager.recv(4096).startswith(b"READY=1")
            fates.release()
            eventually(lambda: len(server.stats()["workers"]) == 2, "it is ready")
            assert server.stats()["worker_restarts"] == 1


def test_a_killed_hub_leaves_no_starting_worker(tmp_path: Path) -> None:
    fates = Fates(tmp_path, "live", "wait")
    with start("--workers", "2", environ=fates.environ) as process:
        eventually(lambda: len(fates.started()) == 2, "both are started")
        process.kill()
        fates.release()
        eventually(lambda: not any(map(is_running, fates.started())), "all workers have exited")


def test_workers_that_die_in_a_drain_are_not_restarted(tmp_path: Path) -> None:
    with relay("--workers", "2", "--drain-timeout", "2s") as server:
        stalled = Stream(server.port, receive_buffer=4096)
        server.publish("x" * 200_000)
        pids = workers(server)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(server.messages("draining")), "the drain begins")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a worker without a stalled stream may have exited already
                os.kill(pid, signal.SIGKILL)
        assert server.wait() == 0
        stalled.close()
        assert not [record for record in server.log if "Traceback" in str(record) or "exception" in record]
        assert not server.messages("worker ")


def workers(server: Relay) -> list[int]:
    """Return the process ids of the workers."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
