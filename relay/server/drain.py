"""The drain: deliver every acknowledged event, then end the streams.

Owns the order of the drain and its time limits. Never closes other parts of the server than the clients' listeners and
the acceptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time

from relay.config.model import Config
from relay.core.catchup import CLOSE_GRACE_S
from relay.core.hub import Hub
from relay.front.front import Front
from relay.server.parts import Parts

DRAIN_STEP_S = 0.05
"""Time between two batches of streams that a drain ends."""

_logger = logging.getLogger("relay.server")


async def drain(parts: Parts) -> None:
    """Deliver every acknowledged event, then end the streams.

    The order makes the head of the log final before the first stream ends. A stream ends when it has received every
    event up to the head.

    1. Readiness fails. Everything else continues for `drain_delay_s`.
    2. The server accepts no connections, starts no workers and reads no feeders. It publishes the events that it has
       already read. This process and each worker answer publish requests with 503.
    3. The journal writes its pending events, which appends them to the log and acknowledges them. A node of a cluster
       waits until the broker has all accepted events, and it has those that were published here. A worker waits until
       it has received every event that its hub had acknowledged.
    4. The streams of this process end. Each worker receives the rest of the log, drains its own streams and exits.

    Args:
        parts: the open parts of the server.
    """
    config, hub = parts.config, parts.hub
    parts.front.ready = False
    parts.membership.leave()
    parts.service.tell("STOPPING=1", f"STATUS=draining {hub.engine.open} streams")
    if config.drain_delay_s:
        _logger.info("not ready; draining in %g s", config.drain_delay_s)
        await asyncio.sleep(config.drain_delay_s)
    _logger.info("draining %d streams", hub.engine.open)
    if parts.acceptor is not None:
        parts.acceptor.close()
    parts.membership.stop_starting()
    if parts.sources is not None:
        parts.sources.drain()
    hub.end_input()
    for group in parts.listeners:
        for listener in group.all:
            listener.close()  # Each worker closes its own copies.
    parts.front.close_idle()
    await _settle(parts)
    drained = asyncio.Event()
    hub.drain(time.monotonic(), drained.set)
    await asyncio.gather(_end_streams(hub, config, drained), parts.membership.drain())
    if hub.engine.open:
        _logger.warning("drain timed out with %d streams open", hub.engine.open)
    hub.abort(time.monotonic())
    await _close_connections(parts.front)
    _logger.info("drained")


async def _close_connections(front: Front) -> None:
    """Wait until polls have their answers, and HTTP/2 has sent the ends of its streams, for a limited time."""
    front.close_idle()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_GRACE_S):
            while front.http2 or front.arriving:
                await asyncio.sleep(DRAIN_STEP_S)


async def _settle(parts: Parts) -> None:
    """Wait until every accepted event is in the log, but at most half of `drain_timeout_s`."""
    try:
        async with asyncio.timeout(parts.config.drain_timeout_s / 2):
            if parts.journal is not None:
                await parts.journal.settle()
            if parts.cluster is not None:
                await parts.cluster.settle()
            if parts.is_edge:
                await parts.membership.settle()
    except TimeoutError:
        _logger.warning("drain: not all accepted events reached the log in time")


async def _end_streams(hub: Hub, config: Config, drained: asyncio.Event) -> None:
    """End the streams evenly, at `drain_rate` or within half of `drain_timeout_s`, and wait until all have ended."""
    streams = hub.engine.open
    takes_s = min(streams / config.drain_rate, config.drain_timeout_s / 2)
    batch = math.ceil(streams / max(1, round(takes_s / DRAIN_STEP_S)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(config.drain_timeout_s):
            while hub.end_some(batch):
                await asyncio.sleep(DRAIN_STEP_S)
            await drained.wait()
