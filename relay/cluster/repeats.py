"""Repeated events in a log whose broker does not check dedup keys.

Theory of operation. A publisher may send an event again through another node while the broker does not have the first
copy yet. Then both copies are in the log. Each node reads the log in the same order and drops the second copy. An entry
is a repeat if an entry with the same key, which is not a repeat itself, precedes it by at most the window. Only the log
and its times determine this. So all nodes drop the same entries, and a node that reads the log again drops them again.

Owns the keys of the followed entries. Never reads a clock, never connects.
"""

from __future__ import annotations

import asyncio

from relay.core.seen import Seen
from relay.errors import BrokerError


class Repeats:
    """The dedup keys of the followed entries, and the progress of the follower.

    Args:
        window_s: lifetime of a key; 0 if there is no deduplication.
        keys_max: maximum number of keys; the oldest is removed first.
    """

    def __init__(self, window_s: float, keys_max: int) -> None:
        self._window_s = window_s
        self._keys_max = keys_max
        self._seen = Seen(window_s, keys_max)
        self._newest_s = 0.0  # time of the newest entry with a key
        self._read = 0  # sequence of the newest entry
        self._following = False
        self._advanced = asyncio.Event()

    def start(self) -> None:
        """Record that the follower has connected."""
        self._following = True

    def stop(self) -> None:
        """Record that the follower has lost its connection: all waits fail."""
        self._following = False
        self._advanced.set()

    def begin(self, after: int) -> None:
        """Continue after an entry. Forget all keys if the entries after it have been read before."""
        if after < self._read:
            self._seen = Seen(self._window_s, self._keys_max)
            self._newest_s = 0.0
        self._read = after

    def check(self, key: str, id: str, time_s: float) -> bool:
        """Return whether the next entry is a repeat; if it is not, remember its key.

        Args:
            key: its dedup key.
            id: its id.
            time_s: its time.
        """
        if not self._window_s:
            return False
        self._newest_s = max(self._newest_s, time_s)
        if self._seen.find(key, self._newest_s) is not None:
            return True
        self._seen.add(key, id, self._newest_s)
        return False

    def advance(self, sequence: int) -> None:
        """Record that all entries up to a sequence have been checked."""
        self._read = sequence
        self._advanced.set()

    def known(self, key: str, now_s: float) -> str | None:
        """Return the id of the followed event with this key; None if there is none within the window.

        The time may be that of this node's clock. If it is ahead of the broker's, a key is forgotten too early. The
        event then reaches the log, and every node drops it.
        """
        return self._seen.look_up(key, max(now_s, self._newest_s))

    async def first(self, key: str, sequence: int) -> str | None:
        """Wait until an entry has been checked, and return the id of the first event with its key.

        Raises:
            BrokerError: the follower has lost its connection.
        """
        while self._read < sequence:
            self._advanced.clear()
            if not self._following:
                raise BrokerError("the follower has lost its connection")
            await self._advanced.wait()
        return self._seen.look_up(key, self._newest_s)
