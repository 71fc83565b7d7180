"""The feed of one group of servers: numbered events at a steady rate, over all entrances in turn.

Each batch is acknowledged before the next one is sent. So the order of the numbers is the order of the log. A batch
that is not acknowledged is sent again, with the same `dedup` keys.

Owns the numbers of a group, and the topic, the key and the data of each number. Never subscribes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from loadtest.soak.promise import Numbering
from relay.client import Publisher
from relay.errors import RelayError
from relay.event import Event
from relay.topic import overlap

TOPICS = (
    *("prices.eu", "prices.us", "prices.jp", "prices.uk"),
    *("orders.eu.created", "orders.eu.paid", "orders.us.created", "orders.us.paid"),
    *("news.world", "news.sport", "news.local", "news.markets", "chat.1", "chat.2", "chat.3", "chat.4"),
)
KEYS = 24
"""Keys of the topics of prices. Each key belongs to one topic."""
PADDING = "The quick brown fox jumps over the lazy dog. " * 45
BATCH_S = 1.0
AGAIN_S = 1.0
RESEND_S_MAX = 120.0


def topic_of(number: int) -> str:
    """Return the topic of an event."""
    return TOPICS[number % len(TOPICS)]


def key_of(number: int) -> str:
    """Return the key of an event; it is the topic if the event has no key of its own."""
    topic = topic_of(number)
    return f"{topic} {number // len(TOPICS) % (KEYS // 4)}" if topic.startswith("prices.") else topic


def data_of(number: int) -> dict[str, int | str]:
    """Return the data of an event, 100 to 1,900 bytes."""
    return {"n": number, "text": PADDING[: 80 + number * 37 % 1800]}


def wants(terms: Iterable[str]) -> Callable[[int], bool]:
    """Return the function that tells whether the event with a number belongs to topics and patterns."""
    wanted = [any(overlap(term, topic) for term in terms) for topic in TOPICS]
    return lambda number: wanted[number % len(TOPICS)]


class SteadyFeed:
    """Publishes to one group of servers.

    `published` is the number of the last acknowledged event, and `again` counts the batches that were sent again.

    Args:
        rate: events per second.
    """

    def __init__(self, rate: float) -> None:
        self.numbering = Numbering()
        self.published = 0
        self.again = 0
        self.faults: Counter[str] = Counter()
        self.ended = False
        self._rate = rate

    async def run(self, publishers: Sequence[Publisher]) -> None:
        """Publish until `ended` is set."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for turn in count():
            if self.ended:
                return
            events = [
                Event(topic=topic_of(number), key=key_of(number), data=data_of(number), dedup=str(number))
                for number in range(self.published + 1, self.published + 1 + round(self._rate * BATCH_S))
            ]
            while not await self._published(publishers[turn % len(publishers)], events):
                self.again += 1
                await asyncio.sleep(AGAIN_S)
            self.published += len(events)
            # A feed that was delayed does not send the events later.
            due_s = max(due_s + BATCH_S, loop.time())
            await asyncio.sleep(due_s - loop.time())

    async def _published(self, publisher: Publisher, events: Sequence[Event]) -> bool:
        """Return whether all events were acknowledged. Each id must be the one that the number determines."""
        ids = [await publisher.send(event) for event in events]
        with contextlib.suppress(RelayError):
            await publisher.flush()
        if any(each.exception() is not None for each in ids):
            return False
        for event, id in zip(events, ids, strict=True):
            if not self.numbering.agrees(id.result(), event.data["n"]):
                self.faults["an acknowledgement with the id of another event"] += 1
        return True
