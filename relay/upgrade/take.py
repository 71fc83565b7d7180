"""Taking over: the new process's part of an upgrade.

Owns the order of receipt, and keeps the state for the front and the sources until this process may serve. Never reads
from or writes to a descriptor that it received: until Go, the old process may resume with all of them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.core.hub import Hub
from relay.core.stream import PackedSubscription
from relay.errors import RelayError
from relay.front.connection import FrontProtocol
from relay.front.front import Front, PackedConnection
from relay.process.listeners import ListenerGroup
from relay.sources.feeder import PackedFeeder
from relay.sources.group import Sources
from relay.upgrade import messages
from relay.upgrade.messages import Channel

_logger = logging.getLogger("relay.takeover")


@dataclass
class Taken:
    """Everything that was handed over and that the hub does not hold."""

    listeners: ListenerGroup = field(default_factory=lambda: ListenerGroup([], []))
    unix: socket.socket | None = None
    unix_file: tuple[int, int] | None = None
    feeders: list[tuple[socket.socket, PackedFeeder]] = field(default_factory=list)
    connections: list[tuple[socket.socket, PackedConnection]] = field(default_factory=list)
    closing: list[tuple[int, str]] = field(default_factory=list)
    rest: messages.Rest = field(default_factory=lambda: messages.Rest(None, {}, []))

    async def go_on(self, front: Front, hub: Hub, sources: Sources) -> None:
        """Start to serve the streams, the connections and the feeders."""
        front.auth.tickets.update(self.rest.tickets)
        for topic in self.rest.ended:
            hub.ended.note(topic)
        hub.go_on(self.closing, front.clock())
        if self.rest.stdin is not None:
            sources.stdin.adopt(self.rest.stdin)
        for connection, feeder in self.feeders:
            assert sources.unix is not None
            sources.unix.adopt(connection, feeder)
        for connection, packed in self.connections:
            _, protocol = await front.loop.connect_accepted_socket(lambda: FrontProtocol(front), connection)
            protocol.adopt(packed)
        _logger.info("took over %d streams", hub.engine.open)


def begin(channel: Channel, version: str) -> messages.Start:
    """Report that this process has started; return the start of the log.

    Raises:
        RelayError: the old process has cancelled the upgrade.
    """
    channel.send(messages.UpgradeHello(messages.FORM, version))
    start = channel.expect(messages.Start)
    assert isinstance(start, messages.Start)
    return start


def take(channel: Channel, start: messages.Start, hub: Hub, now_s: float, before_ready: Callable[[], None]) -> Taken:
    """Receive everything, put the log and the streams into a new hub, report Ready, and wait for Go.

    Args:
        channel: the channel to the old process.
        start: the first message of the old process.
        hub: an empty hub.
        now_s: the hub's time.
        before_ready: called before Ready. It opens the file, which the old process has released, and installs the
            signal handlers, because after Ready a signal must not end this process.

    Returns:
        Everything that the hub does not hold.

    Raises:
        RelayError: the takeover failed, and the old process continues.
    """
    taken = Taken()
    subscriptions: list[PackedSubscription] = []
    _begin(hub, start, now_s)
    while True:
        message, fds = channel.receive()
        if isinstance(message, messages.Start):
            _begin(hub, message, now_s)
        elif isinstance(message, messages.Entries):
            for entry in message.entries:
                if entry.sequence < hub.log.head:
                    raise RelayError(f"the old process sent entry {entry.sequence} after {hub.log.head - 1}")
                hub.log.skip_to(entry.sequence)
                hub.take(entry, entry.time_s)
        elif isinstance(message, messages.Evicted):
            hub.log.skip_to(message.head)
            hub.log.evict_before(message.tail)  # The old process has evicted more entries since it sent them.
            hub.log.know_evicted(message.topics, message.ids, message.rest)
        elif isinstance(message, messages.Listeners):
            sockets = _sockets(fds)
            taken.unix = sockets.pop() if message.unix else None
            public = len(sockets) - message.admin
            taken.listeners, taken.unix_file = ListenerGroup(sockets[:public], sockets[public:]), message.file
        elif isinstance(message, messages.Terms):
            subscriptions = message.subscriptions
        elif isinstance(message, messages.Streams):
            for fd, stream in zip(fds, message.streams, strict=True):
                handle = hub.adopt(fd, stream, *subscriptions[stream.subscription])
                if stream.reason is not None:
                    taken.closing.append((handle, stream.reason))
        elif isinstance(message, messages.Feeders):
            taken.feeders += zip(_sockets(fds), message.feeders, strict=True)
        elif isinstance(message, messages.Connections):
            taken.connections += zip(_sockets(fds), message.connections, strict=True)
        elif isinstance(message, messages.DedupKeys):
            for key in message.keys:
                hub.writer.seen.add(*key)
        elif isinstance(message, messages.Rest):
            taken.rest = message
            break
        else:
            raise RelayError(f"the old process sent an unexpected {type(message).__name__}")
    before_ready()
    channel.send(messages.Ready())
    channel.expect(messages.Go)
    channel.close()
    return taken


def _begin(hub: Hub, start: messages.Start, now_s: float) -> None:
    hub.begin(start.epoch, start.sequence, start.sequence, start.evicted_s, now_s)
    # Evict nothing until the streams have arrived, so that they count their missed events.
    hub.log.keep_from(start.sequence)


def _sockets(fds: list[int]) -> list[socket.socket]:
    return [socket.socket(fileno=fd) for fd in fds]
