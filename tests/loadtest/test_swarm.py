"""The swarm reconnects and resumes: after a close, all at once in a storm, or as a constant flow of new streams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.rig.harness import MeasuredServer
from loadtest.rig.swarm import Swarm, SwarmHistograms, SwarmReport
from loadtest.rig.targets import RELAY
from tests.running import TIMEOUT_S
from tests.scripted_http import HOLD, Part, Scripted, scripted

pytestmark = pytest.mark.slow

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def frame(number: int) -> bytes:
    return b'id: e-%d\ndata: {"n":%d,"t":1}\n\n' % (number, number)


@pytest.fixture
def server() -> Iterator[MeasuredServer]:
    with MeasuredServer(RELAY) as running:
        yield running


class Feed:
    """Publishes numbered events to a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self.last = 0

    def send(self, count: int) -> None:
        for number in range(self.last + 1, self.last + count + 1):
            self._socket.sendall(b'{"data":{"n":%d,"t":%d}}\n' % (number, time.monotonic_ns()))
        self.last += count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def feed(server: MeasuredServer) -> Iterator[Feed]:
    feed = Feed(server.unix)
    yield feed
    feed.close()


def marks(swarm: Swarm) -> Iterator[SwarmReport]:
    """Yield the report of the swarm repeatedly, for as long as a test may take."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        yield swarm.mark()


async def resumed(*bodies: bytes) -> tuple[SwarmReport, Scripted]:
    """Return the report and the requests of one stream, for a server that closes after each body but the last."""
    events = sum(body.count(b"\n\n") for body in bodies)

    def follow(port: int) -> SwarmReport:
        with Swarm(port, 1, seconds=TIMEOUT_S, reconnect=True) as swarm:
            return next(report for report in marks(swarm) if report.deliveries == events)

    scripts: list[list[Part]] = [[HEAD + body] for body in bodies]
    scripts[-1].append(HOLD)
    async with scripted(*scripts) as server:
        return await asyncio.to_thread(follow, port_of(server)), server


def port_of(server: Scripted) -> int:
    return int(server.url.rpartition(":")[2])


async def test_a_closed_stream_reconnects_with_its_last_id_and_continues() -> None:
    # The block of event 3 is incomplete: its id does not count, and the event is sent again.
    report, server = await resumed(frame(1) + frame(2) + frame(3)[:-1], frame(3) + frame(4))
    assert (report.last_max, report.closed, report.faults) == (4, 1, 0)
    assert server.header(0, "Last-Event-ID") is None
    assert server.header(1, "Last-Event-ID") == "e-2"


async def test_an_event_that_is_not_replayed_is_missed() -> None:
    report, _ = await resumed(frame(1), frame(3))
    assert (report.missed, report.faults) == (1, 1)


async def test_an_event_that_is_replayed_twice_is_a_duplicate() -> None:
    report, _ = await resumed(frame(1), frame(1) + frame(2))
    assert (report.duplicates, report.faults) == (1, 1)


@contextlib.contextmanager
def after(delay_s: float, call: Callable[[int], None], count: int) -> Iterator[None]:
    """Call a function later, while the test continues."""
    timer = threading.Timer(delay_s, call, [count])
    timer.start()
    yield
    timer.join()


def test_after_a_storm_every_stream_is_complete(server: MeasuredServer, feed: Feed) -> None:
    with Swarm(server.port, 200, seconds=TIMEOUT_S, reconnect=True) as swarm:
        assert swarm.ready().opened == 200
        feed.send(50)
        assert swarm.wait_for(50).last_min == 50
        with after(0.02, feed.send, 50):
            recovered = swarm.storm()
        assert (recovered.dropped, recovered.opened, recovered.open) == (200, 400, 200)
        assert 0 < recovered.reopen_s <= recovered.recover_s
        feed.send(1)
        last = swarm.finish(101)
    assert (last.deliveries, last.last_min, last.faults, last.told_gaps) == (200 * 101, 101, 0, 0)


def test_ended_streams_are_replaced_by_new_ones(server: MeasuredServer, feed: Feed) -> None:
    with Swarm(server.port, 50, seconds=TIMEOUT_S, life_s=0.2, first=0) as swarm:
        for report in marks(swarm):
            feed.send(1)
            if report.dropped > 100:
                break
    assert report.opened >= 100
    assert report.faults == report.told_gaps == report.closed == 0


def test_the_histograms_are_returned_once(server: MeasuredServer, feed: Feed) -> None:
    with Swarm(server.port, 10, seconds=TIMEOUT_S) as swarm:
        swarm.ready()
        feed.send(20)
        swarm.wait_for(20)
        histograms = swarm.histograms()
        again = swarm.histograms()
    assert sum(count for _, count in histograms.delivery) == 200
    assert sum(count for _, count in histograms.connect) == sum(count for _, count in histograms.first) == 10
    assert again == SwarmHistograms(delivery=[], connect=[], first=[])


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/events?topic=t.{}", "t.2"), ("/events?topic=t.{%2}.{}", "t.0.2"), ("/events/t.{}.*", "/events/t.2.*")],
)
async def test_a_path_can_contain_placeholders_for_the_topic(path: str, asked: str) -> None:
    def follow(port: int) -> None:
        with Swarm(port, 3, seconds=TIMEOUT_S, path=path, topics=1000, concurrency=1) as swarm:
            swarm.ready()

    script: list[Part] = [HEAD, HOLD]
    async with scripted(script, script, script) as server:
        await asyncio.to_thread(follow, port_of(server))
    assert server.path(2).endswith(asked)
