"""A world whose server is upgraded while it serves: a second hub takes the real messages of an upgrade."""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from relay.config.model import Config
from relay.process.listeners import ListenerGroup
from relay.upgrade import give, messages, take
from relay.upgrade.give import Possessions
from relay.upgrade.messages import Channel, Go, Message, Start
from tests.sim.world import World

Received = tuple[Any, list[int]]


class Wire(Channel):
    """A channel in memory. It encodes and decodes every message, and nothing blocks."""

    def __init__(self) -> None:
        self.messages: deque[Received] = deque()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Keep a message until it is received."""
        self.messages.append((messages._decode(messages._encode(message)), list(fds)))

    def receive(self) -> Received:
        """Return the oldest message."""
        return self.messages.popleft()

    def close(self) -> None:
        """Do nothing: there is no socket."""


class UpgradedWorld(World):
    """One server that other processes replace.

    Args:
        config: the settings of the first process.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.upgrades = 0
        self.failures = 0
        self._wire: Wire | None = None
        self._sent = -1

    def _possessions(self) -> Possessions:
        front = SimpleNamespace(connections=(), auth=SimpleNamespace(tickets={}), clock=lambda: self.now_s)
        sources = SimpleNamespace(unix=None, stdin=SimpleNamespace(closed=True))
        return Possessions(self.hub, cast(Any, front), "token", ListenerGroup([], []), cast(Any, sources), None)

    def send_some(self) -> None:
        """Send the next part of the log while the old process serves. The first part begins an upgrade."""
        if self._wire is None:
            self._wire, self._sent = Wire(), -1
        messages, self._sent = give._next(self._possessions(), self._sent)
        for message in messages:
            self._wire.send(message)

    def fail(self) -> None:
        """Hand over everything to a process that dies before it sends Ready; the old process continues."""
        self.send_some()
        assert self._wire is not None
        give._hand_over(self._wire, self._possessions(), self._sent, self.now_s)
        give._take_back(self._possessions(), None)
        self._wire = None
        self.failures += 1

    def finish(self, config: Config) -> None:
        """Hand over everything to a process with these settings, which serves from now on."""
        for client in self.clients:
            if client.cancel is not None:  # The old process closes a connection that waits for a replay.
                self.cut(client)
        forgotten = self.evicted()
        for client in self.clients:
            client.oracle.forgotten = forgotten
        self.send_some()
        wire, possessions = self._wire, self._possessions()
        assert wire is not None
        give._hand_over(wire, possessions, self._sent, self.now_s)
        wire.send(Go())
        self._wire = None
        self.upgrades += 1
        pipes, old = self.engine.pipes, self.hub
        self.config = config
        self.engine, self.hub = self._server()
        self.engine.pipes = pipes
        start, _ = wire.receive()
        assert isinstance(start, Start)
        taken = take.take(wire, start, self.hub, self.now_s, lambda: None)
        new = self.hub.log
        assert (new.epoch, new.tail, new.head) == (old.log.epoch, old.log.tail, old.log.head)
        assert self.hub.engine.open == old.engine.open
        asyncio.run(taken.go_on(possessions.front, self.hub, possessions.sources))
        self._report_readiness()

    def _report_readiness(self) -> None:
        """Report the readiness of each socket to the new engine, as epoll does for a newly registered socket."""
        for fd in self.engine.handles_by_fd:
            pipe = self.engine.pipes[fd]
            mask = 0 if pipe.client_open else select.EPOLLIN | select.EPOLLRDHUP
            if len(pipe.unread) < pipe.room:
                pipe.full = False
                mask |= select.EPOLLOUT
            self.engine.report(fd, mask)
