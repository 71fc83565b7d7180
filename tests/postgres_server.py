"""A real PostgreSQL server for tests, on a Unix socket and a port of its own.

PostgreSQL does not run as root. Under root, the server runs as the user `nobody`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.certificate import make_certificate
from tests.running import TIMEOUT_S, free_port

PASSWORD = "a-password-for-postgres"
USER = "app"


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs. Debian has one for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = found[-1] if found else shutil.which("initdb")
    return Path(path).parent if path else None


def need_postgres() -> Path:
    """Return the folder of PostgreSQL's programs. Without it, skip the test; in CI it fails."""
    folder = programs()
    if folder is None:
        reason = "PostgreSQL is not installed: `make brokers` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


class PostgresServer:
    """One server, which keeps its data when it restarts. Connections over TCP need the password of the user `app`."""

    def __init__(self) -> None:
        self._programs = need_postgres()
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="relay-postgres-"))  # pytest's folders are closed to other users
        self._as_user: dict[str, Any] = {}
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            self._as_user = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
            for path in (self.folder, secret):
                shutil.chown(path, "nobody", "nogroup")
        self.certificate = make_certificate(self.folder, "postgres")
        self.certificate.key.chmod(0o600)
        if self._as_user:
            shutil.chown(self.certificate.key, "nobody", "nogroup")
        self._run(
            *("initdb", "--pgdata", str(self.folder / "data"), "--username", USER, "--pwfile", str(secret)),
            *("--auth-host", "scram-sha-256", "--auth-local", "trust", "--encoding", "UTF8", "--no-sync"),
            *("--locale", "C"),
        )
        self.start()

    @property
    def url(self) -> str:
        """The address of the database for `--source`, over the Unix socket."""
        return f"postgres://{USER}@:{self.port}/postgres?host={self.folder}"

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / name), *arguments],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                str(self._programs / "postgres"),
                *("-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port)),
                *("-h", "127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=8MB"),
                *("-c", "ssl=on", "-c", f"ssl_cert_file={self.certificate.cert}"),
                *("-c", f"ssl_key_file={self.certificate.key}"),
            ],
            cwd="/",
            stderr=subprocess.DEVNULL,
            **self._as_user,
        )
        deadline_s = time.monotonic() + TIMEOUT_S
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline_s, "PostgreSQL does not answer"
            time.sleep(0.02)

    def execute(self, sql: str) -> str:
        """Execute SQL and return the rows as text."""
        place = ("-h", str(self.folder), "-p", str(self.port), "-U", USER, "-d", "postgres")
        return self._run("psql", *place, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql)

    def kill(self) -> None:
        """End the server at once, with all of its processes."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(TIMEOUT_S)

    def close(self) -> None:
        """End the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder)
