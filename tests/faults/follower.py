"""A subscriber that reconnects with its last id until it has all events."""

from __future__ import annotations

import contextlib
import random
import threading
import zlib

from relay.event import Event
from tests.forms import FormStream
from tests.oracle import Published, check_received
from tests.running import TIMEOUT_S


class Follower(threading.Thread):
    """A subscriber of `**`, in one form.

    It does not count events: a lost one would make it wait, which looks like a stream that hangs.

    Args:
        port: of the server, or of a network in front of it.
        form: the name of the form.
        count: sequence of the last event.
        draw: determines when it disconnects without a fault.
        timeout_s: longest time without data; after that, it reconnects.
    """

    def __init__(
        self, port: int, form: str, count: int, draw: random.Random, timeout_s: float = TIMEOUT_S
    ) -> None:
        super().__init__(daemon=True)
        self.form = form
        self.seen: list[Event | None] = []  # None marks the start of a connection
        self.sequence = 0  # of the last received event
        self.complete = 0  # connections whose body ended in order before the last event
        self.failure: BaseException | None = None
        self.stopped = threading.Event()  # when set, no new connection is opened
        self._port = port
        self._count = count
        self._draw = draw
        self._timeout_s = timeout_s
        self._last = ""

    def run(self) -> None:
        try:
            while self.sequence < self._count and not self.stopped.is_set():
                with contextlib.suppress(OSError), contextlib.closing(self._open()) as stream:
                    self._read(stream)
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error

    def _open(self) -> FormStream:
        since = {"Last-Event-ID": self._last} if self._last else {}
        try:
            return FormStream(self._port, self.form, "topic=**&since=earliest", since, timeout_s=self._timeout_s)
        # The connection ended within the head, or the server is not ready: then its answer is not compressed.
        except (AssertionError, zlib.error) as error:
            raise ConnectionError from error

    def _read(self, stream: FormStream) -> None:
        patience = self._draw.randrange(200, 3000)  # it disconnects after this many events
        self.seen.append(None)
        while True:
            for event in stream.events()[:patience]:
                patience -= 1
                self.seen.append(event)
                if event.id is not None:
                    self._last, self.sequence = event.id, int(event.id.rpartition("-")[2])
            if self.sequence >= self._count or not patience:
                return
            data = stream.socket.recv(65536)
            if not data:
                self.complete += stream.complete
                return
            stream.take_bytes(data)

    def check(self, published: Published) -> None:
        """Check that the subscriber has received each event exactly once, in order and without a gap."""
        check_received(published, self.seen)
