"""The sources of one server: standard input, the Unix socket, and another server's event stream.

Owns which of them there are, and that all of them begin and end together. Never reads, parses or publishes.
"""

from __future__ import annotations

import logging
import socket
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

from relay.config.model import Config, is_event_stream
from relay.core.hub import Hub
from relay.errors import ConfigError, RelayError
from relay.ids import may_keep
from relay.sources.stdin import StdinSource, stdin_fd
from relay.sources.unix import UnixSource
from relay.sources.upstream import UpstreamSource
from relay.telemetry.input_errors import Counter

_logger = logging.getLogger("relay.sources.group")


class Sources:
    """Not one of them reads before it is started.

    Args:
        config: the settings.
        hub: takes the events.
        metrics: counts bad input.
        loop: the event loop.
        on_eof: called once, when standard input is over and all of it published.
    """

    def __init__(
        self, config: Config, hub: Hub, metrics: Counter, loop: AbstractEventLoop, on_eof: Callable[[], None]
    ) -> None:
        self.stdin = StdinSource(config, hub, metrics, loop, on_eof, stdin_fd())
        self.unix: UnixSource | None = None
        self.upstream: UpstreamSource | None = None
        self._config = config
        self._hub = hub
        self._metrics = metrics
        self._loop = loop

    def listen(self, listener: socket.socket | None = None, file: tuple[int, int] | None = None) -> None:
        """Take feeders at the Unix socket.

        Args:
            listener: one that somebody else has opened; None for one at the setting's path.
            file: what its file is known by where it is ours to remove.

        Raises:
            ConfigError: the path, its group or a user cannot be used.
        """
        self.unix = UnixSource(self._config, self._hub, self._metrics, self._loop)
        _logger.info("feeders at unix:%s", self.unix.open(listener, file))

    def follow(self) -> None:
        """Follow another server's event stream, if the settings name one, from the position that the file has.

        Raises:
            ConfigError: httpx is not installed, or the address is none.
        """
        config = self._config
        if is_event_stream(config.upstream):
            log, journal = self._hub.log, self._hub.writer.journal
            try:
                self.upstream = UpstreamSource(
                    config,
                    self._hub,
                    self._metrics,
                    self._loop,
                    time.monotonic,
                    may_keep=lambda id: may_keep(id, log.epoch),
                    retained=log.newest(config.topic),
                    position=None if journal is None else journal.upstream_position,
                    note=lambda position: None if journal is None else journal.note_upstream(position),
                )
            except RelayError as error:
                raise ConfigError(f"upstream: {error}") from None
            self.upstream.start()

    def drain(self) -> None:
        """Read no more; publish what has been read."""
        if self.upstream is not None:
            self.upstream.close()
        self.stdin.drain()
        if self.unix is not None:
            self.unix.close()

    def close(self) -> None:
        """Close whatever is open."""
        if self.upstream is not None:
            self.upstream.close()
        self.stdin.close()
        if self.unix is not None:
            self.unix.close()
            self.unix.cut()
