"""The publish rates of a cluster at Redis: one token bucket per subject, which all nodes share.

Theory of operation. The publish requests of one turn of the loop, and those that arrive during a call, take their
tokens in one call of the script `rate.lua`. The first request opens the connection. Workers ask their hub, so that each
machine has one connection.

relay does not use the library `limits`. It makes one call per request, and its limits never admit a request that has
more events than a window. The buckets of the script have the rules of `relay.front.rate`.

Owns this connection. Never publishes, and never answers a client.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable

from relay.backoff import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, half_jitter
from relay.brokers.redis_client import RedisClient, RedisScript
from relay.cluster.publication import UNAVAILABLE
from relay.errors import RETRY_LATER, BrokerError, RequestError
from relay.sources.requests import Cancel, TakeDone, nothing

CALL_TAKES_MAX = 500
"""Takes in one call, which occupies Redis for about two milliseconds."""

_SCRIPT = RedisScript("relay.cluster", "rate.lua")
_logger = logging.getLogger("relay.cluster")


class SharedRates:
    """The buckets of one limit.

    Args:
        connect: returns a connection, not opened yet.
        name: the name of the cluster, which is part of all keys.
        per_s: tokens per second and bucket, more than 0.
        burst_s: capacity of a bucket, in seconds of the rate.
    """

    def __init__(self, connect: Callable[[], RedisClient], name: str, per_s: float, burst_s: float) -> None:
        self._connect = connect
        self._prefix = f"{{{name}}}:rate:"
        self._limits = (str(per_s), str(per_s * burst_s))
        self._takes: list[_Take] = []
        self._due = asyncio.Event()
        self._failed = False  # until the next attempt to connect
        self._error = ""
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer."""
        self._task = loop.create_task(self._run())

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def take(self, subject: str, count: int, done: TakeDone) -> Cancel:
        """Take tokens from the bucket of a subject; see `relay.sources.requests.TakeRate`.

        Args:
            subject: the subject. Redis receives only its hash.
            count: number of tokens. More than the capacity requires a full bucket, and leaves it negative.
            done: receives the result, or RequestError 503 if Redis is unavailable.
        """
        if self._failed:
            done(RequestError(503, UNAVAILABLE, RETRY_LATER))
            return nothing
        take = _Take(self._prefix + hashlib.sha256(subject.encode()).hexdigest()[:32], count, done)
        self._takes.append(take)
        self._due.set()
        return take.cancel

    async def _run(self) -> None:
        """Answer until the task is cancelled; reconnect after each error."""
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        while True:
            await self._due.wait()
            try:
                client = self._connect()
                try:
                    await self._serve(client, backoff)
                finally:
                    await client.close()
            except BrokerError as error:
                if not self._error:
                    _logger.error("cluster: cannot reach the publish rates in Redis: %s; relay tries again", error)
                self._error = str(error)
            except Exception:
                _logger.exception("cluster: the publish rates failed")
            self._failed = True
            self._reject()
            await asyncio.sleep(backoff.next_s())
            self._failed = False

    async def _serve(self, client: RedisClient, backoff: Backoff) -> None:
        while True:
            await self._due.wait()
            takes = self._takes[:CALL_TAKES_MAX]
            waits = await client.run(
                _SCRIPT, [take.key for take in takes], *self._limits, *(str(take.count) for take in takes)
            )
            backoff.reset()
            if self._error:
                _logger.info("cluster: the publish rates in Redis work again")
                self._error = ""
            del self._takes[: len(takes)]
            if not self._takes:
                self._due.clear()
            for take, wait_s in zip(takes, waits, strict=True):
                take.done(float(wait_s))

    def _reject(self) -> None:
        takes, self._takes = self._takes, []
        self._due.clear()
        for take in takes:
            take.done(RequestError(503, UNAVAILABLE, RETRY_LATER))


class _Take:
    """The tokens of one request."""

    __slots__ = ("count", "done", "key")

    def __init__(self, key: str, count: int, done: TakeDone) -> None:
        self.key = key
        self.count = count
        self.done = done

    def cancel(self) -> None:
        """Do not call back."""
        self.done = lambda _: None
