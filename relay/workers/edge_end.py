"""The edge's end of a link: copies the hub's entries into the edge's log and sends requests to the hub; sans-IO.

Owns the edge's unanswered requests. Never connects, never waits. The edge's log has the same epoch and sequences as the
hub's, so that a client can resume from an id at any edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from relay.config.model import Config
from relay.core.hub import Hub
from relay.core.log import Entry
from relay.errors import RETRY_SOON, EndedError, EventError, RelayError, RequestError
from relay.event import Event
from relay.limits import Limit
from relay.sources.requests import HOLD_GRACE_S, Cancel, Done, TakeDone, nothing
from relay.telemetry import logs
from relay.telemetry.topics import TopicsQuery
from relay.workers.messages import (
    OVERHEAD_BYTES_MAX,
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
)

UNSENT_BYTES_MAX = 32 * 1024 * 1024
"""Bytes that may wait to be sent to the hub; above this limit requests fail with 503."""

OnAnswer = Callable[[Any], None]


def message_bytes_max(config: Config) -> int:
    """Return the longest message under these settings: an event and its key, or the body of a publish request.

    A text body becomes JSON, which needs six bytes for a control character.
    """
    return config.event_bytes_max + max(config.line_bytes_max, 6 * config.body_bytes_max) + OVERHEAD_BYTES_MAX


class Uplink:
    """An edge's link to its hub.

    Args:
        config: the edge's settings.
        hub: the edge's local hub, whose log receives the entries.
        clock: returns the edge's time.
        on_begun: called when a snapshot is complete.
        on_drain: called when the hub asks the edge to drain.
        answer: builds a report of this process alone, and calls back once with its body.
        on_signal: called with the topic and the value of a signal for feeders.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        *,
        clock: Callable[[], float],
        on_begun: Callable[[], None],
        on_drain: Callable[[], None],
        answer: Callable[[Report, TopicsQuery | None, Callable[[bytes], None]], None],
        on_signal: Callable[[str, bytes], None],
    ) -> None:
        self.linked = False  # the hub has sent Begin
        self._hub = hub
        self._clock = clock
        self._on_begun = on_begun
        self._on_drain = on_drain
        self._answer = answer
        self._on_signal = on_signal
        self._request_s = config.block_timeout_s + 2 * HOLD_GRACE_S
        self._bytes_max = message_bytes_max(config)
        self._parser = Parser(self._bytes_max)
        self._send: Callable[[bytes], int] | None = None
        self._unsent = 0
        self._number = 0
        self._requests: dict[int, tuple[float, OnAnswer]] = {}
        self._hub_offset_s = 0.0  # this process's time minus the hub's time
        self._newest_s = 0.0
        hub.feed(self.send_status)

    # Connection

    def connected(self, send: Callable[[bytes], int]) -> None:
        """Send Hello over the connection.

        Args:
            send: writes bytes and returns the number of bytes not sent yet.
        """
        self._send = send
        self._write(encode(Hello(version=VERSION)))

    def lost(self) -> None:
        """Record the loss of the connection and fail all unanswered requests."""
        self._send, self.linked = None, False
        self._hub.set_linked(False)
        requests, self._requests = self._requests, {}
        broken = RequestError(
            502, "the link broke before the hub answered; the request may have been carried out", RETRY_SOON
        )
        for _, done in requests.values():
            done(broken)

    def send_status(self) -> None:
        """Send Status to the hub: each second, and when the held terms change."""
        hub = self._hub
        status = Status(sequence=hub.log.head, streams=hub.engine.open, ready=hub.ready, holding=list(hub.holds.terms))
        self._write(encode(status))

    def tick(self) -> None:
        """Send Status to the hub and fail requests that have timed out."""
        self.send_status()
        now_s = self._clock()
        for number, (deadline_s, done) in list(self._requests.items()):
            if now_s >= deadline_s:
                del self._requests[number]
                done(
                    RequestError(
                        504, "the hub did not answer in time; the request may have been carried out", RETRY_SOON
                    )
                )

    # Received messages

    def receive(self, data: bytes) -> None:
        """Process bytes from the hub.

        Raises:
            LinkError: the hub violated the protocol or refused the link; close the connection.
        """
        now_s = self._clock()
        for message in self._parser.feed(data):
            if isinstance(message, Entry):
                self._entry(message, now_s)
            else:
                self._receive(message, now_s)

    def _entry(self, entry: Entry, now_s: float) -> None:
        hub = self._hub
        if not self.linked or entry.sequence != hub.log.head:
            raise LinkError(f"received entry {entry.sequence}, expected {hub.log.head}")
        if len(entry.frame) > hub.log.bytes_max:
            raise LinkError(f"an entry of {len(entry.frame)} bytes exceeds history-bytes of this edge; increase it")
        self._newest_s = max(self._newest_s, min(entry.time_s + self._hub_offset_s, now_s))
        try:
            hub.take(entry, self._newest_s)
        except EventError as error:
            raise LinkError(f"entry {entry.sequence}: {error}") from None
        if not hub.begun:
            self._check_snapshot(now_s)

    def _check_snapshot(self, now_s: float) -> None:
        if self._hub.end_snapshot():
            self._on_begun()
            self.send_status()

    def _receive(self, message: Message, now_s: float) -> None:
        if isinstance(message, Published | RateAnswer | Found | Answer | Refused):
            self._answered(message)
        elif isinstance(message, Begin):
            self._begin(message, now_s)
        elif isinstance(message, EvictedMarks):
            offset_s = self._hub_offset_s
            marks = [(name, sequence, time_s + offset_s) for name, sequence, time_s in message.topics]
            rest = message.rest and (message.rest[0], message.rest[1] + offset_s)
            self._hub.know_evicted(marks, message.ids, rest)
        elif isinstance(message, SkipTo):
            self._hub.log.skip_to(message.sequence)
            if not self._hub.begun:
                self._check_snapshot(now_s)
        elif isinstance(message, EndedTopics):
            for topic in message.topics:
                self._hub.end_topic(topic)
        elif isinstance(message, Ask):
            self.send_status()
            number = message.number
            self._answer(
                message.report, message.query, lambda body: self._write(encode(Answer(number=number, body=body)))
            )
        elif isinstance(message, TopicSignal):
            self._on_signal(message.topic, message.value)
        elif isinstance(message, Drain):
            self._on_drain()
        elif isinstance(message, Refuse):
            raise LinkError(f"the hub rejects the link: {message.reason}")
        elif isinstance(message, Beat):
            self._hub.set_linked(not message.leaving)
            if message.log_level:
                logs.set_level(message.log_level)
        else:
            raise LinkError(f"an edge must not receive {type(message).__name__}")

    def _begin(self, begin: Begin, now_s: float) -> None:
        hub = self._hub
        self.linked = True
        hub.set_linked(True)
        self._hub_offset_s = now_s - begin.now_s
        hub.knows_evicted = False
        hub.begin(begin.epoch, begin.sequence, begin.head, begin.evicted_s + self._hub_offset_s, now_s)
        self._check_snapshot(now_s)

    def _answered(self, message: Published | RateAnswer | Found | Answer | Refused) -> None:
        _, done = self._requests.pop(message.number, (0.0, None))
        if done is None:
            return
        if isinstance(message, Published):
            done(message.ids)
        elif isinstance(message, RateAnswer):
            done(message.wait_s)
        elif isinstance(message, Found):
            done(message.sequence)
        elif isinstance(message, Answer):
            done(message.body)
        elif message.field is not None:
            ended = message.status == EndedError.status
            done(EndedError() if ended else EventError(message.field, message.reason))
        else:
            done(RequestError(message.status, message.reason, RETRY_SOON if message.status >= 500 else ()))

    # Requests

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish all events or none at the hub; call `done` once, with their ids or with an error."""
        try:
            data = encode(PublishRequest(number=self._number + 1, events=msgspec.json.encode(events)))
        except (ValueError, OverflowError, TypeError, RecursionError) as error:
            done(EventError("data", f"not a JSON value: {error}"))
            return nothing
        bytes_max = min(self._bytes_max, UNSENT_BYTES_MAX)
        if len(data) > bytes_max:
            reason = f"the events need {len(data)} bytes as JSON on the link to the hub; the limit is {bytes_max}"
            done(RequestError(413, reason, limit=Limit.BODY_BYTES_MAX))
            return nothing
        return self._request(data, done)

    def take_rate(self, subject: str, count: int, done: TakeDone) -> Cancel:
        """Take events from the publish rate of a subject, which the hub counts for all of its edges."""
        return self._request(encode(RateRequest(number=self._number + 1, subject=subject, count=count)), done)

    def find(
        self, terms: tuple[str, ...], ids: tuple[str, ...], done: Callable[[int | RelayError | None], None]
    ) -> Cancel:
        """Ask the hub for the sequence of a last id that is not in the edge's log."""
        return self._request(encode(Find(number=self._number + 1, terms=terms, ids=ids)), done)

    def head(self, done: Callable[[int | RelayError], None]) -> Cancel:
        """Ask for the sequence of the next event; all events acknowledged so far have lower sequences."""
        return self._request(encode(Head(number=self._number + 1)), done)

    def ask(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes | RelayError], None]) -> Cancel:
        """Ask for a report of the hub and all its workers; `query` is that of `topics`."""
        return self._request(encode(Ask(number=self._number + 1, report=report, query=query)), done)

    def signal(self, topic: str, value: bytes) -> None:
        """Send a signal to the hub, which sends it to the feeders of the topic.

        Raises:
            RequestError: 503, the link to the hub is down or too many bytes wait.
        """
        data = encode(TopicSignal(topic=topic, value=value))
        if not self.linked or self._unsent + len(data) > UNSENT_BYTES_MAX:
            raise RequestError(503, "the link to the hub is down", RETRY_SOON)
        self._write(data)

    def _request(self, data: bytes, done: OnAnswer) -> Cancel:
        if not self.linked:
            done(RequestError(503, "the link to the hub is down", RETRY_SOON))
            return nothing
        if self._unsent + len(data) > UNSENT_BYTES_MAX:
            done(RequestError(503, "too many bytes wait to be sent to the hub", RETRY_SOON))
            return nothing
        self._number += 1
        number = self._number
        self._requests[number] = (self._clock() + self._request_s, done)
        self._write(data)
        return lambda: self._cancel(number)

    def _cancel(self, number: int) -> None:
        self._requests.pop(number, None)

    def _write(self, data: bytes) -> None:
        if self._send is not None:
            self._unsent = self._send(data)
