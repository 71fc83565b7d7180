"""A server process checks its resources, opens its listener and logs its start.

Covers relay.server.addresses and relay.server.descriptors.
"""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from relay.config.model import Config
from relay.process.listeners import KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, listen
from tests.running import TIMEOUT_S, Relay, command, environment, eventually, relay, run


def test_the_first_line_of_the_log_names_the_engine(server: Relay) -> None:
    assert server.stats()["engine"] in server.log[0]["message"]


def test_a_port_in_use_is_one_clear_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--listen", address, "--stdin", "off")
    assert done.returncode == 2
    assert f"listen {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("webhook", "who"), [((), "nobody"), (("--webhook-secret", "hooks.a=0123456789abcdef"), "only signed webhooks")]
)
def test_the_log_states_who_may_publish_without_a_token(webhook: tuple[str, ...], who: str) -> None:
    with relay("--webhook", "hooks.a=github", *webhook, environ={"RELAY_PUBLISH_TOKEN": ""}) as server:
        warning = f"no publish-token is set, so that {who} can publish over HTTP"
        eventually(lambda: bool(server.messages(warning)), "the warning is logged")


def options_of_a_connection(config: Config, *options: tuple[int, int]) -> list[int]:
    """Return socket options of a connection that a listener with these settings accepted."""
    with listen("127.0.0.1:0", config) as listener:
        listener.listen(1)
        listener.settimeout(TIMEOUT_S)
        with socket.create_connection(listener.getsockname()) as client:
            client.send(b"G")  # a silent connection is accepted after a second only
            with listener.accept()[0] as accepted:
                return [accepted.getsockopt(*option) for option in options]


TCP = socket.IPPROTO_TCP
KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_accepted_connections_have_the_socket_options_that_limit_a_stream() -> None:
    options = (
        (socket.SOL_SOCKET, socket.SO_SNDBUF),
        (TCP, socket.TCP_NODELAY),
        (TCP, socket.TCP_NOTSENT_LOWAT),
        (TCP, socket.TCP_USER_TIMEOUT),
    )
    found = options_of_a_connection(Config(client_buffer=32 * 1024, client_timeout_s=7.5), *options)
    assert found == [2 * 32 * 1024, 1, 32 * 1024, 7500]  # socket(7): the kernel doubles the buffer


@pytest.mark.parametrize(
    ("client_timeout_s", "idle_s", "interval_s"),
    [
        (0.0, KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S),
        (30.0, 10, 5),
        (3600.0, KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S),
        (0.5, 1, 1),
    ],
)
def test_the_kernel_probes_only_streams_without_heartbeats(
    client_timeout_s: float, idle_s: int, interval_s: int
) -> None:
    options = (KEEPALIVE, (TCP, socket.TCP_KEEPIDLE), (TCP, socket.TCP_KEEPINTVL))
    config = Config(heartbeat_s=0, client_timeout_s=client_timeout_s)
    assert options_of_a_connection(config, *options) == [1, idle_s, interval_s]
    assert options_of_a_connection(Config(client_timeout_s=client_timeout_s), KEEPALIVE) == [0]


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
