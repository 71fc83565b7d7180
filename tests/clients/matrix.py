"""The matrix of clients: its rows, its clients, the impossible combinations, and the run of one row.

Owns the tables and the events. Never starts a server or a client (`tests.clients.test_matrix`).
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from loadtest.rig.cable import Cable
from tests.clients.programs import Client, Job, Page, Record
from tests.clients.snippets.parse import events
from tests.running import Relay, eventually

INTERVAL_S = 0.3
CUT_BYTES = 20_000
RETRY = ("--retry-min", "50ms", "--retry-max", "100ms")


@dataclass(frozen=True)
class Row:
    """A form or transport.

    Args:
        flags: of the server.
        tls: whether the server uses TLS.
        syntax: `sse`, `envelope` or `ndjson`.
        h2: whether the server offers HTTP/2 to clients that use TLS.
        http1_0: requests pass a proxy that sends HTTP/1.0.
        head: a line in the response head of each stream, if it can be seen on the wire.
    """

    flags: tuple[str, ...] = ()
    tls: bool = False
    h2: bool = False
    syntax: str = "sse"
    http1_0: bool = False
    head: bytes = b"Transfer-Encoding: chunked"

    @property
    def compressed(self) -> bool:
        """Whether the clients accept gzip, and the server sends it."""
        return "gzip" in self.flags

    @property
    def form(self) -> str:
        """The name of the form, as /stats lists it."""
        return self.syntax + "/gzip" * self.compressed + "/plain" * self.http1_0


ROWS = {
    "chunked": Row(),
    "plain": Row(http1_0=True, head=b"Connection: close"),
    "gzip": Row(flags=("--compress", "gzip"), head=b"Content-Encoding: gzip"),
    "ndjson": Row(syntax="ndjson", head=b"Content-Type: application/x-ndjson"),
    "envelope": Row(syntax="envelope"),
    "tls": Row(flags=("--http2", "off"), tls=True),
    "h2": Row(tls=True, h2=True),
    "ndjson-gzip": Row(flags=("--compress", "gzip"), syntax="ndjson", head=b"Content-Encoding: gzip"),
    "h2-gzip": Row(flags=("--compress", "gzip"), tls=True, h2=True),
}

LINES = ("requests", "httpx", "aiohttp", "urllib", "curl", "node-fetch", "go", "chromium-fetch")
EVENT_SOURCES = ("node-eventsource", "chromium-eventsource")
PARSERS = ("sseclient-py", "httpx-sse", *EVENT_SOURCES)
CLIENTS = (*LINES, *PARSERS)

IMPOSSIBLE = {
    **{
        (name, client): "the client has no HTTP/2"
        for name, row in ROWS.items()
        for client in ("requests", "sseclient-py", "aiohttp", "urllib")
        if row.h2
    },
    **{
        (name, client): "the client reads only event streams"
        for name, row in ROWS.items()
        for client in PARSERS
        if row.syntax == "ndjson"
    },
    **{
        (name, "urllib"): "urllib does not decompress, and `gzip.GzipFile` waits for a full buffer"
        for name, row in ROWS.items()
        if row.compressed
    },
}
"""Combinations that a client cannot do, with the reason."""

LATE = {
    ("plain", "requests"): "`iter_lines` waits for 512 bytes of a body that has no chunks",
    ("plain", "sseclient-py"): "requests waits for 128 bytes of a body that has no chunks",
}
"""Combinations in which the client waits for more bytes. Nothing is lost: the events arrive with later ones."""

UNNOTICED_RESET = {
    **{
        (name, "node-fetch"): "after `Connection: close`, undici takes any end of the connection for the end of the "
        "body"
        for name, row in ROWS.items()
        if not row.h2
    },
    ("plain", "aiohttp"): "aiohttp takes a reset for the end of a body without chunks",
}
"""Combinations in which the client takes a cut by a TCP reset for a clean end."""

UNNOTICED_CLOSE = UNNOTICED_RESET | {
    ("plain", client): "a body without chunks ends with the connection, so the cut looks like the end"
    for client in CLIENTS
    if client not in EVENT_SOURCES
}
"""Combinations in which the client takes a cut by an orderly end of the connection for a clean end."""

TORN = {("plain", "sseclient-py"): "it delivers an unfinished block at the end of the body"}
"""Combinations in which the client delivers a torn event as a whole one when the connection ends in order."""

CUTS = {"close": UNNOTICED_CLOSE, "reset": UNNOTICED_RESET}
"""The ways to cut a connection, and the combinations that do not notice it."""

LARGE = "".join(random.Random(12).choices("abcdefghijklmnopqrstuvwxyz0123456789ABCDEF", k=100_000))
QUIET: list[dict[str, str]] = [
    {"data": '{"price": 1}'},
    {"data": "line 1\nline 2\n\n line 4"},
    {"data": "ünïcode 🚀 中文 \u2028 \x85 \x0b."},
    {"event": "price", "id": "an-id-7", "data": "7.5"},
    {"data": LARGE},
    {"data": ""},
    {"data": "12"},
    {"data": "last"},
    {"event": "relay.end", "data": "bye"},
]
BEFORE: list[dict[str, str]] = [{"data": "first"}, {"data": "second"}]
AFTER: list[dict[str, str]] = [{"data": "after the cut"}, {"event": "relay.end", "data": "bye"}]


@dataclass(frozen=True)
class Event:
    """An event as published or as received."""

    id: str
    type: str
    topic: str | None
    data: Any
    at: float

    @property
    def content(self) -> tuple[str, str, str | None, Any]:
        """Everything but the time."""
        return self.id, self.type, self.topic, self.data


@dataclass
class Reports:
    """The events of one stream, and the records of each client that read it."""

    published: list[Event]
    records: dict[str, list[Record]]


@dataclass
class Run:
    """The reports of the clients of one row: of the quiet stream, and of a stream for each way to cut it."""

    row: str
    quiet: Reports
    cuts: dict[str, Reports]
    forms: dict[str, int]
    """Number of clients that read the quiet stream in each form, from /stats."""
    wire: list[tuple[bytes, bytes]]
    """First bytes of each connection: from the client, and from the server."""


def publish(server: Relay, topic: str, message: dict[str, str], syntax: str) -> Event:
    """Publish an event; return it as a client of this syntax must receive it."""
    at = time.time()
    [id] = server.publish(json.dumps(message), topic, "application/x-ndjson")
    data: Any = message["data"]
    if syntax != "sse" and data.startswith("{"):
        data = json.loads(data)
    return Event(id, message.get("event", "message"), None if syntax == "sse" else topic, data, at)


def received(records: list[Record], syntax: str) -> list[Event]:
    """Return the events in a client's records, each with the time of the record that completed it."""
    at = 0.0

    def items(name: str) -> Iterator[Any]:
        nonlocal at
        for record in records:
            if name in record:
                at = record["at"]
                yield record["line"] if name == "line" else record

    found: list[Event] = []
    if syntax == "ndjson":
        for members in (json.loads(line) for line in items("line") if line):
            if "data" in members:
                type = members.get("event", "message")
                found.append(Event(members["id"], type, members["topic"], members["data"], at))
        return found
    for item in items("data") if any("data" in record for record in records) else events(items("line")):
        event = Event(item.get("id", ""), item.get("event", "message"), None, item["data"], at)
        if syntax == "envelope":
            members = json.loads(item["data"])
            event = replace(event, topic=members["topic"], data=members["data"])
        found.append(event)
    return found


def end(records: list[Record]) -> str | None:
    """Return how the client's stream ended; None if it is open."""
    return next((record["end"] for record in records if "end" in record), None)


def run_row(name: str, server: Relay, clients: dict[str, Client]) -> Run:
    """Let all clients of a row read its streams."""
    row = ROWS[name]
    cable = Cable(server.port, http1_0=row.http1_0)
    address = f"{server.url.rpartition(':')[0]}:{cable.port}"
    able = {client: each for client, each in clients.items() if (name, client) not in IMPOSSIBLE}
    page = next((each for each in able.values() if isinstance(each, Page)), None)
    try:
        if page is not None:
            page.browser.open(f"{address}/healthz")
        begin(row, server, address, f"{name}.quiet", able)
        forms = server.stats()["forms"]
        quiet = Reports(publish_quietly(server, f"{name}.quiet", row.syntax), wait_for_ends(able))
        cuts = {}
        for cut in CUTS:
            begin(row, server, address, f"{name}.{cut}", able)
            cuts[cut] = Reports(publish_and_cut(name, server, cable, cut, able), wait_for_ends(able))
        wire = [(each.sent, each.received) for each in cable.connections]
    finally:
        if page is not None:
            page.browser.open("about:blank")
        cable.close()
    return Run(name, quiet, cuts, forms, wire)


def publish_and_cut(name: str, server: Relay, cable: Cable, cut: str, clients: dict[str, Client]) -> list[Event]:
    """Publish events, and cut all connections within a large one; return the events."""
    topic, syntax = f"{name}.{cut}", ROWS[name].syntax
    punctual = {client: each for client, each in clients.items() if (name, client) not in LATE}
    resuming = {client: each for client, each in clients.items() if client in EVENT_SOURCES}
    published = [publish(server, topic, message, syntax) for message in BEFORE]
    wait_for(punctual, lambda records: any("second" in str(record) for record in records), "has all events")
    cable.cut_after(CUT_BYTES, reset=cut == "reset")
    published.append(publish(server, topic, {"data": LARGE}, syntax))
    wait_for(resuming, lambda records: any(LARGE in str(record) for record in records), "has resumed")
    return published + [publish(server, topic, message, syntax) for message in AFTER]


def begin(row: Row, server: Relay, address: str, topic: str, clients: dict[str, Client]) -> None:
    """Start all clients with one topic, and wait until their streams are open."""
    url = f"{address}/events?topic={topic}" + "&envelope=1" * (row.syntax == "envelope")
    headers = {"Accept": "application/x-ndjson"} if row.syntax == "ndjson" else {}
    for client in clients.values():
        client.begin(Job(url, headers, h2=row.h2, compressed=row.compressed))
    eventually(lambda: server.stats()["streams"] == len(clients), f"all clients have a stream of {topic}")


def publish_quietly(server: Relay, topic: str, syntax: str) -> list[Event]:
    """Publish an event every `INTERVAL_S`, and return the events."""
    published: list[Event] = []
    due_s = time.monotonic()
    for message in QUIET:
        published.append(publish(server, topic, message, syntax))
        due_s += INTERVAL_S
        time.sleep(max(0.0, due_s - time.monotonic()))  # the pace of a quiet stream
    return published


def wait_for(clients: dict[str, Client], holds: Callable[[list[Record]], bool], what: str) -> None:
    """Wait until a condition holds for each client's records."""
    for name, client in clients.items():
        eventually(functools.partial(_holds, client, holds), f"{name} {what}")


def _holds(client: Client, holds: Callable[[list[Record]], bool]) -> bool:
    return holds(client.records())


def wait_for_ends(clients: dict[str, Client]) -> dict[str, list[Record]]:
    """Wait until each client's stream has ended; return the records."""
    wait_for(clients, lambda records: end(records) is not None, "has ended")
    return {name: client.records() for name, client in clients.items()}
