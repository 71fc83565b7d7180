"""A world in which the core runs: a virtual clock, and sockets that accept k bytes.

All of it is deterministic: the same calls give the same run. `World` holds one hub and any number of clients. A client
has a form and a pipe that holds a bounded number of unread bytes. It reads as many bytes as the test says, and decodes
them. A client whose form is that of polls opens a poll instead of a stream.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from relay._native.engine import Chunk, Engine, _Stream
from relay.config.model import Config
from relay.core.catchup import SLICE_S
from relay.core.forms.registry import POLL
from relay.core.hub import Hub
from relay.core.stream import Subscribe
from relay.errors import RequestError
from relay.event import Event
from tests.oracle import Oracle, Published
from tests.readers import Reader

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"

POLL_EVENTS_MAX = 5
"""Events in the answer to a poll that need not wait."""

POLL_WAIT_S = 10.0


def _nothing() -> None:
    """Stand for the cancellation of a preparation that has just begun."""


class Pipe:
    """One connection: the bytes that the server has sent and the client has not read. Replaces a socket object."""

    def __init__(self, fd: int, room: int) -> None:
        self.fd = fd
        self.room = room
        self.unread = bytearray()
        self.full = False  # a send was short; report an edge once there is room
        self.client_open = True
        self.server_open = True

    def fileno(self) -> int:
        """Return the number that stands for the descriptor."""
        return self.fd

    def shutdown(self, how: int) -> None:
        """Send the end of the stream."""
        assert how == socket.SHUT_WR
        self.server_open = False

    def close(self) -> None:
        """Close the server's end."""
        self.server_open = False


class SimEngine(Engine):
    """The native engine over pipes, with a clock that stands still within a call."""

    def __init__(self, discard_bytes_max: int) -> None:
        super().__init__(discard_bytes_max)
        self.pipes: dict[int, Pipe] = {}
        self.edges: dict[int, int] = {}  # handle → mask
        self.handles_by_fd: dict[int, int] = {}
        self.sends_a_slice = 0
        self.shared_flushes = 0
        self.writes_together = 0
        self._looks = 0

    def report(self, fd: int, mask: int) -> None:
        """Make the next poll report this event of a socket, unless an older engine handed the socket over."""
        handle = self.handles_by_fd.get(fd)
        if handle is not None:
            self.edges[handle] = self.edges.get(handle, 0) | mask

    def _monotonic_s(self) -> float:
        # Each reading of the clock is one slice later, so that every broadcast is interrupted as often as possible.
        self._looks += 1
        return float(self._looks)

    def _sendmsg(self, stream: _Stream, parts: list[bytes | memoryview]) -> int:
        pipe = cast(Pipe, stream.sock)
        if not pipe.client_open:
            raise ConnectionResetError
        data = b"".join(parts)[: max(0, pipe.room - len(pipe.unread))]
        pipe.unread += data
        if len(data) < sum(map(len, parts)):
            pipe.full = True
        if not data:
            raise BlockingIOError
        return len(data)

    def broadcast(self, *arguments: Any) -> int:
        """Send a flush, and count those whose live streams all received the shared output."""
        unshared, shared = self.unshared, arguments[6]
        place = super().broadcast(*arguments)
        self.shared_flushes += shared is not None and self.unshared == unshared
        return place

    def write_each(self, handles: list[int], chunk: Chunk, now_s: float) -> tuple[list[int], list[int]]:
        """Write a chunk to some streams, and count the writes of calls with several streams."""
        self.writes_together += len(handles) if len(handles) > 1 else 0
        return super().write_each(handles, chunk, now_s)

    def _recv(self, stream: _Stream) -> bytes:
        if not cast(Pipe, stream.sock).client_open:
            return b""
        raise BlockingIOError

    def _register(self, handle: int, fd: int) -> socket.socket:
        self.handles_by_fd[fd] = handle
        return cast(socket.socket, self.pipes[fd])

    def _close(self, stream: _Stream) -> None:
        stream.sock.close()

    def _release(self, stream: _Stream) -> int:
        return stream.sock.fileno()

    def _events(self) -> list[tuple[int, int]]:
        edges, self.edges = self.edges, {}
        return [(handle, mask) for handle, mask in edges.items() if handle in self._streams]


@dataclass
class Client:
    """One subscriber over all of its connections."""

    name: int
    terms: tuple[str, ...]
    policy: str | None
    room: int
    oracle: Oracle
    form: str
    pipe: Pipe | None = None
    cancel: Callable[[], None] | None = None  # ends the preparation of a replay; None unless the client waits for it
    reader: Reader = field(default_factory=Reader)
    head_left: int = 0
    last_id: str = ""


class _Silent:
    """A histogram that discards its values."""

    def observe(self, amount: float, /) -> None:
        """Discard the value."""


class _Measures:
    flush_s = written_s = lag_s = _Silent()


class World:
    """One hub with its clients.

    Args:
        config: the hub's settings.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.now_s = 1000.0
        self.slices = (
            False  # whether each reading of the hub's clock takes most of a slice, so that work is interrupted
        )
        self._readings = 0  # of the clock in this turn
        self.engine, self.hub = self._server()
        self.published = Published()
        self.clients: list[Client] = []
        self.polls = 0  # number of answered polls
        self._next_fd = 100

    def _server(self) -> tuple[SimEngine, Hub]:
        """Make an engine and a hub without streams."""
        engine = SimEngine(self.config.discard_bytes_max)
        hub = Hub(
            self.config,
            engine,  # type: ignore[arg-type]
            epoch="sim",
            streams_max=1000,
            measures=_Measures(),
            clock=self._clock,
            wake=lambda: None,
            draw=lambda: 0.5,
        )
        hub.on_answer(lambda fd, address, data, keep: self._end_poll(engine.pipes[fd], data))
        return engine, hub

    def _clock(self) -> float:
        self._readings += self.slices
        return self.now_s + self._readings * 0.9 * SLICE_S

    def publish(
        self, topic: str, size: int, key: str | None = None, id: str | None = None, ttl: float | None = None
    ) -> bool:
        """Publish an event whose data is its number and some padding; return False if the topic is held."""
        if self.hub.held(topic):
            return False
        number = len(self.published.events) + 1
        event = Event(data=f"{number}:{'x' * size}", topic=topic, key=key, id=id, ttl=ttl)
        self.published.add(event, self.hub.publish_one(event, self.now_s))
        return True

    @property
    def forms(self) -> list[str]:
        """The forms of streams."""
        return [name for name, form in self.hub.forms.items() if not form.once]

    def client(self, terms: tuple[str, ...], policy: str | None, room: int, form: str | None = None) -> Client:
        """Make a client that is not connected yet. Without a given form, the clients take all forms in turn."""
        name, forms = len(self.clients), self.forms
        form = forms[name % len(forms)] if form is None else form
        client = Client(name, terms, policy, room, Oracle(self.published, terms), form)
        self.clients.append(client)
        return client

    def connect(
        self, client: Client, since_s: float | None = None, after: int | None = None, *, newest: bool = False
    ) -> None:
        """Open a stream. A client with a last id resumes after it, or after the sequence `after`.

        With `newest`, a client without a last id begins with the newest event of each topic and key.
        """
        self._subscribe(client, self._request(client, since_s, after, newest=newest))

    def prepare(
        self, client: Client, since_s: float | None = None, after: int | None = None, *, newest: bool = False
    ) -> None:
        """Open a stream as `connect` does, but as the front does it: when the hub has prepared the replay."""
        request = self._request(client, since_s, after, newest=newest)
        client.cancel = _nothing

        def done(error: RequestError | None) -> None:
            client.cancel = None
            # Otherwise the front answers 503.
            if error is None and self.hub.knows_evicted and (self.hub.begun or client.form != POLL):
                self._subscribe(client, request)

        if not request.replays:
            done(None)
            return
        cancel = self.hub.prepare(request, self.now_s, done)
        if client.cancel is not None:
            client.cancel = cancel

    def _request(self, client: Client, since_s: float | None, after: int | None, *, newest: bool) -> Subscribe:
        assert client.pipe is None
        assert client.cancel is None
        newest = newest and not client.last_id and client.form != POLL
        since_s = math.inf if newest else since_s
        ids = (client.last_id,) if client.last_id else ()
        return Subscribe(
            client.terms, ids, since_s, client.policy, False, HEAD, client.form, after=after, newest=newest
        )

    def _subscribe(self, client: Client, request: Subscribe) -> None:
        pipe = Pipe(self._next_fd, client.room)
        self._next_fd += 1
        self.engine.pipes[pipe.fd] = client.pipe = pipe
        client.reader = Reader(client.form)
        client.head_left = len(HEAD)
        log, since_s = self.hub.log, request.since_s
        log.expire(self.now_s)
        if client.last_id:
            first = None
        else:
            first = max(log.head, self.hub.snapshot) if since_s is None else log.since(self.now_s - since_s)
        client.oracle.connect(first, client.last_id, log.head if request.newest else 0, self.evicted())
        if client.form == POLL:
            self._poll(pipe, client, request)
        else:
            self.hub.subscribe(pipe.fd, request, f"127.0.0.{client.name}", self.now_s)

    def _poll(self, pipe: Pipe, client: Client, request: Subscribe) -> None:
        """Answer a poll at once, or let it wait, as the front does."""
        answer = self.hub.answer(request, POLL_EVENTS_MAX, self.now_s)
        if answer.empty:
            waiting = msgspec.structs.replace(request, wait_s=POLL_WAIT_S, after=answer.following - 1)
            self.hub.subscribe(pipe.fd, waiting, f"127.0.0.{client.name}", self.now_s)
        else:
            form = self.hub.forms[POLL]
            self._end_poll(pipe, HEAD + form.part(answer.body) + form.framing.end(0, 0))

    def _end_poll(self, pipe: Pipe, data: bytes) -> None:
        """Send the rest of the answer to a poll. The client uses another connection for its next poll."""
        pipe.unread += data
        pipe.server_open = False
        self.polls += 1

    def evicted(self) -> set[int]:
        """Return the sequences of the events that the server does not retain."""
        return {each for each in range(1, self.hub.log.head) if not self.hub.log.has(each)}

    def read(self, client: Client, count: int) -> None:
        """Let a client read up to `count` bytes."""
        pipe = client.pipe
        if pipe is None:
            return
        data, pipe.unread = bytes(pipe.unread[:count]), pipe.unread[count:]
        head, data = data[: client.head_left], data[client.head_left :]
        client.head_left -= len(head)
        for event in client.reader.feed(data):
            client.oracle.receive(event)
        if client.reader.last_event_id:
            client.last_id = client.reader.last_event_id
            client.oracle.advance(client.last_id)
        if pipe.full and len(pipe.unread) < pipe.room:
            pipe.full = False
            self.engine.report(pipe.fd, select.EPOLLOUT)
        if not pipe.server_open and not pipe.unread:
            self.cut(client)

    def cut(self, client: Client) -> None:
        """Cut a client's connection. Its unread bytes are lost."""
        if client.cancel is not None:
            client.cancel()
            client.cancel = None
        pipe = client.pipe
        if pipe is None:
            return
        pipe.client_open = False
        client.pipe = None
        self.engine.report(pipe.fd, select.EPOLLIN | select.EPOLLRDHUP)

    def step(self) -> bool:
        """Run one slice of the server's work; return whether more remains."""
        self._readings = 0
        self.hub.poll(self.now_s)
        return self.hub.turn(self.now_s)

    def pass_time(self, seconds: float) -> None:
        """Advance the clock, and run the timers that expire."""
        self.now_s += seconds
        self.hub.tick(self.now_s)
        while self.hub.heartbeat(self.now_s):
            pass

    def settle(self) -> None:
        """Let all clients reconnect and read until nothing changes; then check the promise."""
        for client in self.clients:
            if client.pipe is None and client.cancel is None and client.last_id:
                self.connect(client)
        moved = True
        while moved:
            moved = False
            while self.step():
                pass
            for client in self.clients:
                if client.pipe is not None and client.pipe.unread:
                    moved = True
                    self.read(client, 1 << 30)
                if client.pipe is not None and not client.pipe.server_open and not client.pipe.unread:
                    self.cut(client)
                if client.pipe is None and client.cancel is None and client.last_id:
                    moved = True
                    self.connect(client)
        for client in self.clients:
            if client.pipe is not None:
                client.oracle.finish()
