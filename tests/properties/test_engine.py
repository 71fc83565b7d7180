"""A subscriber reads whole frames in order under any stall, and both twins behave the same.

A script of random steps runs over socket pairs with small buffers. The path of its cursor determines the bytes of a
stream: the frames that the cursor passed, and the notices and heartbeats between them. After the script, every open
stream is drained, and its subscriber must have read exactly these bytes.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.implementations import load_engine
from tests.engines import FOREVER_S, Rig
from tests.twins import NAMES, NATIVE_ONLY

STEPS = (
    "publish",
    "publish",
    "flush",
    "flush",
    "write",
    "write",
    "write",
    "write_each",
    "read",
    "read",
    "poll",
    "skip",
    "heartbeat",
    "idle",
    "behind",
    "open",
    "close",
    "abort",
    "leave",
    "talk",
    "sweep",
    "compact",
)


class Step(NamedTuple):
    """One step of a script: an action, a stream, and a number whose meaning depends on the action."""

    kind: str
    stream: int
    number: int


SCRIPT = st.lists(
    st.builds(Step, st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 9000)), min_size=5, max_size=80
)


@dataclass
class Subscriber:
    """One stream, as seen by its subscriber and its oracle."""

    handle: int
    due: bytearray
    got: bytearray = field(default_factory=bytearray)
    there: bool = True  # reads, and was not aborted
    talked: bool = False
    closed: bool = False


class Run:
    """One script on one twin; `trace` contains everything that is visible from outside."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.engine = rig.engine
        self.frames: dict[int, bytes] = {}  # of the topic; other entries of the log are between them
        self.head = self.flushed = 1
        self.now_s = 0.0
        self.subscribers: list[Subscriber] = []
        self.passed = 0  # frames that cursors passed because they were sent
        self.trace: list[object] = []

    def run(self, script: list[Step]) -> None:
        """Run a script, and drain the remaining streams."""
        for step in script:
            if step.kind in ("publish", "flush", "write_each", "poll", "heartbeat", "idle", "open", "sweep", "compact"):
                getattr(self, step.kind)(step.number)
            elif self.subscribers:
                # Mostly an open stream, sometimes a closed one.
                some = [one for one in self.subscribers if self.rig.is_open(one.handle)]
                some = some if some and step.stream else self.subscribers
                subscriber = some[(step.stream + step.number) % len(some)]
                with contextlib.suppress(KeyError):
                    getattr(self, step.kind)(subscriber, step.number)
            self.look()
        self.drain()

    def look(self) -> None:
        """Record the visible state, and check that no unexpected byte arrived."""
        engine = self.engine
        for number, subscriber in enumerate(self.subscribers):
            handle = subscriber.handle
            assert subscriber.due.startswith(subscriber.got)
            state = (self.rig.is_open(handle), engine.is_behind(handle))
            self.trace.append((number, state, engine.cursor(handle) if state[0] else None, len(subscriber.got)))
        self.trace.append((engine.open, engine.deliveries, engine.bytes, engine.writes, engine.short_writes))
        self.trace.append((self.names(engine.handles()), self.names(engine.listed(self.rig.members))))

    def names(self, handles: list[int]) -> list[int]:
        """Return the numbers of these streams in the order of their opening."""
        return sorted(number for number, one in enumerate(self.subscribers) if one.handle in handles)

    def between(self, start: int, stop: int) -> list[bytes]:
        """Return the frames with sequences from `start` to before `stop`."""
        return [frame for sequence, frame in self.frames.items() if start <= sequence < stop]

    def moving(self) -> dict[int, int]:
        """Return the cursors of the streams that may move."""
        return {
            number: self.engine.cursor(one.handle)
            for number, one in enumerate(self.subscribers)
            if self.rig.is_open(one.handle)
        }

    def moved(self, before: dict[int, int]) -> None:
        """Add the frames that the cursors passed to the expected bytes."""
        for number, cursor in before.items():
            one = self.subscribers[number]
            frames = self.between(cursor, self.engine.cursor(one.handle))
            one.due += b"".join(frames)
            self.passed += len(frames)
        assert self.engine.deliveries == self.passed

    # Steps

    def open(self, number: int) -> None:
        if self.engine.open < 12:
            head = b"<%d>" % number + b"h" * (number % 3000)
            handle = self.rig.open(1 + number % self.head, head, now_s=self.now_s)
            self.rig.engine.join(handle, self.rig.members)
            self.subscribers.append(Subscriber(handle, bytearray(head)))

    def publish(self, number: int) -> None:
        if number % 4:
            self.frames[self.head] = b"[%d " % self.head + bytes([97 + self.head % 26]) * (number % 5000) + b"]"
        self.head += 1

    def flush(self, number: int) -> None:
        rows = [sequence for sequence in self.frames if sequence >= self.flushed]
        self.flushed = self.head
        if not rows:
            return
        chunk = self.rig.twin.chunk([self.frames[row] for row in rows], rows, self.head)
        before = self.moving()
        self.engine.combine([])
        place = 0
        while place < len(self.rig.members):
            place = self.engine.broadcast(self.rig.members, place, chunk, False, self.now_s, 0.0)
        self.moved(before)
        self.trace.append(self.names(self.engine.lagging()))

    def write(self, one: Subscriber, number: int) -> None:
        if not self.engine.is_behind(one.handle):
            return
        cursor = self.engine.cursor(one.handle)
        rows = [sequence for sequence in self.frames if sequence >= cursor - number % 3][: 1 + number % 5]
        chunk = None
        if rows and rows[-1] >= cursor:
            chunk = self.rig.twin.chunk([self.frames[row] for row in rows], rows, rows[-1] + 1)
        before = self.moving()
        whole = self.engine.write(one.handle, chunk, self.now_s)
        self.moved(before)
        self.trace.append(whole)
        cursor = self.engine.cursor(one.handle)
        if whole and not self.between(cursor, self.flushed):
            self.engine.live(one.handle, max(cursor, self.flushed))

    def write_each(self, number: int) -> None:
        behind = [one.handle for one in self.subscribers if self.engine.is_behind(one.handle)]
        if not behind:
            return
        first = sorted(map(self.engine.cursor, behind))[number % len(behind)]
        rows = [sequence for sequence in self.frames if sequence >= first][: 1 + number % 5]
        if not rows:
            return
        chunk = self.rig.twin.chunk([self.frames[row] for row in rows], rows, rows[-1] + 1)
        before = self.moving()
        reached = [self.subscribers[name].handle for name, cursor in before.items() if cursor >= first]
        whole, short = self.engine.write_each(reached, chunk, self.now_s)
        self.moved(before)
        assert all(self.engine.cursor(handle) >= chunk.cursor for handle in whole)
        self.trace.append((self.names(whole), self.names(short)))

    def skip(self, one: Subscriber, number: int) -> None:
        if self.engine.is_behind(one.handle):
            notice = b"{gap}" * (number % 3)
            self.engine.skip(one.handle, min(self.head, self.engine.cursor(one.handle) + number % 7), notice)
            one.due += notice

    def heartbeat(self, number: int, idle_s: float = 0.0) -> None:
        live = [one for one in self.subscribers if self.is_live(one)]
        frame = b":" + b"." * (number % 9) + b"\n"
        self.now_s += 1.0
        bytes_before, place = self.engine.writes, 0
        while place := self.engine.heartbeat([frame], place, idle_s, self.now_s, 0.0):
            pass
        if idle_s:
            assert self.engine.writes == bytes_before
            return
        for one in live:
            one.due += frame
        self.trace.append(self.names(self.engine.lagging()))

    def idle(self, number: int) -> None:
        self.heartbeat(number, 1e6)

    def is_live(self, one: Subscriber) -> bool:
        return self.rig.is_open(one.handle) and not self.engine.is_behind(one.handle)

    def behind(self, one: Subscriber, number: int) -> None:
        cursor = self.engine.cursor(one.handle)
        was = self.is_live(one)
        assert self.engine.fall_behind(one.handle, min(cursor, number)) == was
        assert self.engine.cursor(one.handle) == cursor

    def read(self, one: Subscriber, number: int) -> None:
        if one.there:
            one.got += self.rig.read(one.handle, number)

    def poll(self, number: int) -> None:
        writable, more = self.engine.poll()
        assert len(writable) == len(set(writable))
        self.trace.append((self.names(writable), more))

    def close(self, one: Subscriber, number: int) -> None:
        was_open = self.rig.is_open(one.handle)
        if was_open and number % 2:
            return
        last = b"bye" * (number % 3)
        self.engine.close(one.handle, f"close {number % 5}", last)
        if was_open:
            one.due += last
            one.closed = True

    def abort(self, one: Subscriber, number: int) -> None:
        if number % 4:
            return
        self.engine.abort(one.handle, f"abort {number % 5}")
        one.there = False

    def leave(self, one: Subscriber, number: int) -> None:
        if number % 4 == 0:
            self.rig.peers[one.handle].close()
            one.there = False

    def talk(self, one: Subscriber, number: int) -> None:
        if one.there:
            one.talked = True
            with contextlib.suppress(OSError):
                self.rig.peers[one.handle].send(b"t" * (number // 9))

    def sweep(self, number: int) -> None:
        swept = {handle: (cursor, reason) for handle, _, _, cursor, reason in self.engine.sweep()}
        self.trace.append([(name, swept[self.subscribers[name].handle]) for name in self.names(list(swept))])

    def compact(self, number: int) -> None:
        self.engine.compact(self.rig.members)

    # The end

    def drain(self) -> None:
        """Send all remaining bytes to every open stream, and check them byte by byte."""
        self.flush(0)
        for one in self.subscribers:
            for _ in range(10_000):
                self.read(one, 1 << 20)
                if not self.engine.is_behind(one.handle):
                    break
                self.write(one, 3)
        for _ in range(10_000):
            self.poll(0)
            for one in self.subscribers:
                self.read(one, 1 << 20)
            self.sweep(0)
            if len(self.engine.handles()) == self.engine.open or not any(one.there for one in self.subscribers):
                break
        for one in self.subscribers:
            if self.rig.is_open(one.handle) or (one.closed and one.there and not one.talked):
                assert one.got == one.due
            else:
                assert one.due.startswith(one.got)
        self.look()


def run(name: str, script: list[Step]) -> list[object]:
    """Run a script on a twin; return its trace."""
    rig = Rig(load_engine(name))
    try:
        rig_run = Run(rig)
        rig_run.run([Step("open", 0, 2000), Step("open", 0, 0), *script])
        return rig_run.trace
    finally:
        rig.tear_down()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(script=SCRIPT)
def test_subscribers_read_whole_frames_in_order_under_any_stall(name: str, script: list[Step]) -> None:
    run(name, script)


@pytest.mark.skipif(NATIVE_ONLY, reason="only the native engine is tested")
@settings(max_examples=60)
@given(script=SCRIPT)
def test_both_twins_do_the_same(script: list[Step]) -> None:
    assert run("native", script) == run("speedups", script)


@pytest.mark.skipif(NATIVE_ONLY, reason="only the native engine is tested")
@pytest.mark.parametrize("seed", range(10))
def test_both_twins_do_the_same_in_long_runs(seed: int) -> None:
    draw = random.Random(seed)
    script = [Step(draw.choice(STEPS), draw.randrange(12), draw.randrange(9000)) for _ in range(400)]
    assert run("native", script) == run("speedups", script)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100)
@given(
    audiences=st.lists(st.lists(st.integers(0, 9), unique=True), max_size=6),
    behind=st.sets(st.integers(0, 9), max_size=3),
)
def test_every_live_stream_is_in_exactly_one_combination_of_its_due_audiences(
    name: str, audiences: list[list[int]], behind: set[int]
) -> None:
    rig = Rig(load_engine(name))
    try:
        handles = [rig.open_live() for _ in range(10)]
        members = [rig.twin.members() for _ in audiences]
        for place, numbers in enumerate(audiences):
            for number in numbers:
                rig.engine.join(handles[number], members[place])
        for number in behind:
            rig.engine.fall_behind(handles[number], 1)
        expected: dict[tuple[int, ...], list[int]] = {}
        for number in set(range(10)) - behind:
            places = tuple(place for place, numbers in enumerate(audiences) if number in numbers)
            if len(places) > 1:
                expected.setdefault(places, []).append(handles[number])
        groups = rig.engine.combine(members)
        assert len(groups) == len(dict(groups))
        assert {places: sorted(rig.engine.listed(group)) for places, group in groups} == {
            places: sorted(group) for places, group in expected.items()
        }
        for each in members:
            rig.engine.broadcast(each, 0, rig.chunk([b"a"]), False, 0.0, FOREVER_S)
        alone = {number for number in set(range(10)) - behind if sum(number in numbers for numbers in audiences) == 1}
        assert {number for number in range(10) if rig.read(handles[number])} == alone
    finally:
        rig.tear_down()
