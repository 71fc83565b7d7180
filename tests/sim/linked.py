"""A world of one hub and its edges. Links deliver bytes late and in pieces; clients change edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from relay.config.model import Config
from relay.errors import RelayError, RequestError
from relay.event import Event
from relay.sources.requests import Cancel, Done, TakeDone, nothing
from relay.telemetry.topics import TopicsQuery
from relay.workers.edge_end import Uplink, message_bytes_max
from relay.workers.hub_end import Chunks, Downlink
from relay.workers.messages import LinkError, Report
from tests.sim.world import Client, World

SKEW_S = 5000.0
"""The clock of each edge is this far ahead of the clock of the edge before it."""


class Office:
    """Answers the edges as the hub's process does, and publishes for them."""

    def __init__(self, root: World) -> None:
        self.root = root

    def publish(self, events: list[Event], done: Done) -> Cancel:
        """Publish, unless a topic is held."""
        root = self.root
        if any(root.hub.held(str(event.topic)) for event in events):
            done(RequestError(503, "held"))
            return nothing
        ids = root.hub.publish(events, root.now_s)
        for event, id in zip(events, ids, strict=True):
            root.published.add(event, id)
        done(ids)
        return nothing

    def take_rate(self, subject: str, count: int, done: TakeDone) -> Cancel:
        """Limit nothing."""
        done(0.0)
        return nothing

    def find(
        self, terms: tuple[str, ...], ids: tuple[str, ...], done: Callable[[int | RelayError | None], None]
    ) -> Cancel:
        """Find a last id."""
        done(self.root.hub.find(terms, ids))
        return nothing

    def head(self, done: Callable[[int | RelayError], None]) -> Cancel:
        """Give the sequence of the next event."""
        done(self.root.hub.head)
        return nothing

    def signal(self, topic: str, value: bytes) -> None:
        """Drop a signal."""

    def ask(self, report: Report, query: TopicsQuery | None, done: Callable[[bytes], None]) -> None:
        """Report nothing."""
        done(b"")


class Edge(World):
    """One edge and its link: the bytes that either end has sent and the other has not received.

    Args:
        config: the edge's settings.
        root: the hub's world.
        chunks: the hub's chunks.
    """

    def __init__(self, config: Config, root: World, chunks: Chunks, skew_s: float) -> None:
        super().__init__(config)
        self.root = root
        self.published = root.published
        self.now_s = root.now_s + skew_s
        self.hub.log.epoch = ""
        self._evicted: list[set[int]] = []  # what `evicted` has returned
        self._append_entry = self.hub.log.append
        self.hub.log.append = self._append  # type: ignore[method-assign, assignment]
        self.down = bytearray()
        self.up = bytearray()
        self.downlink: Downlink | None = None
        self.errors: list[LinkError] = []
        self._chunks = chunks
        self.uplink = Uplink(
            config,
            self.hub,
            clock=lambda: self.now_s,
            on_begun=lambda: None,
            on_drain=lambda: None,
            answer=lambda report, query, done: done(b""),
            on_signal=lambda topic, value: None,
        )

    def evicted(self) -> set[int]:
        """Return the sequences of the events that the edge does not retain and does not receive later.

        The hub may have evicted events whose bytes are in transit. The edge receives them unless the link is cut first.
        It then removes them from this set.
        """
        log = self.root.hub.log
        absent = {each for each in range(self.hub.log.head, log.head) if not log.has(each)}
        found = super().evicted() | absent
        self._evicted.append(found)
        return found

    def _append(self, *arguments: Any) -> int:
        """Append an entry to the log of the edge."""
        sequence = self._append_entry(*arguments)
        for evicted in self._evicted:
            evicted.discard(sequence)
        return sequence

    def link(self) -> None:
        """Connect the edge to its hub."""
        assert self.downlink is None
        self.downlink = Downlink(
            self.root.hub,
            self._chunks,
            Office(self.root),
            bytes_max=message_bytes_max(self.config),
            clock=lambda: self.root.now_s,
            wake=lambda: None,
        )
        self.uplink.connected(self._send)

    def _send(self, data: bytes) -> int:
        self.up += data
        return len(self.up)

    def unlink(self) -> None:
        """Cut the link. Bytes in transit are lost."""
        if self.downlink is not None:
            self.downlink.lost()
            self.downlink = None
            self.down.clear()
            self.up.clear()
            self.uplink.lost()

    def pump(self) -> None:
        """Let the hub write if the edge has taken all earlier bytes, so that at most one segment waits."""
        if self.downlink is not None and not self.down:
            self.down += self.downlink.take()

    def deliver_down(self, count: int) -> bool:
        """Deliver some bytes to the edge; return whether there were any."""
        self.pump()
        data = bytes(self.down[:count])
        del self.down[:count]
        if data:
            self._guarded(lambda: self.uplink.receive(data))
        return bool(data)

    def deliver_up(self, count: int) -> bool:
        """Deliver some bytes to the hub; return whether there were any."""
        data = bytes(self.up[:count])
        del self.up[:count]
        down = self.downlink
        if data and down is not None:
            self._guarded(lambda: down.receive(data))
        return bool(data)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except LinkError as error:
            self.errors.append(error)
            self.unlink()


class LinkedWorld:
    """One hub, its edges, and clients that connect to any edge.

    Args:
        config: the settings of all.
        edges: the number of edges.
        slices: whether each edge is interrupted as often as possible; see `World`.
    """

    def __init__(self, config: Config, edges: int, *, slices: bool = False) -> None:
        self.root = World(config)
        self.clients = self.root.clients
        self.at: dict[int, Edge] = {}  # the edge at which a client is connected or waits for its stream
        self._asking: set[int] = set()
        self._config = config
        self.slices = slices
        self._chunks = Chunks(self.root.hub.log)
        self.edges = [self._edge(place) for place in range(edges)]
        self.lapped = 0

    def _edge(self, place: int) -> Edge:
        # Each edge retains more or less than the hub.
        events = self._config.history_events
        config = replace(self._config, history_events=events and events - 2 + 2 * place)
        edge = Edge(config, self.root, self._chunks, SKEW_S * place)
        edge.slices = self.slices
        return edge

    def client(self, terms: tuple[str, ...], policy: str | None, room: int, form: str | None = None) -> Client:
        """Make a client that is not connected yet; the arguments are those of `World.client`."""
        return self.root.client(terms, policy, room, form)

    def connect(self, client: Client, edge: Edge, since_s: float | None = None, *, newest: bool = False) -> None:
        """Connect a client to an edge. The edge asks its hub about an id that it does not know."""
        assert client.pipe is None
        if client.name in self._asking or client.cancel is not None:
            return
        if not edge.hub.log.epoch or not edge.hub.knows_evicted:
            return
        self.at[client.name] = edge
        ids = (client.last_id,)
        if not client.last_id or edge.hub.find(client.terms, ids) is not None:
            edge.prepare(client, since_s, newest=newest)
            return
        self._asking.add(client.name)

        def found(sequence: int | RelayError | None) -> None:
            self._asking.discard(client.name)
            if not isinstance(sequence, RelayError):
                edge.prepare(client, since_s, sequence)

        edge.uplink.find(client.terms, ids, found)

    def read(self, client: Client, count: int) -> None:
        """Let a client read."""
        if client.pipe is not None:
            self.at[client.name].read(client, count)

    def cut(self, client: Client) -> None:
        """Cut a client's connection, or end its wait for a stream."""
        if client.name in self.at:
            self.at[client.name].cut(client)

    def kill(self, edge: Edge) -> None:
        """Kill an edge and start another in its place."""
        edge.unlink()
        for client in self.clients:
            if self.at.get(client.name) is edge:
                self.cut(client)
        self.edges[self.edges.index(edge)] = self._edge(self.edges.index(edge))

    def pass_time(self, seconds: float) -> None:
        """Advance all clocks."""
        for world in (self.root, *self.edges):
            world.pass_time(seconds)
        for edge in self.edges:
            edge.uplink.tick()
            if edge.downlink is not None:
                edge.downlink.beat(10.0)

    def settle(self) -> None:
        """Keep all links up and let all clients read until nothing changes; then check the promise for all."""
        moved = True
        while moved:
            moved = self._move()
        for client in self.clients:
            if client.pipe is not None:
                client.oracle.finish()
        for edge in self.edges:
            assert not edge.errors, edge.errors
            assert edge.hub.log.head == self.root.hub.log.head
            assert edge.hub.log.epoch == self.root.hub.log.epoch

    def _move(self) -> bool:
        moved = False
        for edge in self.edges:
            if edge.downlink is None:
                edge.link()
            while edge.deliver_up(1 << 30) | edge.deliver_down(1 << 30):
                moved = True
            while edge.step():
                pass
        for client in self.clients:
            pipe = client.pipe
            if pipe is not None and pipe.unread:
                moved = True
                self.read(client, 1 << 30)
            if pipe is not None and not pipe.server_open and not pipe.unread:
                client.pipe = None
            if client.pipe is None and client.last_id and client.name not in self._asking and client.cancel is None:
                moved = True
                self.connect(client, self.edges[client.name % len(self.edges)])
        return moved
