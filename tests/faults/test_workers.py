"""A hub with workers and a file, whose processes die and stall at random under load. All subscribers see all events.

One seed determines which processes are killed and when; the kernel determines the exact moments. Subscribers, one in
each form, reconnect with their last id, and the feeder resends unacknowledged events. No gap, duplicate or wrong order
is accepted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.follower import Follower
from tests.faults.resender import Resender
from tests.forms import FAULT_FORMS
from tests.running import ASIDE_BYTES, TIMEOUT_S, Relay, check_nothing_is_left, eventually, free_port

pytestmark = pytest.mark.slow

EVENTS = 4000
FAULTS = 8
STALL_S = 0.3
MEMORY_BYTES_MAX = 3 * 90 * 1024 * 1024
"""For a hub and two workers: each takes about 60 MB at rest, plus the history and the data for a stalled worker."""


class Node:
    """A hub and its workers. The hub restarts whenever it is killed."""

    def __init__(self, folder: Path, port: int) -> None:
        self.memory_bytes = 0
        self._arguments = (
            *("--listen", f"127.0.0.1:{port}", "--workers", "2", "--unix", str(folder / "relay.sock")),
            *("--data", str(folder / "relay.db"), "--durable", "--retry-min", "1ms", "--retry-max", "2ms"),
            *("--compress", "gzip"),
        )
        self.port = port
        self.server = Relay(*self._arguments)

    def workers(self) -> list[int]:
        """Return the process ids of the running workers."""
        pid = self.server.process.pid
        with contextlib.suppress(OSError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def look(self) -> None:
        """Record the memory of all processes."""
        total = 0
        for pid in (self.server.process.pid, *self.workers()):
            with contextlib.suppress(OSError, IndexError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        self.memory_bytes = max(self.memory_bytes, total)

    def kill_hub(self) -> None:
        """Kill the hub, and start another as soon as the workers have released the port."""
        self.server.stop(signal.SIGKILL)
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.server = Relay(*self._arguments)
            except AssertionError:
                assert time.monotonic() < deadline_s, "no new hub can be started"
            else:
                return

    def stop(self) -> None:
        """Stop the hub and its workers."""
        self.server.stop(signal.SIGKILL)


@pytest.mark.parametrize("seed", range(2))
def test_random_deaths_and_stalls_of_hub_workers_and_clients_lose_no_event(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    node = Node(tmp_path, free_port())
    faults = list[str]()
    feeder = Resender(tmp_path / "relay.sock", EVENTS)
    followers = [Follower(node.port, form, EVENTS, random.Random(draw.random())) for form in FAULT_FORMS]
    threads: list[Resender | Follower] = [feeder, *followers]
    try:
        for thread in threads:
            thread.start()
        while len(faults) < FAULTS:
            workers = node.workers()
            fault = draw.choice(("hub", "worker", "worker", "stall"))
            faults.append(fault)
            if fault == "hub":
                node.kill_hub()
            elif workers and fault == "worker":
                os.kill(draw.choice(workers), signal.SIGKILL)
            elif workers:
                stalled = draw.choice(workers)
                os.kill(stalled, signal.SIGSTOP)
                feeder.over.wait(STALL_S)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stalled, signal.SIGCONT)
            before = max(follower.sequence for follower in followers)
            more = min(draw.randrange(100, 400), EVENTS - before)
            eventually(lambda: max(f.sequence for f in followers) >= before + more, "events continue")  # noqa: B023
            node.look()
        assert feeder.over.wait(TIMEOUT_S), "all events are acknowledged"
        for follower in followers:
            follower.join(TIMEOUT_S)
            assert follower.failure is None, follower.failure
            assert not follower.is_alive(), f"a stream hangs after event {follower.sequence} of {EVENTS}"
        node.look()
        check_nothing_is_left(node.server)
    finally:
        node.stop()
        # A thread that outlives its test would open descriptors while another test counts them.
        for thread in threads:
            thread.stopped.set()
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
    published = feeder.published()
    for follower in followers:
        follower.check(published)
    bound = MEMORY_BYTES_MAX + 3 * ASIDE_BYTES
    print(f"{', '.join(faults)}; {node.memory_bytes / 1e6:.0f} MB seen of {bound / 1e6:.0f} MB allowed")
    assert node.memory_bytes < bound
