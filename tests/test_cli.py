"""`relay.cli`: `relay` means `relay serve`; an error is one line and an exit code.

Covers `relay.__main__`.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from pathlib import Path

import pytest

from relay import cli
from relay.config.load import load
from relay.config.model import SETTINGS, Config, group_settings
from relay.errors import ConfigError, RelayError
from relay.process.systemd import Service
from relay.server import server
from relay.speedups import ENGINE
from relay.telemetry import logs
from tests.running import relay, run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Collect the configurations that the command line would serve, in an environment without settings."""
    for name in list(os.environ):
        if name.startswith("RELAY_") and name != "RELAY_ENGINE":
            monkeypatch.delenv(name)
    configs: list[Config] = []
    monkeypatch.setattr(server, "run", lambda config, service, channel: configs.append(config))
    monkeypatch.setattr(logs, "set_up", lambda *arguments: None)
    return configs


@pytest.mark.parametrize("arguments", [[], ["serve"]])
def test_relay_without_a_command_means_relay_serve(served: list[Config], arguments: list[str]) -> None:
    assert cli.run([*arguments, "--stdin", "lines", "--listen", ":1", "--listen", ":2", "--no-prime"]) == 0
    assert served == [Config(stdin="lines", listen=(":1", ":2"), prime=False)]


def test_without_arguments_the_defaults_are_served(served: list[Config]) -> None:
    assert cli.run([]) == 0
    assert served == [Config()]


def test_flags_override_variables_and_variables_override_the_file(
    served: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text('history-age = "3s"\nheartbeat = "3s"\nretry_max = "3s"\nprime = false\n')
    monkeypatch.setenv("RELAY_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("RELAY_HISTORY_AGE", "2s")
    monkeypatch.setenv("RELAY_HEARTBEAT", "2s")
    assert cli.run(["--config", str(file), "--history-age", "1s"]) == 0
    assert served == [Config(history_age_s=1, heartbeat_s=2, retry_max_s=3, prime=False)]
    monkeypatch.setenv("RELAY_CONFIG", str(file))
    assert cli.run(["--prime"]) == 0
    assert served[1] == Config(history_age_s=2, heartbeat_s=2, retry_max_s=3)


def test_the_printed_settings_are_the_effective_ones(served: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--print-config", "--history-bytes", "32M", "--publish-token", "sesame"]) == 0
    text = capsys.readouterr().out
    assert served == []
    assert "sesame" not in text
    assert load({}, {}, tomllib.loads(text)) == Config(history_bytes=32 * 1024**2)


def test_help_groups_the_settings_with_the_common_ones_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{group}:\n") for group in group_settings()]
    assert places == sorted(places)
    for name in SETTINGS:
        assert len(re.findall(rf"^  --{name}[ /]", text, re.MULTILINE)) == 1


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, each in SETTINGS.items():
        assert f"--{name} " in text
        assert each.metadata["help"].split()[0] in text
    assert "[default: 64MiB]" in text
    assert "[default: 127.0.0.1:8080]" in text


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([option]) == 0
    text = capsys.readouterr().out
    for name in ("serve", "publish", "subscribe", "top", "demo"):
        assert f"\n  {name} " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--histry-bytes", "1"], "--history-bytes"),
        (["servee"], "no such command: servee; did you mean serve?"),
        (["serve", "extra"], "extra"),
        (["--policy", "drop"], "drop-oldest"),
        (["--history-bytes", "lots"], "--history-bytes: 'lots' is not a size"),
        (["--history-bytes"], "requires an argument"),
        (["--listen", "8080"], "listen: '8080' is not HOST:PORT"),
        (["--config", "/none/relay.toml"], "config: cannot read /none/relay.toml: No such file"),
        (["--config", "/"], "config: cannot read /: Is a directory"),
        (["subscribe", "--header", "x"], "--header must have the form NAME:VALUE"),
        (["publish", "a", "b", "--id", "1"], "--id needs exactly one DATA"),
        (["publish", "a", "b", "--dedup", "1"], "--dedup needs exactly one DATA"),
        (["demo", "--listen", "127.0.0.1"], "listen:"),
    ],
)
def test_a_usage_error_is_one_line(
    served: list[Config], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("relay: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert served == []


def test_a_byte_order_mark_before_toml_is_skipped(served: list[Config], tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_bytes(b"\xef\xbb\xbfbacklog = 7\r\n")
    assert cli.run(["--config", str(tmp_path / "relay.toml")]) == 0
    assert served[0].backlog == 7


@pytest.mark.parametrize("text", [b"listen = ", b"\xff", b'history-age = "1s"\nhistory-age = "2s"'])
def test_a_file_that_is_not_toml_is_an_error(
    served: list[Config], text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "relay.toml").write_bytes(text)
    assert cli.run(["--config", str(tmp_path / "relay.toml")]) == 2
    assert "is not TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("listen :1: taken"), 2, "relay: listen :1: taken\n"),
        (OSError(98, "Address already in use"), 2, "relay: Address already in use\n"),
        (FileNotFoundError(2, "No such file", "/none"), 2, "relay: /none: No such file\n"),
        (RelayError("two\nlines"), 1, "relay: two lines\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_an_error_becomes_a_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    served: list[Config],
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(config: Config, service: Service, channel: object) -> None:
        raise error

    monkeypatch.setattr(server, "run", run)
    assert cli.run([]) == code
    assert capsys.readouterr().err == message


def test_the_version_names_the_engine() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("relay ")
    assert done.stdout.endswith(f"(engine {ENGINE})\n")


def test_an_unknown_variable_is_an_error() -> None:
    done = run(RELAY_HISTRY_AGE="1s")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "relay: unknown environment variable RELAY_HISTRY_AGE; did you mean RELAY_HISTORY_AGE?\n"


@pytest.mark.parametrize("arguments", [("--link-listen", ":1"), ("--link-token=hush",), ("--upstream", "relay://a:1")])
def test_a_removed_flag_is_an_error_that_names_its_replacement(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "has been removed" in done.stderr
    assert "use a broker: cluster (--cluster redis://HOST:PORT/0)" in done.stderr
    assert "hush" not in done.stderr


def test_an_unknown_engine_is_one_line() -> None:
    done = run("--version", RELAY_ENGINE="steam")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RELAY_ENGINE=steam" in done.stderr


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--listen", address, "--stdin", "off", "--log-level", "error")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert address in done.stderr
    assert "in use" in done.stderr


def test_a_bad_path_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "relay.sock")
    done = run("--listen", "127.0.0.1:0", "--unix", path, "--stdin", "off", "--log-level", "error")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert path in done.stderr


def test_a_live_unix_socket_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with relay("--unix", str(tmp_path / "relay.sock")) as running:
        path = str(running.unix_path)
        done = run("--listen", "127.0.0.1:0", "--unix", path, "--stdin", "off", "--log-level", "error")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(running.unix_path) in done.stderr


def test_with_exit_on_eof_the_end_of_input_ends_the_server() -> None:
    done = run("--listen", "127.0.0.1:0", "--stdin", "lines", "--exit-on-eof", input="a\nb\n")
    assert done.returncode == 0
