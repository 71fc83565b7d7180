"""Starting with a file: restores the log and the dedup keys from the store, then opens the journal.

Owns the order of these steps. Never writes to the file.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from asyncio import AbstractEventLoop

from relay.core.histogram_protocols import Observer
from relay.core.hub import Hub
from relay.store.file import Store
from relay.store.journal import Journal

_logger = logging.getLogger("relay.restore")


def open_journal(
    path: str, hub: Hub, write_s: Observer, loop: AbstractEventLoop, *, taken_over: bool = False
) -> Journal:
    """Restore a hub from a file and open the journal that writes to it.

    Args:
        path: path of the file.
        hub: has published nothing yet; its log continues with the file's epoch and sequences.
        write_s: observes the duration of each write.
        loop: the event loop.
        taken_over: the hub has already received the content of the file from the process that used it before.

    Raises:
        ConfigError: the file cannot be used, or does not match the log that was taken over.
    """
    began_s = time.monotonic()
    store = Store(path)
    gc.disable()  # None of a million entries is garbage; the collector took a fifth of the time.
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
        _logger.info("data: created %s", path)
    else:
        took_s = time.monotonic() - began_s
        _logger.info("data: restored %d events and %d dedup keys in %.2f s", len(hub.log), len(hub.writer.seen), took_s)
    journal = Journal(
        store,
        hub.log,
        hub.writer.seen,
        take=hub.take,
        released=hub.holds.release,
        write_s=write_s,
        loop=loop,
        clock=time.monotonic,
        wall=time.time,
    )
    hub.writer.use_journal(journal)
    return journal


def restore(store: Store, hub: Hub, ahead_s: float) -> None:
    """Restore a hub's log and dedup keys.

    Args:
        store: an open store.
        hub: has published nothing yet and has no streams.
        ahead_s: wall-clock time minus the hub's time.

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
            # The wall clock may have been set back between two runs. Times in the log never decrease or exceed now.
            newest_s = max(newest_s, min(entry.time_s + shift_s, now_s))
            hub.take(entry, newest_s)
    while hub.log.expire(now_s):
        pass
    if not begun:
        hub.log.begin(store.epoch, store.tail, store.evicted_s - ahead_s)
    for time_s, keys in store.dedup_keys():
        for key, id in keys:
            hub.writer.seen.add(key, id, min(time_s - ahead_s, now_s))
