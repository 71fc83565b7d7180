"""Compression: assigns compressors to audiences.

A compressor takes 256 KiB, so their number is bounded. The audiences with the most streams have one. All other streams
of compressed forms receive stored blocks; see `relay.core.forms.gzip`.

Owns the compressors of one hub. Never sends and never reads the log.
"""

from __future__ import annotations

from relay.core.audience import Audience
from relay.core.forms.gzip import STREAMS_MIN, Compressor

GROWTH = 2
"""An audience takes the compressor of another one only if it has this many times as many streams. Otherwise two
audiences of similar size would take it from each other repeatedly."""


class Compression:
    """The compressors of one hub.

    Args:
        level: the level of zlib.
        count_max: maximum number of compressors.
    """

    def __init__(self, level: int, count_max: int) -> None:
        self._level = level
        self._count_max = count_max
        self._audiences: set[Audience] = set()
        self._streams_min = STREAMS_MIN  # smaller audiences receive no compressor

    def __len__(self) -> int:
        return len(self._audiences)

    def compressor(self, audience: Audience) -> Compressor | None:
        """Return the compressor of an audience; assign one if the audience has enough streams."""
        if audience.compressor is None and self._deserves(audience):
            audience.compressor = Compressor(self._level)
            self._audiences.add(audience)
        return audience.compressor

    def _deserves(self, audience: Audience) -> bool:
        if not self._count_max or not audience.form.compressed or audience.streams < self._streams_min:
            return False
        if len(self._audiences) < self._count_max:
            return True
        smallest = min(self._audiences, key=lambda each: each.streams)
        # Until the next tick, smaller audiences need not search again.
        self._streams_min = max(STREAMS_MIN, smallest.streams * GROWTH)
        if audience.streams < self._streams_min:
            return False
        self._drop(smallest)
        return True

    def lose(self, audience: Audience) -> None:
        """Note that streams of an audience receive events that its compressor does not receive."""
        if audience.compressor is not None:
            audience.compressor.lose()

    def begin(self) -> None:
        """Drop all compressors, because the log continues from another sequence and no stream is live."""
        for audience in list(self._audiences):
            self._drop(audience)

    def tick(self) -> None:
        """Drop the compressors of audiences that have become too small."""
        self._streams_min = STREAMS_MIN
        for audience in list(self._audiences):
            if audience.streams < STREAMS_MIN:
                self._drop(audience)

    def _drop(self, audience: Audience) -> None:
        self._audiences.discard(audience)
        audience.compressor = None
