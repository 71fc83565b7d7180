"""A broker as one node of a cluster uses it, for the tests of brokers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from typing import Generic, Self, TypeVar

from relay.cluster.broker import READ_ENTRIES_MAX, Broker, LogEntry, NewEntry, Result

EPOCH = "0a1b2c3d"
READ_S = 0.5

AnyBroker = TypeVar("AnyBroker", bound=Broker)


class BrokerNode(Generic[AnyBroker]):
    """One node."""

    def __init__(self, broker: AnyBroker) -> None:
        self.broker = broker
        self._calls = count(1)

    async def start(self) -> Self:
        """Connect."""
        await self.broker.open(EPOCH)
        await self.broker.connect()
        return self

    async def publish(self, *requests: Sequence[NewEntry]) -> list[Result]:
        """Make one call and return the results."""
        return (await self.broker.publish(next(self._calls), requests))[1]

    async def read(self, after: int = 0, mark: bytes = b"", epoch: str = "", count: int = 0) -> list[LogEntry]:
        """Read until `count` entries have arrived, or some entries if `count` is 0."""
        entries: list[LogEntry] = []
        deadline_s = time.monotonic() + 20.0
        while len(entries) < max(1, count):
            assert time.monotonic() < deadline_s, f"only {len(entries)} entries"
            last = entries[-1] if entries else None
            entries += await self.broker.read(
                last.sequence if last else after, READ_ENTRIES_MAX, epoch, last.mark if last else mark, READ_S
            )
        return entries


def entry(payload: str = "x", topic: str = "a", **fields: object) -> NewEntry:
    """Return an event to publish."""
    return NewEntry(topic, payload.encode(), **{"id": None, "dedup": None, "ends": False, **fields})  # type: ignore[arg-type]
