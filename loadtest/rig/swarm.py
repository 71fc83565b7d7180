"""The swarm: thousands of streams held by one C program (`swarm.c`), which checks every event they receive.

Owns the program's command line and reports. `python -m loadtest.rig.swarm --port N …` runs the program by itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection

import msgspec

from loadtest.rig.native import HERE, Program, build

REPORT_S = 30.0
POLL_S = 0.05


class SwarmReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the swarm since its start; names give the units, and counts are over all streams.

    Args:
        time_ns: time of the report, CLOCK_MONOTONIC.
        opened, failed, refused, closed: streams opened; not connected; answered with a status other than 200;
            ended by the server. dropped: ended by the swarm before a reconnect. A stream that reconnects is counted
            again.
        connect_s: from the first connect to the last response head.
        reopen_s, recover_s: after a storm, until all streams were open again, and until each had received an event.
        open: streams open.
        healthy_open: streams open that read all they can.
        reached: of these, the number that have seen the awaited event.
        coded: streams opened with a Content-Encoding; chunks: HTTP chunks received, except the last one of a body.
        deliveries: events received; bytes: bytes of the bodies; reads: calls that returned bytes.
        gaps, missed: places where the numbers jumped, and the number of skipped events; untold: skipped events that no
            gap event reported.
        told_gaps, told_missed: relay.gap events, and the missed events that they report.
        duplicates: repeated events; wrong_order: older events; torn: truncated events; foreign: events of another
            stream's topic, or of a type that neither the publisher nor relay uses.
        last_min, last_max: least and greatest number up to which a healthy stream has seen all its events.
        samples, p50_ms … max_ms: latency from publish to read, healthy streams only.
        cpu_s: CPU seconds of the swarm.
    """

    time_ns: int
    streams: int
    opened: int
    failed: int
    refused: int
    closed: int
    dropped: int
    connect_s: float
    reopen_s: float
    recover_s: float
    open: int
    healthy_open: int
    reached: int
    coded: int
    chunks: int
    deliveries: int
    bytes: int
    reads: int
    gaps: int
    missed: int
    untold: int
    told_gaps: int
    told_missed: int
    duplicates: int
    wrong_order: int
    torn: int
    foreign: int
    last_min: int
    last_max: int
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_s: float

    @property
    def faults(self) -> int:
        """Return the number of events missing without a gap event, repeated, out of order, torn or foreign."""
        return self.untold + self.duplicates + self.wrong_order + self.torn + self.foreign


Histogram = list[tuple[int, int]]
"""Upper end in µs and count of the buckets that hold something; a bucket is at most 1.6 % of its upper end wide."""


class SwarmHistograms(msgspec.Struct, frozen=True, kw_only=True):
    """Times since the previous request for histograms.

    Args:
        delivery: from publish to read, healthy streams only.
        connect, first: from the connect to the response head, and to the first event.
    """

    delivery: Histogram
    connect: Histogram
    first: Histogram


class Swarm:
    """A block of open streams.

    Args:
        port: the server's port.
        streams: how many; one process holds as many as the descriptor limit allows.
        path: request target; with several topics, the stream's topic replaces `{}`.
        topics: stream i has topic i mod `topics` and expects the events n with the same remainder, as a publisher with
            the same number of topics sends them; 0 is one topic for all.
        concurrency: connections being opened at one time.
        seconds: the swarm ends after this time.
        first: number of the first event that each stream must see; 0 accepts any.
        reconnect: closed streams reconnect with their last id.
        life_s: streams last half to one and a half times as long, and new ones take their place; 0 for no end.
        stalled: number of streams that stop reading after the response head.
        slow: number of streams that read only `slow_bytes` every 100 ms.
        rcvbuf: SO_RCVBUF of each stream, bytes; 0 keeps the system's.
        source: first source address; every 10,000 streams use the next one. `any` lets the kernel choose.
        accept_encoding: value of the request header, at most 64 bytes; empty to send none. The swarm decodes no body.
        count_only: count bytes and chunks, and check no event; for bodies that are coded.
        cpus: the cores that the swarm may use; all if empty.
    """

    def __init__(
        self,
        port: int,
        streams: int,
        *,
        host: str = "127.0.0.1",
        path: str = "/events",
        topics: int = 0,
        concurrency: int = 256,
        seconds: float = 60.0,
        first: int = 1,
        reconnect: bool = False,
        life_s: float = 0.0,
        stalled: int = 0,
        slow: int = 0,
        slow_bytes: int = 1024,
        rcvbuf: int = 0,
        source: str = "127.1.1.1",
        accept_encoding: str = "",
        count_only: bool = False,
        cpus: Collection[int] = (),
    ) -> None:
        options: dict[str, object] = {
            "port": port,
            "streams": streams,
            "host": host,
            "path": path,
            "topics": topics,
            "concurrency": concurrency,
            "seconds": seconds,
            "first": first,
            "life": life_s,
            "stalled": stalled,
            "slow": slow,
            "slow-bytes": slow_bytes,
            "rcvbuf": rcvbuf,
            "source": source,
            "accept-encoding": accept_encoding,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        if reconnect:
            flags.append("--reconnect")
        if count_only:
            flags.append("--count-only")
        self._program = Program([str(build(HERE / "swarm.c")), *flags], cpus=cpus)

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program at once."""
        self._program.close()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._program.pid

    def ready(self, timeout_s: float = REPORT_S) -> SwarmReport:
        """Wait until every stream is open or has failed."""
        return self._report("ready", timeout_s)

    def mark(self) -> SwarmReport:
        """Return the figures so far."""
        self._program.say("mark")
        return self._report("mark", REPORT_S)

    def reset(self) -> None:
        """Discard the latencies so far; the counts continue."""
        self._program.say("reset")

    def histograms(self) -> SwarmHistograms:
        """Return and discard the times so far; the counts continue."""
        self._program.say("histograms")
        return msgspec.json.decode(self._program.report("histograms", REPORT_S), type=SwarmHistograms)

    def storm(self, timeout_s: float = REPORT_S) -> SwarmReport:
        """Drop all streams at once, and wait until each has reconnected and received an event."""
        self._program.say("storm")
        return self._report("recovered", timeout_s)

    def reload(self, timeout_s: float = REPORT_S) -> SwarmReport:
        """Drop all streams at once, and wait until each has begun again as a new one and received an event.

        Each stream must then see all events from `first` on.
        """
        self._program.say("reload")
        return self._report("recovered", timeout_s)

    def wait_for(self, number: int, timeout_s: float = REPORT_S) -> SwarmReport:
        """Wait until every healthy stream has seen that event; the swarm continues.

        Returns:
            The last report; its `last_min` is below `number` if the time ran out.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            report = self.mark()
            if report.last_min >= number or time.monotonic() > deadline:
                return report
            time.sleep(POLL_S)

    def finish(self, number: int, timeout_s: float = REPORT_S) -> SwarmReport:
        """End the swarm once every healthy stream has seen that event, or when the time runs out.

        Returns:
            The final report; its `reached` is below `healthy_open` if some have not seen it.
        """
        deadline = time.monotonic() + timeout_s
        if self.wait_for(number, timeout_s).last_min < number:
            return self.stop()
        self._program.say(f"until {number}")
        return self._report("done", max(1.0, deadline - time.monotonic()))

    def stop(self) -> SwarmReport:
        """End the swarm now."""
        self._program.say("stop")
        return self._report("done", REPORT_S)

    def _report(self, name: str, timeout_s: float) -> SwarmReport:
        return msgspec.json.decode(self._program.report(name, timeout_s), type=SwarmReport)


def main() -> None:
    """Replace this process by the C program, with the same arguments."""
    program = str(build(HERE / "swarm.c"))
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
