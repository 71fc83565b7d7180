"""The description of a server under test, and the one for relay.

Owns the command line and the request targets of a server. Never starts a server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.rig.publisher import HttpEntrance
from relay import __version__

CONCURRENCY = 1000
"""Maximum number of streams that may be opening at one time; a target may set its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """The ports and the folder of a server.

    Args:
        port: TCP port of the streams.
        publish_port: TCP port for events that are published over HTTP.
        folder: for the server's state; removed after the server ends.
    """

    port: int
    publish_port: int
    folder: Path

    @property
    def unix(self) -> Path:
        """Return the path of the Unix socket, for a server that reads events from one."""
        return self.folder / "feed.sock"


@dataclass(frozen=True, slots=True)
class Target:
    """A server that can be measured.

    Args:
        name: name in results and on the command line.
        command: makes the command line from a place and extra arguments.
        path: request target of a stream; `{topic}` stands for its topic.
        title: name for readers; empty to use `name`.
        version: version of the installed server.
        ready: request target that is answered by 200 once the server is ready; empty to use that of a stream.
        replay_path: request target of a stream that first receives all retained events; empty if there is none.
        concurrency: maximum number of streams that may be opening at one time; the server refuses more.
        http: how events are published over HTTP; None for NDJSON lines into the Unix socket.
        forwards: it is a proxy in front of another server, so no events are published to it.
        notes: settings that differ from the server's defaults, and remarks about its figures.
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
    forwards: bool = False
    notes: tuple[str, ...] = ()

    @property
    def fed_by(self) -> str:
        """Return how events reach the server: `socket` or `http`."""
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
