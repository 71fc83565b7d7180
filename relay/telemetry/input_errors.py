"""Input errors: what a source says about bad input, counted each time and logged with a limit.

Owns the limit; never decides what is bad.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, TimerHandle
from typing import Protocol

LOGGED_PER_S = 5
"""Bad items that one source logs in a second; the others are summed up in one line."""


class Counter(Protocol):
    """What sources need of the metrics."""

    def input_error(self, source: str, kind: str) -> None: ...


class InputErrors:
    """The bad input of one source.

    Args:
        source: its name in the metrics (`stdin`, `unix`).
        metrics: counts every one.
        loop: tells when a second is over.
        logger: the source's own.
    """

    def __init__(
        self, source: str, metrics: Counter, loop: AbstractEventLoop, logger: logging.Logger
    ) -> None:
        self._source = source
        self._metrics = metrics
        self._loop = loop
        self._logger = logger
        self._seen = 0  # since the second began
        self._second: TimerHandle | None = None

    def report(self, kind: str, message: str, *args: object) -> None:
        """Count one bad item, and log it unless too many were in this second.

        Args:
            kind: what is wrong, one of a few words for the metrics.
            message: format of the log line, in the manner of `logging`, with its `args`.
        """
        self._metrics.input_error(self._source, kind)
        if self._second is None:
            self._second = self._loop.call_later(1.0, self.close)
        self._seen += 1
        if self._seen <= LOGGED_PER_S:
            self._logger.warning(message, *args)

    def close(self) -> None:
        """End the second: log how many more there were."""
        if self._second is not None:
            self._second.cancel()
            self._second = None
        if self._seen > LOGGED_PER_S:
            self._logger.warning("%s: and %d more not published", self._source, self._seen - LOGGED_PER_S)
        self._seen = 0
