"""The follower over a broker in memory: it copies the log, and begins again whenever the log does not continue."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar

import pytest

from relay.backoff import Backoff
from relay.cluster import follower as module
from relay.cluster.broker import LogEntry, LogPosition
from relay.cluster.follower import LogFollower
from relay.config.model import SETTINGS, Config
from relay.core.forms.framing import unwrap
from relay.errors import BrokerError
from relay.event import Event
from relay.telemetry.input_errors import InputErrors
from tests.cluster.memory_broker import CLOCK_AHEAD_MS, MemoryBroker, MemoryLog
from tests.sim.conftest import use_native_engine
from tests.sim.world import World

MARKS = map(b"mark %d".__mod__, itertools.count())


class Errors:
    """Counts input errors."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def input_error(self, source: str, kind: str) -> None:
        """Count one."""
        self.kinds[f"{source} {kind}"] += 1


class Following(World):
    """One node: a hub on a virtual clock, and the follower that feeds it."""

    def __init__(self, log: MemoryLog, config: Config) -> None:
        super().__init__(config)
        self.hub.log.epoch = ""
        self.hub.feed(lambda: None)
        self.broker = MemoryBroker(log)
        self.connected = 0
        self.lost: list[str] = []
        self.errors = Errors()
        self._input_errors = InputErrors(
            "cluster", self.errors, asyncio.get_running_loop(), logging.getLogger("relay.cluster")
        )
        self.follower = LogFollower(
            config,
            self.hub,
            self.broker,
            lambda: self.now_s,
            self._input_errors,
            on_connected=self._on_connected,
            on_lost=self.lost.append,
            on_advance=self._on_advance,
        )
        self._task = asyncio.create_task(self.follower.run())

    def _on_connected(self) -> None:
        self.connected += 1

    def _on_advance(self) -> None:
        if not self.hub.begun:
            self.hub.end_snapshot()

    async def stop(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._input_errors.close()
        self.engine._epoll.close()

    def data(self) -> list[str]:
        """Return the data of all retained events."""
        log = self.hub.log
        frames = [unwrap(log.frame(sequence)).decode() for sequence in range(log.tail, log.head)]
        return [line[6:] for frame in frames for line in frame.splitlines() if line.startswith("data: ")]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until a condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def follow(self) -> None:
        """Run the loop until the node has the whole log."""
        log = self.broker.log
        await self.until(
            lambda: self.hub.begun and (self.hub.log.epoch, self.hub.log.head) == (log.epoch, log.head)
        )


def publish(log: MemoryLog, *data: str, topic: str = "a") -> None:
    """Append events to the broker's log."""
    for each in data:
        log.append(b'{"topic":"%b","data":"%b"}' % (topic.encode(), each.encode()), next(MARKS))


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    use_native_engine(monkeypatch)
    monkeypatch.setattr(module, "RECONNECT_MIN_S", 0.0)
    monkeypatch.setattr(module, "RECONNECT_MAX_S", 0.0)


@pytest.fixture
def log() -> MemoryLog:
    """Return the log of an empty broker."""
    return MemoryLog()


@pytest.fixture
async def nodes(log: MemoryLog) -> AsyncIterator[Callable[..., Following]]:
    """Return a function that starts a node."""
    started: list[Following] = []

    def start(**settings: object) -> Following:
        started.append(Following(log, Config(**settings)))  # type: ignore[arg-type]
        return started[-1]

    yield start
    while started:
        await started.pop().stop()


Start = Callable[..., Following]


async def test_a_node_has_the_events_and_ids_of_the_broker(log: MemoryLog, nodes: Start) -> None:
    first = nodes()
    await first.follow()
    publish(log, "1", "2")
    await first.follow()
    second = nodes()
    await second.follow()
    assert first.data() == second.data() == ["1", "2"]
    assert first.hub.log.id(2) == second.hub.log.id(2) == f"{log.epoch}-2"


async def test_a_lost_connection_continues_where_it_was_cut(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1")
    await node.follow()
    log.down = True
    log.wake()
    await node.until(lambda: len(node.lost) > 2)
    assert node.lost[0] == "the broker is down"
    assert node.data() == ["1"]  # served from memory
    publish(log, "2", "3")
    log.down = False
    await node.follow()
    assert node.data() == ["1", "2", "3"]
    assert node.follower.reconnects == 1
    assert node.follower.lapped == node.follower.renewals == 0


async def test_the_back_off_begins_again_after_a_read(
    log: MemoryLog, nodes: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(Backoff):
        waits: ClassVar[list[float]] = []

        def next_s(self) -> float:
            self.waits.append(super().next_s())
            return 0.0

    monkeypatch.setattr(module, "Backoff", lambda *_: Recorded(1.0, 8.0))
    node = nodes()
    publish(log, "1")
    await node.follow()
    for _ in range(2):
        log.down = True
        log.wake()
        await node.until(lambda: len(Recorded.waits) >= 3)
        assert Recorded.waits[:3] == [1.0, 2.0, 4.0]
        log.down = False
        publish(log, "2")
        await node.follow()
        Recorded.waits.clear()


async def test_an_entry_that_repeats_another_one_is_left_out(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1", "2", "2", "3")
    entry, before = log.entries[2]
    log.entries[2] = entry._replace(repeats=True), before
    await node.follow()
    publish(log, "4")
    await node.follow()
    hub = node.hub
    retained = [sequence for sequence in range(hub.log.tail, hub.log.head) if hub.log.has(sequence)]
    assert retained == [1, 2, 4, 5]
    assert [unwrap(hub.log.frame(sequence)).count(b"data: 2\n") for sequence in retained] == [0, 1, 0, 0]
    assert hub.log.id(5) == f"{log.epoch}-5"


async def test_trimming_past_the_next_entry_begins_again_with_a_gap(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1", "2")
    await node.follow()
    for number in range(1, 6):
        node.published.add(Event(str(number), topic="a"), f"{log.epoch}-{number}")
    client = node.client(("a",), None, 1 << 20, "sse")
    node.connect(client, since_s=1e9)
    node.step()
    node.read(client, 1 << 20)
    assert client.oracle.seen == 2
    log.down = True
    log.wake()
    await node.until(lambda: len(node.lost) > 0)
    publish(log, "3", "4", "5")
    log.trim(5)
    log.down = False
    await node.follow()
    assert node.data() == ["5"]
    assert node.follower.lapped == 1
    assert client.last_id == f"{log.epoch}-2"
    node.settle()  # the stream ends, and the client resumes
    assert (client.oracle.seen, client.oracle.gaps) == (3, 1)
    client.oracle.finish()


async def test_a_broker_that_lost_entries_renews_the_epoch_once_for_all_nodes(log: MemoryLog, nodes: Start) -> None:
    behind, ahead, other = nodes(), nodes(), nodes()
    publish(log, "1", "2", "3")
    for each in (behind, ahead, other):
        await each.follow()
    epoch = log.epoch
    log.fork(2)
    log.wake()
    for each in (behind, ahead, other):
        each.now_s += 2.0
    publish(log, "new 2")
    for each in (behind, ahead, other):
        await each.follow()
    assert log.epoch != epoch
    assert sum(each.follower.renewals for each in (behind, ahead, other)) == 1
    for each in (behind, ahead, other):
        assert each.data() == ["1", "new 2"]


async def test_a_replaced_entry_is_noticed_before_the_next_one_is_delivered(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1", "2")
    await node.follow()
    epoch = log.epoch
    log.fork(2)
    log.append(b'{"topic":"a","data":"other 2"}', b"other mark")
    publish(log, "3")
    await node.follow()
    assert log.epoch != epoch
    assert node.data() == ["1", "other 2", "3"]


async def test_a_replaced_last_entry_is_noticed_without_further_entries(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1", "2")
    await node.follow()
    epoch = log.epoch
    log.down = True
    log.wake()
    await node.until(lambda: len(node.lost) > 0)
    log.fork(2)
    publish(log, "other 2")
    log.down = False
    await node.until(lambda: log.epoch != epoch)
    await node.follow()
    assert node.data() == ["1", "other 2"]


async def test_an_epoch_that_returns_is_renewed_again(log: MemoryLog, nodes: Start) -> None:
    """The broker loses an entry, and then the renewal of its epoch too. No id identifies two events."""
    node = nodes()
    publish(log, "1", "lost 2")
    await node.follow()
    epochs = [log.epoch]
    log.fork(2)
    publish(log, "2", "3")
    for _ in range(2):
        log.epoch = epochs[0]
        log.wake()
        await node.until(lambda: log.epoch not in epochs)
        await node.follow()
        epochs.append(log.epoch)
        node.now_s += 2.0
    assert node.data() == ["1", "2", "3"]
    assert node.follower.renewals == 2


async def test_a_loss_that_was_noticed_is_not_forgotten_while_the_broker_is_down(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1", "lost 2", "lost 3")
    await node.follow()
    epoch, renew = log.epoch, node.broker.renew

    async def fail(known: str, epoch: str) -> LogPosition:
        node.broker.renew = renew  # type: ignore[method-assign]
        # When the node reconnects, the broker has more entries than the node, and the next entry is trimmed.
        publish(log, "2", "3", "4", "5")
        log.trim(5)
        raise BrokerError("the connection broke")

    node.broker.renew = fail  # type: ignore[method-assign]
    log.fork(2)
    node.now_s += 2.0
    log.wake()
    await node.until(lambda: log.epoch != epoch)
    await node.follow()
    assert node.data() == ["5"]
    assert node.follower.renewals == 1


async def test_entries_that_follow_a_loss_during_the_first_read_are_compared(log: MemoryLog, nodes: Start) -> None:
    """A node that reads old entries compares those that the broker has appended since a failover."""
    log.epoch = epoch = "00000000"
    publish(log, *map(str, range(1, 11)))
    node = nodes()
    read = node.broker.read

    async def read_some(after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        if after == 4 and log.head == 11:
            log.fork(7)
            raise BrokerError("the connection broke")
        return await read(after, min(count_max, 4), epoch, mark, wait_s)

    node.broker.read = read_some  # type: ignore[method-assign]
    await node.follow()
    assert node.data() == list(map(str, range(1, 7)))
    publish(log, "lost 7")
    await node.follow()
    log.silent = True
    log.fork(7)
    publish(log, "7", "8")
    log.wake()
    await node.until(lambda: log.epoch != epoch)
    await node.follow()
    assert node.data() == list(map(str, range(1, 9)))


async def test_an_empty_broker_begins_a_new_log_with_one_epoch(log: MemoryLog, nodes: Start) -> None:
    first, second = nodes(), nodes()
    publish(log, "1")
    await first.follow()
    await second.follow()
    epoch = log.epoch
    log.down = True
    log.wake()
    await first.until(lambda: bool(first.lost and second.lost))
    log.fork(1)
    log.epoch, log.down = "", False
    await first.until(lambda: log.epoch != "")
    publish(log, "2")
    await first.follow()
    await second.follow()
    assert log.epoch != epoch
    assert first.data() == second.data() == ["2"]


async def test_an_acknowledged_entry_that_was_lost_before_it_was_followed_renews_the_epoch(
    log: MemoryLog, nodes: Start
) -> None:
    node = nodes()
    publish(log, "1")
    await node.follow()
    epoch = log.epoch
    log.silent = True
    publish(log, "2")
    node.hub.acknowledged = log.head  # the publisher of this node has told its client that the event is published
    log.fork(2)
    node.now_s += 2.0
    log.wake()
    await node.until(lambda: log.epoch != epoch)
    await node.follow()
    assert node.data() == ["1"]
    assert node.follower.renewals == 1
    assert node.hub.head == 2


async def test_a_publish_that_is_acknowledged_while_the_position_is_read_is_not_a_loss(
    log: MemoryLog, nodes: Start
) -> None:
    node = nodes()
    publish(log, "1")
    await node.follow()
    epoch, ask = log.epoch, node.broker.position

    async def ask_slowly() -> LogPosition:
        position = await ask()
        publish(log, "2")
        node.hub.acknowledged = log.head
        return position

    node.broker.position = ask_slowly  # type: ignore[method-assign]
    checked_s = node.follower._checked_s
    node.now_s += 2.0
    log.wake()
    await node.until(lambda: node.follower._checked_s > checked_s)
    await node.follow()
    assert (log.epoch, node.connected) == (epoch, 1)


async def test_a_node_continues_if_the_broker_has_removed_all_entries_and_has_no_marks(
    log: MemoryLog, nodes: Start
) -> None:
    node = nodes()
    node.broker.has_marks = False
    publish(log, "1", "2")
    await node.follow()
    log.down = True
    log.wake()
    await node.until(lambda: len(node.lost) > 0)
    log.trim(log.head)
    log.down = False
    connected = node.connected
    await node.until(lambda: node.connected > connected)
    publish(log, "3")
    await node.follow()
    assert node.data() == ["1", "2", "3"]
    assert node.follower.lapped == node.follower.renewals == 0


async def test_a_new_node_reads_a_log_whose_epoch_was_renewed(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    publish(log, "1")
    await node.follow()
    log.epoch = "renewed1"
    publish(log, "2")
    log.epoch = "renewed2"
    publish(log, "3")
    second = nodes()
    await second.follow()
    await node.follow()
    assert node.data() == second.data() == ["1", "2", "3"]


async def test_an_entry_that_cannot_be_relayed_becomes_a_gap(log: MemoryLog, nodes: Start) -> None:
    node = nodes(topic="news")
    await node.follow()
    log.append(b"not JSON", next(MARKS))
    log.append(b'{"topic":"a"}', next(MARKS), b"v9")
    publish(log, "3")
    await node.follow()
    gap = '{"reason":"refused","missed":1,"from":null,"to":null}'
    assert node.data() == [gap, gap, "3"]
    assert node.hub.log.topic_of(1) == "news"
    assert node.errors.kinds == {"cluster entry": 2}


async def test_times_are_those_of_the_broker_on_the_clock_of_the_node(log: MemoryLog, nodes: Start) -> None:
    publish(log, "1")
    log.time_ms += 60_000
    publish(log, "2")
    log.time_ms += 60_000
    first, second = nodes(), nodes()
    second.now_s += 300.0  # its clock is ahead
    await first.follow()
    await second.follow()
    for node in (first, second):
        ages = [round(node.now_s - node.hub.log.time_s(sequence)) for sequence in (1, 2)]
        assert ages == [120, 60]
    assert log.time_ms == CLOCK_AHEAD_MS + 120_000


async def test_a_node_trims_the_broker_like_its_own_log(log: MemoryLog, nodes: Start) -> None:
    node = nodes(history_events=10)
    await node.follow()
    publish(log, *map(str, range(30)))
    await node.follow()
    node.now_s += 2.0
    publish(log, "30")
    await node.until(lambda: bool(node.broker.trims))
    assert node.broker.trims == [node.hub.log.tail]
    assert len(log.entries) == 10


async def test_a_node_that_reads_old_entries_trims_nothing(log: MemoryLog, nodes: Start) -> None:
    log.epoch = "00000000"
    publish(log, *map(str, range(30)))
    node = nodes(history_events=10)
    await node.follow()
    node.now_s += 2.0
    publish(log, "30")
    await node.follow()
    assert node.hub.log.tail == 22
    await node.until(lambda: bool(node.broker.trims))
    assert node.broker.trims == [22]


async def test_ended_topics_are_known_even_if_their_last_event_is_trimmed(log: MemoryLog, nodes: Start) -> None:
    log.ended.append("a")
    node = nodes()
    await node.follow()
    assert node.hub.ended.known() == ["a"]


async def test_progress_is_measured(log: MemoryLog, nodes: Start) -> None:
    node = nodes()
    await node.follow()
    began_s = node.follower.current_s
    log.down = True
    log.wake()
    await node.until(lambda: len(node.lost) > 0)
    node.now_s += 50.0
    await node.until(lambda: len(node.lost) > 3)
    assert node.follower.current_s == began_s
    log.down = False
    connected = node.connected
    await node.until(lambda: node.connected > connected)
    assert node.follower.current_s == node.now_s


async def test_an_idle_node_is_current_with_the_shortest_time_limit(log: MemoryLog, nodes: Start) -> None:
    """Half of the limit is left for the broker and a busy machine."""
    timeout_min_s = SETTINGS["cluster-timeout"].metadata["least"]
    node = nodes()
    await node.follow()
    for _ in range(3):
        node.now_s += module.POLL_S
        assert node.now_s - node.follower.current_s <= timeout_min_s / 2
        log.wake()
        await node.until(lambda: node.follower.current_s == node.now_s)


async def test_a_follower_that_fails_makes_no_progress(
    log: MemoryLog, nodes: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = nodes()
    await node.follow()
    began_s = node.follower.current_s

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(node.hub, "take", fail)
    node.now_s += 50.0
    publish(log, "1")
    await node.until(lambda: len(node.lost) > 3)
    assert set(node.lost) == {"internal error"}
    assert node.follower.current_s == began_s
    assert node.follower.lag_events == 1
    assert "the follower failed" in caplog.text
