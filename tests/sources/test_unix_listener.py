"""`relay.sources.unix_listener`: the socket file has its mode and group, and never replaces a file in use."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.sources.unix_listener import PATH_BYTES_MAX, bind_unix


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "relay.sock")


@contextlib.contextmanager
def listening(path: str, mode: int = 0o660, gid: int = -1) -> Iterator[socket.socket]:
    with bind_unix(path, mode, gid, 8) as listener:
        yield listener


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o777])
def test_the_mode_does_not_depend_on_the_umask(path: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listening(path, mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
            assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_the_group_is_as_set(path: str) -> None:
    with listening(path, gid=os.getgid()):
        assert os.stat(path).st_gid == os.getgid()


def test_a_stale_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with listening(path), socket.socket(socket.AF_UNIX) as feeder:
        feeder.connect(path)


def test_a_live_socket_is_an_error_and_is_left_alone(path: str) -> None:
    with listening(path):
        with pytest.raises(ConfigError, match="in use by a running process"):
            bind_unix(path, 0o660, -1, 8)
        with socket.socket(socket.AF_UNIX) as feeder:
            feeder.connect(path)


def test_a_live_socket_with_a_full_backlog_is_an_error(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as live, contextlib.ExitStack() as feeders:
        live.bind(path)
        live.listen(0)
        for _ in range(3):
            feeder = feeders.enter_context(socket.socket(socket.AF_UNIX))
            feeder.setblocking(False)
            feeder.connect_ex(path)
        with pytest.raises(ConfigError, match="in use by a running process"):
            bind_unix(path, 0o660, -1, 8)


def test_a_datagram_socket_is_an_error(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(path)
        with pytest.raises(ConfigError, match="in use by a running process"):
            bind_unix(path, 0o660, -1, 8)
    assert os.path.exists(path)


def test_a_file_that_is_not_a_socket_is_an_error_and_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        bind_unix(path, 0o660, -1, 8)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/relay.sock", "No such file or directory"),
        ("x" * PATH_BYTES_MAX, "the path must have 1 to 107 bytes"),
        ("nul\0", "the path must have 1 to 107 bytes"),
    ],
)
def test_an_invalid_path_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        bind_unix(f"{tmp_path}/{name}", 0o660, -1, 8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        bind_unix(str(tmp_path / "relay.sock"), 0o660, -1, 8)


def test_a_file_whose_mode_cannot_be_set_is_removed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="Operation not permitted"):
        bind_unix(path, 0o660, 0, 8)
    assert not os.path.exists(path)
