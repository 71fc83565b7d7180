"""The sources of one server: standard input, the Unix socket, another server's event stream, and feeds.

Owns the set of sources and starts and stops them together. Never reads, parses or publishes. Imports a source only if
the settings name it, so that relay starts faster.
"""

from __future__ import annotations

import logging
import socket
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING

from relay.config.model import Config
from relay.config.source_address import SourceAddress, parse_source
from relay.core.forms.framing import unwrap
from relay.core.hub import Hub
from relay.errors import ConfigError, RelayError
from relay.ids import may_keep
from relay.sources.sink import EventSink
from relay.sources.stdin import StdinSource, stdin_fd
from relay.sources.topic_signals import TopicSignals
from relay.sources.unix import UnixSource
from relay.telemetry.input_errors import Counter
from relay.telemetry.stats_schema import SourceStats

if TYPE_CHECKING:
    from relay.sources.feed_source import FeedSource
    from relay.sources.upstream import UpstreamSource

_logger = logging.getLogger("relay.sources.group")


class Sources:
    """The sources of one server. Each one reads only after its start.

    Args:
        config: the settings.
        hub: contains the retained events.
        sink: publishes the events.
        metrics: counts invalid input.
        loop: the event loop.
        signals: receives the topics of the feeders.
        on_eof: called once, after standard input has ended and all of it is published.

    Raises:
        ConfigError: the library of a feed is not installed, or its address is malformed.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        sink: EventSink,
        metrics: Counter,
        loop: AbstractEventLoop,
        signals: TopicSignals,
        on_eof: Callable[[], None],
    ) -> None:
        self.stdin = StdinSource(config, sink, metrics, loop, on_eof, stdin_fd())
        self.unix: UnixSource | None = None
        self.upstream: UpstreamSource | None = None
        self._config = config
        self._hub = hub
        self._sink = sink
        self._metrics = metrics
        self._loop = loop
        self.feeds = [self._feed(each) for each in map(parse_source, config.source)]
        self._signals = signals

    def listen(self, listener: socket.socket | None = None, file: tuple[int, int] | None = None) -> None:
        """Listen on the Unix socket.

        Args:
            listener: a listener that another process opened; None opens one at the path in the settings.
            file: identity of the socket file (`unix_listener.identity`), if this process must remove the file.

        Raises:
            ConfigError: the path, its group or a user is not usable.
        """
        self.unix = UnixSource(self._config, self._sink, self._metrics, self._loop, self._signals)
        _logger.info("feeders at unix:%s", self.unix.open(listener, file))

    def follow(self) -> None:
        """Follow another server's event stream, if the settings name one, from the stored position.

        Raises:
            ConfigError: httpx is not installed, or the address is malformed.
        """
        config = self._config
        if config.upstream:
            from relay.sources.upstream import UpstreamSource

            log, journal = self._hub.log, self._hub.writer.journal
            try:
                self.upstream = UpstreamSource(
                    config,
                    self._hub,
                    self._metrics,
                    self._loop,
                    time.monotonic,
                    may_keep=lambda id: may_keep(id, log.epoch),
                    retained=((id, unwrap(chunk)) for id, chunk in log.newest(config.topic)),
                    position=None if journal is None else journal.upstream_position,
                    note=lambda position: None if journal is None else journal.note_upstream(position),
                )
            except RelayError as error:
                raise ConfigError(f"upstream: {error}") from None
            self.upstream.start()

    def _feed(self, address: SourceAddress) -> FeedSource:
        from relay.sources.feed_source import FeedSource
        from relay.sources.feeds import make_feed
        from relay.sources.mapping import MessageMapping

        config = self._config
        return FeedSource(
            address,
            make_feed(address),
            MessageMapping(address.options, config.topic, address.shown),
            self._sink,
            self._metrics,
            self._loop,
            time.monotonic,
            stops=config.source_errors == "stop",
        )

    def read_feeds(self) -> None:
        """Begin to read the feeds."""
        for feed in self.feeds:
            feed.start()

    def feed_stats(self) -> list[SourceStats]:
        """Return the state of each feed."""
        return [feed.stats() for feed in self.feeds]

    def drain(self) -> None:
        """Stop reading, and publish the input read so far."""
        for feed in self.feeds:
            feed.stop()
        if self.upstream is not None:
            self.upstream.close()
        self.stdin.drain()
        if self.unix is not None:
            self.unix.close()

    def close(self) -> None:
        """Close all sources at once."""
        for feed in self.feeds:
            feed.close()
        if self.upstream is not None:
            self.upstream.close()
        self.stdin.close()
        if self.unix is not None:
            self.unix.close()
            self.unix.cut()
