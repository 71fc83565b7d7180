"""Admission: whether one more stream may be opened, by how many there are already.

Owns the limits of streams and the count of each address's. Never opens or closes a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from relay.config.model import Config
from relay.core.audience import Audiences
from relay.core.grant import Grant
from relay.core.leases import Leases
from relay.errors import RETRY_LATER, RequestError
from relay.limits import Limit


class Admission:
    """The limits of one hub's streams.

    Args:
        config: the limits.
        streams_max: open streams in all.
        audiences: know how many streams a term has.
        leases: know how many a subject has.
    """

    def __init__(self, config: Config, streams_max: int, audiences: Audiences, leases: Leases) -> None:
        self.streams_max = streams_max
        self._config = config
        self._audiences = audiences
        self._leases = leases
        self._addresses: Counter[str] = Counter()

    def check(self, streams: int, address: str, grant: Grant, terms: Iterable[str]) -> None:
        """Let one more stream in.

        Args:
            streams: that are open.
            address: of its client.
            grant: for whom it is.
            terms: what it follows.

        Raises:
            RequestError: 503 where the server or a topic is full, 429 for too many streams of one address or subject.
        """
        config = self._config
        if streams >= self.streams_max:
            raise _full(503, f"all {self.streams_max} streams are taken", Limit.STREAMS_MAX)
        most = config.streams_per_address_max
        if most and self._addresses[address] >= most:
            raise _full(429, f"this address has {most} streams already", Limit.STREAMS_PER_ADDRESS_MAX)
        most = config.streams_per_subject_max
        if most and self._leases.subjects[grant.subject] >= most:
            raise _full(429, f"this subject has {most} streams already", Limit.STREAMS_PER_SUBJECT_MAX)
        most = config.streams_per_topic_max
        if most and any(self._audiences.streams(term) >= most for term in terms):
            raise _full(503, f"a topic has {most} streams already", Limit.STREAMS_PER_TOPIC_MAX)

    def enter(self, address: str) -> None:
        """Count one more stream of an address."""
        self._addresses[address] += 1

    def leave(self, address: str) -> None:
        """Count one stream less."""
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


def _full(status: int, reason: str, limit: Limit) -> RequestError:
    return RequestError(status, reason, RETRY_LATER, limit=limit)
