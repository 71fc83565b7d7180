"""A server that can be measured, as a value, and relay as one.

Owns how a server is started, subscribed to and published to. Never starts one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.rig.publisher import HttpEntrance
from relay import __version__

CONCURRENCY = 1000
"""Streams that may be opening at one time, for a server without a bound of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to listen and to keep its files.

    Args:
        port: TCP port of the streams.
        publish_port: TCP port for what is published over HTTP.
        folder: for its state; removed after its end.
    """

    port: int
    publish_port: int
    folder: Path

    @property
    def unix(self) -> Path:
        """The feeder's socket, for a server that is fed by one."""
        return self.folder / "feed.sock"


@dataclass(frozen=True, slots=True)
class Target:
    """A server that can be measured.

    Args:
        name: how results and the command line call it.
        command: makes its command line from a place and extra arguments.
        path: request target of a stream; `{topic}` stands for its topic.
        title: its name for people; empty where `name` will do.
        version: of what is installed.
        ready: request target that is answered by 200 once it is ready; empty for that of a stream.
        replay_path: request target of a stream that first gets all that is retained; empty where there is none.
        concurrency: streams that may be in opening at one time; more would be refused.
        http: how it is published to over HTTP; None for NDJSON lines into the Unix socket.
        notes: what differs from what it ships, and what else to know of its figures.
    """

    name: str
    command: Callable[[Place, tuple[str, ...]], list[str]]
    path: str = "/events?topic={topic}"
    title: str = ""
    version: str = ""
    ready: str = ""
    replay_path: str = ""
    concurrency: int = CONCURRENCY
    http: HttpEntrance | None = None
    notes: tuple[str, ...] = ()

    @property
    def fed_by(self) -> str:
        """What events come by: `socket` or `http`."""
        return "http" if self.http else "socket"


def _relay(place: Place, extra: tuple[str, ...]) -> list[str]:
    return [
        *(sys.executable, "-m", "relay", "serve", "--listen", f"127.0.0.1:{place.port}", "--unix", str(place.unix)),
        *("--stdin", "off", "--log-format", "json", *extra),
    ]


RELAY = Target(
    "relay",
    _relay,
    version=__version__,
    ready="/readyz",
    replay_path="/events?topic={topic}&since=earliest",
)
