"""The intake: what one feeder sent, published in order, and the answers to it.

Theory of operation. A splitter turns bytes into items: lines, or whole events where the input is an event
stream. The intake holds the items of one read and publishes them in order, at most `TURN_LINES` a turn, so
that one fast feeder does not starve the rest. It stops in front of an item that must wait: for a topic that
is held, or for room for its answer. Whoever owns the descriptor reads no further until the intake is idle; so
one read and one unfinished line are all that is ever kept of a feeder, and a feeder that is too fast feels
it.

An item that asks for an answer (`ack`) waits for room; a bad one that does not is answered only where there
is room. So a feeder that never reads its answers, and asked for none, is never held up.

Owns the order, the waiting and the answers; sans-IO, and never tells the time.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Generic, Protocol, TypeVar, cast

import msgspec
from msgspec.structs import force_setattr

from relay.core.hub import Hub
from relay.errors import EventError
from relay.event_json import BAD_JSON, json_error
from relay.sources.lines import NO_ACK, Line

TURN_LINES = 512
"""Items published in one turn: 2 ms at the 4 µs that an event costs from the line to the log."""

ANSWER_BYTES_MAX = 64 * 1024
"""Answers that may wait for a feeder to read them, but for the last one."""

ACK_BYTES_MAX = 1024
"""Longest `ack`, as JSON: enough for any number or identifier."""

_REASON_CHARACTERS_MAX = 200

_encode = msgspec.json.Encoder().encode


Item = TypeVar("Item")


class Splitter(Protocol[Item]):
    """Turns bytes into items. None stands for one that was refused because it is longer than the limit."""

    limit: str

    @property
    def unfinished(self) -> bool:
        """Whether an item has begun and its end has not come."""

    def feed(self, data: bytes) -> list[Item | None]: ...

    def end(self) -> list[Item | None]: ...


class State(Enum):
    """What an intake can do next."""

    IDLE = auto()
    """Everything is published: read on."""
    BUSY = auto()
    """The turn is over; call again, after the others."""
    HELD = auto()
    """The next item's topic is held; call again on release."""
    FULL = auto()
    """The next item's answer has no room; call again when the answers are sent."""


class Intake(Generic[Item]):
    """What one feeder sent and is not published yet.

    Args:
        splitter: turns its bytes into items.
        parse: turns an item into an event; raises EventError or one of `BAD_JSON`.
        hub: takes the events.
        topic: of events that name none.
        complain: called for each item that is not published: kind (`line`, `json`, `event`, `unpublished`), number,
            and a printable reason.
        answering: whether there is anyone to answer; may be set to False at any time.
        foreign: the events are another server's, which chose their ids and may be a relay itself.
    """

    def __init__(
        self,
        splitter: Splitter[Item],
        parse: Callable[[Item], Line],
        hub: Hub,
        topic: str,
        complain: Callable[[str, int, str], None],
        answering: bool,
        *,
        foreign: bool = False,
    ) -> None:
        self.answering = answering
        self._publish = partial(hub.publish_one, foreign=True) if foreign else hub.publish_one
        self.splitter = splitter
        self._parse = parse
        self._hub = hub
        self._topic = topic
        self._complain = complain
        self._items: list[Item | None] = []
        self._done = 0  # of the items
        self._number = 0  # of the last item that was done, from the first byte on
        self._begins = True  # the next item is the first one of a writer
        self._answers: list[bytes] = []
        self._answer_bytes = 0

    def pack(self) -> tuple[int, list[Item | None]]:
        """Return the number of the last item that was done, and those that were not."""
        return self._number, self._items[self._done :]

    def adopt(self, number: int, items: list[Item | None]) -> None:
        """Go on where another intake stopped."""
        self._number, self._items = number, items
        self._begins = number == 0 and not items

    def receive(self, data: bytes) -> None:
        """Take the bytes of one read. Only to be called when idle."""
        self._items += self.splitter.feed(data)
        self._skip_mark()

    def receive_end(self) -> None:
        """Take note of the end of input, or of a FIFO's writer; the last line needs no LF."""
        self._items += self.splitter.end()
        self._skip_mark()
        self._begins = True

    def abandon(self) -> None:
        """Report what has been read and will not be published, since its source is closed."""
        waiting = len(self._items) - self._done
        for place in range(waiting):
            self._complain("unpublished", self._number + place + 1, "was read, but its source closed before its turn")
        if self.splitter.unfinished:
            self._complain("unpublished", self._number + waiting + 1, "was not complete when its source closed")

    def _skip_mark(self) -> None:
        """Skip a byte order mark before a writer's first line; the decoder of event streams does so by itself."""
        if self._begins and self._items:
            self._begins = False
            if isinstance(first := self._items[0], bytes):
                self._items[0] = cast(Item, first.removeprefix(BOM_UTF8))

    def take_answers(self) -> bytes:
        """Return the answers since the last call, in order, each one line of JSON."""
        answers = b"".join(self._answers)
        self._answers.clear()
        self._answer_bytes = 0
        return answers

    def work(self, now_s: float, answer_bytes_max: int) -> State:
        """Publish the next items, at most `TURN_LINES`.

        Args:
            now_s: the time, as the hub has it.
            answer_bytes_max: room for answers; 0 when the feeder has not read the last ones.
        """
        parse, held, publish = self._parse, self._hub.held, self._publish
        state = None
        done = 0
        for item in self._items[self._done : self._done + TURN_LINES]:
            has_room = self._answer_bytes < answer_bytes_max
            ack = NO_ACK
            try:
                if item is None:
                    raise _TooLongError
                line = parse(item)
                ack = line.ack
                topic = line.topic
                if topic is None:
                    topic = self._topic
                    # Nobody else has this event yet; a copy would cost twice as much.
                    force_setattr(line, "topic", topic)
                if held(topic):
                    state = State.HELD
                    break
                if ack is not NO_ACK and self.answering:
                    if not has_room:
                        state = State.FULL
                        break
                    _check_ack(ack)
                id = publish(line, now_s)
            except (EventError, _TooLongError, *BAD_JSON) as error:
                if not self._refuse(item, error, self._number + done + 1, has_room):
                    state = State.FULL
                    break
            else:
                if ack is not NO_ACK and self.answering:
                    self._answer({"ack": ack, "id": id})
            done += 1
        self._number += done
        self._done += done
        if self._done < len(self._items):
            return state or State.BUSY
        self._items = []
        self._done = 0
        return State.IDLE

    def _refuse(self, item: Item | None, error: Exception, number: int, has_room: bool) -> bool:
        """Complain of a bad item and answer it; return False, having done nothing, where that has no room."""
        ack = NO_ACK
        if isinstance(item, bytes):
            if not item.strip():
                return True
            ack = _readable_ack(item)
        if ack is not NO_ACK and self.answering and not has_room:
            return False
        kind, reason = self._explain(error, item)
        self._complain(kind, number, reason)
        if self.answering and has_room:
            answer: dict[str, object] = {"error": reason, "line": number}
            if ack is not NO_ACK:
                answer["ack"] = ack
            self._answer(answer)
        return True

    def _explain(self, error: Exception, item: Item | None) -> tuple[str, str]:
        if isinstance(error, _TooLongError):
            return "line", self.splitter.limit
        if isinstance(error, EventError):
            return "event", _printable(str(error))
        assert isinstance(item, bytes)
        return "json", _printable(str(json_error(error, item)))

    def _answer(self, answer: dict[str, object]) -> None:
        line = _encode(answer) + b"\n"
        self._answers.append(line)
        self._answer_bytes += len(line)


class _Ack(msgspec.Struct):
    """What is read of a line that is refused."""

    ack: msgspec.Raw = NO_ACK


_parse_ack = msgspec.json.Decoder(_Ack).decode


class _TooLongError(Exception):
    """The item is longer than the limit, and so was not kept."""


def _check_ack(ack: msgspec.Raw) -> None:
    """Refuse an `ack` that cannot be given back: the decoder only skipped over it."""
    text = bytes(ack)
    if len(text) > ACK_BYTES_MAX:
        raise EventError("ack", f"longer than {ACK_BYTES_MAX} bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise EventError("ack", "invalid UTF-8") from None


def _readable_ack(line: bytes) -> msgspec.Raw:
    """Return the `ack` of a line that is refused, or `NO_ACK` where it cannot be read or given back."""
    try:
        ack = _parse_ack(line).ack
        _check_ack(ack)
    except (EventError, *BAD_JSON):
        return NO_ACK
    return ack


def _printable(text: str) -> str:
    """Make text that may quote a feeder's fit for one line of the log."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_REASON_CHARACTERS_MAX]
    )
