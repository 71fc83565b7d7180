"""Fixed amounts of work that execute the same in each run: `python -m bench.workloads NAME COUNT`.

Owns the workloads and runs one so that its instructions can be counted. Each workload prepares everything first and
then does `count` units with the project's own parts, without an event loop. The executed code therefore depends on no
timer, clock or time slice. Streams end in socket pairs that are never read, because their buffers hold all the data.
Never counts instructions itself; `bench.instructions` does, from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import math
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jwt
import msgspec
from prometheus_client import CollectorRegistry

from bench.local_hub import EPOCH, NOW_S, LocalHub
from bench.samples import SAMPLES
from loadtest.rig.harness import raise_descriptor_limit
from relay.auth.keys import read_secret
from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.core import flush
from relay.event import Event
from relay.front.front import Front
from relay.front.openings import Openings
from relay.sources.feeder import READ_BYTES
from relay.sources.intake import ANSWER_BYTES_MAX, Intake, State
from relay.sources.lines import LineSplitter, parse_line
from relay.speedups import Engine, accept
from relay.sse import Decoder, encode
from relay.telemetry.metrics import Metrics

COLLECTED = "ffi_call"
"""The C function within which instructions are counted. ctypes calls the work through it, and no other code uses it."""

STREAMS = 1000
EVENTS_A_FLUSH = 10
TOPICS = 100
HISTORY_EVENTS = 200
OVERLOAD_EVENTS = 500  # about 90 KiB, more than one segment
MISSED_EVENTS = 10
SECRET = "0123456789abcdef0123456789abcdef"
BYTES_MAX = 1 << 20
ID = "0123456789abcdef-12345"

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Workload:
    """Work of a known size.

    Args:
        what: description of one unit, for people.
        count: number of units that the gate runs.
        prepare: makes a function that does the given number of units.
    """

    what: str
    count: int
    prepare: Callable[[int], Work]


def _check(rig: LocalHub, deliveries: int) -> None:
    """Raise unless streams received this many events, so that missing work cannot look cheap."""
    if rig.hub.engine.deliveries != deliveries or rig.hub.catchup.streams:
        raise RuntimeError(f"{rig.hub.engine.deliveries} deliveries of {deliveries}")


def _encode(sample: str) -> Callable[[int], Work]:
    def prepare(count: int) -> Work:
        event = Event(data=SAMPLES[sample], topic="default")

        def work() -> None:
            for _ in range(count):
                encode(event, ID, BYTES_MAX)

        return work

    return prepare


def _decode(count: int) -> Work:
    frame = encode(Event(data=SAMPLES["small"], topic="default"), ID, BYTES_MAX)
    body = frame * count
    pieces = [body[at : at + READ_BYTES] for at in range(0, len(body), READ_BYTES)]

    def work() -> None:
        decoder = Decoder(BYTES_MAX)
        decoded = sum(len(decoder.feed(piece)) for piece in pieces)
        if decoded != count:
            raise RuntimeError(f"{decoded} events of {count}")

    return work


def _full() -> LocalHub:
    """Return a hub whose log is full, the usual state of a server: each event evicts one."""
    rig, event = LocalHub(Engine, history_events=1000), Event(data=SAMPLES["small"], topic="default")
    for _ in range(2000):
        rig.hub.publish_one(event, NOW_S)
    return rig


def _publish(count: int) -> Work:
    rig, event = _full(), Event(data=SAMPLES["small"], topic="default")

    def work() -> None:
        for _ in range(count):
            rig.hub.publish_one(event, NOW_S)

    return work


def _filled(*, streams: int = 0, events: int = 0) -> LocalHub:
    """Return a hub with live streams, and with events that it has published but not sent."""
    rig, event = LocalHub(Engine), Event(data=SAMPLES["small"], topic="default")
    for _ in range(streams):
        rig.subscribe("default")
    rig.flush()
    for _ in range(events):
        rig.hub.publish_one(event, NOW_S)
    return rig


def _flush(count: int) -> Work:
    rig, event = _filled(streams=STREAMS), Event(data=SAMPLES["small"], topic="default")

    def work() -> None:
        for _ in range(count):
            for _ in range(EVENTS_A_FLUSH):
                rig.hub.publish_one(event, NOW_S)
            rig.flush()
        _check(rig, count * EVENTS_A_FLUSH * STREAMS)

    return work


def _topics(count: int) -> Work:
    rig = LocalHub(Engine)
    events = [Event(data=SAMPLES["small"], topic=f"user.{n}") for n in range(TOPICS)]
    events.append(Event(data=SAMPLES["small"], topic="news"))
    for n in range(STREAMS):
        rig.subscribe("news", f"user.{n % TOPICS}")
    rig.flush()

    def work() -> None:
        for _ in range(count):
            for event in events:
                rig.hub.publish_one(event, NOW_S)
            rig.flush()
        _check(rig, count * 2 * STREAMS)

    return work


def _resume(count: int) -> Work:
    rig = _filled(events=HISTORY_EVENTS)
    descriptors = [rig.socket() for _ in range(count)]

    def work() -> None:
        for fd in descriptors:
            rig.subscribe("default", fd=fd, since_s=math.inf)
            rig.flush()
        _check(rig, count * HISTORY_EVENTS)

    return work


def _overload(count: int) -> Work:
    rig = _filled(streams=count, events=OVERLOAD_EVENTS)

    def work() -> None:
        rig.flush()
        _check(rig, count * OVERLOAD_EVENTS)

    return work


def _open(*, events: int = 0, signed: bool = False) -> Callable[[int], Work]:
    """Make the opening of streams directly from accepted connections.

    Args:
        events: number of events that each client missed and receives; 0 for clients without a last id.
        signed: whether subscribing needs a token; the grant of the clients' token is known.
    """

    def prepare(count: int) -> Work:
        rig, listener = _filled(events=HISTORY_EVENTS), socket.create_server(("127.0.0.1", 0), backlog=count)
        listener.setblocking(False)
        openings = Openings(_front(rig, signed=signed))
        fields = [b"Host: localhost:8080", b"User-Agent: bench", b"Accept: text/event-stream"]
        if events:
            fields.append(b"Last-Event-ID: %b-%d" % (EPOCH.encode(), HISTORY_EVENTS - events))
        if signed:
            claims = {"exp": NOW_S + 60, "sub": "bench", "relay": {"subscribe": ["**"]}}
            fields.append(b"Authorization: Bearer " + jwt.encode(claims, SECRET, "HS256").encode())
        request = b"\r\n".join((b"GET /events?topic=default HTTP/1.1", *fields, b"", b""))
        for _ in range(count):
            rig.peers.append(socket.create_connection(listener.getsockname()))
            rig.peers[-1].sendall(request)

        def work() -> None:
            for _ in range(count):
                accepted = accept(listener.fileno(), openings.bytes_max)
                if accepted is None or not openings.open(*accepted):
                    raise RuntimeError(f"a stream did not open: {accepted}")
            _check(rig, count * events)

        return work

    return prepare


def _front(rig: LocalHub, *, signed: bool) -> Front:
    """Return a front for the hub, without listeners and connections."""
    config = Config(subscribe="jwt", jwt_secret=SECRET) if signed else Config()
    keys = read_secret(SECRET, "jwt-secret") if signed else None
    auth = Auth(config, frozenset(), keys, wall=lambda: NOW_S)
    metrics = Metrics(rig.hub, CollectorRegistry(), lambda: NOW_S)
    return Front(rig.hub, config, metrics, lambda _: b"", b"", auth, asyncio.new_event_loop(), lambda: NOW_S)


def _ingest(count: int) -> Work:
    rig = _full()
    line = msgspec.json.encode({"topic": "default", "data": SAMPLES["small"]}) + b"\n"
    body = line * count
    pieces = [body[at : at + READ_BYTES] for at in range(0, len(body), READ_BYTES)]

    def complain(kind: str, number: int, reason: str) -> None:
        raise RuntimeError(f"{kind} {number}: {reason}")

    intake = Intake(LineSplitter(BYTES_MAX), parse_line, rig.hub, "default", complain, True)

    def work() -> None:
        before = rig.hub.log.head
        for piece in pieces:
            intake.receive(piece)
            while intake.work(NOW_S, ANSWER_BYTES_MAX) is State.BUSY:
                pass
        if rig.hub.log.head - before != count:
            raise RuntimeError(f"{rig.hub.log.head - before} events of {count}")

    return work


WORKLOADS = {
    "encode": Workload("a 150-byte event to a frame", 20_000, _encode("small")),
    "encode-lines": Workload("an event of 20 lines to a frame", 5000, _encode("lines")),
    "encode-unicode": Workload("an event that is not ASCII to a frame", 10_000, _encode("unicode")),
    "encode-64k": Workload("a 64 KiB event to a frame", 500, _encode("64k")),
    "decode": Workload("a 150-byte frame to an event", 10_000, _decode),
    "publish": Workload("an event into a full log, no streams", 5000, _publish),
    "flush": Workload(f"{EVENTS_A_FLUSH} events published and flushed to {STREAMS:,} streams", 20, _flush),
    "topics": Workload(f"{STREAMS:,} streams of two topics each, one event on each topic, flushed", 10, _topics),
    "resume": Workload(f"a stream opened and sent {HISTORY_EVENTS} events of history", 500, _resume),
    "overload": Workload("a stream that falls behind, receives two segments and catches up", 1000, _overload),
    "open": Workload("a stream opened from an accepted connection", 500, _open()),
    "open-resume": Workload(
        f"the same with a last id, and {MISSED_EVENTS} missed events", 500, _open(events=MISSED_EVENTS)
    ),
    "open-jwt": Workload("the same with a JWT whose grant is known", 500, _open(signed=True)),
    "ingest": Workload("a line of NDJSON into a full log", 5000, _ingest),
}


def run(name: str, count: int) -> None:
    """Run a workload after a tenth of it as a warm-up, which fills caches and specialises bytecodes.

    Raises:
        RuntimeError: the result of the work is wrong.
    """
    work = _prepared(name, count)
    call = ctypes.pythonapi["PyObject_CallNoArgs"]
    call.argtypes, call.restype = [ctypes.py_object], ctypes.py_object
    call(work)


def bytecodes(name: str, count: int) -> dict[str, int]:
    """Count the bytecodes that each Python function executes in a workload; callgrind sees only the interpreter."""
    work = _prepared(name, count)
    executed: Counter[str] = Counter()

    def trace(frame: FrameType, what: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if what == "opcode":
            executed[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return dict(executed)


def _prepared(name: str, count: int) -> Work:
    raise_descriptor_limit()
    # The clock divides a flush into slices, so the count would depend on the speed of the machine.
    flush.SLICE_S = math.inf
    prepare = WORKLOADS[name].prepare
    prepare(max(1, count // 10))()
    work = prepare(count)
    gc.collect()
    gc.freeze()
    return work


def main() -> int:
    """Run one workload."""
    parser = argparse.ArgumentParser(prog="python -m bench.workloads", description=main.__doc__)
    parser.add_argument("name", choices=list(WORKLOADS))
    parser.add_argument("count", type=int, help="units of work")
    parser.add_argument("--bytecodes", action="store_true", help="print the bytecodes of each Python function as JSON")
    options = parser.parse_args()
    if options.bytecodes:
        print(msgspec.json.encode(bytecodes(options.name, options.count)).decode())
    else:
        run(options.name, options.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
