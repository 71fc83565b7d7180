"""relay as a systemd service: the states that it sends, and the listeners that it inherits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.config.load import RESERVED, variable
from relay.config.model import SETTINGS
from relay.errors import ConfigError
from relay.process.systemd import Service
from tests import ROOT
from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, command, environment, eventually, relay, run

HIGH_FD = 100
"""Above the descriptors that the shell of the test moves."""


class Manager:
    """A service manager's end of the notify socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.bind(address.replace("@", "\0"))

    def next_message(self) -> list[str]:
        """Return the next message."""
        return self.socket.recv(4096).decode().split("\n")

    def message_with(self, state: str) -> list[str]:
        """Return the next message with this state."""
        while state not in (message := self.next_message()):
            pass
        return message


@pytest.fixture(params=["path", "abstract"])
def notify(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Manager]]:
    """A manager, and its address in the format of NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@relay-test-{os.getpid()}"
    manager = Manager(address)
    with manager.socket:
        yield address, manager


@pytest.mark.slow
def test_the_manager_is_notified_of_readiness_reloads_and_the_end(notify: tuple[str, Manager]) -> None:
    address, manager = notify
    with relay(environ={"NOTIFY_SOCKET": address}) as server:
        assert manager.next_message() == ["READY=1", "STATUS=serving 0 streams"]
        with Stream(server.port):
            server.process.send_signal(signal.SIGHUP)
            reloading, usec = manager.next_message()
            assert (reloading, usec.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
            assert manager.next_message() == ["READY=1", "STATUS=serving 1 streams"]
            server.process.send_signal(signal.SIGTERM)
            assert manager.next_message() == ["STOPPING=1", "STATUS=draining 1 streams"]
        assert server.wait() == 0


def test_the_watchdog_is_notified_only_while_the_loop_runs(notify: tuple[str, Manager]) -> None:
    address, manager = notify
    with relay(environ={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}) as server:
        manager.message_with("WATCHDOG=1")
        assert manager.message_with("WATCHDOG=1")[1] == "STATUS=serving 0 streams"
        server.process.send_signal(signal.SIGSTOP)
        manager.socket.settimeout(0.4)
        with pytest.raises(TimeoutError):
            manager.message_with("nothing more")
        manager.socket.settimeout(TIMEOUT_S)
        server.process.send_signal(signal.SIGCONT)
        manager.message_with("WATCHDOG=1")


def test_the_watchdog_of_another_process_is_not_notified() -> None:
    assert Service({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "8"}, 7).ping_s is None
    assert Service({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "7"}, 7).ping_s == 0.5
    assert Service({"WATCHDOG_USEC": "1000000"}, 7).ping_s == 0.5
    assert Service({"WATCHDOG_USEC": "soon"}, 7).ping_s is None


def test_a_missing_manager_is_logged_and_harms_nothing(tmp_path: Path) -> None:
    with relay(environ={"NOTIFY_SOCKET": str(tmp_path / "gone")}) as server:
        server.publish("served")
        assert server.stop() == 0
    assert any("cannot send READY=1" in record["message"] for record in server.log)


@contextlib.contextmanager
def activated(*listeners: socket.socket, names: str = "") -> Iterator[Relay]:
    """Run a relay with inherited listeners, as systemd does: from descriptor 3 on, with the process's own id."""
    with contextlib.ExitStack() as stack:
        moves = []
        for place, listener in enumerate(listeners):
            fd = fcntl.fcntl(listener, fcntl.F_DUPFD, HIGH_FD)
            stack.callback(os.close, fd)
            moves.append(f"{3 + place}<&{fd} {fd}<&-")
        script = f'LISTEN_PID=$$ LISTEN_FDS={len(listeners)} LISTEN_FDNAMES={names} exec "$@" {" ".join(moves)}'
        fds = tuple(int(move.partition("<&")[2].split()[0]) for move in moves)
        bash = shutil.which("bash")
        assert bash is not None
        yield stack.enter_context(relay("--unix", "/nowhere/unused", before=[bash, "-c", script, "sh"], pass_fds=fds))


def test_inherited_listeners_replace_the_configured_ones(tmp_path: Path) -> None:
    path = tmp_path / "feeders.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(str(path))
        unix.listen()
        with activated(one, unix, other, names="web:feeders:web") as server:
            ports = [each.getsockname()[1] for each in (one, other)]
            assert server.unix_path == path
            streams = [Stream(port) for port in ports]
            for stream in streams:
                assert stream.socket.getpeername()[1] in ports
            with Feeder(path) as feeder:
                feeder.publish(data="to both")
            for stream in streams:
                with stream:
                    assert stream.next().data == "to both"
            assert server.stop() == 0
        assert path.exists(), "relay keeps the file of an inherited socket"
        with socket.create_connection(one.getsockname()):
            pass  # the socket still listens, so a new client waits for the next relay


@pytest.mark.parametrize("kind", ["datagram", "silent", "file"])
def test_an_inherited_descriptor_that_is_not_a_listener_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "file":
            fd = os.open(tmp_path, os.O_RDONLY)
        else:
            fd = socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM).detach()
        stack.callback(os.close, fd)
        done = subprocess.run(
            ["bash", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@" 3<&{fd}', "sh", *command("serve")],
            executable=shutil.which("bash"),
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=environment(),
        )
    assert done.returncode == 2
    assert "relay: descriptor 3 (web) of the service manager: " in done.stderr


def test_listeners_for_another_process_are_not_used() -> None:
    assert Service({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7).listeners() == ([], None)
    with pytest.raises(ConfigError, match="LISTEN_FDS=many"):
        Service({"LISTEN_PID": "7", "LISTEN_FDS": "many"}, 7).listeners()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_files_are_valid_and_hardened() -> None:
    deploy = ROOT / "deploy"
    for unit in ("relay.service", "relay.socket"):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(deploy / unit)], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if line.startswith(("relay.", str(deploy)))]
        assert all("/opt/relay/bin/relay is not executable" in line for line in said), done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(deploy / "relay.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_settings_of_the_unit_exist_and_work(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "relay.service").read_text()
    named = set(re.findall(r"RELAY_[A-Z_]+", unit))
    assert named <= {variable(name) for name in SETTINGS} | RESERVED
    [flags] = re.findall(r"^ExecStart=/opt/relay/bin/relay serve (.*)$", unit, re.MULTILINE)
    environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    credentials.mkdir()
    state.mkdir()
    for name in re.findall(r"^LoadCredential=([\w-]+):", unit, re.MULTILINE):
        assert f"%d/{name}" in environ.values()
        [default] = re.findall(rf"^SetCredential={name}:(.*)$", unit, re.MULTILINE)
        (credentials / name).write_text(default)
    [directory] = re.findall(r"^StateDirectory=(\w+)$", unit, re.MULTILINE)
    assert f"RELAY_DATA=/var/lib/{directory}/relay.db" in unit
    environ = {name: value.replace("%d", str(credentials)) for name, value in environ.items()}
    environ |= {"RELAY_DATA": str(state / "relay.db"), "RELAY_PUBLISH_TOKEN": ""}
    with relay(*flags.split(), environ=environ) as server:
        (credentials / "publish-token").write_text(f"{TOKEN}\n")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: bool(server.messages("reloaded the credentials: ")), "the tokens are reloaded")
        server.publish("kept")
    assert (state / "relay.db").exists()


def test_the_documentation_states_the_values_of_the_units() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("| in the units |")[2].partition("\n\n")[0]
    units = "".join((ROOT / "deploy" / name).read_text() for name in ("relay.service", "relay.socket"))
    lines = re.findall(r"`([A-Z][A-Za-z]+=[^`]+)`", page)
    assert len(lines) >= 14
    assert [line for line in lines if line not in units] == []


def test_relay_accepts_the_documented_settings_for_production() -> None:
    text = (ROOT / "docs" / "production.md").read_text()
    block = text.partition("```ini\n")[2].partition("```")[0]
    variables = dict(line.split("=", 1) for line in block.splitlines())
    assert len(variables) >= 6
    done = run("serve", "--print-config", **variables)
    assert done.returncode == 0, done.stderr
