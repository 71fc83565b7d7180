"""The writer: turns events into entries, each with a frame, a sequence and an id.

Theory of operation. The writer checks and encodes a whole batch before it changes anything, so it publishes all events
of a batch or none. An event whose `dedup` key was seen within the window is not published again; its publisher receives
the first id. With a file, the journal stores entries on the disk before the log receives them.

Owns the rules for publishable events, and the dedup keys. Never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from relay.config.formats import DURATION_S_MAX
from relay.config.model import Config
from relay.core.ended import END, Ended
from relay.core.forms.framing import CHUNK_BYTES_MAX
from relay.core.log import Entry, Log
from relay.core.seen import Seen
from relay.errors import EndedError, EventError, RequestError
from relay.event import Event
from relay.ids import check_id, may_keep
from relay.sse import encode
from relay.topic import check_topic

DEDUP_CHARACTERS_MAX = 256
"""Maximum length of a dedup key. Any digest or path fits, and a million keys take less than 300 MB."""

KEY_CHARACTERS_MAX = 256
"""Maximum length of a key. The log keeps it beside the frame, and `history-bytes` counts only the frame."""

RESERVED = "relay."
"""Prefix of the event types that only relay sends, so that subscribers can trust them; publishers may send `END`."""

_SEQUENCE_MAX = 2**63

Append = Callable[[str, bytes, str | None, str | None, float, float | None], int]
"""Appends (topic, frame, id, key, time, ttl) to the log and returns the sequence."""


class WriteAhead(Protocol):
    """A journal that stores entries before the log receives them; see `relay.store.journal`."""

    @property
    def head(self) -> int:
        """Sequence of the next entry."""

    @property
    def pending(self) -> int:
        """Number of entries that wait for the disk."""

    @property
    def upstream_position(self) -> str | None:
        """Position at which to resume the upstream; None if none was followed."""

    def note_upstream(self, position: str) -> None:
        """Store the upstream position together with the entries put in this turn of the loop."""

    @property
    def failures(self) -> int:
        """Number of failed writes."""

    @property
    def full(self) -> bool:
        """Whether publishers have to wait."""

    @property
    def refusal(self) -> str:
        """The reason why events are rejected now; empty if they are accepted."""

    def put(self, entries: Sequence[Entry], keys: Sequence[tuple[str, str]]) -> None:
        """Add the entries of one batch, and their dedup keys with ids."""

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once, when everything put so far is on the disk."""


class Writer:
    """Checks and encodes events, and passes the entries to the log or the journal.

    Args:
        config: the settings.
        log: the log that receives the entries.
        append: appends one entry to it.
        ended: the topics that have ended.
        on_end: called with a topic whose last event is in the log.
    """

    def __init__(self, config: Config, log: Log, append: Append, ended: Ended, on_end: Callable[[str], None]) -> None:
        self.encodes = 0
        self.invalid = 0  # events that the validation has rejected
        self.seen = Seen(config.dedup_window_s, config.dedup_max)
        self.journal: WriteAhead | None = None  # None without a file
        self._durable = config.durable
        self._ended = ended
        self._log = log
        self._append = append
        self._on_end = on_end
        self.event_bytes_max = min(config.event_bytes_max, config.history_bytes - CHUNK_BYTES_MAX)

    def use_journal(self, journal: WriteAhead) -> None:
        """Store each entry in this journal before the log receives it."""
        self.journal = journal

    def use_validation(self, check: Callable[[Event], None]) -> None:
        """Reject each event for which `check` raises EventError. Without this call, validation costs nothing."""
        encode = self._encode

        def encode_valid(event: Event, topic: str, sequence: int, *, may_have_ended: bool = False) -> bytes:
            frame = encode(event, topic, sequence, may_have_ended=may_have_ended)
            try:
                check(event)
            except EventError:
                self.invalid += 1
                raise
            return frame

        self._encode = encode_valid  # type: ignore[method-assign]

    @property
    def refusal(self) -> str:
        """The reason why events are rejected now; empty if they are accepted."""
        return "" if self.journal is None else self.journal.refusal

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back when everything published so far may be acknowledged: at once, unless `durable` is set."""
        if self._durable:
            self.confirm_stored(callback)
        else:
            callback()

    def confirm_stored(self, callback: Callable[[], None]) -> None:
        """Call back when everything published so far is on the disk; without a file, at once."""
        if self.journal is None:
            callback()
        else:
            self.journal.confirm(callback)

    def publish_one(self, event: Event, now_s: float, *, foreign: bool = False) -> str:
        """Publish an event and return its id; raises as `publish` does.

        Args:
            event: an event with a topic.
            now_s: the time.
            foreign: the event and its id come from another server. An id that cannot be kept is replaced by a default
                id. Reserved types are allowed, because the other server may be a relay.
        """
        journal = self.journal
        if event.dedup is not None or (journal is not None and journal.refusal):
            return self.publish((event,), now_s)[0]
        sequence = self._log.head if journal is None else journal.head
        # The checks of `_checked`; its call would cost a twentieth of the instructions of an event.
        topic = event.topic
        if topic is None:
            raise EventError("topic", "is missing")
        if event.id is not None:
            if not foreign:
                check_id(event.id)
            elif not may_keep(event.id, self._log.epoch):
                event = msgspec.structs.replace(event, id=None)
        is_last = False
        if event.event is not None and event.event.startswith(RESERVED):
            is_last = event.event == END
            if not is_last and not foreign:
                raise _reserved()
        frame = self._encode(event, topic, sequence)
        if journal is None:
            self._append(topic, frame, event.id, event.key, now_s, event.ttl)
            if is_last:
                self._on_end(topic)
        else:
            if is_last:
                self._ended.begin(topic)
            journal.put((Entry(sequence, now_s, topic, event.id, event.key, frame, event.ttl),), ())
        self.encodes += 1
        return event.id if event.id is not None else f"{self._log.epoch}-{sequence}"

    def check(self, event: Event, *, foreign: bool = False) -> Event:
        """Check that an event can be published in a log that another program writes.

        Args:
            event: as for `publish_one`. The check of its topic's end is omitted if it has a `dedup` key.
            foreign: as for `publish_one`.

        Returns:
            the event, without an id that cannot be kept.

        Raises:
            EventError: the event is rejected.
        """
        event = self._checked(event, foreign=foreign)
        # Every id that the event can get is shorter than this one, so that each node can encode the event.
        self._encode(event, str(event.topic), _SEQUENCE_MAX, may_have_ended=event.dedup is not None)
        return event

    def _checked(self, event: Event, *, foreign: bool = False) -> Event:
        """Check the topic, the id and the type of an event; the arguments and the result are those of `check`."""
        if event.topic is None:
            raise EventError("topic", "is missing")
        if event.id is not None:
            if not foreign:
                check_id(event.id)
            elif not may_keep(event.id, self._log.epoch):
                event = msgspec.structs.replace(event, id=None)
        if event.event is not None and event.event.startswith(RESERVED) and event.event != END and not foreign:
            raise _reserved()
        return event

    def publish(self, events: Sequence[Event], now_s: float) -> list[str]:
        """Publish events, all or none.

        Args:
            events: events with topics.
            now_s: the time.

        Returns:
            the ids; for an event that was published before, its first id.

        Raises:
            EventError: an event is rejected; nothing was published.
            RequestError: 503, nothing can be stored now.
        """
        if self.refusal:
            raise RequestError(503, self.refusal)
        following = self._log.head if self.journal is None else self.journal.head
        entries: list[Entry] = []
        ids: list[str] = []
        keys: dict[str, str] = {}
        ending: set[str] = set()
        for event in events:
            key = None if event.dedup is None else dedup_key(event)
            known = None if key is None else self.seen.find(key, now_s) or keys.get(key)
            if known is not None:
                ids.append(known)
                continue
            sequence = following + len(entries)
            event = self._checked(event)
            topic = str(event.topic)
            frame = self._encode(event, topic, sequence)
            if topic in ending:
                raise EndedError
            if event.event == END:
                ending.add(topic)
            id = event.id if event.id is not None else f"{self._log.epoch}-{sequence}"
            entries.append(Entry(sequence, now_s, topic, event.id, event.key, frame, event.ttl))
            ids.append(id)
            if key is not None:
                keys[key] = id
        self.encodes += len(entries)
        self.seen.hits += len(events) - len(entries)
        for key, id in keys.items():
            self.seen.add(key, id, now_s)
        if self.journal is None:
            for _, _, topic, own_id, key, frame, ttl_s in entries:
                self._append(topic, frame, own_id, key, now_s, ttl_s)
            for topic in ending:
                self._on_end(topic)
        elif entries:
            for topic in ending:
                self._ended.begin(topic)
            self.journal.put(entries, list(keys.items()))
        return ids

    def _encode(self, event: Event, topic: str, sequence: int, *, may_have_ended: bool = False) -> bytes:
        log = self._log
        if topic in self._ended.topics and not may_have_ended:
            raise EndedError
        if topic not in log.topics:
            check_topic(topic)
        if event.key is not None and not (event.key.isascii() and len(event.key) <= KEY_CHARACTERS_MAX):
            check_key(event)
        if event.ttl is not None:
            check_ttl(event)
        return encode(event, f"{log.epoch}-{sequence}", self.event_bytes_max, True)


def check_key(event: Event) -> None:
    """Check the `key` of an event, if it has one.

    Raises:
        EventError: it is too long, or not valid text.
    """
    if event.key is None:
        return
    if len(event.key) > KEY_CHARACTERS_MAX:
        raise EventError("key", f"has {len(event.key)} characters; at most {KEY_CHARACTERS_MAX} are allowed")
    _check_text("key", event.key)


def check_ttl(event: Event) -> None:
    """Check the `ttl` of an event, if it has one.

    Raises:
        EventError: it is negative, too large or not a number.
    """
    if event.ttl is not None and not 0 <= event.ttl <= DURATION_S_MAX:
        raise EventError("ttl", f"must be a number of seconds from 0 to {DURATION_S_MAX:.0f}, not {event.ttl}")


def _reserved() -> EventError:
    return EventError(
        "event", f"types that begin with {RESERVED} are reserved for relay, except {END}; use another type"
    )


def dedup_key(event: Event) -> str:
    """Return the dedup key of an event. Topics never share a key, because no topic contains LF.

    Raises:
        EventError: the key is too short, too long, or not valid text.
    """
    dedup = str(event.dedup)
    if not 0 < len(dedup) <= DEDUP_CHARACTERS_MAX:
        raise EventError("dedup", f"has {len(dedup)} characters; 1 to {DEDUP_CHARACTERS_MAX} are allowed")
    _check_text("dedup", dedup)
    return f"{event.topic}\n{dedup}"


def _check_text(field: str, text: str) -> None:
    """Reject text that UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EventError(field, f"lone surrogate at character {error.start}") from None
