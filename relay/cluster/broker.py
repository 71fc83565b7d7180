"""The broker of a cluster: the calls that a follower and a publisher make, and their values.

Theory of operation. A broker keeps one log for the whole cluster. It assigns contiguous sequences to entries, and an
epoch to the log. Each entry has a *mark*. Two logs that differ before an entry have different marks at this entry, so
that a follower notices that the broker has lost entries: the mark before the next entry is not the mark that it knows.

Owns the protocol and its values. Never connects. `relay.cluster.redis_broker`,
`relay.cluster.kafka_broker` and `relay.cluster.nats_broker` implement the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from relay.errors import RelayError

READ_ENTRIES_MAX = 512
"""Most entries in one read; the node takes them in about 3 ms. The implementations limit their bytes."""


class LogChangedError(RelayError):
    """The broker's log does not continue the follower's log; the follower has to compare them."""


class EntriesReplacedError(LogChangedError):
    """The broker has another entry in the place of one that the follower has, or has renewed the epoch."""


class LogPosition(NamedTuple):
    """The state of the broker's log.

    Args:
        epoch: the epoch of the log.
        head: sequence of the next entry.
        mark: mark of the newest entry; empty for a log without entries, or if the broker cannot tell.
        tail: sequence of the oldest retained entry; equal to `head` if there is none.
        tail_ms: time of that entry; the broker's time if there is none.
        time_ms: the broker's time.
        ended: the topics that have ended, oldest end first.

    Times are milliseconds of Unix time on the broker's clock.
    """

    epoch: str
    head: int
    mark: bytes
    tail: int = 0
    tail_ms: int = 0
    time_ms: int = 0
    ended: Sequence[str] = ()


class LogEntry(NamedTuple):
    """One entry of the broker's log.

    Args:
        sequence: its sequence.
        time_ms: its time, in milliseconds of Unix time on the broker's clock; it never decreases.
        form: the version of the payload's format.
        payload: the event; see `relay.cluster.entry`.
        mark: its mark; possibly empty if another entry of the same read follows.
        repeats: whether nodes drop it, because an earlier entry has the same dedup key.
    """

    sequence: int
    time_ms: int
    form: bytes
    payload: bytes
    mark: bytes
    repeats: bool = False


def is_next(entry: LogEntry, after: int, read: int, mark: bytes) -> bool:
    """Return whether an entry is the next one; False if it is the follower's last one, which is read again.

    Args:
        entry: the entry.
        after: sequence of the last entry that the follower has.
        read: number of entries that were read after it.
        mark: mark of the last entry that the follower has.

    Raises:
        EntriesReplacedError: the broker has another entry in the place of the follower's last one.
        LogChangedError: entries are missing before it.
    """
    if entry.sequence == after and not read:
        if entry.mark != mark:
            raise EntriesReplacedError(f"entry {after} is another one")
        return False
    if entry.sequence != after + read + 1:
        raise LogChangedError(f"entry {after + read + 1} is missing")
    return True


class NewEntry(NamedTuple):
    """One event to publish.

    Args:
        topic: its topic.
        payload: the event; see `relay.cluster.entry`.
        id: the id that the publisher chose, if any.
        dedup: the dedup key, if any, as `relay.core.writer.dedup_key` returns it.
        ends: whether the event ends its topic.
    """

    topic: str
    payload: bytes
    id: str | None
    dedup: str | None
    ends: bool


Request = Sequence[NewEntry]
"""Events that are published together, all or none. The implementations state the exceptions."""

Result = int | str | RelayError
"""The sequence of an event, the id of an earlier event with its dedup key, or the reason why it was rejected."""


class BrokerReport(NamedTuple):
    """The version of a broker, and the settings that relay depends on.

    Args:
        version: name and version.
        settings: values by the broker's own names.
    """

    version: str
    settings: dict[str, str]


class Broker(Protocol):
    """The log of a cluster.

    One follower calls `open`, `renew`, `read`, `position` and `trim`, one after the other. One publisher calls
    `connect`, `publish` and `head`. Each has its own connection. After an error, the caller closes its
    connection (`close_follower`, `close_publisher`) and begins again with `open` or `connect`.

    Every call raises BrokerError if the broker cannot be reached.
    """

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""

    async def position(self) -> LogPosition:
        """Return epoch, head and, if possible, mark of the log."""

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one.

        Args:
            after: sequence of the last entry that the follower has.
            count_max: maximum number of entries.
            epoch: epoch of the follower's log; empty to read entries that precede a position of `open`, of which only
                the sequences are checked.
            mark: mark of the last entry that the follower has.
            wait_s: time to wait.

        Raises:
            EntriesReplacedError: the entries continue another log than the follower's.
            LogChangedError: the next entry is not retained any more.
        """

    async def trim(self, before: int) -> None:
        """Remove entries before a sequence. The broker may keep some of them, or have a retention of its own."""

    async def close_follower(self) -> None:
        """Close the follower's connection."""

    async def connect(self) -> None:
        """Connect the publisher."""

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order.

        Args:
            call: number of the call. The broker returns the first result if the last call is repeated.
            requests: the requests.

        Returns:
            the epoch, and the results of all events in order.
        """

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""

    async def inspect(self) -> BrokerReport:
        """Return the version and the settings. Change nothing."""

    async def close_publisher(self) -> None:
        """Close the publisher's connection."""

    async def close(self) -> None:
        """Close all connections; the broker is not used afterwards."""
