"""Tests of relay.store.journal: entries reach the disk, then the log, in order; a failing disk loses nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from relay.core.log import Entry, Log
from relay.core.seen import Seen
from relay.errors import RelayError
from relay.store import journal as module
from relay.store.file import Store, Trim, WriteBatch
from relay.store.journal import Journal

TIMEOUT_S = 10.0


class FakeStore:
    """A store whose writes wait for `free`, or fail."""

    path = "a file"
    upstream_position: str | None = None

    def __init__(self) -> None:
        self.batches: list[WriteBatch] = []
        self.trims: list[Trim] = []
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.closed = False

    def write(self, batch: WriteBatch, trim: Trim | None) -> None:
        assert self.free.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        self.batches.append(batch)
        if trim is not None:
            self.trims.append(trim)

    def close(self) -> None:
        self.closed = True

    @property
    def sequences(self) -> list[list[int]]:
        return [[entry.sequence for entry in batch.entries] for batch in self.batches]


class Observed(list[float]):
    observe = list[float].append


class World:
    """A journal between a fake store and a log."""

    def __init__(self, store: Any = None, now_s: float = 100.0) -> None:
        self.store = cast(Any, store or FakeStore())
        self.log = Log("e", bytes_max=1 << 20)
        self.seen = Seen(600.0, 100)
        self.released = 0
        self.now_s = now_s
        self.took_s = Observed()
        self.journal = Journal(
            self.store,
            self.log,
            self.seen,
            take=self._take,
            released=self._release,
            write_s=self.took_s,
            loop=asyncio.get_running_loop(),
            clock=lambda: self.now_s,
            wall=lambda: 5000.0 + self.now_s,
        )

    def _take(self, entry: Entry, now_s: float) -> None:
        assert entry.sequence == self.log.head
        self.log.append(self.log.topic(entry.topic), entry.frame, entry.id, entry.key, now_s)

    def _release(self) -> None:
        self.released += 1

    def put(self, count: int = 1, size: int = 10, keys: tuple[tuple[str, str], ...] = ()) -> None:
        head = self.journal.head
        entries = [Entry(head + place, self.now_s, "a", None, None, b"x" * size) for place in range(count)]
        self.journal.put(entries, list(keys))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.001)


async def test_one_batch_is_written_while_the_next_fills_and_the_log_keeps_their_order() -> None:
    world = World()
    world.store.free.clear()
    world.put(2, keys=(("k", "e-1"),))
    world.put()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.put(3)
    world.put()
    assert (world.log.head, world.journal.pending, world.journal.head) == (1, 7, 8)
    world.store.free.set()
    await asyncio.wait_for(world.journal.settle(), TIMEOUT_S)
    assert world.store.sequences == [[1, 2, 3], [4, 5, 6, 7]]
    assert (world.log.head, world.journal.pending) == (8, 0)
    assert world.store.batches[0].keys == [("k", "e-1")]
    assert (world.store.batches[0].ahead_s, world.store.batches[0].newest_s) == (5000.0, 5100.0)
    assert len(world.took_s) == 2
    world.journal.close()
    assert world.store.closed


async def test_a_confirmation_waits_only_for_earlier_entries() -> None:
    world, confirmed = World(), list[str]()
    world.journal.confirm(lambda: confirmed.append("nothing"))
    assert confirmed == ["nothing"]
    world.store.free.clear()
    world.put()
    world.journal.confirm(lambda: confirmed.append(f"one at {world.log.head}"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.put()
    world.journal.confirm(lambda: confirmed.append(f"two at {world.log.head}"))
    assert len(confirmed) == 1
    world.store.free.set()
    await world.until(lambda: len(confirmed) == 3)
    assert confirmed == ["nothing", "one at 2", "two at 3"]
    world.journal.close()


async def test_a_large_batch_is_appended_over_several_turns() -> None:
    world = World()
    world.put(3 * module.TURN_ENTRIES, size=1)
    heads = set[int]()
    while world.journal.pending:
        heads.add(world.log.head)
        await asyncio.sleep(0)
    assert heads == {1 + turn * module.TURN_ENTRIES for turn in range(3)}
    world.journal.close()


@pytest.mark.parametrize(("count", "size"), [(module.PENDING_ENTRIES_MAX, 1), (16, module.PENDING_BYTES_MAX // 16)])
async def test_too_many_pending_entries_hold_publishers_until_they_are_stored(count: int, size: int) -> None:
    world = World()
    world.log.bytes_max = 1 << 30
    world.store.free.clear()
    world.put(count - 1, size)
    assert not world.journal.full
    world.put(1, size)
    assert world.journal.full
    assert world.released == 0
    world.store.free.set()
    await world.until(lambda: world.released > 0)
    assert not world.journal.full
    await asyncio.wait_for(world.journal.settle(), TIMEOUT_S)
    world.journal.close()


async def test_a_failed_write_is_retried_and_meanwhile_publishing_is_rejected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    caplog.set_level("INFO")
    world = World()
    world.store.error = sqlite3.OperationalError("database or disk is full")
    world.put(2, keys=(("k", "e-1"),))
    await world.until(lambda: world.journal.failures >= 3)
    assert world.journal.refusal == "cannot store events: database or disk is full"
    assert world.journal.full
    assert (world.log.head, world.journal.pending) == (1, 2)
    world.store.error = None
    await asyncio.wait_for(world.journal.settle(), TIMEOUT_S)
    assert world.store.sequences == [[1, 2]]
    assert world.store.batches[0].keys == [("k", "e-1")]
    assert (world.journal.refusal, world.released, world.log.head) == ("", 1, 3)
    world.journal.close()
    said = [record.message for record in caplog.records]
    assert said == [
        "data: cannot store 2 events, publishing is refused: database or disk is full",
        "data: writes to the disk succeed again",
    ]


async def test_closing_writes_pending_entries_and_reports_the_unwritten_ones(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.put(2)
    world.journal.close()
    assert (world.store.sequences, world.store.closed) == ([[1, 2]], True)
    world = World()
    world.put(2)
    world.store.error = sqlite3.OperationalError("disk I/O error")
    await world.until(lambda: bool(world.journal.refusal))
    world.journal.close()
    assert world.store.closed
    assert caplog.records[-1].message == "data: lost 2 accepted events: cannot store events: disk I/O error"


async def test_the_file_shrinks_with_the_log_without_new_events() -> None:
    world = World()
    world.put(4)
    await asyncio.wait_for(world.journal.settle(), TIMEOUT_S)
    world.log.events_max = 1
    world.now_s += 1
    world.log.retain(world.now_s)
    world.journal.tick(world.now_s - module.TRIM_S / 2)
    assert world.store.trims == []
    world.now_s += module.TRIM_S
    world.journal.tick(world.now_s)
    await world.until(lambda: bool(world.store.trims))
    assert world.store.trims == [Trim(4, 5100.0, 5000.0 + world.now_s - 600.0)]
    world.journal.close()


async def test_the_complete_file_is_released_and_taken_back(tmp_path: Path) -> None:
    path = str(tmp_path / "relay.db")
    world = World(Store(path), time.monotonic())
    world.put(3)
    confirmed = list[int]()
    world.journal.confirm(lambda: confirmed.append(world.log.head))
    world.journal.release_file()
    assert (world.log.head, confirmed) == (4, [4])
    other = Store(path)
    assert [len(row) for _, row in other.entries()] == [3]
    other.close()
    world.journal.reopen()
    world.put(2)
    await asyncio.wait_for(world.journal.settle(), TIMEOUT_S)
    world.journal.close()
    other = Store(path)
    assert [len(row) for _, row in other.entries()] == [3, 2]
    other.close()


async def test_a_failing_disk_keeps_the_file() -> None:
    world = World()
    world.store.error = sqlite3.OperationalError("disk I/O error")
    world.put(2)
    with pytest.raises(RelayError, match="cannot store events: disk I/O error"):
        world.journal.release_file()
    assert not world.store.closed
    world.store.error = None
    world.journal.close()
    assert world.store.sequences == [[1, 2]]
