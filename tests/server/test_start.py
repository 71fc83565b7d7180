"""A server process checks its resources, opens its listener and logs its start.

Covers relay.server.addresses and relay.server.descriptors.
"""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from relay.config.model import Config
from relay.process.listeners import KEEPALIVE_IDLE_S, listen
from tests.running import TIMEOUT_S, Relay, command, environment, run


def test_the_first_line_of_the_log_names_the_engine(server: Relay) -> None:
    assert server.stats()["engine"] in server.log[0]["message"]


def test_a_port_in_use_is_one_clear_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--listen", address, "--stdin", "off")
    assert done.returncode == 2
    assert f"listen {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_accepted_connections_have_the_socket_options_that_limit_a_stream() -> None:
    config = Config(client_buffer=32 * 1024, client_timeout_s=7.5)
    with listen("127.0.0.1:0", config) as listener:
        listener.listen(1)
        listener.settimeout(TIMEOUT_S)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:

            def option(level: int, name: int) -> int:
                return accepted.getsockopt(level, name)

            tcp = socket.IPPROTO_TCP
            assert option(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 32 * 1024  # socket(7): the kernel doubles it
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert option(tcp, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S
            assert option(tcp, socket.TCP_NODELAY) == 1
            assert option(tcp, socket.TCP_NOTSENT_LOWAT) == 32 * 1024
            assert option(tcp, socket.TCP_USER_TIMEOUT) == 7500


def limited(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` under a limit of the shell's `ulimit` until it exits."""
    return subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command(*arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(
    ("limit", "arguments", "message"),
    [
        ("-n 200", [], "descriptors: the hard limit is 200, and 256 are needed (ulimit -Hn)"),
        ("-n 300", ["--streams-max", "1000"], "streams-max: 1000 streams need more than 300 descriptors"),
    ],
)
def test_too_few_descriptors_are_one_clear_line_and_exit_code_2(limit: str, arguments: list[str], message: str) -> None:
    done = limited(limit, "--listen", "127.0.0.1:0", "--stdin", "off", "--log-level", "error", *arguments)
    assert (done.returncode, done.stderr) == (2, f"relay: {message}\n")


def test_the_log_names_the_engine_first_and_contains_no_random_token() -> None:
    done = limited("-Sn 512", "--stdin", "lines", "--exit-on-eof", "--listen", "127.0.0.1:0", "--log-format", "json")
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert done.returncode == 0
    assert ", engine " in messages[0]
    assert any("raised the descriptor limit from 512" in message for message in messages)
    assert not any("token for" in message for message in messages)
