"""The servers that can be measured: the bare C loop, relay, and each peer that is installed (`peers/README.md`).

Owns how each is started, subscribed to and published to; never starts one.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.native import build
from loadtest.publisher import HttpEntrance
from relay import __version__

HERE = Path(__file__).parent
PEERS = HERE / "peers"
# As many as anybody opens: no bound.
CONCURRENCY = 1000
# The bound on a server's life should the harness itself be killed.
LIFE_S = 600
# What relay sets on its listener, given to the floor too, so that both wait for the kernel alike.
CLIENT_BUFFER = 64 * 1024
NOTSENT_LOWAT = 64 * 1024


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


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer's `peer.toml` says; the words are those of `Target`, `publish` those of `HttpEntrance`."""

    title: str
    path: str
    replay_path: str = ""
    concurrency: int = CONCURRENCY
    publish: HttpEntrance | None = None
    notes: tuple[str, ...]


def _floor(place: Place, extra: tuple[str, ...]) -> list[str]:
    # Of the floor nothing but its life can be set here; `extra` is meant for relay.
    del extra
    return [
        str(build(HERE / "floor.c")),
        *("--port", str(place.port), "--unix", str(place.unix), "--seconds", str(LIFE_S)),
        *("--client-buffer", str(CLIENT_BUFFER), "--notsent-lowat", str(NOTSENT_LOWAT)),
    ]


def _relay(place: Place, extra: tuple[str, ...]) -> list[str]:
    return [
        *(sys.executable, "-m", "relay", "serve", "--listen", f"127.0.0.1:{place.port}", "--unix", str(place.unix)),
        *("--stdin", "off", "--log-format", "json", *extra),
    ]


def peer(folder: Path) -> Target:
    """The target that a peer's folder describes, whether it is installed or not."""
    told = msgspec.convert(tomllib.loads((folder / "peer.toml").read_text()), Peer)
    version = _version_file(folder)

    def command(place: Place, extra: tuple[str, ...]) -> list[str]:
        del extra
        entrance = place.publish_port if told.publish else place.unix
        return [str(folder / "start"), str(place.port), str(entrance), str(place.folder)]

    return Target(
        name=folder.name,
        command=command,
        path=told.path,
        title=told.title,
        version=version.read_text().strip() if version.exists() else "",
        replay_path=told.replay_path,
        concurrency=told.concurrency,
        http=told.publish,
        notes=told.notes,
    )


def _version_file(folder: Path) -> Path:
    """What `install` writes last: the installed version, and so the mark that all is there."""
    return folder.parent / ".installed" / folder.name / "version"


def peers() -> dict[str, Target]:
    """All peers that there are folders for, by name; those without a version are not installed."""
    folders = sorted(path.parent for path in PEERS.glob("*/peer.toml"))
    return {folder.name: peer(folder) for folder in folders}


_OWN = (
    Target("floor", _floor, title="bare C loop", ready="/readyz"),
    Target(
        "relay",
        _relay,
        version=__version__,
        ready="/readyz",
        replay_path="/events?topic={topic}&since=earliest",
    ),
)
TARGETS = {target.name: target for target in _OWN} | {
    name: target for name, target in peers().items() if target.version
}
