"""Replays that wait: streams whose patterns have no complete index yet.

A pass over the log completes the indexes (`relay.core.backfill`). It runs in slices between the loop's other work, and
one pass serves all streams that waited when it began. A subscription stays while somebody waits for it.

Owns who waits. Never opens a stream: it calls back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from relay.core.audience import Audiences, Subscription
from relay.core.backfill import Wanted, backfill
from relay.core.flush import SLICE_S
from relay.core.log import Log

Done = Callable[[None], None]


class _Replay:
    """One stream that waits; `done` is None once nobody is to be called back."""

    __slots__ = ("cursor", "done", "evicted", "subscription")

    def __init__(self, subscription: Subscription, cursor: int, done: Done, *, evicted: bool) -> None:
        self.subscription = subscription
        self.cursor = cursor
        self.done: Done | None = done
        self.evicted = evicted


class Replays:
    """The waiting replays of one hub.

    Args:
        log: what is replayed.
        audiences: know what the indexes of a subscription lack.
        clock: the time in seconds.
    """

    def __init__(self, log: Log, audiences: Audiences, clock: Callable[[], float]) -> None:
        self._log = log
        self._audiences = audiences
        self._clock = clock
        self._waiting: list[_Replay] = []
        self._served: list[_Replay] = []  # by the pass under way
        self._pass: Iterator[None] | None = None
        self._ready: deque[_Replay] = deque()

    @property
    def due(self) -> bool:
        """Whether a turn has something to do."""
        return bool(self._pass or self._ready or self._waiting)

    def prepare(
        self, subscription: Subscription, cursor: int, done: Done, *, evicted: bool
    ) -> Callable[[], None]:
        """Complete a subscription's indexes, and call back once; within this call if it takes only one slice.

        Args:
            subscription: the stream's.
            cursor: where the replay begins.
            done: called back, unless it is cancelled before.
            evicted: as for `Audiences.wanted`.

        Returns:
            what cancels it.
        """
        replay = _Replay(subscription, cursor, done, evicted=evicted)
        subscription.waiting += 1
        idle = not self.due
        self._waiting.append(replay)
        if idle:
            self.turn()
        return lambda: self._end(replay)

    def begin(self) -> None:
        """Give up the pass under way: the log goes on from another sequence, and indexes are complete."""
        self._pass = None
        self._ready.extend(self._served)
        self._served = []

    def turn(self) -> bool:
        """Work for one slice; return whether there is more to do."""
        stop_s = self._clock() + SLICE_S
        while self.due:
            if self._ready:
                self._end(self._ready.popleft(), call=True)
            elif self._pass is None:
                self._start()
            elif next(self._pass, self) is self:
                self._pass = None
                self._ready.extend(self._served)
                self._served = []
            if self._clock() >= stop_s:
                break
        return self.due

    def _start(self) -> None:
        self._served, self._waiting = [replay for replay in self._waiting if replay.done], []
        wanted: dict[object, Wanted] = {}
        for replay in self._served:
            for each in self._audiences.wanted(replay.subscription, replay.cursor, evicted=replay.evicted):
                wanted[each.index] = each
        cursor = min((replay.cursor for replay in self._served), default=self._log.head)
        evicted = any(replay.evicted for replay in self._served)
        self._pass = backfill(self._log, list(wanted.values()), cursor, evicted=evicted)

    def _end(self, replay: _Replay, *, call: bool = False) -> None:
        done, replay.done = replay.done, None
        if done is None:
            return
        if call:
            done(None)
        replay.subscription.waiting -= 1
        self._audiences.release(replay.subscription)
