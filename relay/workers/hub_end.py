"""The hub's end of a link: reads the log for one edge, with a cursor; sans-IO.

Theory of operation. The edge sends Hello. The hub replies with Begin and continues from its oldest entry. When all
earlier bytes are sent, the connection calls `take` for the next ones: replies first, then entries from the cursor on,
one segment at a time. So an edge that does not read occupies one segment and delays no other edge. If the log evicts
entries that the edge has not received, the edge is lapped: it receives another Begin and starts a new log.

Owns the cursor, the pending requests of its edge, and the terms that the edge holds. Never waits, never publishes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from relay.core.holds import HOLDS_MAX
from relay.core.hub import Hub
from relay.core.index import SEGMENT_BYTES
from relay.core.log import Entry, Log
from relay.errors import EventError, RelayError, RequestError
from relay.event import Event
from relay.event_json import parse_events
from relay.sources.requests import Cancel, Done, TakeDone, nothing
from relay.telemetry import logs
from relay.telemetry.topics import TopicsQuery
from relay.topic import JOINT, check_term
from relay.workers.messages import (
    VERSION,
    Answer,
    Ask,
    Beat,
    Begin,
    Drain,
    EndedTopics,
    EvictedMarks,
    Find,
    Found,
    Head,
    Hello,
    LinkError,
    Message,
    Parser,
    Published,
    PublishRequest,
    RateAnswer,
    RateRequest,
    Refuse,
    Refused,
    Report,
    SkipTo,
    Status,
    TopicSignal,
    encode,
    encode_entry,
)

REPLY_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of replies that an edge has not read; above this limit the hub stops reading from the edge."""

REQUESTS_MAX = 1000
"""Pending publish requests of one edge; above this limit they fail with 503."""

ENDED_PER_MESSAGE = 50
"""Topics in one message, so that its size is below the smallest limit that an edge can have."""

IDS_PER_MESSAGE = 16
"""Evicted ids in one message, for the same reason."""

EVICTED_PER_TURN = 64
"""EvictedMarks messages encoded in one call of `take`: less than a millisecond."""

R = TypeVar("R")
T = TypeVar("T", bound=Iterable[str])


class RequestHandler(Protocol):
    """Handles the requests of edges."""

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish all events or none; call `done` once with their ids or an error."""

    def take_rate(self, subject: str, count: int, done: TakeDone) -> Cancel:
        """Take events from the publish rate of a subject; call `done` once."""

    def find(
        self, terms: tuple[str, ...], ids: tuple[str, ...], done: Callable[[int | RelayError | None], None]
    ) -> Cancel:
        """Find the sequence of a subscription's last id; call `done` once."""

    def head(self, done: Callable[[int | RelayError], None]) -> Cancel:
        """Get the sequence of the next event; call `done` once."""

    def signal(self, topic: str, value: bytes) -> None:
        """Send a signal to the feeders of a topic."""

    def ask(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes], None]) -> None:
        """Build a report of all processes; call `done` once with the body."""


class Chunks:
    """Encodes the entries from a cursor on, once for all links with the same cursor.

    Args:
        log: the log to read.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._at: tuple[str, int] = ("", 0)
        self._chunk = (b"", 0)

    def after(self, cursor: int) -> tuple[bytes, int]:
        """Return the next entries, encoded, and the cursor after them.

        The entries stop after `SEGMENT_BYTES`, but there is at least one if the log has one.

        Args:
            cursor: a sequence, not below the log's tail.
        """
        log = self._log
        if cursor >= log.head:
            return b"", cursor
        if self._at != (log.epoch, cursor):
            parts, size, place = [], 0, cursor
            while place < log.head and size < SEGMENT_BYTES:
                following = log.following(place)
                if following > place:
                    parts.append(encode(SkipTo(sequence=following)))
                    place = following
                    continue
                part = encode_entry(log.entry(following))
                parts.append(part)
                size += len(part)
                place += 1
            self._at, self._chunk = (log.epoch, cursor), (b"".join(parts), place)
        return self._chunk


class Downlink:
    """The hub's state of the link to one edge.

    Args:
        hub: the hub whose log the edge follows.
        chunks: shared by all links of the hub.
        handler: handles the edge's requests.
        bytes_max: longest message that the edge may send.
        clock: returns the hub's time.
        wake: called when `take` has something to return.
    """

    def __init__(
        self,
        hub: Hub,
        chunks: Chunks,
        handler: RequestHandler,
        *,
        bytes_max: int,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.linked = False
        self.closing = False  # close the connection once all output is written
        self.status = Status(sequence=0, streams=0, ready=False, holding=[])
        self.heard_s = clock()
        self._hub = hub
        self._chunks = chunks
        self._handler = handler
        self._clock = clock
        self._wake = wake
        self._parser = Parser(bytes_max)
        self._epoch = ""
        self._cursor = 0
        self._replies: list[bytes] = []
        self._reply_bytes = 0
        self._beat_due = False
        self._draining = False
        self._leaving = False
        self._requests: dict[int, Cancel] = {}
        self._asked: dict[int, Callable[[bytes | RelayError], None]] = {}
        self._number = 0
        self._evicted: Iterator[bytes] = iter(())  # EvictedMarks to send before the next entry

    @property
    def lag_events(self) -> int:
        """The number of entries that the edge has not acknowledged."""
        return max(0, self._hub.log.head - self.status.sequence) if self.linked else 0

    @property
    def full(self) -> bool:
        """Whether the edge must read replies before the hub reads more requests."""
        return self._reply_bytes > REPLY_BYTES_MAX

    # Received messages

    def receive(self, data: bytes) -> None:
        """Process bytes from the edge.

        Raises:
            LinkError: the edge violated the protocol; close the connection.
        """
        self.heard_s = self._clock()
        for message in self._parser.feed(data):
            if self.closing:
                return
            if isinstance(message, Hello):
                self._hello(message)
            elif not self.linked:
                raise LinkError("the first message is not Hello")
            else:
                self._receive(message)

    def _hello(self, hello: Hello) -> None:
        if self.linked:
            raise LinkError("received a second Hello")
        if hello.version == VERSION:
            self.linked = True
            self._wake()
        else:
            reason = f"the edge uses version {hello.version} of the link protocol, the hub version {VERSION}"
            self._reply(Refuse(reason=reason))
            self.closing = True

    def _receive(self, message: Message | Entry) -> None:
        if isinstance(message, Status):
            self.status = message
            if len(message.holding) > HOLDS_MAX:
                raise LinkError(f"an edge holds {len(message.holding)} terms; the limit is {HOLDS_MAX}")
            self._hub.holds.hold(self, _checked(message.holding))
        elif isinstance(message, PublishRequest):
            self._publish(message)
        elif isinstance(message, RateRequest):
            self._handler.take_rate(message.subject, message.count, partial(self._taken, message.number))
        elif isinstance(message, Find):
            self._handler.find(_checked(message.terms), message.ids, partial(self._found, message.number))
        elif isinstance(message, TopicSignal):
            with contextlib.suppress(RequestError):  # This process's own hub is unreachable; signals are not stored.
                self._handler.signal(*_checked((message.topic,)), message.value)
        elif isinstance(message, Head):
            self._handler.head(partial(self._found, message.number))
        elif isinstance(message, Ask):
            self._handler.ask(message.report, message.query, partial(self._answered, message.number))
        elif isinstance(message, Answer):
            done = self._asked.pop(message.number, None)
            if done is not None:
                done(message.body)
        else:
            raise LinkError(f"a hub must not receive {type(message).__name__}")

    def _publish(self, message: PublishRequest) -> None:
        number = message.number
        if len(self._requests) >= REQUESTS_MAX or number in self._requests:
            self._reply(Refused(number=number, status=503, reason="too many publish requests of one edge are pending"))
            return
        self._requests[number] = nothing
        try:
            events = parse_events(message.events)
        except EventError as error:
            self._published(number, error)
            return
        cancel = self._handler.publish(events, partial(self._published, number))
        if number in self._requests:
            self._requests[number] = cancel

    def _published(self, number: int, result: list[str] | RelayError) -> None:
        if self._requests.pop(number, None) is not None:
            self._respond(number, result, lambda ids: Published(number=number, ids=ids))

    def _taken(self, number: int, result: float | RelayError) -> None:
        self._respond(number, result, lambda wait_s: RateAnswer(number=number, wait_s=wait_s))

    def _found(self, number: int, result: int | RelayError | None) -> None:
        self._respond(number, result, lambda sequence: Found(number=number, sequence=sequence))

    def _respond(self, number: int, result: R | RelayError, answer: Callable[[R], Message]) -> None:
        self._reply(_refused(number, result) if isinstance(result, RelayError) else answer(result))

    def _answered(self, number: int, body: bytes) -> None:
        self._reply(Answer(number=number, body=body))

    def lost(self) -> None:
        """Release the terms that the edge holds and cancel its requests."""
        self.linked, self.closing = False, True
        self._hub.log.needed.pop(self, None)
        self._hub.holds.hold(self, ())
        requests, self._requests = self._requests, {}
        for cancel in requests.values():
            cancel()
        asked, self._asked = self._asked, {}
        for done in asked.values():
            done(RequestError(502, "the link to the worker is lost"))

    # Output

    def take(self) -> bytes:
        """Return the next bytes to write: replies, then at most one segment of entries; empty if there are none."""
        parts, self._replies, self._reply_bytes = self._replies, [], 0
        log = self._hub.log
        if self._beat_due and not self.closing:
            self._beat_due = False
            parts.append(encode(Beat(head=log.head, leaving=self._leaving, log_level=logs.current_level())))
        if self.linked and self._hub.begun and not self.closing:
            if self._epoch != log.epoch or self._cursor < log.tail:
                self._epoch, self._cursor = log.epoch, log.tail
                log.needed[self] = self._cursor
                parts.append(encode(self._begin()))
                self._evicted = self._encode_evicted()
                ended = self._hub.ended.known()
                parts += [
                    encode(EndedTopics(topics=ended[at : at + ENDED_PER_MESSAGE]))
                    for at in range(0, len(ended), ENDED_PER_MESSAGE)
                ]
            evicted = b"".join(islice(self._evicted, EVICTED_PER_TURN))
            if evicted:
                parts.append(evicted)
            else:
                data, self._cursor = self._chunks.after(self._cursor)
                log.needed[self] = self._cursor
                parts.append(data)
            if self._draining and not evicted and self._cursor == log.head:
                self._draining = False
                parts.append(encode(Drain()))
        return b"".join(parts)

    def _encode_evicted(self) -> Iterator[bytes]:
        """Yield the log's current marks of evicted entries, in messages that every edge accepts."""
        log = self._hub.log
        rest, topics, ids = log.marks.rest, log.evicted(), log.ids.evicted()
        while some := list(islice(topics, ENDED_PER_MESSAGE)):
            yield encode(EvictedMarks(topics=some, ids=[]))
        while pairs := list(islice(ids, IDS_PER_MESSAGE)):
            yield encode(EvictedMarks(topics=[], ids=pairs))
        yield encode(EvictedMarks(topics=[], ids=[], rest=rest))

    def _begin(self) -> Begin:
        log, now_s = self._hub.log, self._clock()
        evicted_s = -math.inf if self._cursor == 1 else log.time_s(log.tail) if len(log) else now_s
        return Begin(epoch=log.epoch, sequence=self._cursor, head=log.head, now_s=now_s, evicted_s=evicted_s)

    def _reply(self, message: Message) -> None:
        data = encode(message)
        self._replies.append(data)
        self._reply_bytes += len(data)
        self._wake()

    def send(self, message: Message) -> None:
        """Send a message before any entries."""
        self._reply(message)

    def signal(self, topic: str, value: bytes) -> None:
        """Send a signal to the feeders of the edge; drop it if the edge is not linked or does not read."""
        if self.linked and not self.full:
            self._reply(TopicSignal(topic=topic, value=value))

    def beat(self, silent_s: float, *, leaving: bool = False) -> None:
        """Schedule a Beat; release the terms of an edge that has been silent for `silent_s`."""
        self._leaving = leaving
        self._beat_due = self.linked
        if self.linked and self._clock() - self.heard_s > silent_s:
            self._hub.holds.hold(self, ())

    def ask(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes | RelayError], None]) -> None:
        """Ask the edge for a report of its process."""
        self._number += 1
        self._asked[self._number] = done
        self._reply(Ask(number=self._number, report=report, query=query))

    def drain(self) -> None:
        """Send the rest of the log, then tell the edge to drain."""
        self._draining = True
        self._wake()


def _refused(number: int, error: RelayError) -> Refused:
    if isinstance(error, EventError):
        return Refused(number=number, status=error.status, reason=error.reason, field=error.field)
    status = error.status if isinstance(error, RequestError) else 500
    return Refused(number=number, status=status, reason=str(error))


def _checked(terms: T) -> T:
    try:
        for term in terms:
            for part in term.split(JOINT):
                check_term(part)
    except EventError as error:
        raise LinkError(f"an edge sent an invalid term: {error}") from None
    return terms
