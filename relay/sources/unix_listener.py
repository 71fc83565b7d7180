"""The Unix listener: creates the socket file with its mode and group, and never replaces a file that is in use.

Owns the creation of the file and the check that it is still the same file. Never accepts connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import stat
from collections.abc import Iterable

from relay.errors import ConfigError

PATH_BYTES_MAX = 107
"""Longest path of a Unix socket (unix(7): `sun_path`, with its NUL)."""


def bind_unix(path: str, mode: int, gid: int, backlog: int) -> socket.socket:
    """Listen on a Unix socket.

    A socket file without a listener is replaced. The file is created with access for its owner only; group and mode are
    set afterwards. So no other user can connect before that.

    Args:
        path: path of the socket file, at most `PATH_BYTES_MAX` bytes.
        mode: permissions of the file.
        gid: group id of the file; -1 for the group of the process.
        backlog: most connections that wait for accept.

    Raises:
        ConfigError: the path is not usable; one line names the path and the reason.
    """
    if not path or "\0" in path or len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(f"unix socket {path!r}: the path must have 1 to {PATH_BYTES_MAX} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        _remove_stale(path)
        umask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        bound = True
        if gid >= 0:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        listener.listen(backlog)
        listener.setblocking(False)
    except (OSError, ConfigError) as error:
        listener.close()
        if bound:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if isinstance(error, OSError):
            raise ConfigError(f"unix socket {path}: {error.strerror or error}") from None
        raise
    return listener


def parse_users(users: Iterable[str]) -> frozenset[int]:
    """Return the ids of users that are given by name or id.

    Raises:
        ConfigError: a user does not exist.
    """
    return frozenset(map(_parse_user, users))


def _parse_user(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ConfigError(f"unix-user {text!r}: there is no such user") from None


def identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode number of the file at a path, or None if there is no file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket file without a listener; raise ConfigError for any other file at the path."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"unix socket {path}: the path exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        failure = probe.connect_ex(path)
    if failure not in (errno.ECONNREFUSED, errno.ENOENT):
        # EAGAIN: the backlog is full. EPROTOTYPE: a datagram socket. EACCES: no permission to connect.
        reason = os.strerror(failure) if failure == errno.EACCES else "in use by a running process"
        raise ConfigError(f"unix socket {path}: {reason}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
