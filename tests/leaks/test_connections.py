"""A closed connection leaves nothing that only the garbage collector can free.

relay collects the oldest generation only after seven million new objects (`relay.server.server.COLLECTIONS`), and the
state of one TLS or HTTP/2 connection takes 30 KB. So a cycle of references is a leak. The server runs without the
collector: each object of a cycle then counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.certificate import make_certificate
from tests.h2_client import Http2Client
from tests.leaks.test_server import settled
from tests.running import TOKEN, Feeder, Relay, Stream, relay

WITHOUT_COLLECTOR = (
    sys.executable,
    "-c",
    "import gc, runpy, sys; gc.disable(); sys.argv = sys.argv[3:]; runpy.run_module('relay', None, '__main__', True)",
)
CONNECTIONS, WARM_UP = 40, 5
OBJECTS_MAX = 10
"""Objects that may remain after the connections of one kind, for example in caches."""


def stream(server: Relay) -> None:
    """Open a stream with a request that arrives whole."""
    with Stream(server.port, context=server.context) as opened:
        assert opened.head


def parsed_stream(server: Relay) -> None:
    """Open a stream with a request that the parser handles."""
    headers = {"Cookie": "a=b", "X-Other": "c"}
    with Stream(server.port, headers=headers, version="1.0", context=server.context) as opened:
        assert opened.head


def compressed_stream(server: Relay) -> None:
    """Open a compressed stream of NDJSON."""
    headers = {"Accept": "application/x-ndjson", "Accept-Encoding": "gzip"}
    with Stream(server.port, "topic=**", headers, context=server.context) as opened:
        assert opened.head


def feed(server: Relay) -> None:
    """Publish one event at the Unix socket."""
    with Feeder(server.unix_path) as feeder:
        feeder.publish(data=1)


def poll(server: Relay) -> None:
    """Poll without a wait."""
    assert server.request("GET", "/poll?topic=default&wait=0")[0] == 200


def publish(server: Relay) -> None:
    """Publish one event."""
    server.publish("x")


def upload(server: Relay) -> None:
    """Publish lines with an answer for each."""
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/x-ndjson",
        "Accept": "application/x-ndjson",
    }
    assert server.request("POST", "/publish", b'{"data":1}\n{"data":2}\n', headers)[0] == 200


def report(server: Relay) -> None:
    """Read the reports of the server."""
    for path in ("/topics", "/topics/default", "/stats", "/metrics", "/readyz"):
        assert server.request("GET", path)[0] in (200, 404)


def refused(server: Relay) -> None:
    """Make requests that are errors."""
    assert server.request("GET", "/events?topic=")[0] == 400
    assert server.request("POST", "/publish", b"x", {"Content-Type": "text/plain"})[0] == 401


def http2(server: Relay) -> None:
    """Open a stream, poll and publish on one connection of HTTP/2."""
    with Http2Client(server.port, server.context) as client:
        if server.context:
            server.context.set_alpn_protocols(["http/1.1"])  # for the other clients, which share it
        opened = client.request("GET", "/events?topic=default&since=earliest")
        polled = client.request("GET", "/poll?topic=default&wait=0")
        published = client.request("POST", "/publish", [("authorization", f"Bearer {TOKEN}")], b"x")
        answers = client.answers
        client.until(lambda: answers[polled].over and answers[published].over, "both answers")
        client.until(lambda: bool(answers[opened].body), "a part of the stream")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A server without the garbage collector."""
    folder = tmp_path_factory.mktemp("leaks")
    flags = ["--history-events", "10", "--compress", "gzip", "--unix", str(folder / "s")]
    context = None
    if request.param:
        certificate = make_certificate(folder / "certificate", "127.0.0.1")
        flags += certificate.flags
        context = certificate.context()
    with relay(*flags, before=WITHOUT_COLLECTOR, context=context) as started:
        yield started


KINDS = (stream, parsed_stream, compressed_stream, poll, publish, upload, feed, report, refused, http2)


@pytest.mark.slow
def test_closed_connections_leave_no_cycles(server: Relay) -> None:
    for make in KINDS:
        for _ in range(WARM_UP):
            make(server)
    left = {}
    _, before = settled(server)
    for make in KINDS:
        for _ in range(CONNECTIONS):
            make(server)
        _, after = settled(server)
        left[make.__name__] = after - before
        before = after
    assert all(objects <= OBJECTS_MAX for objects in left.values()), left
