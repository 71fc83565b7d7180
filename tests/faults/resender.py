"""A feeder that must not lose events: it resends unacknowledged events with dedup keys."""

from __future__ import annotations

import contextlib
import threading
from itertools import cycle
from pathlib import Path

from relay.event import Event
from tests.oracle import Published
from tests.running import Feeder


class Resender(threading.Thread):
    """A feeder that sends until all of its events are acknowledged, over any number of servers.

    Args:
        path: the Unix socket.
        count: the number of events.
        others: more Unix sockets; each connection uses the next one.
        rate: most events per second; 0 for no limit.
    """

    def __init__(self, path: Path, count: int, *others: Path, rate: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.ids: dict[int, str] = {}
        self.sent_again = 0
        self.over = threading.Event()
        self.stopped = threading.Event()  # when set, no new connection is opened
        self._paths = cycle((path, *others))
        self._count = count
        self._pause_s = 1 / rate if rate else 0.0

    def run(self) -> None:
        while len(self.ids) < self._count and not self.stopped.is_set():
            with contextlib.suppress(OSError, ValueError), Feeder(next(self._paths)) as feeder:
                missing = [number for number in range(self._count) if number not in self.ids]
                self.sent_again += len(missing)
                sender = threading.Thread(target=self._send, args=(feeder, missing), daemon=True)
                sender.start()
                for _ in missing:
                    answer = feeder.answer()
                    self.ids[answer["ack"]] = answer["id"]
                sender.join()
            self.stopped.wait(0.01)  # until a server listens
        if len(self.ids) == self._count:
            self.over.set()

    def _send(self, feeder: Feeder, numbers: list[int]) -> None:
        with contextlib.suppress(OSError):
            for number in numbers:
                feeder.send({"ack": number, "dedup": f"event {number}", "data": f"{number} " + "x" * 200})
                if self._pause_s and self.stopped.wait(self._pause_s):
                    break

    def published(self) -> Published:
        """Return the published events in the order of their acknowledged ids."""
        published = Published()
        for number in sorted(self.ids, key=lambda number: int(self.ids[number].rpartition("-")[2])):
            published.add(Event(f"{number} " + "x" * 200, topic="default"), self.ids[number])
        return published
