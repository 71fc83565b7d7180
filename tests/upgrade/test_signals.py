"""Signals to either process at every step of an upgrade: no event and no signal is lost.

Covers relay.server.signals.

The new process runs `BETWEEN` at its start, which inserts a process of the test into the channel. That process forwards
the messages. Before it forwards the message that the test selected, it sends a signal.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Relay, Stream, eventually, relay

pytestmark = pytest.mark.slow

BETWEEN = """
import json, os, pathlib, select, signal, socket, struct, sys

HERE = pathlib.Path(__file__).parent
HEAD = struct.Struct("!IH")

def read(source, size):
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data

def pass_on(source, target, what):
    import msgspec
    head, fds, _, _ = socket.recv_fds(source, HEAD.size, 253)
    if not head:
        os._exit(0)
    head += read(source, HEAD.size - len(head))
    body = read(source, HEAD.unpack(head)[0])
    if msgspec.msgpack.decode(body)[0] == what["at"] and not (HERE / "done").exists():
        (HERE / "tokens").write_text("another-token-for-tests")
        os.kill(what[what["to"]], what["number"])
        (HERE / "done").touch()
    socket.send_fds(target, [head], fds)
    target.sendall(body)
    for fd in fds:
        os.close(fd)

def insert_forwarder(fd, what):
    what |= {"old": os.getppid(), "new": os.getpid()}
    ours, theirs = socket.socketpair()
    if os.fork():
        os.dup2(theirs.fileno(), fd)
        return
    theirs.close()
    ends = [socket.socket(fileno=fd), ours]
    while True:
        for ready in select.select(ends, [], [])[0]:
            pass_on(ready, ends[ready is ends[0]], what)

if "RELAY_TAKEOVER" in os.environ and "serve" in sys.orig_argv and not (HERE / "done").exists():
    insert_forwarder(int(os.environ["RELAY_TAKEOVER"]), json.loads((HERE / "what").read_text()))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Relay]:
    """A relay whose publish tokens are in a file."""
    (tmp_path / "sitecustomize.py").write_text(BETWEEN)
    (tmp_path / "tokens").write_text("a-token-of-the-file")
    settings = ("--publish-token-file", str(tmp_path / "tokens"), "--data", str(tmp_path / "relay.db"))
    with relay(*settings, environ={"PYTHONPATH": str(tmp_path)}) as running:
        yield running


@pytest.fixture
def stream(server: Relay) -> Iterator[Stream]:
    """A stream that expects one event, which is published after the stream opened."""
    with Stream(server.port) as opened:
        server.publish("before")
        yield opened


def upgrade(server: Relay, folder: Path, to: str, at: str, number: int) -> None:
    """Start an upgrade. One of the processes receives a signal when a certain message is forwarded."""
    (folder / "what").write_text(json.dumps({"to": to, "at": at, "number": number}))
    os.kill(server.pid, signal.SIGUSR2)
    eventually((folder / "done").exists, f"{at} comes by")


def expect_service(server: Relay, stream: Stream) -> None:
    """Check that the stream has received everything, and that it continues."""
    server.publish("after")
    assert [event.data for event in stream.take(2)] == ["before", "after"]


def knows_new_token(server: Relay) -> bool:
    """Return whether the file of tokens was reloaded."""
    headers = {"Authorization": "Bearer another-token-for-tests", "Content-Type": "text/plain"}
    return server.request("POST", "/publish?topic=other", b"x", headers)[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("at", ["Hello", "Entries", "Streams", "Rest"])
def test_a_new_process_that_exits_before_it_is_ready_leaves_the_old_one_serving(
    server: Relay, stream: Stream, tmp_path: Path, at: str, number: int
) -> None:
    descriptors = server.open_descriptors()
    upgrade(server, tmp_path, "new", at, number)
    eventually(lambda: bool(server.messages("the upgrade failed")), "the upgrade fails")
    expect_service(server, stream)
    eventually(lambda: server.open_descriptors() <= descriptors, "no descriptor is left open")
    assert Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text() == "", "no zombie is left"
    server.upgrade()
    server.publish("later")
    assert stream.next().data == "later"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", ["Ready", "Go"])
def test_a_new_process_that_is_stopped_when_it_is_ready_takes_over_and_drains(
    server: Relay, stream: Stream, tmp_path: Path, at: str, number: int
) -> None:
    upgrade(server, tmp_path, "new", at, number)
    assert [event.data for event in stream.rest()] == ["before"]
    assert b"\nretry: " in stream.raw
    assert server.wait() == 0
    assert server.messages("took over 1 streams")
    assert server.messages("drained")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", ["Hello", "Entries", "Streams", "Rest", "Ready"])
def test_a_signal_to_the_old_process_during_the_upgrade_drains_it_or_the_new_one(
    server: Relay, stream: Stream, tmp_path: Path, at: str, number: int
) -> None:
    upgrade(server, tmp_path, "old", at, number)
    assert [event.data for event in stream.rest()] == ["before"]
    assert b"\nretry: " in stream.raw
    assert server.wait() == 0
    assert len(server.messages("drained")) == 1
    assert bool(server.messages("took over 1 streams")) is (at not in ("Hello", "Entries"))


@pytest.mark.parametrize("at", ["Hello", "Entries", "Streams", "Rest", "Ready", "Go"])
@pytest.mark.parametrize("to", ["old", "new"])
def test_a_reload_during_the_upgrade_reaches_the_new_process(
    server: Relay, stream: Stream, tmp_path: Path, to: str, at: str
) -> None:
    if (to, at) == ("old", "Go"):
        pytest.skip("the old process may be gone already")
    upgrade(server, tmp_path, to, at, signal.SIGHUP)
    server.expect_successor()
    eventually(lambda: knows_new_token(server), "the tokens are reloaded")
    expect_service(server, stream)


@pytest.mark.parametrize("at", ["Hello", "Streams", "Ready", "Go"])
def test_an_upgrade_of_the_new_process_starts_when_it_serves(
    server: Relay, stream: Stream, tmp_path: Path, at: str
) -> None:
    upgrade(server, tmp_path, "new", at, signal.SIGUSR2)
    server.expect_successor(upgrades=2)
    expect_service(server, stream)


@pytest.mark.parametrize("at", ["Hello", "Streams", "Ready"])
def test_a_second_upgrade_of_the_old_process_joins_the_running_one(
    server: Relay, stream: Stream, tmp_path: Path, at: str
) -> None:
    upgrade(server, tmp_path, "old", at, signal.SIGUSR2)
    server.expect_successor()
    expect_service(server, stream)
    assert len(server.messages("took over")) == 1
