"""Real clients of HTTP/2: httpx, curl, Go, Node and Chromium. Each receives every event, in order, and its end.

Covers relay.front.h2 with the clients that people use. A missing program skips its test.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.rig.cable import Cable
from relay.sse import Decoder
from tests import ROOT
from tests.browser import Browser
from tests.certificate import Certificate, make_certificate
from tests.running import TIMEOUT_S, TOKEN, Relay, eventually, relay

STREAMS = 50
DATA = [f"{number} ü 🚀" for number in range(30)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate."""
    return make_certificate(tmp_path_factory.mktemp("h2-clients"), "one")


@pytest.fixture(params=["tls", "h2c"])
def server(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Relay]:
    """A server with TLS, and one without."""
    if request.param == "tls":
        with relay(*certificate.flags, context=certificate.context()) as server:
            yield server
    else:
        with relay() as server:
            yield server


def program(name: str) -> str:
    """Return the path of a program, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def published(server: Relay) -> None:
    """Publish the events, slowly enough that several reads are needed."""
    for data in DATA:
        server.publish(data, "a")


def check_lines(server: Relay, command: list[str]) -> None:
    """Run a client that prints a line per event; publish; drain; check each stream's lines and its end."""
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with client:
        eventually(lambda: server.stats()["streams"] == STREAMS, "all streams are open")
        published(server)
        server.stop(signal.SIGTERM)
        output, _ = client.communicate(timeout=TIMEOUT_S)
    lines = [line.split(" ", 2) for line in output.splitlines()]
    assert [line for line in lines if line[0] == "open"] == [["open", "HTTP/2.0", "200"]] * STREAMS
    for number in range(STREAMS):
        mine = [line[2] for line in lines if line[:2] == ["data", str(number)]]
        assert mine == DATA, number
        assert ["end", str(number), "<nil>"] in lines, output[-2000:]


def test_go_receives_every_event_and_the_end(server: Relay, tmp_path: Path) -> None:
    binary = tmp_path / "client"
    source = str(ROOT / "tests" / "clients" / "h2.go")
    built = subprocess.run(
        [program("go"), "build", "-o", str(binary), source], capture_output=True, text=True, check=False
    )
    if "undefined: http.Protocols" in built.stderr or "SetUnencryptedHTTP2" in built.stderr:
        pytest.skip("this Go has no HTTP/2 without TLS in net/http")
    assert built.returncode == 0, built.stderr
    check_lines(server, [str(binary), f"{server.url}/events?topic=a", str(STREAMS)])


def test_node_receives_every_event_and_the_end(server: Relay) -> None:
    script = str(ROOT / "tests" / "clients" / "h2.mjs")
    check_lines(server, [program("node"), script, f"{server.url}/events?topic=a", str(STREAMS)])


def test_curl_receives_every_event_and_the_end(server: Relay, certificate: Certificate) -> None:
    curl = program("curl")
    if "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this curl has no HTTP/2")
    version = ["--http2", "--cacert", str(certificate.cert)] if server.context else ["--http2-prior-knowledge"]
    base = [curl, "--silent", "--show-error", "--no-buffer", "--fail", *version]
    url = f"{server.url}/events?topic=a"
    with subprocess.Popen([*base, "--write-out", "%{http_version}", url], stdout=subprocess.PIPE) as client:
        eventually(lambda: server.stats()["streams"] == 1, "the stream is open")
        for data in DATA:
            headers = ["--header", f"Authorization: Bearer {TOKEN}", "--header", "Content-Type: text/plain"]
            target = f"{server.url}/publish?topic=a"
            done = subprocess.run([*base, *headers, "--data-binary", data, target], capture_output=True, check=True)
            assert json.loads(done.stdout)["ids"]
        server.stop(signal.SIGTERM)
        output, _ = client.communicate(timeout=TIMEOUT_S)
        assert client.returncode == 0
    assert output.endswith(b"2")
    assert [event.data for event in Decoder(1 << 20).feed(output)] == DATA


def test_httpx_publishes_and_receives_over_one_connection(server: Relay, certificate: Certificate) -> None:
    verify = certificate.context() if server.context else False
    own = {"http1": False, "http2": True, "verify": verify, "trust_env": False, "timeout": TIMEOUT_S}
    with httpx.Client(**own) as client, contextlib.ExitStack() as stack:  # type: ignore[arg-type]
        streams = [stack.enter_context(client.stream("GET", f"{server.url}/events?topic=a")) for _ in range(10)]
        assert [stream.http_version for stream in streams] == ["HTTP/2"] * 10
        texts = [stream.iter_bytes() for stream in streams]
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
        for data in DATA:
            assert client.post(f"{server.url}/publish?topic=a", content=data, headers=headers).status_code == 200
        assert server.connections() == 1
        for text in texts:
            decoder, events = Decoder(1 << 20), list[str]()
            while len(events) < len(DATA):
                events += [event.data for event in decoder.feed(next(text))]
            assert events == DATA


PAGE = """
new Promise((resolve) => {
  window.received = Array.from({ length: COUNT }, () => []);
  window.opened = Array(COUNT).fill(0);
  window.sources = window.received.map((events, number) => {
    const source = new EventSource("/events?topic=a" + (number % 2 ? "&topic=b" : ""));
    source.onmessage = (event) => events.push(event.data);
    source.onopen = () => { window.opened[number]++; if (window.opened.every(Boolean)) resolve(true); };
    return source;
  });
})
""".replace("COUNT", str(STREAMS))


def test_chromium_opens_fifty_streams_of_one_page_and_each_receives_every_event(
    browser: Browser, certificate: Certificate
) -> None:
    server = Relay(*certificate.flags, "--retry-min", "100ms", "--retry-max", "200ms", context=certificate.context())
    cable = Cable(server.port)
    try:
        browser.call("Security.setIgnoreCertificateErrors", ignore=True)
        browser.open(f"https://127.0.0.1:{cable.port}/healthz")
        assert browser.value(PAGE)
        # Fifty streams need fifty connections of HTTP/1.1, and Chromium opens six.
        assert server.stats()["streams"] == STREAMS
        assert server.connections() <= 3
        protocols = "performance.getEntriesByType('navigation').map((each) => each.nextHopProtocol)"
        assert browser.value(protocols) == ["h2"]
        published(server)
        browser.wait(f"received.every((events) => events.length === {len(DATA)})")
        assert browser.value("received") == [DATA] * STREAMS
        # A cut of the connection: each EventSource reconnects with its last id, and misses nothing.
        cable.cut()
        published(server)
        browser.wait(f"received.every((events) => events.length >= {2 * len(DATA)})")
        assert browser.value("received") == [DATA * 2] * STREAMS
        assert browser.value("opened.every((count) => count > 1)")
        browser.value("sources.forEach((source) => source.close())")
        eventually(lambda: server.stats()["streams"] == 0, "the streams are closed")
    finally:
        cable.close()
        server.stop(signal.SIGKILL)
