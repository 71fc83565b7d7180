"""The check of the path through real proxies, and the output of `relay.commands.doctor`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.doctor.finding import Level
from relay.doctor.path import Observed, judge_delays, judge_idle
from tests.running import TIMEOUT_S, TOKEN, Relay, eventually, free_port, relay, run

NGINX = """
events {{}}
http {{
    access_log off;
    {tuning}
    server {{
        listen 127.0.0.1:{port};
        {locations}
        location / {{ proxy_pass http://127.0.0.1:{relay}; }}
    }}
}}
"""
BLOCKED = "location /publish { return 404; }"
GOOD = "proxy_http_version 1.1;"
BUFFERING = "proxy_http_version 1.0; proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"
"""With HTTP/1.1, nginx forwards each complete chunk even if it buffers."""


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    with relay() as running:
        yield running


@contextlib.contextmanager
def nginx(folder: Path, server: Relay, tuning: str, locations: str = "") -> Iterator[str]:
    """Run nginx in front of a relay; return its address."""
    program, port = shutil.which("nginx"), free_port()
    if program is None:
        pytest.skip("nginx is not installed")
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(port=port, relay=server.port, tuning=tuning, locations=locations))
    command = [program, "-p", str(folder), "-e", "stderr", "-g", "daemon off; pid nginx.pid;", "-c", str(file)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: (folder / "nginx.pid").exists() or process.poll() is not None, "nginx runs")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_a_direct_path_and_a_proxy_that_does_not_buffer_are_good(server: Relay, tmp_path: Path) -> None:
    with nginx(tmp_path, server, GOOD) as proxied:
        for url in (server.url, proxied):
            done = run("doctor", url, RELAY_PUBLISH_TOKEN=TOKEN)
            assert done.returncode == 0, done.stdout
            lines = done.stdout.splitlines()
            assert [line.split()[:2] for line in lines if "events:" in line] == [["ok", "events:"]], done.stdout
            assert any("ok       stream: its first bytes arrive" in line for line in lines), done.stdout
            assert lines[-1].startswith("faults: 0, ")
    assert TOKEN not in done.stdout + done.stderr


def test_a_proxy_that_buffers_is_a_fault_with_the_remedy(server: Relay, tmp_path: Path) -> None:
    with nginx(tmp_path, server, BUFFERING) as proxied:
        done = run("doctor", proxied, RELAY_PUBLISH_TOKEN=TOKEN)
        assert done.returncode == 1, done.stdout
        assert "a proxy buffers" in done.stdout
        assert "proxy_buffering off" in done.stdout
        assert "ok       server: " in done.stdout


def test_without_a_token_the_events_are_not_measured(server: Relay) -> None:
    done = run("doctor", server.url)
    assert done.returncode == 0
    assert "skipped  events: not measured\n         → give --token" in done.stdout
    assert "skipped  idle: not measured\n         → give --idle" in done.stdout


def test_events_are_published_at_another_address_if_the_proxy_blocks_publish(tmp_path: Path) -> None:
    socket = tmp_path / "relay.sock"
    with relay("--unix", str(socket)) as server, nginx(tmp_path, server, GOOD, BLOCKED) as proxied:
        done = run("doctor", proxied, RELAY_PUBLISH_TOKEN=TOKEN)
        assert "warning  events: cannot publish: 404: an HTML page of nginx" in done.stdout, done.stdout
        assert "→ a proxy may block /publish" in done.stdout
        assert "<html>" not in done.stdout
        for target, token in ((server.url, TOKEN), (f"unix:{socket}", "")):
            done = run("doctor", proxied, "--publish-to", target, RELAY_PUBLISH_TOKEN=token)
            assert "ok       events: they arrive" in done.stdout, done.stdout
        published = run("publish", "--to", proxied, "x", RELAY_PUBLISH_TOKEN=TOKEN)
        assert (published.returncode, published.stderr.count("\n")) == (1, 1)
        assert published.stderr.startswith("relay: 404: an HTML page of nginx")


def test_a_wrong_token_and_a_missing_server_are_reported(server: Relay) -> None:
    done = run("doctor", server.url, "--token", "wrong")
    assert "events: cannot publish: 401" in done.stdout
    done = run("doctor", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, "fault    server: " in done.stdout) == (1, True)


def test_the_settings_of_the_server_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(f'data = "{tmp_path}/none/relay.db"\n')
    done = run("doctor", "--config", str(file))
    assert done.returncode == 1
    assert f"fault    disk: the folder {tmp_path}/none does not exist" in done.stdout
    assert f"→ create it: mkdir -p {tmp_path}/none" in done.stdout


def test_a_proxy_that_cuts_idle_streams_is_a_fault(tmp_path: Path) -> None:
    tuning = f"{GOOD} proxy_read_timeout 400ms;"
    with relay("--heartbeat", "1s") as beating, nginx(tmp_path, beating, tuning) as cutting:
        done = run("doctor", beating.url, "--idle", "1500ms")
        assert "ok       idle: heartbeats keep the stream open for 1.5 s" in done.stdout, done.stdout
        done = run("doctor", cutting, "--idle", "1500ms")
        assert done.returncode == 1, done.stdout
        assert "fault    idle: the stream was cut after 0.4 s of silence" in done.stdout, done.stdout
        assert "nginx: proxy_read_timeout" in done.stdout


def test_a_stream_without_a_heartbeat_is_a_warning() -> None:
    observed = Observed(last_s=1.0)
    assert judge_idle(observed, 2.0, 12.0, is_cut=False).level is Level.WARNING
    observed.last_s = 3.0
    assert judge_idle(observed, 2.0, 12.0, is_cut=False).level is Level.OK
    assert "9.0 s of silence" in judge_idle(observed, 2.0, 12.0, is_cut=True).text


@pytest.mark.parametrize(("arguments", "error"), [(("--idle", "x"), "--idle: "), (("--idle", "20s"), "needs the URL")])
def test_a_wrong_time_of_idleness_is_an_error(arguments: tuple[str, ...], error: str) -> None:
    done = run("doctor", *arguments)
    assert (done.returncode, error in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arrived", "level"),
    [({"a": 1.1, "b": 2.0}, Level.OK), ({"a": 1.4, "b": 2.0}, Level.WARNING), ({"a": 9.0, "b": 9.0}, Level.FAULT),
     ({"a": 1.1}, Level.FAULT), ({"a": 0.9, "b": 1.9}, Level.OK)],
)  # fmt: skip
def test_delays_are_judged(arrived: dict[str, float], level: Level) -> None:
    assert judge_delays(Observed(arrived_s=arrived), {"a": 1.0, "b": 2.0}).level is level


def test_a_mark_is_noted_once_even_if_it_is_split() -> None:
    observed = Observed()
    for now_s, data in enumerate((b"data: do", b"ctor-1\n\n", b"data: doctor-1\n\n"), 1):
        observed.note(data, ["doctor-1", "doctor-2"], now_s)
    assert (observed.arrived_s, observed.first_s) == ({"doctor-1": 2}, 1)
