"""The readers of the soak: each follows some topics with relay's own client, in one of several ways.

Owns the kinds of readers, and when a reader pauses, leaves and returns. Never checks an event
(`loadtest.soak.promise`) and never reconnects (`relay.client.follow`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

import httpx
import msgspec

from loadtest.soak.feed import SteadyFeed, data_of, key_of, wants
from loadtest.soak.promise import Promise
from relay.backoff import Backoff
from relay.client.follow import Position, Progress, StreamOptions, follow
from relay.client.opening import NDJSON, SSE
from relay.client.subscribe import read_gap
from relay.errors import EventError, LostError, RelayError
from relay.event import Event

_logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 120.0
EVENT_BYTES_MAX = 1024 * 1024
RECEIVE_BUFFER = 16 * 1024
"""SO_RCVBUF of a slow reader. A small one lets the stream lag soon."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to read.

    Args:
        name: the name in the report.
        count: readers of this kind at each group of servers.
        terms: the topics and patterns of the readers, in turn.
        accept: content type.
        query: more of the query.
        gzip: whether it accepts gzip.
        http2: whether it speaks HTTP/2.
        shares: whether all readers of this kind share one connection.
        polls: whether it uses long polling.
        pause_s: longest pause of a slow reader; 0 for a reader that reads at once.
        stays_s, away_s: longest time connected, and longest time away; 0 for a reader that never leaves.
    """

    name: str
    count: int
    terms: tuple[tuple[str, ...], ...]
    accept: str = SSE
    query: str = ""
    gzip: bool = False
    http2: bool = False
    shares: bool = False
    polls: bool = False
    pause_s: float = 0.0
    stays_s: float = 0.0
    away_s: float = 0.0


SINGLE = (("prices.eu",), ("orders.us.paid",), ("chat.1",))
SEVERAL = (("prices.eu", "chat.2"), ("news.*",), ("orders.**", "news.world"))
BUSY = (("prices.*", "orders.**"),)

KINDS = (
    Kind("plain", 12, SINGLE),
    Kind("gzip", 12, SINGLE, gzip=True),
    Kind("patterns", 8, SEVERAL, gzip=True),
    Kind("envelope", 6, SEVERAL, query="envelope=1", gzip=True),
    Kind("ndjson", 6, SEVERAL, accept=NDJSON, gzip=True),
    Kind("http2", 8, SINGLE, http2=True, shares=True),
    Kind("http2-gzip", 4, SEVERAL, http2=True, gzip=True, stays_s=60.0, away_s=10.0),
    Kind("poll", 6, SINGLE, polls=True, stays_s=120.0, away_s=20.0),
    Kind("short", 14, SINGLE + SEVERAL, gzip=True, stays_s=40.0, away_s=10.0),
    Kind("away", 4, SINGLE, stays_s=120.0, away_s=600.0),
    Kind("slow-http2", 2, BUSY, http2=True, pause_s=200.0),
    *(
        Kind(f"slow-{policy}", 2, BUSY, query=f"policy={policy}", gzip=gzip, pause_s=200.0)
        for policy, gzip in (("drop-oldest", True), ("drop-newest", False), ("conflate", True), ("disconnect", False))
    ),
)
BLOCK = Kind("slow-block", 1, BUSY, query="policy=block", pause_s=200.0)
"""Only at a group that permits the policy; a cluster does not."""


@dataclass(slots=True)
class SoakState:
    """The state of the run that the readers share.

    Args:
        scale: factor of the times of all readers; less than 1 in a short run.
        settling: set at the end: slow readers read on, and readers that are away return.
        trust, trust_http2: the certificate of the servers. httpx sets the versions of HTTP in the context, so there are
            two.
    """

    scale: float
    settling: asyncio.Event
    trust: ssl.SSLContext
    trust_http2: ssl.SSLContext

    async def sleep(self, seconds: float) -> None:
        """Wait for a time, or until the run settles."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * self.scale):
                await self.settling.wait()


class SoakReader:
    """One reader, over all of its connections.

    Args:
        kind: how it reads.
        terms: its topics and patterns.
        urls: the addresses of its servers; each time it returns, it uses the next one.
        feed: the feed of its group.
        state: the state of the run.
        shared: a client to use for all connections.
    """

    def __init__(
        self,
        kind: Kind,
        terms: Sequence[str],
        urls: Sequence[str],
        feed: SteadyFeed,
        state: SoakState,
        shared: httpx.AsyncClient | None = None,
    ) -> None:
        self.kind = kind
        self.promise = Promise(wants(terms), key_of, feed.numbering)
        self.counts: Counter[str] = Counter()
        self._query = "&".join(filter(None, (urlencode({"topic": terms}, doseq=True), kind.query)))
        self._urls = list(urls)
        self._state = state
        self._shared = shared
        self._position = Position("")
        headers = {"Accept": kind.accept, "Accept-Encoding": "gzip" if kind.gzip else "identity"}
        self._options = StreamOptions(headers, READ_TIMEOUT_S, EVENT_BYTES_MAX, falls_back=kind.polls)

    async def run(self) -> None:
        """Read until the task is cancelled."""
        while True:
            if self._shared is not None:
                await self._visit(self._shared)
            else:
                async with http_client(self.kind, self._state) as client:
                    await self._visit(client)
            self.counts["leaves"] += 1
            self._urls.append(self._urls.pop(0))
            await self._state.sleep(random.uniform(0.1, 1.0) * self.kind.away_s)

    async def _visit(self, client: httpx.AsyncClient) -> None:
        """Follow the stream until the reader leaves."""
        loop, kind, state = asyncio.get_running_loop(), self.kind, self._state
        leaves_s = loop.time() + random.uniform(0.3, 1.0) * kind.stays_s * state.scale
        pauses_s = loop.time() + random.uniform(0.1, 0.5) * kind.pause_s * state.scale
        address = httpx.URL(f"{self._urls[0]}/events?{self._query}")
        if kind.polls:
            self._position.transport = "poll"
        items = follow(address, self._position, replace(self._options, client=client), Backoff(1.0, 10.0))
        async with contextlib.aclosing(items):
            try:
                async for item in items:
                    self._take(item)
                    if state.settling.is_set():
                        continue
                    if kind.stays_s and loop.time() >= leaves_s:
                        return
                    if kind.pause_s and loop.time() >= pauses_s:
                        self.counts["pauses"] += 1
                        await state.sleep(random.uniform(0.2, 1.0) * kind.pause_s)
                        pauses_s = loop.time() + random.uniform(0.1, 0.3) * kind.pause_s * state.scale
            except RelayError as error:
                if isinstance(error.__cause__, httpx.LocalProtocolError):
                    self.counts["lost"] += 1  # The client has sent a request on a connection that is about to close.
                else:
                    self.promise.faults[f"rejected: {error}"] += 1
                await asyncio.sleep(1.0)

    def end(self, last: int) -> None:
        """Check the reader at the end of the run; `last` is the number of the last published event."""
        self.promise.end(last)
        if not self.promise.is_complete(last):
            _logger.error("%s reader of %s at %s: %s", self.kind.name, self._query, self._urls[0], self.promise)

    def _take(self, item: Event | EventError | LostError | Progress) -> None:
        """Count the connections, and check the events."""
        promise, position = self.promise, self._position
        try:
            if item is Progress.OPENED:
                self.counts["opened"] += 1
                promise.opened(position.last_event_id)
            elif isinstance(item, LostError):
                self.counts["lost"] += 1
            elif isinstance(item, EventError):
                promise.faults[f"malformed: {item}"] += 1
            elif isinstance(item, Event):
                self._check(item)
        except (ValueError, msgspec.DecodeError) as error:
            promise.faults[f"malformed: {error}"] += 1

    def _check(self, event: Event) -> None:
        """Check one event."""
        if "envelope" in self.kind.query:
            text = bytes(msgspec.json.decode(event.data, type=dict[str, msgspec.Raw])["data"]).decode()
            event = Event(text, event.event)
        gap = read_gap(event)
        if gap is not None:
            self.promise.gap(gap)
            return
        data = msgspec.json.decode(event.data)
        number = data["n"]
        if data != data_of(number):
            self.promise.faults["an event with other data"] += 1
        self.promise.event(number, self._position.last_event_id)


def http_client(kind: Kind, state: SoakState) -> httpx.AsyncClient:
    """Open a client for the connections of one reader."""
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)] if kind.pause_s else []
    transport = httpx.AsyncHTTPTransport(
        verify=state.trust_http2 if kind.http2 else state.trust,
        # Without TLS, a client of HTTP/2 speaks no other version.
        http1=not kind.http2,
        http2=kind.http2,
        limits=httpx.Limits(max_connections=None),
        socket_options=options,
        trust_env=False,
    )
    return httpx.AsyncClient(transport=transport, trust_env=False)


def readers_of(
    kinds: Sequence[Kind], urls: Sequence[str], feed: SteadyFeed, state: SoakState, share: float
) -> Iterator[tuple[SoakReader, httpx.AsyncClient | None]]:
    """Yield the readers of a group, each with the client that it shares, if any.

    Args:
        kinds: the kinds.
        urls: the addresses of the servers of the group.
        feed: the feed of the group.
        state: the state of the run.
        share: part of the readers that is used, at least one of each kind.
    """
    for kind in kinds:
        shared = http_client(kind, state) if kind.shares else None
        for place in range(max(1, round(kind.count * share))):
            turned = [*urls[place % len(urls) :], *urls[: place % len(urls)]]
            yield SoakReader(kind, kind.terms[place % len(kind.terms)], turned, feed, state, shared), shared
