"""The events of a publisher that the server has not acknowledged, in order.

`send` of a publisher puts an event in. A delivery takes events out, and settles each one when the server has answered.
After a lost connection, `rewind` makes the delivery take the unacknowledged events again.

Owns the order, the number of events that may wait, and the futures of the events. Never connects and never waits for a
time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from relay.errors import RelayError


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event.

    Args:
        number: counts the events of a publisher.
        line: the event as a JSON object.
        future: receives the id, or the error.
    """

    number: int
    line: bytes
    future: asyncio.Future[str]


class Outbox:
    """Unacknowledged events.

    Args:
        size_max: most events. `put` waits while there are as many.
    """

    def __init__(self, size_max: int) -> None:
        self.settled = 0
        """Number of events that the server has acknowledged or rejected."""
        self._room = asyncio.Semaphore(size_max)
        self._waiting: dict[int, Outgoing] = {}
        self._unsent: deque[Outgoing] = deque()
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def room(self) -> None:
        """Wait until there is room for one more event, and reserve it for `put`."""
        await self._room.acquire()

    def release(self) -> None:
        """Return a reservation."""
        self._room.release()

    def put(self, number: int, line: bytes) -> asyncio.Future[str]:
        """Add an event, for which `room` has reserved the room.

        Returns:
            A future with the id, or with the error.
        """
        outgoing = Outgoing(number, line, asyncio.get_running_loop().create_future())
        self._waiting[number] = outgoing
        self._unsent.append(outgoing)
        self._news.set()
        self._empty.clear()
        return outgoing.future

    async def unsent(self) -> None:
        """Wait until there is an event to take."""
        await self._news.wait()

    def take(self, count_max: int, bytes_max: int) -> list[Outgoing]:
        """Take the next events within both limits. A single event may exceed `bytes_max`."""
        taken: list[Outgoing] = []
        size = 0
        while self._unsent and len(taken) < count_max:
            size += len(self._unsent[0].line)
            if taken and size > bytes_max:
                break
            taken.append(self._unsent.popleft())
        if not self._unsent:
            self._news.clear()
        return taken

    def rewind(self) -> None:
        """Make all unacknowledged events available to `take` again, in order."""
        self._unsent = deque(self._waiting.values())
        if self._unsent:
            self._news.set()

    def settle(self, number: int, answer: str | RelayError) -> None:
        """Complete the future of an event with its id or its error. Ignore a number that is not waiting."""
        outgoing = self._waiting.pop(number, None)
        if outgoing is None:
            return
        self.settled += 1
        self._complete(outgoing, answer)
        if not self._waiting:
            self._empty.set()

    def fail(self, error: RelayError) -> None:
        """Complete the futures of all events with an error."""
        failed = list(self._waiting.values())
        self._waiting.clear()
        self._unsent.clear()
        self._news.clear()
        for outgoing in failed:
            self._complete(outgoing, error)
            if not outgoing.future.cancelled():
                outgoing.future.exception()  # Marks the exception as retrieved; `Publisher.flush` raises the same one.
        self._empty.set()

    async def emptied(self) -> None:
        """Wait until each event is acknowledged, rejected or failed."""
        await self._empty.wait()

    def _complete(self, outgoing: Outgoing, answer: str | RelayError) -> None:
        self._room.release()
        if outgoing.future.done():
            return
        if isinstance(answer, str):
            outgoing.future.set_result(answer)
        else:
            outgoing.future.set_exception(answer)
