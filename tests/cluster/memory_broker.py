"""A broker in memory, shared by any number of nodes. It follows the protocol of `relay.cluster.broker`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.cluster.broker import (
    BrokerReport,
    EntriesReplacedError,
    LogChangedError,
    LogEntry,
    LogPosition,
    Request,
    Result,
)
from relay.errors import BrokerError, EndedError

CLOCK_AHEAD_MS = 5_000_000


@dataclass
class MemoryLog:
    """The state of one broker: its log, and its faults."""

    epoch: str = ""
    entries: list[tuple[LogEntry, str]] = field(default_factory=list)
    """The entries, each with the epoch and the mark that precede it."""
    trimmed: int = 0
    head: int = 1
    mark: bytes = b""
    time_ms: int = CLOCK_AHEAD_MS
    ended: list[str] = field(default_factory=list)
    dedup: dict[str, str] = field(default_factory=dict)
    calls: dict[object, tuple[int, tuple[str, list[Result]]]] = field(default_factory=dict)
    down: bool = False
    silent: bool = False
    """Whether followers do not notice new entries until `wake`."""
    lose_answers: int = 0
    """Number of calls that are carried out, and whose answers are lost."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, payload: bytes, mark: bytes, form: bytes = b"v1") -> int:
        """Append an entry and return its sequence."""
        before = f"{self.epoch} {self.mark.decode()}"
        self.entries.append((LogEntry(self.head, self.time_ms, form, payload, mark), before))
        self.head += 1
        self.mark = mark
        if not self.silent:
            self.changed.set()
        return self.head - 1

    def trim(self, before: int) -> None:
        """Remove entries."""
        while self.entries and self.entries[0][0].sequence < before:
            del self.entries[0]

    def fork(self, head: int) -> None:
        """Fail over to a replica that has only the entries before `head`."""
        self.entries = [each for each in self.entries if each[0].sequence < head]
        self.head = head
        self.mark = self.entries[-1][0].mark if self.entries else b""

    def wake(self) -> None:
        """Let a waiting read return or fail."""
        self.changed.set()


class MemoryBroker:
    """The broker as one node uses it."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.has_marks = True
        """Whether positions and entries have marks; otherwise the last entry is read again, as in Kafka."""
        self.published: list[list[Request]] = []
        self.trims: list[int] = []
        self.asked = 0
        self._calls = 0

    def _check(self) -> None:
        if self.log.down:
            raise BrokerError("the broker is down")

    async def open(self, epoch: str) -> LogPosition:
        """Create the log if it is missing."""
        self._check()
        log = self.log
        if not log.epoch:
            log.epoch = epoch
        return self._position()

    def _position(self) -> LogPosition:
        log = self.log
        tail = log.entries[0][0].sequence if log.entries else log.head
        tail_ms = log.entries[0][0].time_ms if log.entries else log.time_ms
        mark = log.mark if self.has_marks else b""
        return LogPosition(log.epoch, log.head, mark, tail, tail_ms, log.time_ms, list(log.ended))

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch once."""
        self._check()
        if self.log.epoch == known:
            self.log.epoch = epoch
        return self._position()

    async def position(self) -> LogPosition:
        """Return the position."""
        self._check()
        if not self.log.epoch:
            raise LogChangedError("the broker has no log any more")
        return self._position()

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return entries; wait until the test changes the log."""
        self._check()
        log = self.log
        if mark and not self.has_marks:
            self._compare(after, mark)
        if not [each for each in log.entries if each[0].sequence > after]:
            log.changed.clear()
            await log.changed.wait()
            self._check()
        found = []
        for entry, before in [each for each in log.entries if each[0].sequence > after][:count_max]:
            after += 1
            if entry.sequence != after:
                raise LogChangedError(f"entry {after} is missing")
            if epoch and self.has_marks and before != f"{epoch} {mark.decode()}":
                raise EntriesReplacedError(f"entry {after} does not continue the log")
            mark = entry.mark
            found.append(entry)
        return found

    def _compare(self, after: int, mark: bytes) -> None:
        marks = [entry.mark for entry, _ in self.log.entries if entry.sequence == after]
        if not marks:
            raise LogChangedError(f"entry {after} is not retained any more")
        if marks != [mark]:
            raise EntriesReplacedError(f"entry {after} is another one")

    async def trim(self, before: int) -> None:
        """Record and trim."""
        self._check()
        self.trims.append(before)
        self.log.trim(before)

    async def connect(self) -> None:
        """Fail while the broker is down."""
        self._check()

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Append all events, or return the results of the same call."""
        self._check()
        log = self.log
        number, answer = log.calls.get(self, (0, ("", [])))
        if number != call:
            self.published.append(list(requests))
            answer = (log.epoch, [result for request in requests for result in self._append(call, request)])
            log.calls[self] = (call, answer)
        if log.lose_answers:
            log.lose_answers -= 1
            raise BrokerError("the connection broke")
        return answer

    def _append(self, call: int, request: Request) -> list[Result]:
        log = self.log
        if any(entry.topic in log.ended for entry in request):
            return [EndedError() for _ in request]
        results: list[Result] = []
        for entry in request:
            if entry.dedup is not None and entry.dedup in log.dedup:
                results.append(log.dedup[entry.dedup])
                continue
            self._calls += 1
            sequence = log.append(entry.payload, b"%d-%d-%d" % (id(self), call, self._calls))
            if entry.dedup is not None:
                log.dedup[entry.dedup] = entry.id or f"{log.epoch}-{sequence}"
            if entry.ends:
                log.ended.append(entry.topic)
            results.append(sequence)
        return results

    async def head(self) -> int:
        """Return the head."""
        self._check()
        self.asked += 1
        return self.log.head

    async def inspect(self) -> BrokerReport:
        return BrokerReport("memory", {})

    async def close_follower(self) -> None:
        """Do nothing."""

    async def close_publisher(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""
