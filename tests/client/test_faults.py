"""The Python client against real servers that are killed, upgraded and cut off: each event arrives exactly once.

Tests of `relay.client.sync`, and of the pair of `Publisher` and `subscribe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from loadtest.rig.cable import Cable
from relay import Event, EventError, Publisher, RelayError, SyncPublisher, publish_sync, read_gap, subscribe
from relay.errors import LostError, RequestError
from tests.running import TIMEOUT_S, TOKEN, Relay, free_port, relay

COUNT = 600


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def url() -> str:
    """Return the address of a server that keeps its port."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def flags(url: str, tmp_path: Path) -> tuple[str, ...]:
    """Return the settings of a server that keeps its port, its socket and its history."""
    return (
        *("--listen", url.removeprefix("http://"), "--unix", str(tmp_path / "s"), "--data", str(tmp_path / "d")),
        *("--durable", "--retry-min", "10ms", "--retry-max", "20ms"),
    )


@contextlib.asynccontextmanager
async def following(url: str) -> AsyncIterator[asyncio.Task[list[str]]]:
    """Collect the data of `COUNT` events. A gap is an error."""

    async def collect() -> list[str]:
        seen: list[str] = []
        async with subscribe(url, ["feed"], since="earliest", backoff_least_s=0.05, backoff_most_s=0.1) as events:
            async for event in events:
                assert read_gap(event) is None
                seen.append(event.data)
                if len(seen) == COUNT:
                    break
        return seen

    task = asyncio.create_task(collect())
    yield task
    async with asyncio.timeout(TIMEOUT_S):
        await task


@pytest.mark.parametrize("way", ["unix", "http"])
async def test_a_killed_server_neither_loses_nor_repeats_an_event(url: str, flags: tuple[str, ...], way: str) -> None:
    with contextlib.ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, relay(*flags))
        target = str(server.unix_path) if way == "unix" else url
        async with following(url) as task:
            async with Publisher(target, token=TOKEN) as publisher:
                sent = []
                for number in range(COUNT):
                    sent.append(await publisher.send(Event(topic="feed", data=str(number))))
                    if number == COUNT // 2:
                        server.stop(signal.SIGKILL)
                        server = await asyncio.to_thread(stack.enter_context, relay(*flags))
            ids = [future.result() for future in sent]
        assert task.result() == list(map(str, range(COUNT)))
        assert len(set(ids)) == COUNT
        server.stop(signal.SIGKILL)


@pytest.mark.parametrize("way", ["unix", "http"])
async def test_an_upgrade_neither_loses_nor_repeats_an_event(url: str, flags: tuple[str, ...], way: str) -> None:
    with relay(*flags) as server:
        target = str(server.unix_path) if way == "unix" else url
        async with following(url) as task, Publisher(target, token=TOKEN) as publisher:
            upgrading = asyncio.create_task(asyncio.to_thread(server.upgrade))
            for number in range(COUNT):
                await publisher.send(Event(topic="feed", data=str(number)))
                if number >= COUNT // 2 and not upgrading.done():
                    await publisher.flush()
                    await asyncio.sleep(0.001)
            await upgrading
            await publisher.flush()
        assert task.result() == list(map(str, range(COUNT)))


async def test_cut_connections_neither_lose_nor_repeat_an_event() -> None:
    with relay("--retry-min", "10ms", "--retry-max", "20ms") as server:
        cable = Cable(server.port)
        try:
            url = f"http://127.0.0.1:{cable.port}"
            async with following(url) as task, Publisher(url, token=TOKEN) as publisher:
                for number in range(COUNT):
                    await publisher.send(Event(topic="feed", data=str(number)))
                    if number % 150 == 149:
                        await asyncio.sleep(0)
                        await asyncio.to_thread(cable.cut)
            assert task.result() == list(map(str, range(COUNT)))
        finally:
            cable.close()


async def test_a_gap_is_typed_and_the_end_of_a_topic_ends_the_iteration(server: Relay) -> None:
    async with Publisher(str(server.unix_path)) as publisher:
        await publisher.publish(Event(topic="typed", data={"n": 1}))
        end = await publisher.publish(Event(topic="typed", event="relay.end", data="done"))
    async with subscribe(server.url, ["typed"], last_event_id="unknown-1") as events:
        received = [event async for event in events]
        assert events.last_event_id == end
    gap = read_gap(received[0])
    assert gap is not None
    assert (gap.reason, gap.missed, gap.from_id) == ("unknown", None, None)
    assert [(event.event, event.data) for event in received[1:]] == [(None, '{"n":1}'), ("relay.end", "done")]
    with pytest.raises(EventError, match="not the data of a gap"):
        read_gap(Event(event="relay.gap", data="{}"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    path = tmp_path_factory.mktemp("relay") / "relay.sock"
    with relay("--unix", str(path)) as running:
        yield running


@pytest.mark.parametrize("way", ["unix", "http"])
def test_a_program_without_an_event_loop_publishes_and_subscribes(server: Relay, way: str) -> None:
    target, topic = (str(server.unix_path) if way == "unix" else server.url), f"sync.{way}"
    with SyncPublisher(target, token=TOKEN, in_flight_max=10) as publisher:
        first = publisher.publish(Event(topic=topic, data="first"))
        sent = [publisher.send(Event(topic=topic, data=str(number))) for number in range(100)]
        rejected = publisher.send(Event(topic="a..b", data="x"))
        publisher.flush()
        assert len({future.result() for future in sent}) == 100
        with pytest.raises(EventError):
            rejected.result()
    last = publish_sync(target, [Event(topic=topic, data="last")], TOKEN)
    with subscribe(server.url, [topic], since="earliest") as events:
        seen = []
        for event in events:
            seen.append((event.id, event.topic, event.data))
            if event.data == "last":
                break
        assert events.last_event_id == last[0]
    assert seen[0] == (first, topic, "first")
    assert [data for _, _, data in seen[1:-1]] == list(map(str, range(100)))
    assert seen[-1] == (last[0], topic, "last")


def test_a_loop_that_is_left_closes_the_connection(server: Relay) -> None:
    publish_sync(str(server.unix_path), Event(topic="left", data="one"))
    for event in subscribe(server.url, ["left"], since="earliest"):
        assert event.data == "one"
        break
    # The test of `server` checks that no stream is left.


def test_several_threads_may_publish(server: Relay) -> None:
    with SyncPublisher(str(server.unix_path)) as publisher:
        threads = [
            threading.Thread(
                target=lambda: [publisher.publish(Event(topic="threads", data=str(n))) for n in range(20)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    publish_sync(str(server.unix_path), Event(topic="threads", event="relay.end", data=""))
    assert len(list(subscribe(server.url, ["threads"], since="earliest"))) == 81


def test_a_program_without_an_event_loop_receives_errors(server: Relay, tmp_path: Path) -> None:
    with pytest.raises(LostError, match="cannot connect"):
        SyncPublisher(str(tmp_path / "none")).__enter__()
    with pytest.raises(RequestError, match="401"):
        SyncPublisher(server.url, token="wrong").__enter__()
    with pytest.raises(RequestError, match="400"):
        list(subscribe(server.url, ["a..b"]))


async def test_a_for_loop_within_an_event_loop_is_an_error(server: Relay) -> None:
    events = subscribe(server.url, ["sync"])
    with pytest.raises(RelayError, match="use `async for`"):
        next(iter(events))
    await events.aclose()
