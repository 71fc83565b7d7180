"""Input errors: each rejected input of a source is counted, and logged up to a limit.

Owns the limit. Never decides whether input is bad.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, TimerHandle
from typing import Protocol

LOGGED_PER_S = 5
"""Bad items that one source logs per second. One line states the number of the others."""


class Counter(Protocol):
    """The method of the metrics that sources call."""

    def input_error(self, source: str, kind: str) -> None: ...


class InputErrors:
    """Counts and logs the bad input of one source.

    Args:
        source: the source's name in the metrics (`stdin`, `unix`).
        metrics: counts each bad item.
        loop: runs the timer that ends each second.
        logger: the source's logger.
    """

    def __init__(
        self, source: str, metrics: Counter, loop: AbstractEventLoop, logger: logging.Logger
    ) -> None:
        self._source = source
        self._metrics = metrics
        self._loop = loop
        self._logger = logger
        self._seen = 0  # bad items since the second began
        self._second: TimerHandle | None = None

    def report(self, kind: str, message: str, *args: object) -> None:
        """Count one bad item, and log it unless this second's limit is reached.

        Args:
            kind: the type of error, from a small fixed set, for the metrics.
            message: format of the log line; `logging` inserts `args`.
        """
        self._metrics.input_error(self._source, kind)
        if self._second is None:
            self._second = self._loop.call_later(1.0, self.close)
        self._seen += 1
        if self._seen <= LOGGED_PER_S:
            self._logger.warning(message, *args)

    def close(self) -> None:
        """End the second, and log the number of items above the limit."""
        if self._second is not None:
            self._second.cancel()
            self._second = None
        if self._seen > LOGGED_PER_S:
            self._logger.warning("%s: and %d more not published", self._source, self._seen - LOGGED_PER_S)
        self._seen = 0
