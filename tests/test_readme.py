"""The README and the documentation are correct: commands, and examples in Python and JavaScript, work as printed.

Shell blocks that need the reader's own resources (another machine, a key, a process) are not run. For those, only the
settings are checked. Every other block starts a server, or runs to its end beside one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli import load_config, serve
from tests.browser import Browser
from tests.front.test_page_browser import serving
from tests.running import TIMEOUT_S, TOKEN, Relay, environment, eventually, relay

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_THE_READER = ("make ", "10.0.0.", ".example", "PID", "/opt/relay", ".pem")
README_LINES_MAX = 150

_STARTS = re.compile(r"\brelay --(?!version)")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the blocks in one language from all documents, without duplicates."""
    found = [block for path in DOCUMENTS for block in _BLOCK.findall(path.read_text())]
    return list(dict.fromkeys(text for name, text in found if name == language))


def serve_commands() -> list[str]:
    """Return every command line that starts a server, without the surrounding lines."""
    found = []
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word == "relay" and _STARTS.match(" ".join(words[place:])):
                    found.append(shlex.join(words[place:]).removesuffix(" '&'"))
    return found


def runnable(*, starts: bool) -> list[str]:
    """Return the shell blocks that need none of the reader's own resources, and that do or do not start a server."""
    own = [block for block in blocks("sh") if not any(mark in block for mark in OF_THE_READER)]
    return [block for block in own if bool(_STARTS.search(block)) == starts]


@pytest.mark.parametrize("line", serve_commands())
def test_settings_in_commands_are_accepted(line: str) -> None:
    context = serve.make_context("relay", shlex.split(line)[1:])
    flags = dict(context.params)
    assert not flags.pop("print_config")
    load_config(flags.pop("config"), flags)


def test_every_documented_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    documents = [*DOCUMENTS, ROOT / "bench" / "README.md", ROOT / "loadtest" / "README.md"]
    named = re.compile(r"(?:^|`|    )make ([a-z0-9-]+)", re.MULTILINE)
    targets = {name for path in documents for name in named.findall(path.read_text())}
    assert {"demo", "test", "bench", "load", "bench-restart"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_text_installs_the_other_relay_or_lacks_its_environment() -> None:
    # `relay` on PyPI is another project; this one is `relay-sse`.
    folders = (ROOT / name for name in ("relay", "bench", "loadtest", "deploy", "docs", "examples"))
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".md", ".service")]
    paths = [path for path in paths if ".installed" not in path.parts]  # peers are programs of other projects
    assert len(paths) > 50
    for path in (*paths, *ROOT.glob("*.md"), ROOT / "Makefile"):
        text = path.read_text()
        assert not re.search(r"pip install (?:-\S+ )*['\"]?relay(?!-sse)\b", text), path
        assert "relay[" not in text, path
    assert not any("python -m bench" in path.read_text() for path in DOCUMENTS)


def test_the_readme_is_short_and_its_links_resolve() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), (document, target)


@contextlib.contextmanager
def shell(script: str, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a block as printed, but on another port, with `relay` and `python` on the path."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text("")
    for name, module in (("relay", "-m relay "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (folder / name).chmod(0o755)
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("0.0.0.0:8080", f"127.0.0.1:{port}")
    listen = {"RELAY_LISTEN": f"127.0.0.1:{port}", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**listen, PATH=f"{folder}:{os.environ['PATH']}"),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[bytes], mark: bytes) -> bytes:
    """Read a process's output until a text appears."""
    assert process.stdout is not None
    deadline_s = time.monotonic() + TIMEOUT_S
    output = b""
    while mark not in output:
        assert select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))[0], output
        data = os.read(process.stdout.fileno(), 65536)
        assert data, output
        output += data
    return output


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@pytest.mark.parametrize("block", runnable(starts=True))
def test_a_documented_server_command_works_as_typed(block: str, port: int, tmp_path: Path) -> None:
    with shell(block, tmp_path, port) as process:
        if "curl" in block:
            output = read_until(process, b"data: 5\n")
            assert re.findall(rb"^data: (.*)$", output, re.MULTILINE) == [b"1", b"2", b"3", b"4", b"5"]
        else:
            read_until(process, b"serving at")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """Run a server for all client commands."""
    with relay("--unix", str(tmp_path_factory.mktemp("relay") / "relay.sock")) as running:
        yield running


@pytest.mark.parametrize("block", runnable(starts=False))
def test_a_documented_client_command_works_as_typed(block: str, server: Relay, tmp_path: Path) -> None:
    (tmp_path / "relay.sock").symlink_to(server.unix_path)
    server.publish("an earlier event", "news")
    with shell(f"export RELAY_PUBLISH_TOKEN={TOKEN}\n{block}", tmp_path, server.port) as process:
        if "jq" in block:
            if shutil.which("jq") is None:
                pytest.skip("jq is not installed")
            read_until(process, b'["news","an earlier event"]\n')
        elif "curl -N" in block:
            read_until(process, b"data: an earlier event\n")
        else:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output
            assert output
            assert b'{"error":' not in output


@pytest.mark.parametrize(
    "example", [text for text in blocks("python") if re.search(r"^from relay import .*subscribe$", text, re.MULTILINE)]
)
def test_a_python_example_prints_events(example: str, tmp_path: Path) -> None:
    with relay() as server:
        (tmp_path / "example.py").write_text(example.replace(":8080", f":{server.port}"))
        with shell("python -u example.py", tmp_path, server.port) as process:
            subscribed = "the example has subscribed"
            eventually(lambda: process.poll() is not None or server.stats()["streams"] == 1, subscribed)
            [id] = server.publish("from Python", "orders.eu")
            assert f"{id} orders.eu from Python".encode() in read_until(process, b"from Python")


@pytest.mark.parametrize(
    "example", [text for text in blocks("python") if "Publisher(" in text and 'data="Hello"' in text]
)
def test_a_python_example_publishes(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example)
    with relay("--unix", str(tmp_path / "relay.sock")) as server:
        with shell("python example.py", tmp_path, server.port) as process:
            assert process.wait(TIMEOUT_S) == 0
        assert server.stats()["events"] == (1001 if "range(1000)" in example else 1)


def javascript(mark: str, server: Relay) -> str:
    """Return the JavaScript example that contains a text, with the address of a server."""
    [example] = [text for text in blocks("js") if mark in text]
    return example.replace("http://127.0.0.1:8080", server.url)


def open_empty_page(browser: Browser, server: Relay) -> None:
    """Open a page of the server that has no scripts. The variable `printed` has the lines that an example prints."""
    browser.open(f"{server.url}/healthz")
    browser.value("var printed = []; console.log = (...all) => printed.push(all.join(' '))")


def test_the_javascript_example_of_a_state_loads_it_again_after_a_gap(browser: Browser) -> None:
    with serving() as server:
        open_empty_page(browser, server)
        server.publish("1", "prices.eu")
        server.publish("2", "prices.eu")
        browser.value(javascript("let prices", server))
        browser.wait("printed.join() === 'price 2'")
        for reason in ("conflated", "history"):
            browser.value("var first = prices")
            data = json.dumps({"reason": reason})
            browser.value(f"prices.dispatchEvent(new MessageEvent('relay.gap', {{ data: {data!r} }})); 0")
            assert browser.value("first === prices") is (reason == "conflated")
        browser.wait("printed.join() === 'price 2,price 2'")
        server.publish("3", "prices.eu")
        browser.wait("printed.at(-1) === 'price 3'")
        eventually(lambda: server.stats()["streams"] == 1, "the first stream is closed")


def test_the_javascript_example_of_a_list_loads_it_again_after_a_gap(browser: Browser) -> None:
    with serving() as server:
        open_empty_page(browser, server)
        server.publish("1", "news")
        server.publish("2", "news")
        browser.value(javascript("let messages", server))
        eventually(lambda: server.stats()["streams"] == 1, "the example has subscribed")
        server.publish("3", "news")
        browser.wait("printed.join() === 'list 1 2,more 3'")
        browser.value("messages.dispatchEvent(new MessageEvent('relay.gap', { data: '{}' })); 0")
        browser.wait("printed.at(-1) === 'list 1 2 3'")
        server.publish("4", "news")
        browser.wait("printed.at(-1) === 'more 4'")


def test_the_example_of_a_jwt_opens_a_stream_and_the_page_renews_its_ticket(browser: Browser, tmp_path: Path) -> None:
    secret = tmp_path / "jwt.secret"
    secret.write_text("s" * 64 + "\n")
    [example] = [text for text in blocks("python") if "jwt.encode(" in text]
    (tmp_path / "example.py").write_text(f"{example}\nprint(relay_token('ann'))\n")
    with serving("--subscribe", "jwt", "--jwt-secret-file", str(secret), "--max-age", "1s") as server:
        token = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()
        open_empty_page(browser, server)
        browser.value(f"Math.random = () => 0; {javascript('async function follow', server)}; follow({token!r})")
        eventually(lambda: server.stats()["streams"] == 1, "the example has subscribed")
        server.publish("1", "news")
        browser.wait("printed.join() === '1'")
        eventually(lambda: server.stats()["streams"] == 0, "the stream has reached its maximum age")
        server.publish("2", "news")
        browser.wait("printed.join() === '1,2'")


def test_the_javascript_example_prints_events_and_gaps(browser: Browser) -> None:
    with serving() as server:
        browser.open(server.url)
        browser.value("var printed = []; console.log = console.warn = (...all) => printed.push(all.join(' '))")
        browser.value("{" + javascript("console.warn", server) + "}")
        eventually(lambda: server.stats()["streams"] == 1, "the example has subscribed")
        [id] = server.publish("from JavaScript", "news")
        browser.wait("printed.length === 1")
        assert browser.value("printed[0]") == f"{id} from JavaScript"


def test_the_javascript_example_with_the_envelope_prints_topics(browser: Browser) -> None:
    with serving() as server:
        browser.open(server.url)
        browser.value("var printed = []; console.log = (...all) => printed.push(JSON.stringify(all))")
        browser.value("{" + javascript("envelope", server) + "}")
        eventually(lambda: server.stats()["streams"] == 1, "the example has subscribed")
        server.publish('{"data": {"n": 1}}', "orders.eu", "application/json")
        browser.wait("printed.length === 1")
        assert browser.value("printed[0]") == '["orders.eu",{"n":1}]'
