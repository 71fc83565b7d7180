"""Polls: requests that receive events as one JSON document, at once or as soon as an event is published.

Theory of operation. A poll with something to report is answered at once. Any other poll becomes a stream of a form that
ends with its first events (`relay.core.forms.document`). While it waits, it is an ordinary live stream and costs the
same. It catches up when an event is published, when its time is over, or when its stream has to end. Then the hub takes
the descriptor back from the engine, and the front sends the answer and keeps the connection.

Owns the content of the answers, and the end times of the waiting polls. Never writes and never touches a descriptor.
"""

from __future__ import annotations

from typing import NamedTuple

from relay.core import notice
from relay.core.audience import Subscription
from relay.core.close_reason import CloseReason
from relay.core.forms.document import document
from relay.core.forms.form import Form
from relay.core.forms.ndjson import Ndjson
from relay.core.gaps import GapReason
from relay.core.grant import Grant
from relay.core.leases import Leases
from relay.core.log import Log
from relay.core.policy import Limits, Policy, Rule

EVENTS_MAX = 1000
"""Maximum number of events in one answer. One read of the log examines slightly more entries than this."""

ANSWER_BYTES = 256 * 1024
"""Bytes of the events in one answer, as stored; one larger event is still sent."""

NO_POLICY = Rule(Policy.DROP_OLDEST, Limits(), Limits(), 0.0)
"""The rule of all polls. A poll never lags, because it ends with its first events."""

_NOBODY = Grant()
_ndjson = Ndjson()


class PollResult(NamedTuple):
    """The answer to a poll.

    Args:
        body: the document.
        empty: whether the document reports neither an event nor a gap.
        following: the first sequence after those that the document covers.
    """

    body: bytes
    empty: bool
    following: int


class Polls:
    """The polls of one log.

    Args:
        log: the log to read.
        form: the form of the events.
    """

    def __init__(self, log: Log, form: Form) -> None:
        self.over: set[int] = set()  # waiting polls that must be answered, even without an event
        self._log = log
        self._form = form
        self._waits = Leases()
        self._limits: dict[int, int] = {}  # waiting poll → maximum number of events, unless it is the default
        self._last: tuple[str, list[int], int, bytes] | None = None  # the epoch and the content of the last answer
        self._body = b""

    def answer(self, subscription: Subscription, cursor: int, gap: bytes, events_max: int = EVENTS_MAX) -> PollResult:
        """Return the events of a subscription from a cursor on. Polls with equal answers share one body.

        Args:
            subscription: the subscription.
            cursor: the first sequence.
            gap: the gap event to send first; empty if nothing is missing.
            events_max: maximum number of events.
        """
        log = self._log
        batch = log.merge(subscription.indexes, cursor, log.head, ANSWER_BYTES)
        sequences, following = ([], max(cursor, log.head)) if batch is None else (batch.sequences, batch.cursor)
        if len(sequences) > events_max:
            sequences, following = sequences[:events_max], sequences[events_max]
        content = log.epoch, sequences, following, gap
        if content != self._last:
            lines = self._form.contents(log, sequences)
            if gap:
                lines.insert(0, _ndjson.notice(gap))
            self._last, self._body = content, document(lines, f"{log.epoch}-{following - 1}")
        return PollResult(self._body, not sequences and not gap, following)

    def newest(self, subscription: Subscription, events_max: int) -> int:
        """Return the first cursor from which one answer contains all later events, at most `events_max`."""
        log, size = self._log, 0
        ends = [index.last_rows(events_max) for index in subscription.indexes]
        sequences = sorted(sequence for end in ends for sequence in end)[-events_max:]
        cursor = log.head
        for sequence, frame in zip(reversed(sequences), reversed(log.pick(sequences)), strict=True):
            size += len(frame)
            if size > ANSWER_BYTES and cursor < log.head:
                break
            cursor = sequence
        return cursor

    def history_gap(self, subscription: Subscription, cursor: int) -> bytes:
        """Return the gap event for evicted entries from a cursor on; empty if none was evicted."""
        log, last = self._log, subscription.evicted
        return notice.gap(GapReason.HISTORY, None, log.default_id(cursor), log.id(last)) if last >= cursor else b""

    # Waiting polls

    def wait(self, handle: int, ends_s: float, events_max: int = 0) -> None:
        """Add a waiting poll, which is answered at `ends_s` at the latest; `events_max` 0 stands for the default."""
        self._waits.add(handle, ends_s, CloseReason.ANSWERED, _NOBODY)
        if events_max:
            self._limits[handle] = events_max

    def events_max(self, handle: int) -> int:
        """Return the maximum number of events in the answer to a waiting poll."""
        return self._limits.get(handle, EVENTS_MAX)

    def drop(self, handle: int) -> None:
        """Remove a poll that is answered or closed."""
        self._waits.drop(handle)
        self._limits.pop(handle, None)
        self.over.discard(handle)

    def ended(self, now_s: float) -> list[int]:
        """Return the polls whose time is over since the last call, and add them to `over`."""
        handles = [handle for handle, _ in self._waits.ended(now_s, len(self._waits))]
        self.over.update(handles)
        return handles

    def end_all(self) -> list[int]:
        """Return all waiting polls, and add them to `over`."""
        self.over.update(self._waits.handles())
        return list(self.over)

    def due(self, handle: int, subscription: Subscription, cursor: int) -> bool:
        """Return whether a poll must be answered now."""
        return handle in self.over or subscription.has(cursor) or subscription.evicted >= cursor
