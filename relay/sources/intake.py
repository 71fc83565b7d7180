"""The intake: publishes the input of one feeder in order, and writes the answers.

Theory of operation. A splitter turns bytes into items: lines, or events where the input is an event stream. The intake
buffers the items of one read and publishes them in order, at most `TURN_LINES` per turn, so that one fast feeder does
not starve the others. It stops before an item whose topic is held or whose answer has no room. The owner of the
descriptor does not read again until the intake is idle. So the intake buffers at most one read and one unfinished line,
and a feeder that sends too fast is slowed down.

An item with an `ack` waits until its answer has room. A bad item without an `ack` is answered only if there is room. So
a feeder that never asks for answers and never reads them is not blocked.

Owns the order, the waiting and the answers; sans-IO. Never reads a clock.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import msgspec
from msgspec.structs import force_setattr

from relay.errors import EventError
from relay.event_json import BAD_JSON, json_error
from relay.sources.lines import NO_ACK, Line
from relay.sources.sink import EventSink, Receipt
from relay.sources.topic_signals import FeederTopics

TURN_LINES = 512
"""Items published in one turn: 2 ms, at 4 µs per event from the line to the log."""

ANSWER_BYTES_MAX = 64 * 1024
"""Limit of unsent answers, in bytes. The last answer may exceed it."""

ACK_BYTES_MAX = 1024
"""Longest `ack`, as JSON. Any number or identifier fits."""

_REASON_CHARACTERS_MAX = 200

_LATE_ANSWER_BYTES = 128
"""Assumed size of an answer that is encoded later. Most are smaller, and `ack` and id are limited."""

_encode = msgspec.json.Encoder().encode


Item = TypeVar("Item")


class Splitter(Protocol[Item]):
    """Turns bytes into items. None stands for an item that exceeds the size limit and was discarded."""

    limit: str

    @property
    def unfinished(self) -> bool:
        """Whether the input so far ends within an item."""

    def feed(self, data: bytes) -> list[Item | None]: ...

    def end(self) -> list[Item | None]: ...


class _LateAnswer(NamedTuple):
    """The answer to a line whose event gets its id later. `number` is that of the line."""

    ack: msgspec.Raw
    receipt: Receipt
    number: int


class State(Enum):
    """The state of an intake after a turn."""

    IDLE = auto()
    """Everything is published; read again."""
    BUSY = auto()
    """The turn has ended and items are left; call again on the next turn of the loop."""
    HELD = auto()
    """The topic of the next item is held; call again when the hub releases it."""
    FULL = auto()
    """The answer to the next item has no room; call again when the answers are sent."""


class Intake(Generic[Item]):
    """Buffers and publishes the input of one feeder.

    Args:
        splitter: turns bytes into items.
        parse: turns an item into an event; raises EventError or an error of `BAD_JSON`.
        sink: publishes the events.
        topic: topic of events that name none.
        report: called for each item that is not published, with its kind (`line`, `json`, `event`, `unpublished`),
            its number and a printable reason.
        answering: whether to write answers; may be set to False at any time.
        foreign: whether the events come from another server, which chose their ids and may itself be a relay.
    """

    def __init__(
        self,
        splitter: Splitter[Item],
        parse: Callable[[Item], Line],
        sink: EventSink,
        topic: str,
        report: Callable[[str, int, str], None],
        answering: bool,
        *,
        foreign: bool = False,
    ) -> None:
        self.answering = answering
        self.topics: FeederTopics | None = None  # set if the feeder receives signals
        self._publish = partial(sink.publish_one, foreign=True) if foreign else sink.publish_one
        self.splitter = splitter
        self._parse = parse
        self._held = sink.held
        self._topic = topic
        self._report = report
        self._items: list[Item | None] = []
        self._done = 0  # items that are done
        self._number = 0  # number of the last item done, counted from the first byte
        self._begins = True  # the next item is the first of a writer
        self._answers: list[bytes | _LateAnswer] = []
        self._answer_bytes = 0

    def pack(self) -> tuple[int, list[Item | None]]:
        """Return the number of the last item done, and the items that are left."""
        return self._number, self._items[self._done :]

    def adopt(self, number: int, items: list[Item | None]) -> None:
        """Continue with the state of another intake."""
        self._number, self._items = number, items
        self._begins = number == 0 and not items

    def receive(self, data: bytes) -> None:
        """Add the bytes of one read. Call only when the intake is idle."""
        self._items += self.splitter.feed(data)
        self._skip_mark()

    def receive_end(self) -> None:
        """Add the end of input, or of one writer of a FIFO. The last line needs no LF."""
        self._items += self.splitter.end()
        self._skip_mark()
        self._begins = True

    def abandon(self) -> None:
        """Report the input that was read but will not be published because its source is closed."""
        waiting = len(self._items) - self._done
        for place in range(waiting):
            self._report("unpublished", self._number + place + 1, "not published: its source closed first")
        if self.splitter.unfinished:
            self._report("unpublished", self._number + waiting + 1, "not published: incomplete when its source closed")

    def _skip_mark(self) -> None:
        """Remove a byte order mark from the first line of a writer. The decoder of event streams removes its own."""
        if self._begins and self._items:
            self._begins = False
            if isinstance(first := self._items[0], bytes):
                self._items[0] = cast(Item, first.removeprefix(BOM_UTF8))

    @property
    def has_answers(self) -> bool:
        """Whether there are answers to take."""
        return bool(self._answers)

    def take_answers(self) -> bytes:
        """Return the answers written since the last call, in order, each as one line of JSON.

        Call only when the sink has confirmed the events, because an id may be assigned until then.
        """
        answers = b"".join(each if isinstance(each, bytes) else self._late(each) for each in self._answers)
        self._answers.clear()
        self._answer_bytes = 0
        return answers

    def work(self, now_s: float, answer_bytes_max: int) -> State:
        """Publish the next items, at most `TURN_LINES`.

        Args:
            now_s: time on the hub's clock.
            answer_bytes_max: free space for answers; 0 while earlier answers are unsent.
        """
        parse, held, publish, topics = self._parse, self._held, self._publish, self.topics
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
                    # Only this function refers to the event, so it may be changed; a copy would cost twice as much.
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
                if topics is not None and topic not in topics.names:
                    topics.add(topic)
                if ack is not NO_ACK and self.answering:
                    if isinstance(id, str):
                        self._answer({"ack": ack, "id": id})
                    else:
                        self._answers.append(_LateAnswer(ack, id, self._number + done + 1))
                        self._answer_bytes += _LATE_ANSWER_BYTES
            done += 1
        self._number += done
        self._done += done
        if self._done < len(self._items):
            return state or State.BUSY
        self._items = []
        self._done = 0
        return State.IDLE

    def _refuse(self, item: Item | None, error: Exception, number: int, has_room: bool) -> bool:
        """Report a bad item and answer it. Return False, with no effect, if its answer has no room."""
        ack = NO_ACK
        if isinstance(item, bytes):
            if not item.strip():
                return True
            ack = _readable_ack(item)
        if ack is not NO_ACK and self.answering and not has_room:
            return False
        kind, reason = self._explain(error, item)
        self._report(kind, number, reason)
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

    def _late(self, answer: _LateAnswer) -> bytes:
        """Encode the answer to a line whose event got its id after it was published."""
        error = answer.receipt.error
        if error is None:
            return _encode({"ack": answer.ack, "id": answer.receipt.id}) + b"\n"
        reason = _printable(str(error))
        return _encode({"error": reason, "line": answer.number, "ack": answer.ack}) + b"\n"

    def _answer(self, answer: dict[str, object]) -> None:
        line = _encode(answer) + b"\n"
        self._answers.append(line)
        self._answer_bytes += len(line)


class _Ack(msgspec.Struct):
    """The part of a rejected line that is parsed."""

    ack: msgspec.Raw = NO_ACK


_parse_ack = msgspec.json.Decoder(_Ack).decode


class _TooLongError(Exception):
    """The item exceeds the size limit and was discarded."""


def _check_ack(ack: msgspec.Raw) -> None:
    """Reject an `ack` that cannot be returned. The decoder has not checked it."""
    text = bytes(ack)
    if len(text) > ACK_BYTES_MAX:
        raise EventError("ack", f"longer than {ACK_BYTES_MAX} bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise EventError("ack", "invalid UTF-8") from None


def _readable_ack(line: bytes) -> msgspec.Raw:
    """Return the `ack` of a rejected line, or `NO_ACK` if it cannot be parsed or returned."""
    try:
        ack = _parse_ack(line).ack
        _check_ack(ack)
    except (EventError, *BAD_JSON):
        return NO_ACK
    return ack


def _printable(text: str) -> str:
    """Shorten text that may quote input, and replace unprintable characters, for one line of the log."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_REASON_CHARACTERS_MAX]
    )
