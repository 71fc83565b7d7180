"""No token ever appears in the log, in /stats, in /metrics or in the printed settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import jwt
import pytest

from tests.certificate import make_certificate
from tests.running import TOKEN, Relay, Stream, eventually, relay, run

SECRET = "a-key-of-hs256-" + "k" * 40
FILED = "a-token-in-a-file-" + "f" * 20
UPSTREAM = "a-token-of-the-upstream-" + "l" * 20
ADMIN = "an-admin-token-" + "a" * 20
HOOK = "a-secret-of-a-webhook-" + "h" * 20


def readers() -> str:
    """Return a JWT that opens everything."""
    claims = {"exp": time.time() + 60, "sub": "ann", "relay": {"subscribe": ["**"], "publish": ["**"]}}
    return jwt.encode(claims, SECRET, "HS256")


def raw(server: Relay, data: bytes) -> None:
    """Send bytes, and read any answer to its end."""
    connection: socket.socket = socket.create_connection(("127.0.0.1", server.port), 5)
    if server.context is not None:
        connection = server.context.wrap_socket(connection, server_hostname="127.0.0.1")
    with connection:
        connection.sendall(data + b"\r\n\r\n")
        connection.recv(65536)


@pytest.mark.parametrize("encrypted", [False, True])
def test_no_token_appears_in_the_log_at_level_debug(tmp_path: Path, encrypted: bool) -> None:
    tokens, own = tmp_path / "tokens", readers()
    tokens.write_text(f"{FILED}\n")
    certificate = make_certificate(tmp_path / "tls", "secrets")
    arguments = (
        *("--log-level", "debug", "--subscribe", "jwt", "--jwt-secret", SECRET, "--jwt-cookie", "session"),
        *("--admin-token", ADMIN),
        *("--publish-token-file", str(tokens), "--upstream", "http://127.0.0.1:9", "--upstream-token", UPSTREAM),
        *("--webhook", "hooks=github", "--webhook-secret", f"hooks={HOOK}"),
        *(certificate.flags if encrypted else ()),
    )
    with relay(*arguments, context=certificate.context() if encrypted else None) as server:
        bearer = {"Authorization": f"Bearer {own}"}
        status, _, body = server.request("POST", "/ticket", headers=bearer)
        assert status == 200
        ticket = json.loads(body)["ticket"]
        secrets = (SECRET, FILED, ADMIN, HOOK, UPSTREAM, TOKEN, own, ticket, own.rpartition(".")[2])
        with Stream(server.port, f"topic=a&ticket={ticket}", context=server.context) as stream:
            server.publish("one", "a")
            assert stream.next().data == "one"
        for path in (f"/events?topic=a&ticket={ticket}", f"/events?topic=a&token={own}", f"/nowhere?{own}", f"/{own}"):
            server.request("GET", path)
        for headers in (
            bearer,
            {"Authorization": f"Basic {own}"},
            {"Authorization": own},
            {"Cookie": f"session={own}x"},
        ):
            server.request("POST", "/publish?topic=a", b"{", headers | {"Content-Type": "application/json"})
        signed = {"X-Hub-Signature-256": f"sha256={HOOK}", "Content-Type": "application/json"}
        assert server.request("POST", f"/publish/hooks?id={HOOK}", b"{}", signed)[0] == 401
        raw(server, f"GET /events?topic=a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {own}\r\n {own}".encode())
        raw(server, f"GET /{own} {own}\r\nBearer {own}".encode())
        raw(server, f"POST /publish HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {FILED}\r\nContent-Length: x".encode())
        wrong = run("serve", "--upstream", "ftp://x", "--upstream-token", UPSTREAM)
        assert wrong.returncode == 2
        tokens.write_bytes(b"\xff" + FILED.encode())
        os.kill(server.process.pid, signal.SIGHUP)
        eventually(lambda: any("token" in record["message"] for record in server.log), "the file cannot be read")
        operator = {"Authorization": f"Bearer {ADMIN}"}
        shown = []
        for path in ("/stats", "/metrics"):
            server.request("GET", f"{path}?{ADMIN}")
            status, _, body = server.request("GET", path, headers=operator)
            assert status == 200
            shown.append(body.decode())
        server.stop()
        shown += [json.dumps(server.log), wrong.stderr, wrong.stdout]
    config = run("serve", "--print-config", *arguments, "--publish-token", TOKEN)
    assert config.returncode == 0
    for text in (*shown, config.stdout, config.stderr):
        for secret in secrets:
            assert secret not in text
