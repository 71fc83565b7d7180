"""Access for operators: `admin-token` and `admin-listen`, at real processes (`relay.server.addresses`)."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificate import make_certificate
from tests.running import TIMEOUT_S, TOKEN, Relay, eventually, run

ADMIN = "an-admin-token-for-tests"
OPERATORS = ("/stats", "/metrics", "/topics", "/topics/news")
"""The paths that need the token."""
PAGES = ("/", *OPERATORS)
"""The paths that only the admin address serves."""
HEALTH = ("/healthz", "/readyz")


@contextlib.contextmanager
def serving(*arguments: str, context: ssl.SSLContext | None = None) -> Iterator[Relay]:
    """Run a relay whose /stats the test may not be able to read."""
    server = Relay(*arguments, context=context)
    try:
        yield server
    finally:
        server.kill_successors()
        server.stop(signal.SIGKILL)


def admin_port(server: Relay) -> int:
    """Return the port of the admin address."""
    [message] = server.messages("admin pages at")
    found = re.fullmatch(r"admin pages at https?://127\.0\.0\.1:(\d+)/", message)
    assert found
    return int(found[1])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status(
    port: int, path: str, token: str = "", method: str = "GET", context: ssl.SSLContext | None = None
) -> int:
    """Return the status of a request on its own connection."""
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    with contextlib.closing(connection):
        body, fields = (b"x", {"Content-Type": "text/plain"}) if method == "POST" else (None, {})
        connection.request(method, path, body, fields | (bearer(token) if token else {}))
        return connection.getresponse().status


@pytest.mark.parametrize("mode", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_the_paths_of_operators_need_the_admin_token(mode: tuple[str, ...]) -> None:
    with serving("--admin-token", ADMIN, "--admin-token", "another", *mode) as server:
        server.publish("x", "news")
        for path in OPERATORS:
            code, headers, body = server.request("GET", path)
            assert (code, b"requires a token" in body) == (401, True), path
            assert headers["www-authenticate"].startswith("Bearer")
            for wrong in ("wrong", TOKEN, ADMIN + "x", ADMIN[:-1], "ä"):
                assert server.request("GET", path, headers=bearer(wrong))[0] == 401, (path, wrong)
            for right in (ADMIN, "another"):
                assert server.request("GET", path, headers=bearer(right))[0] == 200, path
            assert server.request("HEAD", path)[0] == 401
        for path in ("/", *HEALTH):
            assert server.request("GET", path)[0] == 200, path
        # The admin token does not permit publishing.
        assert server.request("POST", "/publish/news", b"x", bearer(ADMIN))[0] == 401


@pytest.mark.parametrize("mode", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_only_the_admin_address_serves_the_paths_of_operators(mode: tuple[str, ...]) -> None:
    with serving("--admin-listen", "127.0.0.1:0", *mode) as server:
        server.publish("x", "news")
        admin = admin_port(server)
        unknown = server.request("GET", "/nowhere")[2]
        for path in PAGES:
            code, _, body = server.request("GET", path)
            assert (code, body) == (404, unknown), path
            assert status(server.port, path, method="HEAD") == 404
            assert status(admin, path) == 200, path
        for path in HEALTH:
            assert status(server.port, path) == status(admin, path) == 200
        assert status(admin, "/publish/news", TOKEN, "POST") == 200  # the page can publish
        assert status(server.port, "/publish/news", TOKEN, "POST") == 200


def test_a_poll_at_the_admin_address_closes_its_connection() -> None:
    with serving("--admin-listen", "127.0.0.1:0") as server:
        connection = http.client.HTTPConnection("127.0.0.1", admin_port(server), timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/poll?topic=news&wait=0.1")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Connection")) == (200, "close")
            answer.read()
            connection.request("GET", "/stats")  # on a new connection
            assert connection.getresponse().status == 200


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_the_admin_address_uses_tls_and_http2_too(tmp_path: Path, version: str) -> None:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    certificate = make_certificate(tmp_path, "admin")
    with serving("--admin-listen", "127.0.0.1:0", *certificate.flags, context=certificate.context()) as server:
        for port, code in ((admin_port(server), "200"), (server.port, "404")):
            command = [program, "--silent", "--insecure", version, "--output", os.devnull]
            command += ["--write-out", "%{http_code} %{http_version}", f"https://127.0.0.1:{port}/stats"]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
            assert answer == f"{code} {'2' if version == '--http2' else '1.1'}"


def test_an_upgrade_keeps_the_admin_address_and_its_connections() -> None:
    with serving("--admin-listen", "127.0.0.1:0") as server:
        admin = admin_port(server)
        ports = (admin, server.port)
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S) for port in ports]
        with contextlib.ExitStack() as stack:
            for connection in connections:
                stack.enter_context(contextlib.closing(connection))
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            server.upgrade()
            codes = []
            for connection in connections:
                connection.request("GET", "/stats")
                answer = connection.getresponse()
                answer.read()
                codes.append(answer.status)
            assert codes == [200, 404]
        assert (status(admin, "/stats"), status(server.port, "/stats")) == (200, 404)


def test_the_file_of_admin_tokens_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("first  # of prometheus\n")
    with serving("--admin-token-file", str(file)) as server:
        assert status(server.port, "/stats", "first") == 200
        file.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: status(server.port, "/stats", "second") == 200, "the new token is valid")
        assert status(server.port, "/stats", "first") == 401
        file.write_text("# none\n")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: bool(server.messages("kept the current admin tokens")), "the file is rejected")
        assert status(server.port, "/stats") == 401
        assert status(server.port, "/stats", "second") == 200


def test_top_sends_the_admin_token() -> None:
    with serving("--admin-token", ADMIN) as server:
        refused = run("top", server.url, "--once")
        assert (refused.returncode, "needs the admin token" in refused.stderr) == (1, True)
        assert run("top", server.url, "--once", "--token", ADMIN).returncode == 0
        assert run("top", server.url, "--once", RELAY_ADMIN_TOKEN=ADMIN).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--admin-listen", "nowhere"), "admin-listen: 'nowhere' is not HOST:PORT"),
        (("--listen", "127.0.0.1:1", "--admin-listen", "127.0.0.1:1"), "admin-listen: 127.0.0.1:1 is an address of"),
        (("--admin-token", "two words"), "admin-token: a header accepts only visible ASCII characters"),
        (("--admin-token-file", os.devnull), "admin-token-file: /dev/null contains no token"),
    ],
)
def test_wrong_settings_are_errors(arguments: tuple[str, ...], error: str) -> None:
    done = run("serve", "--listen", "127.0.0.1:0", *arguments)
    assert done.returncode == 2
    assert error in done.stderr
