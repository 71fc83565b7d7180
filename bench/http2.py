"""`python -m bench.http2`: what a stream and a delivery cost over HTTP/1.1 and HTTP/2, with TLS and without.

Owns its server and its clients, one after the other for each kind. The figures are of the server's process only: its
memory (PSS) and its processor time. The clients read and do not parse. The certificate needs `openssl`. `--save` writes
the figures to `http2.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import selectors
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

from bench import HERE, report
from loadtest.rig.harness import cpu_s, pss_bytes

RESULTS = HERE / "http2.json"
STREAMS_A_CONNECTION = 50
WINDOW = 2**31 - 1
DATA = "x" * 150
WAIT_S = 30.0
KINDS = (
    ("HTTP/1.1", False, False),
    ("HTTP/2", True, False),
    ("HTTP/1.1, TLS", False, True),
    ("HTTP/2, TLS", True, True),
)


@dataclass(frozen=True)
class KindCost:
    """The figures of one kind."""

    kind: str
    stream_bytes: float
    delivery_us: float


def connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """Open a connection."""
    raw = socket.create_connection(("127.0.0.1", port))
    return raw if context is None else context.wrap_socket(raw, server_hostname="127.0.0.1")


def open_http1(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """Open a stream of HTTP/1.1."""
    client = connect(port, context)
    client.sendall(b"GET /events?topic=a HTTP/1.1\r\nHost: a\r\n\r\n")
    return client


def open_http2(port: int, context: ssl.SSLContext | None, streams: int) -> socket.socket:
    """Open streams of HTTP/2 on one connection, with windows that never close."""
    client = connect(port, context)
    state = H2Connection(H2Configuration(client_side=True))
    state.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = WINDOW
    state.local_settings.acknowledge()
    state.initiate_connection()
    state.increment_flow_control_window(WINDOW - 65535)
    for _ in range(streams):
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/events?topic=a")]
        state.send_headers(state.get_next_available_stream_id(), fields, end_stream=True)
    client.sendall(state.data_to_send())
    return client


@contextlib.contextmanager
def reading(clients: list[socket.socket]) -> Iterator[list[int]]:
    """Read everything that arrives, and count the bytes."""
    received = [0]
    selector, ended = selectors.DefaultSelector(), threading.Event()
    for client in clients:
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ)

    def read() -> None:
        while not ended.is_set():
            for key, _ in selector.select(0.1):
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    while isinstance(key.fileobj, socket.socket) and (data := key.fileobj.recv(65536)):
                        received[0] += len(data)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield received
    finally:
        ended.set()
        thread.join()
        for client in clients:
            client.close()


class ServedRelay:
    """A relay that reads events from standard input.

    Args:
        flags: more settings, as flags.
        context: the TLS context of the clients; None without TLS.
    """

    def __init__(self, flags: Sequence[str], context: ssl.SSLContext | None) -> None:
        self._context = context
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "serve", "--listen", "127.0.0.1:0", "--stdin", "ndjson", *flags],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        lines = (re.search(rb"serving at https?://127.0.0.1:(\d+)/", line) for line in self.process.stderr)
        self.port = int(next(filter(None, lines))[1])

    def streams(self) -> int:
        """Return the number of open streams."""
        if self._context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self._context)
        with contextlib.closing(connection):
            connection.request("GET", "/stats")
            return int(json.loads(connection.getresponse().read())["streams"])

    def feed(self, rate: float, seconds: float) -> None:
        """Publish events at a rate."""
        assert self.process.stdin is not None
        line = json.dumps({"topic": "a", "data": DATA}).encode() + b"\n"
        start_s = time.monotonic()
        for number in range(round(rate * seconds)):
            time.sleep(max(0.0, start_s + number / rate - time.monotonic()))
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def cpu_s(self, step: Callable[[], None]) -> float:
        """Return the processor time that the server uses during a step."""
        before = cpu_s(self.process.pid)
        step()
        return cpu_s(self.process.pid) - before

    def close(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            sys.exit(f"not within {WAIT_S:g} s: {what}")
        time.sleep(0.02)


def client_context(protocol: str) -> ssl.SSLContext:
    """Return a context that trusts every certificate and offers one protocol."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def measure(kind: tuple[str, bool, bool], certificate: Sequence[str], options: argparse.Namespace) -> KindCost:
    """Measure one kind."""
    name, is_http2, is_tls = kind
    streams: int = options.streams
    context = client_context("h2" if is_http2 else "http/1.1") if is_tls else None
    server = ServedRelay(certificate if is_tls else (), client_context("http/1.1") if is_tls else None)
    with contextlib.closing(server):
        server.streams()
        before = pss_bytes(server.process.pid)
        if is_http2:
            count = streams // STREAMS_A_CONNECTION
            clients = [open_http2(server.port, context, STREAMS_A_CONNECTION) for _ in range(count)]
        else:
            clients = [open_http1(server.port, context) for _ in range(streams)]
        with reading(clients) as received:
            until(lambda: server.streams() == streams, "all streams are open")
            time.sleep(0.5)
            stream_bytes = (pss_bytes(server.process.pid) - before) / streams
            idle_s = server.cpu_s(lambda: time.sleep(options.seconds))
            busy_s = server.cpu_s(lambda: server.feed(options.rate, options.seconds))
            deliveries = streams * round(options.rate * options.seconds)
            until(lambda: received[0] > deliveries * len(DATA), "every stream has received every event")
        return KindCost(name, stream_bytes, 1e6 * (busy_s - idle_s) / deliveries)


def make_certificate(folder: Path) -> tuple[str, ...]:
    """Make a certificate, and return the flags that make relay use it."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
    command = ["openssl", "req", "-x509", *curve, "-out", cert, "-subj", "/CN=bench", "-days", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return ("--tls-cert", cert, "--tls-key", key)


def main() -> None:
    """Measure all kinds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10, help="events per second, each of which all streams receive")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--save", action="store_true", help="save the figures in bench/http2.json")
    options = parser.parse_args()
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        print("| kind | memory a stream | CPU a delivery |\n| --- | --- | --- |")
        for kind in KINDS:
            cost = measure(kind, certificate, options)
            print(f"| {cost.kind} | {cost.stream_bytes / 1024:.1f} KiB | {cost.delivery_us:.1f} µs |", flush=True)
            costs.append(cost)
    if options.save:
        result = {"case": "http2", "streams": options.streams, "rate": options.rate, "kinds": costs}
        report.save(RESULTS, report.stamp(result, shlex.join(["python", "-m", "bench.http2", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
