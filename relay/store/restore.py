"""The start with a file: what it has goes back into the log, and the journal stands in front of it from then on.

Owns this order. Never writes.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from asyncio import AbstractEventLoop

from relay.core.hub import Hub
from relay.core.measures import Observer
from relay.store.file import Store
from relay.store.journal import Journal

_logger = logging.getLogger("relay.restore")


def open_journal(
    path: str, hub: Hub, write_s: Observer, loop: AbstractEventLoop, *, taken_over: bool = False
) -> Journal:
    """Fill a hub with what a file has; let all that it publishes go there first.

    Args:
        path: of the file.
        hub: has published nothing yet; its log goes on with the file's epoch and sequences.
        write_s: how long each write takes.
        loop: the event loop.
        taken_over: the hub has what is in the file already, from the process that had it until now.

    Raises:
        ConfigError: the file cannot be used, or is not that of what was taken over.
    """
    began_s = time.monotonic()
    store = Store(path)
    gc.disable()  # a million entries are no garbage: looking for some took a fifth of the time
    try:
        if taken_over:
            store.check(hub.log.epoch, hub.log.head)
        else:
            restore(store, hub, time.time() - began_s)
    except BaseException:
        store.close()
        raise
    finally:
        gc.enable()
    if store.is_new:
        _logger.info("data: %s is new", path)
    else:
        took_s = time.monotonic() - began_s
        _logger.info("data: %d events and %d dedup keys in %.2f s", len(hub.log), len(hub.writer.seen), took_s)
    hub.writer.journal = journal = Journal(
        store,
        hub.log,
        hub.writer.seen,
        take=hub.take,
        released=hub.catchup.release,
        write_s=write_s,
        loop=loop,
        clock=time.monotonic,
        wall=time.time,
    )
    return journal


def restore(store: Store, hub: Hub, ahead_s: float) -> None:
    """Fill a hub's log and dedup keys.

    Args:
        store: an open file.
        hub: has published nothing yet, and nobody reads it.
        ahead_s: what the wall's time is ahead of the hub's.

    Raises:
        ConfigError: the file is damaged.
    """
    now_s, newest_s = time.monotonic(), -math.inf
    begun = False
    for row_ahead_s, row in store.entries():
        if not begun:
            hub.log.begin(store.epoch, row[0].sequence, store.evicted_s - ahead_s)
            begun = True
        shift_s = row_ahead_s - ahead_s
        for entry in row:
            # The wall's time may have been set back between two runs; the log's never goes back, nor ahead of now.
            newest_s = max(newest_s, min(entry.time_s + shift_s, now_s))
            hub.take(entry, newest_s)
    if not begun:
        hub.log.begin(store.epoch, store.tail, store.evicted_s - ahead_s)
    for time_s, keys in store.dedup_keys():
        for key, id in keys:
            hub.writer.seen.add(key, id, min(time_s - ahead_s, now_s))
