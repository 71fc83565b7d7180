"""Every client reads every form: each event at once, unchanged, and never a torn event as a whole one.

A row of the matrix is a form or transport, a column is a client. Each client runs a snippet of docs/clients.md. All
clients of a row read the same three streams at the same time:

1. A quiet stream: an event every 0.3 s. It ends cleanly, with `relay.end`.
2. A stream that is cut in the middle of an event, by an orderly end of the TCP connection. Clients that reconnect then
   receive the remaining events.
3. The same with a TCP reset.

The tables of tests/clients/matrix.py name each combination that is impossible, and each in which a client misreads a
stream.

Lateness. The limit is 50 ms from the publication of an event to the client's report of it; both read CLOCK_REALTIME.
A client that waits for more bytes than the event has is late for every event, usually until the next publication. The
tests therefore demand two things: the median of all events of a stream is within the limit, and each event arrives
before the next one is published. A process that the kernel schedules late once does not fail them.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.browser import program as browser_program
from tests.certificate import Certificate, make_certificate
from tests.clients.matrix import (
    CLIENTS,
    CUTS,
    EVENT_SOURCES,
    IMPOSSIBLE,
    LATE,
    RETRY,
    ROWS,
    TORN,
    Event,
    Reports,
    Run,
    end,
    received,
    run_row,
)
from tests.clients.programs import Client, Curl, Page, Record, Worker
from tests.running import Relay

pytestmark = pytest.mark.alone

HERE = Path(__file__).parent
LATENESS_S_MAX = 0.05


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate, which all clients trust."""
    return make_certificate(tmp_path_factory.mktemp("matrix"), "one")


@pytest.fixture(scope="module")
def clients(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Client]]:
    """The clients whose programs are installed."""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    variables = dict.fromkeys(names, str(certificate.cert))
    commands = {
        client: [sys.executable, "-m", "tests.clients.worker", snippet]
        for client, snippet in {
            "requests": "requests_lines",
            "sseclient-py": "sseclient_events",
            "httpx": "httpx_lines",
            "httpx-sse": "httpx_sse_events",
            "aiohttp": "aiohttp_lines",
            "urllib": "urllib_lines",
        }.items()
    }
    node, go = shutil.which("node"), shutil.which("go")
    if node and (HERE / "node_modules" / "eventsource").is_dir() and (HERE / "node_modules" / "undici").is_dir():
        for name in ("fetch", "eventsource"):
            commands[f"node-{name}"] = [node, str(HERE / "worker.mjs"), name]
    if go:
        commands["go"] = [build_go(go, tmp_path_factory.mktemp("go"))]
    workers = {client: Worker(command, variables) for client, command in commands.items()}
    started: dict[str, Client] = {**workers}
    if shutil.which("curl"):
        started["curl"] = Curl(variables)
    if browser_program() or os.environ.get("CI"):
        browser: Browser = request.getfixturevalue("chromium")
        browser.call("Security.setIgnoreCertificateErrors", ignore=True)
        started |= {f"chromium-{name}": Page(browser, name) for name in ("fetch", "eventsource")}
    for worker in workers.values():
        worker.wait()
    yield started
    for client in started.values():
        client.close()


def build_go(go: str, folder: Path) -> str:
    """Build the worker in Go; return the path of the program."""
    for source in (HERE / "worker.go", HERE / "snippets" / "lines.go"):
        shutil.copy(source, folder)
    binary = folder / "worker"
    command = [go, "build", "-o", str(binary), "worker.go", "lines.go"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return str(binary)


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[dict[str, Relay]]:
    """The server of each row. Rows with the same settings share one."""
    started: dict[tuple[bool, tuple[str, ...]], Relay] = {}
    for row in ROWS.values():
        tls = certificate.flags if row.tls else ()
        context = certificate.context() if row.tls else None
        if (row.tls, row.flags) not in started:
            started[row.tls, row.flags] = Relay(*RETRY, *row.flags, *tls, context=context)
    yield {name: started[row.tls, row.flags] for name, row in ROWS.items()}
    for server in started.values():
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(servers: dict[str, Relay], clients: dict[str, Client]) -> Callable[[str], Run]:
    """A function that returns the reports of all clients of a row. Each row runs once."""
    return functools.cache(lambda name: run_row(name, servers[name], clients))


@pytest.fixture
def run(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    """The reports of all clients of a row."""
    return runs(request.param)


def combinations(*chosen: str) -> pytest.MarkDecorator:
    """Parametrize a test by every possible combination of rows and these clients."""
    pairs = [(row, client) for row in ROWS for client in chosen if (row, client) not in IMPOSSIBLE]
    return pytest.mark.parametrize(("run", "client"), pairs, indirect=["run"])


def records_of(reports: Reports, client: str) -> list[Record]:
    """Return a client's records, or skip the test if its program is missing."""
    if client not in reports.records:
        pytest.skip(f"{client}: the program or its packages are not installed")
    return reports.records[client]


def contents(events: list[Event]) -> list[object]:
    """Return the events without their times."""
    return [event.content for event in events]


@combinations(*CLIENTS)
def test_each_event_arrives_at_once(run: Run, client: str) -> None:
    got = received(records_of(run.quiet, client), ROWS[run.row].syntax)
    sent = run.quiet.published
    lateness = [event.at - original.at for event, original in zip(got, sent, strict=True)]
    held = [event.id for event, following in zip(got, sent[1:], strict=False) if event.at >= following.at]
    if (run.row, client) in LATE:
        assert held, f"{client} is no longer late: remove it from LATE and from docs/clients.md"
        return
    assert statistics.median(lateness) <= LATENESS_S_MAX, lateness
    assert not held, lateness


@combinations(*CLIENTS)
def test_the_contents_are_equal_and_the_end_is_clean(run: Run, client: str) -> None:
    records = records_of(run.quiet, client)
    assert contents(received(records, ROWS[run.row].syntax)) == contents(run.quiet.published)
    assert end(records) == "clean"


@pytest.mark.parametrize("cut", CUTS)
@combinations(*CLIENTS)
def test_a_torn_event_is_never_delivered_as_a_whole_one(run: Run, client: str, cut: str) -> None:
    got = contents(received(records_of(run.cuts[cut], client), ROWS[run.row].syntax))
    sent = contents(run.cuts[cut].published)
    torn = [content for content in got if content not in sent]
    assert bool(torn) == (cut == "close" and (run.row, client) in TORN), torn
    if cut == "close" or (run.row, client) not in LATE:
        assert got[:2] == sent[:2]


@pytest.mark.parametrize("cut", CUTS)
@combinations(*(client for client in CLIENTS if client not in EVENT_SOURCES))
def test_a_client_without_resume_reports_the_cut(run: Run, client: str, cut: str) -> None:
    reported = end(records_of(run.cuts[cut], client))
    assert reported is not None
    if (run.row, client) in CUTS[cut]:
        assert reported == "clean", "the client notices the cut: correct the table, and docs/clients.md"
    else:
        assert reported.startswith("error: "), reported


@pytest.mark.parametrize("cut", CUTS)
@combinations(*EVENT_SOURCES)
def test_an_event_source_resumes_and_receives_every_event_once(run: Run, client: str, cut: str) -> None:
    got = received(records_of(run.cuts[cut], client), ROWS[run.row].syntax)
    assert contents(got) == contents(run.cuts[cut].published)


@pytest.mark.parametrize("run", ROWS, indirect=True)
def test_each_row_has_the_bytes_that_it_claims(run: Run) -> None:
    row = ROWS[run.row]
    assert run.forms == {row.form: len(run.quiet.records)}
    if row.tls:
        # ALPN in the ClientHello is not encrypted, and the server chooses HTTP/2 whenever a client offers it.
        assert run.wire
        assert not row.h2 or all(b"\x02h2" in sent for sent, _ in run.wire)
        return
    heads = [head for sent, head in run.wire if b"GET /events" in sent]
    streams = [head for head in heads if b" 200 OK" in head]  # others are the answers after relay.end
    assert len(streams) >= 3 * len(run.quiet.records)
    assert all(row.head.lower() in head.lower() for head in streams), streams
