"""One measured chain: relay, perhaps with a proxy in front, streams that check their contents, and a swarm that counts.

Owns the order of one run and its figures; never judges a figure.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from bench.feed import Figures, Stopwatch, opened
from loadtest.rig.harness import MeasuredServer, MeasureError
from loadtest.rig.swarm import Swarm, SwarmReport
from loadtest.rig.targets import RELAY, Target
from relay.speedups import Decoder

VERIFIERS = 3
"""Streams that decode and check everything; from two on, they share a compressor of relay."""

WARM_UP_STREAMS = 100
"""Streams that come and go before the memory is measured."""

WARM_UP_EVENTS, WARM_UP_RATE = 200, 200.0
SETTLE_EVENTS, SETTLE_RATE = 5, 2.0
"""Events to all streams before the measurement, in which relay's compressor has a key frame for the new streams."""

FIRST_S = 15.0
"""Time in which the few streams that are open first have the events of the warm-up."""

CATCH_UP_S = 90.0
OPEN_S = 90.0
SWARM_S = 400.0
POLL_S = 0.1
QUIET_S = 0.5
"""All bytes have come once none has come for this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """How streams are served.

    Args:
        name: name on the command line.
        title: name for readers.
        relay: more arguments for relay.
        proxy: makes the proxy in front of relay's port; None for none.
        program: the proxy's program, which has to be installed.
        coded: the streams are compressed.
        streams_max: most streams that the arrangement can hold with 20,000 descriptors per process.
    """

    name: str
    title: str
    relay: tuple[str, ...] = ()
    proxy: Callable[[int], Target] | None = None
    program: str = ""
    coded: bool = True
    streams_max: int = 19_000


class Chain:
    """The running servers of an arrangement.

    Args:
        relay: the server that events are published to.
        front: the server that streams connect to: relay or the proxy.
    """

    def __init__(self, relay: MeasuredServer, front: MeasuredServer) -> None:
        self.relay = relay
        self.front = front
        self._servers = [relay] if front is relay else [relay, front]

    def cpu_s(self) -> float:
        """Return the CPU seconds of all server processes so far."""
        return sum(server.cpu_s() for server in self._servers)

    def pss_bytes(self) -> int:
        """Return the memory of all server processes."""
        return sum(server.pss_bytes() for server in self._servers)

    def delivered(self) -> int:
        """Return the number of events that relay has handed to the kernel, over all streams."""
        text = self.relay.get("/metrics")[1].decode()
        return sum(int(float(value)) for value in re.findall(r"^relay_deliveries_total(?:{.*})? (\S+)$", text, re.M))

    def publish(self, texts: Sequence[str], rate: float) -> list[float]:
        """Publish events at a rate over the Unix socket; return the time of each, by the monotonic clock."""
        sent_s: list[float] = []
        began_s = time.monotonic()
        with socket.socket(socket.AF_UNIX) as feeder:
            feeder.connect(str(self.relay.unix))
            for number, text in enumerate(texts):
                time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
                sent_s.append(time.monotonic())
                feeder.sendall(msgspec.json.encode({"data": text}) + b"\n")
            # relay closes its side once it has taken everything.
            feeder.shutdown(socket.SHUT_WR)
            if answer := feeder.recv(4096):
                raise MeasureError(f"relay did not take an event: {answer.decode(errors='replace')}")
        return sent_s


class Verifier(threading.Thread):
    """One stream that asks for gzip, decodes what it gets and keeps the data of each event.

    Args:
        port: of the server.
        coded: whether the body has to be gzip.
    """

    def __init__(self, port: int, *, coded: bool) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=OPEN_S)
        self._connection.connect()
        self._socket: socket.socket = self._connection.sock
        self._coded = coded
        self.received: list[tuple[str, float]] = []
        """Data and time of each event."""
        self.error = ""

    def run(self) -> None:
        """Read until the stream ends; keep the reason if that is an error."""
        try:
            self._read()
        except (OSError, http.client.HTTPException, zlib.error, MeasureError) as error:
            self.error = f"{type(error).__name__}: {error}"

    def _read(self) -> None:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
        self._connection.request("GET", "/events?topic=default", headers=headers)
        response = self._connection.getresponse()
        coding = response.getheader("Content-Encoding", "")
        if response.status != 200 or coding != ("gzip" if self._coded else ""):
            raise MeasureError(f"a stream was answered with status {response.status} and coding {coding!r}")
        member = zlib.decompressobj(wbits=31) if self._coded else None
        decoder = Decoder()
        while data := response.read1():
            content = member.decompress(data) if member else data
            now_s = time.monotonic()
            self.received += [(str(event.data), now_s) for event in decoder.feed(content)]

    def close(self) -> None:
        """End the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._connection.close()


@contextlib.contextmanager
def serving(arrangement: Arrangement) -> Iterator[Chain]:
    """Start the servers of an arrangement."""
    with contextlib.ExitStack() as stack:
        # A heartbeat would count as bytes of a delivery.
        extra = (*arrangement.relay, "--heartbeat", "0")
        relay = stack.enter_context(MeasuredServer(RELAY, extra=extra))
        front = relay
        if arrangement.proxy is not None:
            front = stack.enter_context(MeasuredServer(arrangement.proxy(relay.port)))
        yield Chain(relay, front)


@contextlib.contextmanager
def verifying(chain: Chain, *, coded: bool) -> Iterator[list[Verifier]]:
    """Open the streams that check their contents, and wait until relay has them."""
    verifiers = [Verifier(chain.front.port, coded=coded) for _ in range(VERIFIERS)]
    try:
        for verifier in verifiers:
            verifier.start()
        _until(lambda: chain.relay.stats()["streams"] >= VERIFIERS, "the first streams are open", verifiers, FIRST_S)
        yield verifiers
    finally:
        for verifier in verifiers:
            verifier.close()


def measure(arrangement: Arrangement, streams: int, texts: Sequence[str], rate: float) -> Figures:
    """Feed the streams of a fresh chain.

    The memory per stream is the growth by the swarm's streams: before the feed, when they have received nothing, and
    after it, when a proxy has used its buffers. relay's compressor, which all streams share, exists before them. It is
    in `shared_bytes`: the growth of the empty servers by the first streams and `WARM_UP_EVENTS` events of history.

    Args:
        arrangement: what serves.
        streams: open streams, without the few that check their contents.
        texts: data of the events; the first `WARM_UP_EVENTS + SETTLE_EVENTS` are published before the measurement.
        rate: events per second.

    Returns:
        `bytes_per_delivery` (of bodies, with the framing of chunks), `chunks_per_delivery`, `joined` (events per read),
        `cpu_us_per_delivery` of all servers and `relay_us_per_delivery` of relay alone, `idle_bytes_per_stream`
        and `memory_bytes_per_stream` (before and after the feed), `shared_bytes`, `taken_s` (from the first event until
        all streams had all events), latencies `p50_ms` and `max_ms` of the streams that check their contents; those of
        `Stopwatch`.

    Raises:
        MeasureError: streams did not open, or did not receive exactly the events that were published.
    """
    texts_before, measured = texts[: WARM_UP_EVENTS + SETTLE_EVENTS], texts[WARM_UP_EVENTS + SETTLE_EVENTS :]
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(serving(arrangement))
        empty_bytes = chain.pss_bytes()
        verifiers = stack.enter_context(verifying(chain, coded=arrangement.coded))
        chain.publish(texts_before[:WARM_UP_EVENTS], WARM_UP_RATE)
        _until(lambda: _all_have(verifiers, WARM_UP_EVENTS), "all streams have the first events", verifiers, FIRST_S)
        with _swarm(chain, min(streams, WARM_UP_STREAMS)) as few:
            few.ready(OPEN_S)
        base_bytes = chain.pss_bytes()
        swarm = stack.enter_context(_swarm(chain, streams))
        coded = opened(swarm, streams, OPEN_S).coded
        if coded != streams * arrangement.coded:
            raise MeasureError(f"{coded} of {streams} streams are compressed")
        idle_bytes = chain.pss_bytes()
        chain.publish(texts_before[WARM_UP_EVENTS:], SETTLE_RATE)
        before, delivered = _quiet(swarm, verifiers, len(texts_before)), chain.delivered()
        watch, relay_cpu_s = Stopwatch(chain, [swarm.pid]), chain.relay.cpu_s()
        sent_s = chain.publish(measured, rate)
        after = _quiet(swarm, verifiers, len(texts))
        times, relay_cpu_s = watch.read(), chain.relay.cpu_s() - relay_cpu_s
        delivered = chain.delivered() - delivered
        full_bytes = chain.pss_bytes()
    _check(verifiers, texts, delivered, (streams + VERIFIERS) * len(measured))
    deliveries = streams * len(measured)
    return {
        "streams": streams,
        "deliveries": deliveries,
        "bytes_per_delivery": (after.bytes - before.bytes) / deliveries,
        "chunks_per_delivery": (after.chunks - before.chunks) / deliveries,
        "joined": deliveries / max(1, after.reads - before.reads),
        "cpu_us_per_delivery": times["cpu_s"] / delivered * 1e6,
        "relay_us_per_delivery": relay_cpu_s / delivered * 1e6,
        "idle_bytes_per_stream": (idle_bytes - base_bytes) / streams,
        "memory_bytes_per_stream": (full_bytes - base_bytes) / streams,
        "shared_bytes": base_bytes - empty_bytes,
        "taken_s": times["wall_s"] - QUIET_S,
        **_latencies(verifiers, sent_s),
        **times,
    }


def _swarm(chain: Chain, streams: int) -> Swarm:
    return Swarm(
        chain.front.port,
        streams,
        path="/events?topic=default",
        seconds=SWARM_S,
        accept_encoding="gzip",
        count_only=True,
    )


def _all_have(verifiers: Sequence[Verifier], count: int) -> bool:
    return all(len(verifier.received) >= count for verifier in verifiers)


def _until(
    condition: Callable[[], bool], what: str, verifiers: Sequence[Verifier], timeout_s: float = CATCH_UP_S
) -> None:
    """Wait until a condition holds; raise MeasureError if a verifier failed or the time ran out."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        errors = [verifier.error for verifier in verifiers if verifier.error]
        if errors or time.monotonic() > deadline_s:
            raise MeasureError(errors[0] if errors else f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def _quiet(swarm: Swarm, verifiers: Sequence[Verifier], count: int) -> SwarmReport:
    """Wait until the verifiers have `count` events and no more bytes arrive at the swarm; return its report."""
    _until(lambda: _all_have(verifiers, count), f"all streams have {count} events", verifiers)
    deadline_s = time.monotonic() + CATCH_UP_S
    report = swarm.mark()
    while time.monotonic() < deadline_s:
        time.sleep(QUIET_S)
        last, report = report, swarm.mark()
        if report.bytes == last.bytes:
            return report
    raise MeasureError(f"streams still receive bytes after {CATCH_UP_S:g} s")


def _check(verifiers: Sequence[Verifier], texts: Sequence[str], delivered: int, expected: int) -> None:
    for verifier in verifiers:
        if [text for text, _ in verifier.received] != list(texts):
            raise MeasureError(f"a stream received other contents than were published ({verifier.error or 'no error'})")
    if delivered != expected:
        raise MeasureError(f"relay delivered {delivered} events instead of {expected}")


def _latencies(verifiers: Sequence[Verifier], sent_s: Sequence[float]) -> Figures:
    taken_ms = [
        1000 * (came_s - each_s)
        for verifier in verifiers
        for (_, came_s), each_s in zip(verifier.received[-len(sent_s) :], sent_s, strict=True)
    ]
    return {"p50_ms": statistics.median(taken_ms), "max_ms": max(taken_ms)}
