"""The servers that can be measured: the bare C loop, relay, and each installed peer (`peers/README.md`).

Owns the command line and the request targets of each server. Never starts a server.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from bench import HERE
from loadtest.rig.native import build
from loadtest.rig.publisher import HttpEntrance
from loadtest.rig.targets import CONCURRENCY, RELAY, Place, Target

PEERS = HERE / "peers"
# The floor ends after this time, in case the harness is killed.
LIFE_S = 600
# The same socket options as on relay's listener, so that the kernel limits both servers equally.
CLIENT_BUFFER = 64 * 1024
NOTSENT_LOWAT = 64 * 1024


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of a `peer.toml`; the keys are those of `Target`, and in `publish` those of `HttpEntrance`."""

    title: str
    path: str
    replay_path: str = ""
    concurrency: int = CONCURRENCY
    publish: HttpEntrance | None = None
    notes: tuple[str, ...]


def _floor(place: Place, extra: tuple[str, ...]) -> list[str]:
    # `extra` holds arguments for relay; the floor does not accept them.
    del extra
    return [
        str(build(HERE / "floor.c")),
        *("--port", str(place.port), "--unix", str(place.unix), "--seconds", str(LIFE_S)),
        *("--client-buffer", str(CLIENT_BUFFER), "--notsent-lowat", str(NOTSENT_LOWAT)),
    ]


def peer(folder: Path) -> Target:
    """Return the target that the folder of a peer describes; the peer need not be installed."""
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
    """Return the path of the file that `install` writes last; it holds the version and marks the peer as installed."""
    return folder.parent / ".installed" / folder.name / "version"


def peers() -> dict[str, Target]:
    """Return all peers that have a folder, by name; those without a version are not installed."""
    folders = sorted(path.parent for path in PEERS.glob("*/peer.toml"))
    return {folder.name: peer(folder) for folder in folders}


_OWN = (
    Target("floor", _floor, title="bare C loop", ready="/readyz"),
    RELAY,
)
TARGETS = {target.name: target for target in _OWN} | {
    name: target for name, target in peers().items() if target.version
}
