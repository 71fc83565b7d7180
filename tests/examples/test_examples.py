"""Each example runs against a real relay and works as examples/README.md describes.

An example whose program is not installed (Node, Go, a proxy) is skipped with the program's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tests import ROOT
from tests.browser import Browser
from tests.certificate import make_certificate
from tests.redis_server import need_redis
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, environment, eventually, free_port, relay

EXAMPLES = ROOT / "examples"
END = '{"event": "relay.end", "data": "bye"}'


def program(name: str) -> str:
    """Return the path of a program, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def running(*arguments: str, cwd: Path = EXAMPLES, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in its own session, and end the session."""
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def output(process: subprocess.Popen[bytes], *texts: str) -> str:
    """Read a program's output until it contains all of these texts."""
    assert process.stdout is not None
    deadline_s, read = time.monotonic() + 2 * TIMEOUT_S, ""
    while not all(text in read for text in texts):
        ready = select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))[0]
        data = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert data, f"{texts} did not arrive: {read}"
        read += data.decode()
    return read


def path_with_relay(folder: Path) -> str:
    """Return a PATH whose `relay` belongs to this checkout."""
    launcher = folder / "relay"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m relay "$@"\n')
    launcher.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Relay]:
    """A relay for the examples, with one event in its history."""
    with relay("--cors-origin", "*", "--unix", str(tmp_path / "relay.sock")) as running_relay:
        running_relay.publish("first", "news")
        yield running_relay


@pytest.mark.parametrize(
    ("folder", "command"),
    [("python", (sys.executable, "subscribe.py")), ("node", ("node", "subscribe.mjs")), ("go", ("go", "run", "."))],
    ids=["python", "node", "go"],
)
def test_a_subscriber_reconnects_and_ends_with_its_topic(folder: str, command: tuple[str, ...], tmp_path: Path) -> None:
    program(command[0])
    port, data = free_port(), str(tmp_path / "data")
    flags = ("--data", data, "--retry-min", "0.05s", "--retry-max", "0.1s", "--listen", f"127.0.0.1:{port}")
    variables = {"RELAY_URL": f"http://127.0.0.1:{port}"}
    with relay(*flags) as first:
        ids = first.publish("one", "news")
        with running(*command, "news", cwd=EXAMPLES / folder, **variables) as process:
            output(process, ids[0])
            first.stop(signal.SIGKILL)
            with relay(*flags) as second:
                ids = second.publish("two", "news") + second.publish(END, "news", "application/json")
                read = output(process, *ids, "two", "bye")
                assert "relay.gap" not in read
                assert "missed" not in read
                assert process.wait(TIMEOUT_S) == 0


def test_the_page_shows_events_and_the_end(browser: Browser, server: Relay) -> None:
    browser.open(f"file://{EXAMPLES / 'browser' / 'index.html'}?relay={server.url}&topic=news")
    browser.wait("document.querySelector('#events').textContent === 'first'")
    server.publish("<b>second</b>", "news")
    browser.wait("document.querySelector('#events').lastChild.textContent === '<b>second</b>'")
    server.publish(END, "news", "application/json")
    browser.wait("document.querySelector('#state').textContent === 'ended'")


def test_the_page_polls_until_the_end(browser: Browser) -> None:
    # The browser keeps its connection open after the last answer.
    with relay("--cors-origin", "*", "--keepalive-timeout", "1s") as server:
        server.publish("first", "news")
        browser.open(f"file://{EXAMPLES / 'browser' / 'poll.html'}?relay={server.url}&topic=news")
        browser.wait("document.querySelector('#events').textContent === 'first'")
        eventually(lambda: server.stats()["streams"] == 1, "the page polls")
        server.publish("<b>second</b>", "news")
        browser.wait("document.querySelector('#events').lastChild.textContent === '<b>second</b>'")
        server.publish(END, "news", "application/json")
        browser.wait("document.querySelector('#state').textContent === 'ended'")
        assert browser.value("document.querySelector('#events').lastChild.textContent") == "bye"


@contextlib.contextmanager
def models(server: Relay, **variables: str) -> Iterator[str]:
    """Run the application with the language model, and return its address."""
    port = free_port()
    command = (sys.executable, "-m", "uvicorn", "app:app", "--port", str(port))
    variables |= {"RELAY_SOCKET": str(server.unix_path), "RELAY_URL": server.url, "RELAY_TOKEN": TOKEN}
    with running(*command, cwd=EXAMPLES / "models", **variables) as process:
        output(process, "Uvicorn running on")
        yield f"http://127.0.0.1:{port}"


def post(url: str, body: bytes = b"") -> dict[str, str]:
    """Post JSON and return the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        result: dict[str, str] = json.load(answer)
        return result


def test_an_answer_of_a_model_survives_a_reload_and_stops(server: Relay) -> None:
    with models(server, TOKEN_S="0.01") as url:
        topic = post(f"{url}/answers", b'{"prompt": "Why?"}')["topic"]
        with Stream(server.port, f"topic={topic}&since=earliest") as first:
            seen = first.take(20)
        with Stream(server.port, f"topic={topic}&since=earliest") as reloaded:
            assert reloaded.take(20) == seen
            post(f"{url}/answers/{topic}/stop")
            rest = reloaded.rest()
        assert (rest[-1].event, rest[-1].data) == ("relay.end", "stopped")
        assert len(seen) + len(rest) < 400, "the model stops before its last token"


def test_the_page_of_a_model_continues_after_a_reload(browser: Browser, server: Relay) -> None:
    with models(server, TOKEN_S="0.05") as url:
        browser.open(url)
        browser.value("document.querySelector('#ask').requestSubmit()")
        browser.wait("document.querySelector('#answer')?.textContent.startsWith('You asked: What is a relay? ')")
        browser.value("location.reload()")
        browser.wait("document.querySelector('#answer')?.textContent.startsWith('You asked: What is a relay? A relay')")
        browser.wait("document.querySelector('#stop')?.disabled === false")
        browser.value("document.querySelector('#stop').click()")
        browser.wait("document.querySelector('#state').textContent === 'stopped'")


def test_the_output_of_a_command_is_served(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    variables = {"PATH": path_with_relay(tmp_path), "RELAY_LISTEN": listen}
    with running(str(EXAMPLES / "shell" / "pipe.sh"), "seq", "3", cwd=tmp_path, **variables) as process:
        output(process, "serving at")
        with urllib.request.urlopen(f"http://{listen}/events?since=earliest", timeout=TIMEOUT_S) as stream:
            lines = iter(stream.readline, b"data: 3\n")
            assert [line for line in lines if line.startswith(b"data:")] == [b"data: 1\n", b"data: 2\n"]


def test_the_board_shows_signed_webhooks(browser: Browser) -> None:
    program("openssl")
    secret = "a-secret-for-the-example"
    hook = '{"action": "opened", "repository": {"full_name": "ann/relay"}, "sender": {"login": "ann"}}'
    mapping = "hooks.github=github event=X-GitHub-Event dedup=X-GitHub-Delivery"
    flags = ("--webhook", mapping, "--webhook-secret", f"hooks.github={secret}", "--cors-origin", "*")
    with relay(*flags) as server:
        send = str(EXAMPLES / "webhooks" / "send.sh")
        with running(send, "issues", hook, RELAY_URL=server.url) as process:
            assert process.wait(TIMEOUT_S) == 0, process.communicate()
        browser.open(f"file://{EXAMPLES / 'webhooks' / 'board.html'}?relay={server.url}")
        browser.wait("document.querySelector('#events').textContent === 'issues opened ann/relay ann'")
        with running(send, "issues", hook, RELAY_URL=server.url, WEBHOOK_SECRET="another") as process:
            assert process.wait(TIMEOUT_S) != 0
        assert server.stats()["events"] == 1
        browser.open("about:blank")


def test_the_shell_feeder_publishes_measurements(server: Relay, tmp_path: Path) -> None:
    variables = {"PATH": path_with_relay(tmp_path), "RELAY_SOCKET": str(server.unix_path), "PAUSE_S": "0.01"}
    with running(str(EXAMPLES / "shell" / "feed.sh"), "3", cwd=tmp_path, **variables) as process:
        assert process.wait(TIMEOUT_S) == 0
    with Stream(server.port, "topic=temperature&since=earliest") as stream:
        assert [json.loads(event.data)["number"] for event in stream.take(3)] == [1, 2, 3]


def test_the_output_of_a_command_is_published_in_one_request(server: Relay) -> None:
    program("curl")
    variables = {"RELAY_URL": server.url, "RELAY_TOKEN": TOKEN}
    with running(str(EXAMPLES / "shell" / "upload.sh"), "build", "seq", "3", cwd=EXAMPLES, **variables) as process:
        assert json.loads(output(process, "}"))["published"] == 3
        assert process.wait(TIMEOUT_S) == 0
    with Stream(server.port, "topic=build&since=earliest") as stream:
        assert [event.data for event in stream.take(3)] == ["1", "2", "3"]


def test_the_shell_board_begins_with_the_newest_measurement(server: Relay, tmp_path: Path) -> None:
    for data in ("18", "19"):
        server.publish(data, "board.kitchen")
    server.publish("21", "board.bath")
    variables = {"PATH": path_with_relay(tmp_path), "RELAY_URL": server.url}
    with running(str(EXAMPLES / "shell" / "board.sh"), "board.*", "2", cwd=tmp_path, **variables) as process:
        assert process.communicate(timeout=2 * TIMEOUT_S)[0] == b"19\n21\n"


def test_the_fastapi_application_publishes(server: Relay) -> None:
    port = free_port()
    command = (sys.executable, "-m", "uvicorn", "app:app", "--port", str(port))
    variables = {"RELAY_SOCKET": str(server.unix_path)}
    with (
        running(*command, cwd=EXAMPLES / "fastapi", **variables) as process,
        Stream(server.port, "topic=orders.*") as stream,
    ):
        output(process, "Uvicorn running on")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/orders", b'{"region": "eu", "amount": 3}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            assert answer.status == 201
            id = json.load(answer)["event"]
        [event] = stream.take(1)
        assert (event.id, event.event, json.loads(event.data)) == (id, "created", {"region": "eu", "amount": 3})


def test_every_viewer_receives_all_tokens(server: Relay) -> None:
    command = (sys.executable, "generate.py", "one", "What is a relay?")
    variables = {"RELAY_SOCKET": str(server.unix_path)}
    with Stream(server.port, "topic=answers.one") as early:
        with running(*command, cwd=EXAMPLES / "tokens", **variables) as process:
            assert process.wait(TIMEOUT_S) == 0
        with Stream(server.port, "topic=answers.one&since=earliest") as late:
            answers = [[event.data for event in stream.rest()] for stream in (early, late)]
    assert answers[0] == answers[1]
    assert "".join(map(json.loads, answers[0][:-1])).startswith("You asked: What is a relay? ")


@pytest.mark.slow
@pytest.mark.parametrize("intact", [True, False])
def test_the_demo_of_a_cluster_counts_lost_events(intact: bool) -> None:
    need_redis()
    with running(sys.executable, "demo.py", "--seconds", "4", cwd=EXAMPLES / "cluster") as process:
        read = output(process, "node A: open", "node B: open", "acknowledged", "kill -9")
        if not intact:
            with Redis.from_url(re.findall(r"redis://\S+", read)[0]) as broker:
                broker.flushall()
        read += output(process, "missed")
        assert process.wait(TIMEOUT_S) == (0 if intact else 1)
        assert ("missed 0, doubled 0, gaps 0" in read) == intact


@pytest.mark.parametrize(
    ("name", "configuration", "command"),
    [
        (
            "nginx",
            "nginx.conf",
            ("nginx", "-p", "{folder}", "-e", "stderr", "-g", "daemon off; pid nginx.pid;", "-c", "{file}"),
        ),
        ("haproxy", "haproxy.cfg", ("haproxy", "-db", "-f", "{file}")),
        ("caddy", "Caddyfile", ("caddy", "run", "--adapter", "caddyfile", "--config", "{file}")),
    ],
    ids=["nginx", "haproxy", "caddy"],
)
def test_a_proxy_forwards_events_immediately(
    name: str, configuration: str, command: tuple[str, ...], server: Relay, tmp_path: Path
) -> None:
    program(name)
    port, file = free_port(), tmp_path / configuration
    text = (EXAMPLES / "proxies" / configuration).read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    file.write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"))
    arguments = [part.format(folder=tmp_path, file=file) for part in command]
    with running(*arguments, cwd=tmp_path, HOME=str(tmp_path)) as process:
        eventually(lambda: process.poll() is not None or answers(port, "/readyz") == 200, f"{name} reaches relay")
        assert process.poll() is None, process.communicate()[0].decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/events?topic=news&since=earliest", timeout=10) as stream:
            for data in (b"data: first\n", b"data: second\n"):
                assert data in iter(stream.readline, b""), "the stream ended"
                server.publish("second", "news")
        assert {answers(port, path) for path in ("/stats", "/metrics", "/topics", "/topics/news")} == {403}


def test_the_nginx_of_the_documentation_forwards_only_what_readers_and_webhooks_need(tmp_path: Path) -> None:
    program("nginx")
    [block] = re.findall(r"^```nginx\n(.*?)^```$", (ROOT / "docs" / "proxies.md").read_text(), re.MULTILINE | re.DOTALL)
    certificate, port = make_certificate(tmp_path / "tls", "events.example"), free_port()
    webhook = ("--webhook", "hooks.*=github", "--webhook-secret", "hooks.*=a-secret-for-the-example")
    with relay("--trusted-proxy", "127.0.0.1", *webhook) as server:
        for printed, used in (
            ("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
            ("443", f"127.0.0.1:{port}"),
            ("/etc/ssl/events.example.pem", str(certificate.cert)),
            ("/etc/ssl/events.example.key", str(certificate.key)),
        ):
            assert printed in block
            block = block.replace(printed, used)
        (tmp_path / "nginx.conf").write_text(f"events {{}}\nhttp {{\naccess_log off;\n{block}}}\n")
        options = ("-p", str(tmp_path), "-e", "stderr", "-g", "daemon off; pid nginx.pid;", "-c", "nginx.conf")
        with (
            running("nginx", *options, cwd=tmp_path) as process,
            httpx.Client(
                http2=True, verify=certificate.context(), base_url=f"https://127.0.0.1:{port}", timeout=TIMEOUT_S
            ) as client,
        ):
            eventually(lambda: process.poll() is not None or (tmp_path / "nginx.pid").exists(), "nginx runs")
            assert process.poll() is None, process.communicate()[0].decode()
            with client.stream("GET", "/events?topic=news") as stream:
                assert stream.http_version == "HTTP/2"
                server.publish("one", "news")
                assert "data: one" in stream.iter_lines()
            readers = ("/healthz", "/events/news?limit=1", "/poll?topic=news&since=earliest")
            assert {client.get(path).status_code for path in readers} == {200}
            assert {client.get(path).status_code for path in ("/stats", "/metrics", "/topics", "/")} == {404}
            # 401: relay misses the signature. 404: nginx does not forward.
            posts = ("/publish/hooks.github", "/publish/news", "/publish")
            assert [client.post(path, json={}).status_code for path in posts] == [401, 404, 404]
            assert server.stats()["events"] == 1


def answers(port: int, path: str) -> int:
    """Return the status of a request, or 0 without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_table_names_every_example() -> None:
    named = set(re.findall(r"^\| \[([^\]]+)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert {name.partition("/")[0] for name in named} == folders
    assert all((EXAMPLES / name).exists() for name in named)
