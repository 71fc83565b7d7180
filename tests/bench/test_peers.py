"""The folder of each peer is complete, and each installed peer sends every event to every stream, once and in order."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from bench.targets import PEERS, TARGETS, peer, peers
from loadtest.rig.harness import MeasuredServer, tree
from loadtest.rig.swarm import Swarm
from loadtest.rig.targets import Target

ALL = peers()
STREAMS, EVENTS = 20, 100


def serving(name: str) -> MeasuredServer:
    target = ALL[name]
    if not target.version:
        pytest.skip(f"{name} is not installed: make peers PEERS={name}")
    return MeasuredServer(target)


def still_running(pids: list[int]) -> list[int]:
    """Return the processes that have not ended after a while. A zombie counts as ended."""
    deadline = time.monotonic() + 5
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("name", ALL)
def test_a_folder_contains_everything_for_a_peer(name: str) -> None:
    target = ALL[name]
    assert target.title
    assert target.notes
    assert "{topic}" in target.path
    assert not target.replay_path or "{topic}" in target.replay_path
    assert os.access(PEERS / name / "install", os.X_OK)
    assert os.access(PEERS / name / "start", os.X_OK)
    if target.http:
        assert "{topic}" in target.http.target + target.http.body
        assert "{data}" in target.http.body


def test_the_folder_of_a_peer_selects_its_publisher() -> None:
    assert {name for name, target in ALL.items() if target.fed_by == "http"} == {
        "centrifugo",
        "mercure",
        "nchan",
        "pushpin",
    }


def test_the_targets_are_the_floor_relay_and_installed_peers() -> None:
    assert list(TARGETS) == ["floor", "relay", *(name for name, target in ALL.items() if target.version)]
    assert TARGETS["relay"].version


def test_a_misspelt_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "peer.toml").write_text('title = "t"\npath = "/{topic}"\nnotes = []\nreplay-path = "/"\n')
    with pytest.raises(msgspec.ValidationError, match="replay-path"):
        peer(tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_every_stream_receives_every_event_once_and_in_order(name: str) -> None:
    with serving(name) as server:
        path = server.target.path.replace("{topic}", "default")
        with Swarm(server.port, STREAMS, path=path) as swarm:
            assert swarm.ready().opened == STREAMS
            with server.publisher(rate=500, count=EVENTS) as publisher:
                published = publisher.done()
            seen = swarm.finish(EVENTS)
        assert server.cpu_s() > 0
        assert server.pss_bytes() > 0
    assert (published.sent, published.taken, published.answered_bytes) == (EVENTS, True, 0)
    assert (seen.deliveries, seen.faults, seen.closed) == (STREAMS * EVENTS, 0, 0)


@pytest.mark.parametrize("name", ALL)
def test_a_stream_receives_only_its_topic(name: str) -> None:
    with serving(name) as server:
        path = server.target.path.replace("{topic}", "t.{}")
        with Swarm(server.port, STREAMS, path=path, topics=10) as swarm:
            assert swarm.ready().opened == STREAMS
            with server.publisher(rate=500, count=EVENTS, topics=10) as publisher:
                assert publisher.done().taken
            seen = swarm.finish(EVENTS)
    assert (seen.deliveries, seen.faults) == (STREAMS * EVENTS // 10, 0)


@pytest.mark.parametrize("name", [name for name, target in ALL.items() if target.replay_path])
def test_a_later_stream_receives_all_retained_events(name: str) -> None:
    with serving(name) as server:
        with server.publisher(rate=500, count=EVENTS) as publisher:
            assert publisher.done().taken
        path = server.target.replay_path.replace("{topic}", "default")
        with Swarm(server.port, STREAMS, path=path) as swarm:
            assert swarm.ready().opened == STREAMS
            seen = swarm.finish(EVENTS)
    assert (seen.deliveries, seen.faults) == (STREAMS * EVENTS, 0)


@pytest.mark.parametrize("name", ALL)
def test_a_peer_leaves_no_process(name: str) -> None:
    with serving(name) as server:
        started = tree(server.pid)
    assert still_running(started) == []


def test_processes_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 100 & echo $$ $! >{pids}; exec python3 -m http.server --bind 127.0.0.1 $0"
    target = Target(
        "stubborn", lambda place, _: ["sh", "-c", f"touch {place.unix}; {script}", str(place.port)], path="/"
    )
    with MeasuredServer(target) as server:
        started = [int(pid) for pid in pids.read_text().split()]
        assert started == tree(server.pid)
    assert still_running(started) == []
