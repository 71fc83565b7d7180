"""A bad network, a simultaneous reconnect of many, a fast feeder: the promise holds in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
from pathlib import Path

import pytest

from relay.client.subscribe import subscribe
from relay.event import Event
from tests.faults.follower import Follower
from tests.faults.network import BadNetwork
from tests.forms import FAULT_FORMS, FormStream, request
from tests.oracle import Oracle, Published
from tests.readers import Reader
from tests.running import ASIDE_BYTES, TIMEOUT_S, Feeder, Relay, Stream, eventually, relay

pytestmark = pytest.mark.slow

MIB = 1 << 20
STORM = int(os.environ.get("STORM", "1000"))
"""Number of streams that reconnect at once; `make storm` uses ten thousand."""


async def follow(port: int, seed: int) -> list[Event]:
    """Follow all topics through a bad network until the last event; return all received events."""
    seen: list[Event] = []
    draw = random.Random(seed)
    events = subscribe(
        f"http://127.0.0.1:{port}",
        topics=("**",),
        since="earliest",
        read_timeout_s=0.5,
        backoff_least_s=0.01,
        backoff_most_s=0.05,
        draw=draw.random,
    )
    async with contextlib.aclosing(events):
        async for event in events:
            seen.append(event)
            if event.data == "the last":
                break
    return seen


@pytest.mark.parametrize("seed", range(3))
async def test_resuming_over_a_network_that_delays_stalls_and_cuts_delivers_all_once(seed: int) -> None:
    published = Published()
    arguments = ("--heartbeat", "100ms", "--retry-min", "1ms", "--retry-max", "2ms")
    with relay(*arguments) as server:
        async with BadNetwork(server.port, seed) as network:
            followers = [asyncio.create_task(follow(network.port, seed + each)) for each in range(16)]
            for number in range(3000):
                await publish(server, published, f"{number}:" + "x" * (number * 7 % 300))
                if network.cuts >= 25 and network.stalls >= 4:
                    break
            network.kind = True
            await publish(server, published, "the last")
            async with asyncio.timeout(TIMEOUT_S):
                views = await asyncio.gather(*followers)
        # Only now: an event may arrive before its publisher knows its id.
        for seen in views:
            oracle = Oracle(published, ("**",))
            oracle.connect(1)
            for event in seen:
                oracle.receive(event)
            oracle.finish()
            assert oracle.gaps == 0
            assert oracle.seen == len(published.events)
        print(f"seed {seed}: {len(published.events)} events, {network.cuts} cuts, {network.stalls} stalls")
        assert network.cuts >= 25
        assert network.stalls >= 4
        eventually(lambda: server.stats()["streams"] == 0, "no stream is left")


async def test_each_form_resumes_over_a_network_that_delays_stalls_and_cuts() -> None:
    published, count, draw = Published(), 200, random.Random(4)
    arguments = ("--heartbeat", "100ms", "--retry-min", "1ms", "--retry-max", "2ms", "--compress", "gzip")
    with relay(*arguments) as server:
        async with BadNetwork(server.port, seed=4) as network:
            followers = [Follower(network.port, form, count, draw, timeout_s=0.5) for form in FAULT_FORMS]
            for follower in followers:
                follower.start()
            try:
                for number in range(count):
                    await publish(server, published, f"{number}:" + "x" * (number * 7 % 300))
                for follower in followers:
                    await asyncio.to_thread(follower.join, TIMEOUT_S)
                    assert not follower.is_alive(), f"{follower.form} hangs after event {follower.sequence}"
            finally:
                for follower in followers:
                    follower.stopped.set()
        for follower in followers:
            assert follower.failure is None, follower.failure
            follower.check(published)
            assert follower.seen.count(None) > 1, "no cut"
            assert follower.complete == 0, "a cut body is not complete"
        print(f"{network.cuts} cuts, {network.stalls} stalls")
        assert network.cuts >= 25
        assert network.stalls >= 4


async def publish(server: Relay, published: Published, data: str) -> None:
    """Publish an event from another thread, so that the network continues."""
    [id] = await asyncio.to_thread(server.publish, data, "net")
    published.add(Event(data, topic="net"), id)


async def open_once(port: int, form: str, last_id: str, expected: list[str], all_here: asyncio.Barrier) -> str:
    """Open a stream, wait for these data and for all other streams; close, and return the last id."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(form, "topic=storm", {"Last-Event-ID": last_id} if last_id else {}))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    decoder, seen = Reader(form), list[str]()
    while len(seen) < len(expected) or not decoder.last_event_id:
        data = await reader.read(65536)
        assert data, "closed"
        seen += [event.data for event in decoder.feed(data)]
    assert seen == expected
    await all_here.wait()
    writer.transport.abort()
    return decoder.last_event_id


async def test_a_herd_that_reconnects_at_once_misses_nothing() -> None:
    forms = [FAULT_FORMS[number % len(FAULT_FORMS)] for number in range(STORM)]
    with relay("--compress", "gzip") as server:
        before_bytes = server.memory_bytes()
        loop = asyncio.get_running_loop()
        all_here = asyncio.Barrier(STORM)
        ids = await asyncio.gather(*(open_once(server.port, form, "", [], all_here) for form in forms))
        await asyncio.to_thread(server.publish, "while all were away", "storm")
        began_s = loop.time()
        async with asyncio.timeout(2 * TIMEOUT_S):
            missed = ["while all were away"]
            herd = zip(forms, ids, strict=True)
            again = await asyncio.gather(*(open_once(server.port, *each, missed, all_here) for each in herd))
        took_s = loop.time() - began_s
        grown_bytes, bound_bytes = server.memory_bytes() - before_bytes, 16 * MIB + STORM * 8192 + ASIDE_BYTES
        print(f"{STORM} came back in {took_s:.2f} s; memory grew by {grown_bytes}, bound {bound_bytes}")
        assert len(set(again)) == 1
        assert grown_bytes < bound_bytes
        eventually(lambda: server.stats()["streams"] == 0, "no stream is left")
        eventually(lambda: server.connections() <= 1, "no connection is left")


def test_a_feeder_that_is_too_fast_costs_bounded_memory(tmp_path: Path) -> None:
    path, count, size = tmp_path / "relay.sock", 60_000, 1000
    history_bytes, stalled = 8 * MIB, 20
    arguments = ("--unix", str(path), "--history-bytes", str(history_bytes), "--lag-bytes", "1MiB")
    with relay(*arguments, "--client-buffer", "16KiB", "--compress", "gzip") as server:
        forms = [FAULT_FORMS[number % len(FAULT_FORMS)] for number in range(stalled)]
        readers = [FormStream(server.port, form, "topic=**", receive_buffer=8192) for form in forms]
        reader = Stream(server.port, "topic=**")
        reader.read_until(b"\n\n")
        epoch = reader.last_event_id.rpartition("-")[0]
        before_bytes, most_bytes = server.memory_bytes(), 0
        published = Published()
        for number in range(1, count + 1):
            published.add(Event("x" * size, topic="default"), f"{epoch}-{number}")
        line = json.dumps({"data": "x" * size}).encode() + b"\n"
        with Feeder(path) as feeder:
            feeding = threading.Thread(target=feeder.socket.sendall, args=(line * count,))
            feeding.start()
            while feeding.is_alive():
                most_bytes = max(most_bytes, server.memory_bytes())
                feeding.join(0.01)
            feeder.publish(data="the last")
        published.add(Event("the last", topic="default"), f"{epoch}-{count + 1}")
        most_bytes = max(most_bytes, server.memory_bytes()) - before_bytes
        # The history with its columns, half-sent frames that streams hold, and the allocator's slack.
        bound_bytes = 2 * history_bytes + stalled * MIB // 4 + 8 * MIB + ASIDE_BYTES
        print(f"{count * size} bytes fed: memory grew by {most_bytes} at most, bound {bound_bytes}")
        assert most_bytes < bound_bytes
        for each in (reader, *readers):
            oracle = Oracle(published, ("**",))
            oracle.connect(1)
            event = None
            while event is None or event.data != "the last":
                event = each.next()
                oracle.receive(event)
            oracle.finish()
            each.close()
