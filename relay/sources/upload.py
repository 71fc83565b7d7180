"""Uploads: publish requests that stay open, whose lines are published as they arrive.

Theory of operation. The connection passes the bytes of the body to `receive`, then calls `fill` until there is no line
left. Between two calls it publishes one batch of lines, and reads nothing until the batch is published. So an upload
takes the memory of one read and one unfinished line, and a publisher that sends too fast is slowed down, also by a
topic that a `block` stream holds.

A batch is published as a whole. If an event of it is rejected, its halves are published one after the other, down to
single events. So each rejected line is known, and the other lines are published in order.

Owns the lines of one request, their results and the report at the end; sans-IO, apart from the timer of the rate limit.
Never parses a head, and never responds.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Any

import msgspec

from relay.errors import EventError, RelayError, RequestError
from relay.event import Event
from relay.http.coding import BodyDecoder
from relay.http.idempotency import number_key
from relay.sources.body import LineFormat, with_defaults
from relay.sources.requests import BatchPublisher, Cancel, TakeDone, nothing
from relay.sources.topic_signals import FeederTopics

BATCH_LINES_MAX = 256
"""Lines that are published together, and so the work of one turn."""
FILL_PIECES_MAX = 4
"""Decoded pieces that `fill` splits into lines in one call. Compressed input may have many of them in one line."""
ERRORS_MAX = 10
"""Rejected lines that the report of an upload lists; the others are counted."""

REASON_CHARACTERS_MAX = 200
"""Longest error of a line; it may quote input."""

_encode = msgspec.json.Encoder().encode


class Upload:
    """One open publish request.

    Args:
        format: the format of the body.
        decoder: decodes the content coding; None for none.
        publisher: publishes the batches.
        check: raises RequestError if the publisher may not publish an event.
        rate: takes a number of events from the publish rate of the publisher.
        counts: counts the lines that are published and rejected, for the metrics.
        loop: runs the timer of the rate limit.
        dedup: dedup key of the request, which is numbered for events that have none; None for none.
        answering: whether each line is answered.
    """

    def __init__(
        self,
        format: LineFormat,
        decoder: BodyDecoder | None,
        publisher: BatchPublisher,
        check: Callable[[Event], None],
        rate: Callable[[int, TakeDone], Cancel],
        counts: dict[str, int],
        loop: AbstractEventLoop,
        *,
        dedup: str | None = None,
        answering: bool = False,
    ) -> None:
        self.answering = answering
        self.topics: FeederTopics | None = None  # set if the publisher receives signals
        self.is_paced = False  # the current batch waits for the rate limit, and can be cancelled without a loss
        self.decoding = False  # `fill` has stopped before the end of the input; call it again
        self.published = 0
        self.rejected = 0
        self.publisher = publisher
        self.check = check
        self.rate = rate
        self.loop = loop
        self._format = format
        self._decoder = decoder
        self._counts = counts
        self._dedup = dedup
        self._input = b""
        self._input_ended = False
        self._items: list[Any] = []
        self._place = 0  # of the next item
        self._lines = 0  # lines that are done
        self._begins = True  # the next item is the first
        self._ended = False
        self._last_id = ""
        self._errors: list[dict[str, object]] = []
        self._answers: list[bytes] = []

    # Input

    @property
    def ended(self) -> bool:
        """Whether the body is complete and all of its lines are done."""
        return self._ended and self._place == len(self._items)

    @property
    def unfinished(self) -> bool:
        """Whether the input so far ends within a line."""
        return self._format.splitter.unfinished

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Add a part of the body. Call only when `fill` has returned False, and `decoding` is False.

        Args:
            data: the part, as received.
            ended: whether the body is complete.
        """
        self._input_ended = ended
        if self._decoder is None:
            self._input = data
        else:
            self._decoder.feed(data)

    def fill(self) -> bool:
        """Split the input into lines, unless there are lines; return whether there are.

        One call decodes at most `FILL_PIECES_MAX` pieces. If there are no lines then, `decoding` is True.

        Raises:
            RequestError: 400 the body is not valid in its content coding; 413 it expands too much.
        """
        self.decoding = False
        for _ in range(FILL_PIECES_MAX):
            if self.ended or self._place < len(self._items):
                break
            data, self._input = self._input, b""
            if self._decoder is not None:
                data = self._decoder.read()
            if data:
                self._take(self._format.splitter.feed(data))
            elif self._input_ended:
                self._ended = True
                if self._decoder is not None:
                    self._decoder.end()
                self._take(self._format.splitter.end())
            else:
                return False
        has_lines = self._place < len(self._items)
        self.decoding = not has_lines and not self.ended
        return has_lines

    def _take(self, items: list[Any]) -> None:
        self._items, self._place = items, 0
        if self._begins and items:
            self._begins = False
            if isinstance(items[0], bytes):
                items[0] = items[0].removeprefix(BOM_UTF8)

    # Publishing

    def publish(self, done: Callable[[RelayError | None], None]) -> Cancel:
        """Publish the next lines, at most `BATCH_LINES_MAX`.

        Args:
            done: called once, when each of the lines is published or rejected, or with an error that ends the upload;
                maybe before this returns.

        Returns:
            A function that cancels. Lines that are not published by then are never published.
        """
        items = self._items[self._place : self._place + BATCH_LINES_MAX]
        batch = _Batch(self, done)
        for number, item in enumerate(items, self._lines + 1):
            try:
                batch.add(number, self._parse(number, item))
            except (EventError, RequestError) as error:
                batch.reject(number, error)
        batch.start()
        return batch.cancel

    def _parse(self, number: int, item: Any) -> Event | None:
        if item is None:
            raise EventError("event", self._format.splitter.limit)
        event = self._format.parse(item)
        if event is None:
            return None
        self.check(event)
        return event if self._dedup is None else with_defaults(event, None, number_key(self._dedup, number))

    def note(self, number: int, result: str | RelayError | None) -> None:
        """Record the result of the next line: its id, its error, or None if it is empty."""
        self._lines = number
        self._place += 1
        if isinstance(result, str):
            self.published += 1
            self._counts["published"] += 1
            self._last_id = result
            if self.answering:
                self._answers.append(_encode({"line": number, "id": result}))
        elif result is not None:
            self.rejected += 1
            self._counts["rejected"] += 1
            answer: dict[str, object] = {"line": number, "error": str(result)[:REASON_CHARACTERS_MAX]}
            if self.answering:
                self._answers.append(_encode(answer))
            elif len(self._errors) < ERRORS_MAX:
                self._errors.append(answer)

    def take_answers(self) -> bytes:
        """Return the answers since the last call, each as one line of JSON."""
        answers, self._answers = self._answers, []
        return b"".join(each + b"\n" for each in answers)

    def report(self, error: RequestError | None) -> bytes:
        """Return the report at the end of the upload, as one line of JSON.

        Args:
            error: the reason why the upload ends before its body is complete; None if it is complete.
        """
        report: dict[str, object] = {
            "complete": error is None,
            "lines": self._lines,
            "published": self.published,
            "rejected": self.rejected,
        }
        if self._last_id:
            report["last_id"] = self._last_id
        if self._errors:
            report["errors"] = self._errors
        if error is not None:
            report["error"] = f"{error}; the lines after line {self._lines} are not published"
        return _encode(report) + b"\n"


class _Batch:
    """The lines of one batch, until each of them has a result."""

    __slots__ = (
        "_cancel",
        "_done",
        "_groups",
        "_is_running",
        "_is_waiting",
        "_results",
        "_timer",
        "_upload",
    )

    def __init__(self, upload: Upload, done: Callable[[RelayError | None], None]) -> None:
        self._upload = upload
        self._done: Callable[[RelayError | None], None] | None = done
        self._results: dict[int, str | RelayError | None] = {}
        self._groups: list[list[tuple[int, Event]]] = [[]]  # to publish, in order
        self._is_running = False
        self._is_waiting = False
        self._cancel: Cancel = nothing
        self._timer: TimerHandle | None = None

    def add(self, number: int, event: Event | None) -> None:
        """Add a line; None stands for an empty one."""
        if event is None:
            self._results[number] = None
        else:
            self._results[number] = ""
            self._groups[0].append((number, event))

    def reject(self, number: int, error: RelayError) -> None:
        """Add a line that cannot be published."""
        self._results[number] = error

    def start(self) -> None:
        """Publish the events, when the rate limit allows it."""
        self._timer = None
        count = len(self._groups[0])
        if not count:
            self._groups.clear()
            self._run()
            return
        self._upload.is_paced = True
        cancel = self._upload.rate(count, self._rated)
        if self._upload.is_paced:
            self._cancel = cancel

    def _rated(self, result: float | RelayError) -> None:
        self._cancel = nothing
        if isinstance(result, RelayError):
            self._upload.is_paced = False
            self._finish(result, before=self._groups[0][0][0])
        elif result:
            self._timer = self._upload.loop.call_later(result, self.start)
        else:
            self._upload.is_paced = False
            self._run()

    def cancel(self) -> None:
        """Stop; publish nothing more and do not call back."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_waiting or self._upload.is_paced:
            self._upload.is_paced = False
            self._cancel()
            self._cancel = nothing

    def _run(self) -> None:
        """Publish one group after the other. This is a loop, because results may arrive at once."""
        if self._is_running:
            return
        self._is_running = True
        while self._groups and not self._is_waiting and self._done is not None:
            self._is_waiting = True
            cancel = self._upload.publisher.publish([event for _, event in self._groups[0]], self._arrived)
            if self._is_waiting:
                self._cancel = cancel
        self._is_running = False
        if not self._groups and not self._is_waiting:
            self._finish(None)

    def _arrived(self, result: list[str] | RelayError) -> None:
        self._is_waiting = False
        self._cancel = nothing  # it refers to this object
        group = self._groups.pop(0)
        if isinstance(result, EventError) and len(group) > 1:
            middle = len(group) // 2
            self._groups[:0] = [group[:middle], group[middle:]]
        elif isinstance(result, EventError):
            self._results[group[0][0]] = result
        elif isinstance(result, RelayError):
            self._finish(result, before=group[0][0])
            return
        else:
            for (number, event), id in zip(group, result, strict=True):
                self._results[number] = id
                topics = self._upload.topics
                if topics is not None and event.topic is not None and event.topic not in topics.names:
                    topics.add(event.topic)
        self._run()

    def _finish(self, error: RelayError | None, before: int = 0) -> None:
        """Record the results, with `error` only those of the lines before a number, and call back."""
        done, self._done = self._done, None
        if done is None:
            return
        for number, result in self._results.items():
            if error is not None and number >= before:
                break
            self._upload.note(number, result)
        done(error)
