"""The servers that can be measured: the bare C loop, relay, and each peer that is installed (`peers/README.md`).

Owns how each is started, subscribed to and published to; never starts one.
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
# The bound on a server's life should the harness itself be killed.
LIFE_S = 600
# What relay sets on its listener, given to the floor too, so that both wait for the kernel alike.
CLIENT_BUFFER = 64 * 1024
NOTSENT_LOWAT = 64 * 1024


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
    RELAY,
)
TARGETS = {target.name: target for target in _OWN} | {
    name: target for name, target in peers().items() if target.version
}
