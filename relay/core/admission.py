"""Admission: limits the number of streams in total and per address, subject and topic.

Owns these limits and the number of streams per address. Never opens or closes a stream.
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
        streams_max: maximum number of open streams.
        audiences: count the streams per term.
        leases: count the streams per subject.
    """

    def __init__(self, config: Config, streams_max: int, audiences: Audiences, leases: Leases) -> None:
        self.streams_max = streams_max
        self._config = config
        self._audiences = audiences
        self._leases = leases
        self._addresses: Counter[str] = Counter()

    def check(self, streams: int, address: str, grant: Grant, terms: Iterable[str]) -> None:
        """Check that one more stream may be opened.

        Args:
            streams: number of open streams.
            address: address of the client.
            grant: grant of the client.
            terms: terms of the stream.

        Raises:
            RequestError: 503 if the server or a topic is full, 429 if the address or subject has too many streams.
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
        """Count one stream of an address less."""
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


def _full(status: int, reason: str, limit: Limit) -> RequestError:
    return RequestError(status, reason, RETRY_LATER, limit=limit)
