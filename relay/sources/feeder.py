"""The feeder: one descriptor that is read a turn at a time, and its intake.

Theory of operation. One read of at most `READ_BYTES`, then turns of the intake until it is idle, then the
next read. Reading is off in between, whether the intake is busy, held or full; so the feeder's own buffer in
the kernel fills, and its writes wait. Between two turns everything else that is due runs.

    reading ── bytes ──► turn ─┬─ idle ───────────► reading, or finished at the end of input
                          ▲    ├─ busy: call_soon ─┐
                          │    ├─ held: on_release ─┤
                          │    └─ full: room ───────┤
                          └─────────────────────────┘

Answers go out when what they acknowledge is confirmed, which may wait for the disk; until then there is no room for
others.

Owns this order; how a kind of feeder is read, watched and answered is its subclass's. Never parses or
publishes.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from relay.core.hub import Hub
from relay.sources.intake import ANSWER_BYTES_MAX, Intake, State
from relay.sources.lines import LineSplitter

READ_BYTES = 64 * 1024
"""Most bytes of one read: with `TURN_LINES` the budget of a turn."""

_logger = logging.getLogger("relay.sources.feeder")


class PackedFeeder(msgspec.Struct, frozen=True, array_like=True):
    """One feeder, for another process: input that is read and not yet published, and answers that are not yet sent."""

    number: int
    items: list[bytes | None]
    unfinished: bytes
    refusing: bool
    answering: bool
    unsent: bytes
    ended: bool


class Feeder:
    """One feeder. Reads nothing before `start()`.

    Args:
        name: what the log calls it.
        intake: takes its bytes.
        hub: says when a hold ends.
        loop: the event loop.
        clock: returns the time as the hub has it.
    """

    def __init__(
        self,
        name: str,
        intake: Intake[Any],
        hub: Hub,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.closed = False
        self._intake = intake
        self._hub = hub
        self._loop = loop
        self._clock = clock
        self._ended = False
        self._draining = False
        self._confirming = False  # answers wait for the disk
        self._state = State.IDLE

    def start(self) -> None:
        """Begin to read."""
        self._watch(True)

    def drain(self) -> None:
        """Publish what has been read, but for what is held, and close once that is answered."""
        self._draining = True
        self._guarded(self._work_off)
        if self._confirming:
            self._watch(False)
        else:
            self.close()

    def close(self) -> None:
        """Stop at once. What is not published yet is not acknowledged either."""
        if not self.closed:
            self.closed = True
            self._watch(False)
            self._intake.abandon()
            self._release()

    # What subclasses are to give.

    def _read(self) -> bytes | None:
        """Return the bytes of one read; empty at the end of input, None when there is nothing yet."""
        raise NotImplementedError

    def _at_end(self) -> bool:
        """Tell whether the end of input is final; called at each."""
        return True

    def _watch(self, reading: bool) -> None:
        """Have `_on_readable` called whenever there is something to read, or no longer; idempotent."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of the descriptor."""
        raise NotImplementedError

    def _room(self) -> int:
        """Return how many bytes of answers can be taken."""
        return ANSWER_BYTES_MAX

    def _answer(self, answers: bytes) -> None:
        """Send answers, or keep them to be sent."""

    def _finish(self) -> None:
        """Close: the input is over and all of it published."""
        self.close()

    # The outermost callbacks.

    def _on_readable(self) -> None:
        self._guarded(self._receive)

    def _on_turn(self) -> None:
        self._guarded(self._turn)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step as the outermost callback: whatever is wrong with it ends this feeder alone."""
        if self.closed:
            return
        try:
            step()
        except Exception:
            _logger.exception("%s: closed after an error in relay", self.name)
            self._fail()

    def _on_release(self) -> None:
        # The hub is in the midst of its own work: publishing has to wait for the next turn.
        self._loop.call_soon(self._on_turn)

    def _receive(self) -> None:
        data = self._read()
        if data is None:
            self._watch(True)
            return
        if data:
            self._intake.receive(data)
        else:
            self._ended = self._at_end()
            self._intake.receive_end()
        self._turn()

    # Passing to another process.

    def _packed(self, unsent: bytes) -> PackedFeeder:
        """Describe what has been read and is not published; only of a feeder whose input is lines."""
        intake = self._intake
        assert isinstance(intake.splitter, LineSplitter)
        return PackedFeeder(*intake.pack(), *intake.splitter.pack(), intake.answering, unsent, self._ended)

    def _go_on(self, packed: PackedFeeder) -> None:
        """Publish what another process has read, then read on."""
        intake = self._intake
        assert isinstance(intake.splitter, LineSplitter)
        intake.adopt(packed.number, packed.items)
        intake.splitter.adopt(packed.unfinished, packed.refusing)
        intake.answering = packed.answering
        self._ended, self._state = packed.ended, State.BUSY
        self._loop.call_soon(self._on_turn)

    # A turn.

    def _turn(self) -> None:
        if self._draining:
            return
        self._state = self._work()
        if self._state is State.IDLE and not self._ended:
            self._watch(True)
            return
        self._watch(False)
        if self._state is State.BUSY:
            self._loop.call_soon(self._on_turn)
        elif self._state is State.HELD:
            self._hub.on_release(self._on_release)
        elif self._state is State.IDLE and not self._confirming:
            self._finish()

    def _work(self) -> State:
        """Do one turn's work and answer it."""
        self._state = State.BUSY
        state = self._intake.work(self._clock(), 0 if self._confirming else self._room())
        answers = self._intake.take_answers()
        if answers:
            self._confirming = True
            self._hub.confirm(partial(self._confirmed, answers))
        return State.BUSY if state is State.FULL and not self._confirming and self._room() else state

    def _confirmed(self, answers: bytes) -> None:
        """Send answers, now or once the disk has what they are for, and go on with what waited for that."""
        self._confirming = False
        if self.closed:
            return
        self._answer(answers)
        if self._draining and self._state is not State.BUSY:
            self.close()
        elif self._room():
            self._answered()

    def _work_off(self) -> None:
        while self._work() is State.BUSY:
            pass

    def _answered(self) -> None:
        """Go on: no answer waits any more."""
        if self._state is State.FULL:
            self._state = State.BUSY
            self._loop.call_soon(self._on_turn)
        elif self._state is State.IDLE and self._ended:
            self._finish()

    def _fail(self) -> None:
        """Close after an error in relay."""
        self.close()
