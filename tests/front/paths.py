"""The two paths by which a server opens streams, for tests that compare their answers.

A server opens a stream directly if the whole request has arrived when it accepts the connection
(`relay.front.openings`). If a part of the request arrives later, `relay.front.connection` serves it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.raw import RawClient
from tests.running import Relay, eventually

FIRST_BYTES = 3
"""Size of the first piece of a request in two pieces. No complete request is that short."""
TURNS = 2
"""Requests after which a server has answered all earlier ones: one turn accepts a connection, another one reads it."""

_DATE = re.compile(rb"\r\nDate: [^\r]*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """All bytes that a client received, without the value of `Date`, and whether the server closed the connection."""

    data: bytes
    closed: bool

    @property
    def status(self) -> int:
        """The status of the first answer; 0 without an answer."""
        return int(self.data.split(b" ", 2)[1]) if self.data else 0


@contextlib.contextmanager
def stopped(server: Relay) -> Iterator[None]:
    """Stop the processes of a server. All input that arrives meanwhile is there when they accept a connection."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    processes = [server.pid, *map(int, children)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: all(map(_is_stopped, processes)), "the processes are stopped")
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def take_turns(server: Relay) -> None:
    """Wait until the server has accepted all connections and has answered all requests that were sent before."""
    for _ in range(TURNS):
        assert server.request("GET", "/healthz")[0] == 200


def send_whole(server: Relay, requests: Sequence[bytes]) -> list[RawClient]:
    """Send each request in one piece on a connection of its own. It is complete when the server accepts."""
    clients = []
    with stopped(server):
        for data in requests:
            clients.append(RawClient(server.port))
            clients[-1].send(data)
    return clients


def send_in_pieces(server: Relay, requests: Sequence[bytes]) -> list[RawClient]:
    """Send each request in two pieces on a connection of its own. The server accepts before the second piece."""
    clients = []
    for data in requests:
        clients.append(RawClient(server.port))
        clients[-1].send(data[:FIRST_BYTES])
    take_turns(server)
    for client, data in zip(clients, requests, strict=True):
        client.send(data[FIRST_BYTES:])
    return clients


def outcome(client: RawClient) -> Outcome:
    """Read everything that has arrived, and close the connection."""
    received, closed = b"", False
    with client, contextlib.suppress(BlockingIOError):
        client.socket.setblocking(False)
        while data := client.socket.recv(65536):
            received += data
        closed = True
    return Outcome(_DATE.sub(b"\r\nDate: *", received), closed)


def outcomes(server: Relay, clients: Sequence[RawClient]) -> list[Outcome]:
    """Return the outcome of each client. All of them are closed, and the server has closed their connections."""
    take_turns(server)
    connections = server.connections()
    found = [outcome(client) for client in clients]
    # The server may have closed the connections of complete answers already.
    others = connections - sum(not each.closed for each in found)
    eventually(lambda: server.connections() <= others, "the connections are closed")
    return found


def opens(server: Relay) -> Counter[str]:
    """Return the number of opened streams of each path, in all processes."""
    text = server.request("GET", "/metrics")[2].decode()
    counts: Counter[str] = Counter()
    for path, count in re.findall(r'^relay_opens_total{path="(\w+)".*} (\S+)$', text, re.MULTILINE):
        counts[path] += int(float(count))
    return counts


def opened(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Return the paths that opened streams between two results of `opens`, with the number of streams."""
    return dict(after - before)
