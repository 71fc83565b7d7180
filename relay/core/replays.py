"""Waiting replays: streams whose patterns have no complete index yet.

A pass over the log completes the indexes (`relay.core.backfill`). It runs in slices between other work of the event
loop. One pass serves all streams that waited when it began. A subscription exists while a replay waits for it.

Owns the waiting replays. Never opens a stream: it calls back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from relay.core.audience import Audiences, Subscription
from relay.core.backfill import Wanted, backfill
from relay.core.flush import SLICE_S
from relay.core.log import Log
from relay.errors import RETRY_SOON, RequestError

Done = Callable[[RequestError | None], None]
"""Receives None when the replay can begin, or the error that rejects it."""


class _Replay:
    """One waiting stream; `done` is None after the callback or a cancellation."""

    __slots__ = ("cursor", "done", "evicted", "subscription")

    def __init__(self, subscription: Subscription, cursor: int, done: Done, *, evicted: bool) -> None:
        self.subscription = subscription
        self.cursor = cursor
        self.done: Done | None = done
        self.evicted = evicted


class Replays:
    """The waiting replays of one hub.

    Args:
        log: the log to replay.
        audiences: list the incomplete indexes of a subscription.
        clock: the time in seconds.
    """

    def __init__(self, log: Log, audiences: Audiences, clock: Callable[[], float]) -> None:
        self._log = log
        self._audiences = audiences
        self._clock = clock
        self._waiting: list[_Replay] = []
        self._served: list[_Replay] = []  # by the current pass
        self._pass: Iterator[None] | None = None
        self._ready: deque[_Replay] = deque()

    @property
    def due(self) -> bool:
        """Whether `turn` has work to do."""
        return bool(self._pass or self._ready or self._waiting)

    def prepare(
        self, subscription: Subscription, cursor: int, done: Done, *, evicted: bool
    ) -> Callable[[], None]:
        """Complete the indexes of a subscription and call back once; within this call if one slice is enough.

        Args:
            subscription: the subscription of the stream.
            cursor: first sequence of the replay.
            done: called once, unless cancelled.
            evicted: as for `Audiences.wanted`.

        Returns:
            a function that cancels the replay.
        """
        replay = _Replay(subscription, cursor, done, evicted=evicted)
        subscription.waiting += 1
        idle = not self.due
        self._waiting.append(replay)
        if idle:
            self.turn()
        return lambda: self._end(replay)

    def begin(self) -> None:
        """Reject all waiting replays, because another log begins and they refer to sequences of the former one."""
        waiting = (*self._ready, *self._served, *self._waiting)
        self._pass, self._served, self._waiting = None, [], []
        self._ready.clear()
        error = RequestError(503, "the server has just connected to its hub", RETRY_SOON)
        for replay in waiting:
            self._end(replay, call=True, error=error)

    def turn(self) -> bool:
        """Run one slice; return whether more work is pending."""
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

    def _end(self, replay: _Replay, *, call: bool = False, error: RequestError | None = None) -> None:
        done, replay.done = replay.done, None
        if done is None:
            return
        if call:
            done(error)
        replay.subscription.waiting -= 1
        self._audiences.release(replay.subscription)
