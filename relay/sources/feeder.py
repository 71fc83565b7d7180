"""The feeder: reads one descriptor and passes the bytes to its intake.

Theory of operation. A feeder reads at most `READ_BYTES`, then runs turns of the intake until the intake is idle, then
reads again. It does not read while the intake is busy, held or full. The kernel's buffer then fills, and the writer
at the other end blocks. Other callbacks of the event loop run between two turns.

    reading ── bytes ──► turn ─┬─ idle ───────────► reading, or finished at the end of input
                          ▲    ├─ busy: call_soon ─┐
                          │    ├─ held: on_release ─┤
                          │    └─ full: room ───────┤
                          └─────────────────────────┘

Answers are sent once the sink confirms the events that they acknowledge, which may wait for the disk. Until then, the
intake has no room for further answers.

Owns this order. Subclasses read the descriptor, watch it and send answers. Never parses or publishes.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

import msgspec

from relay.sources.intake import ANSWER_BYTES_MAX, Intake, State
from relay.sources.lines import LineSplitter
from relay.sources.sink import EventSink

READ_BYTES = 64 * 1024
"""Largest read. `READ_BYTES` and `TURN_LINES` limit the work of one turn."""

_logger = logging.getLogger("relay.sources.feeder")


class PackedFeeder(msgspec.Struct, frozen=True, array_like=True):
    """The state of one feeder, for another process: input not published yet, and answers not sent yet."""

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
        name: name in log lines.
        intake: parses and publishes the bytes.
        sink: publishes the events; reports when a hold ends.
        loop: the event loop.
        clock: returns the hub's `now_s`.
    """

    def __init__(
        self,
        name: str,
        intake: Intake[Any],
        sink: EventSink,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.closed = False
        self._intake = intake
        self._sink = sink
        self._loop = loop
        self._clock = clock
        self._ended = False
        self._draining = False
        self._confirming = False  # answers wait until the hub confirms their events
        self._state = State.IDLE

    def start(self) -> None:
        """Begin to read."""
        self._watch(True)

    def drain(self) -> None:
        """Publish the input read so far, except on held topics, and close once the answers are sent."""
        self._draining = True
        self._guarded(self._work_off)
        if self._confirming:
            self._watch(False)
        else:
            self.close()

    def close(self) -> None:
        """Close at once. Input that is not published yet is not acknowledged."""
        if not self.closed:
            self.closed = True
            self._watch(False)
            self._intake.abandon()
            self._release()

    # Subclasses implement these.

    def _read(self) -> bytes | None:
        """Return the bytes of one read: empty at the end of input, None if no input is available."""
        raise NotImplementedError

    def _at_end(self) -> bool:
        """Return whether this end of input is final. Called at each end of input."""
        return True

    def _watch(self, reading: bool) -> None:
        """Start or stop calling `_on_readable` when the descriptor is readable; idempotent."""
        raise NotImplementedError

    def _release(self) -> None:
        """Release the descriptor."""
        raise NotImplementedError

    def _room(self) -> int:
        """Return the free space for answers, in bytes."""
        return ANSWER_BYTES_MAX

    def _answer(self, answers: bytes) -> None:
        """Send answers, or buffer them until they can be sent."""

    def _finish(self) -> None:
        """Close, after all input is read and published."""
        self.close()

    # The outermost callbacks.

    def _on_readable(self) -> None:
        self._guarded(self._receive)

    def _on_turn(self) -> None:
        self._guarded(self._turn)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step of this feeder. If it fails, log the error and close this feeder only."""
        if self.closed:
            return
        try:
            step()
        except Exception:
            _logger.exception("%s: closed after an internal error", self.name)
            self._fail()

    def _on_release(self) -> None:
        # The sink calls this while it works; do not publish before it has finished.
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
        """Return the state of the feeder. Its input must be lines."""
        intake = self._intake
        assert isinstance(intake.splitter, LineSplitter)
        return PackedFeeder(*intake.pack(), *intake.splitter.pack(), intake.answering, unsent, self._ended)

    def _go_on(self, packed: PackedFeeder) -> None:
        """Restore the state of another process's feeder: publish its input, then read."""
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
            self._sink.on_release(self._on_release)
        elif self._state is State.IDLE and not self._confirming:
            self._finish()

    def _work(self) -> State:
        """Run one turn of the intake and send its answers."""
        self._state = State.BUSY
        state = self._intake.work(self._clock(), 0 if self._confirming else self._room())
        if self._intake.has_answers and not self._confirming:
            self._confirming = True
            self._sink.confirm(self._confirmed)
        return State.BUSY if state is State.FULL and not self._confirming and self._room() else state

    def _confirmed(self) -> None:
        """Send the answers to events that the sink has confirmed, and continue the work that waited for them."""
        self._confirming = False
        if self.closed:
            return
        self._answer(self._intake.take_answers())
        if self._draining and self._state is not State.BUSY:
            self.close()
        elif self._room():
            self._answered()

    def _work_off(self) -> None:
        while self._work() is State.BUSY:
            pass

    def _answered(self) -> None:
        """Continue after the last answer was sent."""
        if self._state is State.FULL:
            self._state = State.BUSY
            self._loop.call_soon(self._on_turn)
        elif self._state is State.IDLE and self._ended:
            self._finish()

    def _fail(self) -> None:
        """Close after an internal error."""
        self.close()
