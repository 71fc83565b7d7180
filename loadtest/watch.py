"""Sample the memory, the descriptors and the lag of the server during a run.

Owns one thread. Never opens a stream and never judges a figure.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.rig.harness import MeasuredServer, pss_bytes, tcp_memory_bytes, tree

EVERY_S = 0.5
IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment.

    Args:
        time_s: CLOCK_MONOTONIC.
        pss_bytes: memory of the server; tcp_bytes: kernel memory of all TCP sockets of this machine, both ends.
        descriptors: open ones.
        streams, lagging: the values in /stats.
    """

    time_s: float
    pss_bytes: int
    tcp_bytes: int
    descriptors: int
    streams: int
    lagging: int


def sample(server: MeasuredServer) -> Sample:
    """Take one sample of the server."""
    stats = server.stats()
    pids = tree(server.pid)
    return Sample(
        time.monotonic(),
        sum(map(pss_bytes, pids)),
        tcp_memory_bytes(),
        sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        stats["streams"],
        stats["lagging"],
    )


def sample_when(server: MeasuredServer, ready: Callable[[Sample], bool], timeout_s: float = IDLE_S) -> Sample:
    """Wait for a state of the server; return the first sample in that state, or the last one after the timeout."""
    deadline_s = time.monotonic() + timeout_s
    while not ready(found := sample(server)) and time.monotonic() < deadline_s:
        time.sleep(EVERY_S / 5)
    return found


class Watch:
    """Samples the server while the context is entered."""

    def __init__(self, server: MeasuredServer) -> None:
        self.samples: list[Sample] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            # If the server is too busy to answer, the next round tries again.
            with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
                self.samples.append(sample(self._server))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
