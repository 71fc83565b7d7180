"""Publications: events that are published together, and the publish requests that wait for their result.

Owns the time limit of a request, and the text of a partial rejection. Never calls the broker
(`relay.cluster.publisher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from relay.cluster.broker import NewEntry
from relay.errors import RETRY_LATER, RETRY_SOON, RelayError, RequestError
from relay.sources.requests import Done

if TYPE_CHECKING:
    from relay.cluster.publisher import ClusterPublisher

UNAVAILABLE = "the broker is unavailable"


class Publication:
    """Events that are published together, and the function that receives their result.

    A publication that is withdrawn keeps its place in the queue, without entries.
    """

    __slots__ = ("done", "entries", "sent", "size")

    def __init__(self, entries: Sequence[NewEntry], done: Callable[[list[str] | RelayError], None]) -> None:
        self.entries = entries
        self.done = done
        self.sent = False
        # The usual publication has one event. A generator would cost more than the rest.
        self.size = len(entries[0].payload) if len(entries) == 1 else sum(len(entry.payload) for entry in entries)


class WaitingRequest:
    """A request that waits for room in the queue, then for the broker, with one time limit.

    Args:
        owner: owns the queue.
        entries: the events, encoded.
        done: called once, with the ids or with an error, unless the request is cancelled.
        timeout_s: the time limit.
    """

    __slots__ = ("_done", "_is_queued", "_owner", "_timer", "publication")

    def __init__(self, owner: ClusterPublisher, entries: list[NewEntry], done: Done, timeout_s: float) -> None:
        self._owner = owner
        self._done: Done | None = done
        self._is_queued = False
        self.publication = Publication(entries, self)
        self._timer = owner.loop.call_later(timeout_s, self._time_out)

    def enter(self) -> None:
        """Enter the queue as soon as it has room."""
        owner = self._owner
        if self._done is None:
            return
        if not owner.available:
            self(RequestError(503, UNAVAILABLE, RETRY_LATER))
        elif owner.held(""):
            owner.on_release(self._look_again)
        else:
            self._is_queued = True
            owner.append(self.publication)

    def _look_again(self) -> None:
        # The owner calls this while it works.
        self._owner.loop.call_soon(self.enter)

    def __call__(self, result: list[str] | RelayError) -> None:
        """Answer the request, unless it is cancelled or has timed out."""
        self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def cancel(self) -> None:
        """Do not call back. Events that have not been sent are never published."""
        self._timer.cancel()
        self._done = None
        if self._is_queued:
            self._owner.withdraw(self.publication)

    def _time_out(self) -> None:
        if not self._is_queued:
            self(RequestError(503, "too many events wait for the broker", RETRY_SOON))
        elif self._owner.withdraw(self.publication):
            self(RequestError(503, UNAVAILABLE, RETRY_LATER))
        else:
            self(RequestError(503, "the broker did not answer in time; it may be published yet", RETRY_SOON))


def rejection(rejected: dict[int, RelayError], count: int) -> RelayError:
    """Return the error for a request of which the broker has rejected some events, or all.

    Args:
        rejected: the number of each rejected event in its request, and the reason.
        count: the number of events of the request.

    Returns:
        The last reason. If the other events are published, it names the rejected ones.
    """
    [*_, (_, error)] = rejected.items()
    if len(rejected) == count or not isinstance(error, RequestError):
        return error
    numbers = ", ".join(map(str, rejected))
    return RequestError(error.status, f"of {count} events, all are published except number {numbers}: {error}")
