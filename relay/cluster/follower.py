"""The follower: copies the entries of the broker's log into the log of this node.

Theory of operation. The follower connects, compares its log with the broker's, and reads the following entries.

    open ─┬─ same epoch, and the broker retains the next entry ─────────────► continue
          ├─ same epoch, but the broker has trimmed past the next entry ────► begin: a gap, as for a lapped stream
          ├─ same epoch, but the broker lacks an entry of this log ─────────► renew the epoch, then begin
          ├─ an earlier epoch of this node ─────────────────────────────────► renew the epoch, then begin
          └─ another epoch ─────────────────────────────────────────────────► begin

To begin is to drop all entries, close all streams, and read the broker's log from its oldest entry. The clients of the
streams reconnect with their last ids, and the code for every resume reports the gap.

A broker that fails over may lose entries that it has acknowledged. The follower detects this when it connects, once per
second, and before each entry that it takes, because each entry names the mark of the entry before. The first node that
detects it renews the epoch, which is replaced only once. All nodes then begin with the new epoch. The broker may lose
the renewal too. Then the earlier epoch returns, and its ids would identify other events than before. A node that has
left this epoch renews it again.

Owns the position in the broker's log, and the clock offset of the broker. Never publishes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

from relay.backoff import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, half_jitter
from relay.cluster.broker import Broker, EntriesReplacedError, LogChangedError, LogEntry, LogPosition
from relay.cluster.entry import decode_payload, replacement
from relay.config.model import Config
from relay.core.hub import Hub
from relay.core.log import Entry
from relay.errors import BrokerError, EventError
from relay.telemetry.input_errors import InputErrors

POLL_S = 1.0
"""Longest wait for an entry, and interval at which the follower compares its position with the broker's."""

READ_MAX = 1_000_000
"""More entries than any read returns."""

FORMER_MAX = 1000
"""Replaced epochs that a node remembers."""

_logger = logging.getLogger("relay.cluster")


class LogFollower:
    """The follower of one node.

    Args:
        config: the settings.
        hub: receives the entries.
        broker: the log to follow.
        clock: returns the hub's time.
        errors: counts entries that cannot be decoded.
        on_connected: called when the follower has connected.
        on_lost: called with the reason when the connection is lost.
        on_advance: called when the log may have advanced.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        broker: Broker,
        clock: Callable[[], float],
        errors: InputErrors,
        *,
        on_connected: Callable[[], None],
        on_lost: Callable[[str], None],
        on_advance: Callable[[], None],
    ) -> None:
        self.connected = False
        self.reconnects = 0
        self.lapped = 0
        self.renewals = 0  # epochs that this node renewed
        self.broker_head = 1  # when the broker was asked last
        self.current_s = clock()  # the last time when the log had all entries of the broker, or advanced
        self._config = config
        self._hub = hub
        self._broker = broker
        self._clock = clock
        self._errors = errors
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_advance = on_advance
        self._mark = b""  # of the last entry in the log
        self._replaced = False  # the broker has lost entries of this log, and the epoch is not renewed yet
        self._former: deque[str] = deque(maxlen=FORMER_MAX)  # earlier epochs of this node's log
        self._begun_at = 0  # head of the broker's log when this node began; its older entries are not compared
        self._progress = 0  # head of this node's log when `current_s` was set
        self._offset_s = 0.0  # this node's time minus the broker's time
        self._newest_s = -math.inf
        self._checked_s = 0.0
        self._trimmed = 0  # tail of the log at the last trim

    @property
    def lag_events(self) -> int:
        """The number of entries that the broker is known to have and this node does not."""
        return max(0, self.broker_head - self._hub.log.head)

    async def run(self) -> None:
        """Follow the broker's log until the task is cancelled; reconnect after each error."""
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S, half_jitter)
        try:
            while True:
                reason = await self._attempt(backoff)
                if reason:
                    self.reconnects += self.connected
                    self._on_lost(reason)
                self.connected = False
                await self._broker.close_follower()
                await asyncio.sleep(backoff.next_s())
        finally:
            await self._broker.close_follower()

    async def _attempt(self, backoff: Backoff) -> str:
        """Connect and follow until an error; return its reason, or nothing if only the log has changed."""
        try:
            await self._follow(backoff)
        except LogChangedError as error:
            self._replaced = isinstance(error, EntriesReplacedError)
            _logger.warning("cluster: the broker's log has changed: %s", error)
            return ""
        except BrokerError as error:
            return str(error)
        except Exception:
            _logger.exception("cluster: the follower failed")
            return "internal error"

    async def _follow(self, backoff: Backoff) -> NoReturn:
        log = self._hub.log
        known = self._hub.head  # before the call, because a publish may be acknowledged meanwhile
        await self._begin(await self._broker.open(secrets.token_hex(4)), known)
        while True:
            missing = self._begun_at - log.head
            if missing > 0:
                # The first entry of a log has nothing to continue. The epoch may have changed between two old entries.
                entries = await self._broker.read(log.head - 1, missing, "", b"", POLL_S)
            else:
                entries = await self._broker.read(log.head - 1, READ_MAX, log.epoch, self._mark, POLL_S)
            backoff.reset()
            if entries:
                self._take(entries)
            if self._clock() - self._checked_s >= POLL_S:
                await self._check()

    async def _begin(self, position: LogPosition, known: int) -> None:
        """Continue with the log, or begin again.

        Args:
            position: the broker's position.
            known: the head that this node knew before it asked for the position.
        """
        hub, log, now_s = self._hub, self._hub.log, self._clock()
        returned = position.epoch in self._former
        if returned or (position.epoch == log.epoch and self._has_lost(position, known)):
            _logger.error(
                "cluster: the broker has lost entries; this node knows %s-%d, the broker has %s-%d; renewing the epoch",
                log.epoch,
                known - 1,
                position.epoch,
                position.head - 1,
            )
            self._replaced = True  # even if the broker has more entries when the connection breaks now
            epoch = secrets.token_hex(4)
            position = await self._broker.renew(position.epoch, epoch)
            self.renewals += position.epoch == epoch
        self._replaced = False
        self._offset_s = now_s - position.time_ms / 1000
        self.broker_head = position.head
        if position.epoch == log.epoch and position.tail <= log.head:
            hub.continue_from(position.head)
            self._begun_at = min(self._begun_at, position.head)
            if position.tail == log.head and not position.mark:
                self._mark = b""  # The broker has removed the last entry, so it cannot be compared.
        else:
            self._begin_again(position, now_s)
        self._checked_s = now_s
        self.connected = True
        self._note_progress(now_s)
        self._on_connected()

    def _begin_again(self, position: LogPosition, now_s: float) -> None:
        hub, log = self._hub, self._hub.log
        if log.epoch == position.epoch:
            self.lapped += 1
            _logger.warning("cluster: the broker has trimmed entries %d to %d", log.head, position.tail - 1)
        elif log.epoch:
            self._former.append(log.epoch)
            _logger.warning("cluster: the log has the new epoch %s (before: %s)", position.epoch, log.epoch)
        evicted_s = -math.inf if position.tail == 1 else position.tail_ms / 1000 + self._offset_s
        hub.begin(position.epoch, position.tail, position.head, evicted_s, now_s)
        for topic in position.ended:
            hub.end_topic(topic)
        self._mark = position.mark if position.tail == position.head else b""
        self._newest_s = -math.inf
        self._begun_at = position.head
        self._trimmed = self._progress = position.tail

    def _has_lost(self, position: LogPosition, known: int) -> bool:
        """Return whether the broker lacks an entry that this node has or that the broker has acknowledged to this node.

        This includes that the broker has another entry in the place of this log's last one.
        """
        head = self._hub.log.head
        comparable = position.head == head and self._mark and position.mark
        has_another = comparable and position.mark != self._mark
        return position.head < known or bool(has_another) or self._replaced

    async def _check(self) -> None:
        """Compare the position with the broker's, and trim the broker's log like the log of this node."""
        log, known = self._hub.log, self._hub.head
        position = await self._broker.position()
        self._checked_s = now_s = self._clock()
        self.broker_head = position.head
        if position.epoch != log.epoch:
            raise LogChangedError(f"it has the epoch {position.epoch}")
        if self._has_lost(position, known):
            raise EntriesReplacedError(f"it does not have entry {known - 1}, or has another one")
        self._note_progress(now_s)
        # While this node reads old entries, it may evict some that other nodes retain.
        if log.tail > self._trimmed and log.head >= self._begun_at:
            await self._broker.trim(log.tail)
            self._trimmed = log.tail

    def _take(self, entries: Sequence[LogEntry]) -> None:
        hub, now_s, offset_s = self._hub, self._clock(), self._offset_s
        epoch, bytes_max = hub.log.epoch, hub.writer.event_bytes_max
        newest_s = self._newest_s
        for sequence, time_ms, form, payload, _, repeats in entries:
            newest_s = max(newest_s, min(time_ms / 1000 + offset_s, now_s))
            if repeats:
                hub.skip(sequence)
                continue
            try:
                entry = decode_payload(form, payload, epoch, sequence, newest_s, bytes_max)
            except EventError as error:
                entry = self._refuse(sequence, newest_s, error)
            hub.take(entry, newest_s)
        self._mark = entries[-1].mark
        self._newest_s = newest_s
        self.broker_head = max(self.broker_head, hub.log.head)
        self._note_progress(now_s)

    def _refuse(self, sequence: int, time_s: float, error: EventError) -> Entry:
        self._errors.report("entry", "cluster: cannot relay entry %d: %s", sequence, error)
        return replacement(self._hub.log.epoch, sequence, time_s, self._config.topic)

    def _note_progress(self, now_s: float) -> None:
        head = self._hub.log.head
        if head > self._progress or head >= self.broker_head:
            self.current_s, self._progress = now_s, head
        self._on_advance()
