"""The parts of the load test: the judge of a stream, the follower, the tally for locust, the plan, the verdict."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

from loadtest.follower import Follower, FollowError
from loadtest.judge import Judge, broken_promise
from loadtest.plan import SCENARIOS, TOPICS, LoadOptions, many_topics, wanted
from loadtest.verdict import MIB, slope
from loadtest.watch import Sample
from relay.event import Event
from tests.scripted_http import HOLD, answer, scripted


def gap(missed: int | None) -> Event:
    number = "null" if missed is None else str(missed)
    return Event(f'{{"reason":"slow","missed":{number},"from":null,"to":null}}', event="relay.gap")


def everything(_number: int) -> bool:
    return True


def faults(judge: Judge, *numbers: int) -> list[str]:
    return [fault for number in numbers if (fault := judge.number(number)) is not None]


def test_a_judge_finds_no_fault_in_a_complete_stream() -> None:
    judge = Judge(everything)
    assert faults(judge, 5, 6, 7) == []
    assert judge.whole(7)
    assert not judge.whole(8)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ([1, 3], "events missing that it was not told of"),
        ([1, 1], "an event twice, or out of order"),
        ([1, 2, 1], "an event twice, or out of order"),
        ([2], "events missing that it was not told of"),
    ],
)
def test_a_judge_names_the_fault(numbers: list[int], fault: str) -> None:
    assert faults(Judge(everything, first=1), *numbers) == [fault]


def test_a_judge_requires_only_events_of_the_stream_and_rejects_others() -> None:
    judge = Judge(lambda number: number % 3 == 0, first=1)
    assert faults(judge, 3, 6, 9) == []
    assert faults(judge, 10) == ["an event of another topic"]
    assert judge.whole(11)


def test_a_gap_is_a_fault_or_accounts_for_the_missing_events() -> None:
    assert Judge(everything).gap(gap(2)) is not None
    judge = Judge(everything, first=1, gaps_allowed=True)
    assert judge.gap(gap(2)) is None
    assert faults(judge, 3, 4) == []
    assert len(faults(judge, 6, 7)) == 1
    assert judge.gap(gap(None)) is not None


def slow_judge(*numbers: int, reported: int) -> Judge:
    judge = Judge(everything, first=1, gaps_allowed=True)
    if reported:
        judge.gap(gap(reported))
    faults(judge, *numbers)
    return judge


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_a_policy_that_drops_reports_all_dropped_events(policy: str) -> None:
    assert broken_promise(policy, slow_judge(1, 4, 5, reported=2), 5, key_of) is None
    assert broken_promise(policy, slow_judge(1, 4, 5, reported=3), 5, key_of) == "told of 3 events missing, not 2"
    assert broken_promise(policy, slow_judge(1, 2, 3, reported=0), 3, key_of) == "was never slow"
    assert broken_promise(policy, slow_judge(1, 4, reported=2), 5, key_of) == "stands at 5, not at 5"


@pytest.mark.parametrize("policy", ["disconnect", "block"])
def test_a_gap_under_a_policy_without_loss_is_a_fault(policy: str) -> None:
    assert broken_promise(policy, slow_judge(1, 2, 3, reported=0), 3, key_of) is None
    assert broken_promise(policy, slow_judge(1, 3, reported=1), 3, key_of) == "lost 1 events"


def key_of(number: int) -> int:
    return number % 2


def test_conflate_can_drop_only_superseded_events() -> None:
    assert broken_promise("conflate", slow_judge(3, 4, reported=2), 4, key_of) is None
    broken = broken_promise("conflate", slow_judge(2, 4, reported=2), 4, key_of)
    assert broken == "misses an event that was the newest of its key"


async def test_a_follower_resumes_after_the_last_complete_block() -> None:
    cut = b'id: e-1\ndata: {"n":1}\n\nid: e-2\ndata: {"n":2}\n'

    def follow(url: str) -> list[str]:
        follower = Follower(url, ["a", "b.*"], receive_buffer=4096)
        seen: list[str] = []
        for _ in range(2):
            follower.open()
            while follower.is_open and len(seen) < 2:
                seen += [str(event.data) for event in follower.read(10) or []]
        follower.drop()
        assert follower.read() is None
        assert not follower.is_open
        return seen

    async with scripted([answer(body=cut)], [answer(body=b'id: e-2\ndata: {"n":2}\n\n'), HOLD]) as server:
        assert await asyncio.to_thread(follow, server.url) == ['{"n":1}', '{"n":2}']
    assert server.path(0) == "/events?topic=a&topic=b.%2A"
    assert server.header(0, "Last-Event-ID") is None
    assert server.header(1, "Last-Event-ID") == "e-1"


async def test_a_rejected_follower_reports_it() -> None:
    async with scripted([answer(503)]) as server:
        with pytest.raises(FollowError, match="503"):
            await asyncio.to_thread(Follower(server.url, ["a"]).open)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an environment of locust, without its changes to the standard library at import."""
    monkeypatch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")
    return importlib.import_module("locust.env").Environment()


def test_a_histogram_keeps_its_percentiles_in_locust(environment: Any) -> None:
    tally = importlib.import_module("loadtest.tally")
    tally.many(environment, "SWARM", "delivery", [(1_000, 900), (20_000, 90), (300_000, 10)])
    entry = environment.stats.get("delivery", "SWARM")
    assert entry.num_requests == environment.stats.total.num_requests == 1000
    assert [entry.get_response_time_percentile(part) for part in (0.5, 0.95, 0.995)] == [1, 20, 300]
    assert (entry.min_response_time, entry.max_response_time) == (1, 300)
    assert entry.avg_response_time == pytest.approx((900 + 90 * 20 + 10 * 300) / 1000)
    assert sum(entry.num_reqs_per_sec.values()) == 1000


def test_faults_count_as_failures_in_locust(environment: Any) -> None:
    tally = importlib.import_module("loadtest.tally")
    tally.faults(environment, "SWARM", "delivery", "an event twice", 3)
    assert environment.stats.get("delivery", "SWARM").num_failures == 3
    assert [error.occurrences for error in environment.stats.errors.values()] == [3]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_opens_the_requested_streams_and_ends_in_silence(name: str) -> None:
    plan = SCENARIOS[name].build(LoadOptions(streams=2500, users=5, rate=10, seconds=60, block=1000, slow_users=3))
    streams = sum(block.streams for block in plan.blocks)
    assert streams >= 2500
    assert plan.phases[-1].name == "settle"
    assert plan.phases[-1].rate == 0
    assert plan.phase_at(0) == 0
    assert plan.phase_at(plan.seconds) is None


def test_streams_are_divided_among_processes() -> None:
    plan = SCENARIOS["steady"].build(LoadOptions(streams=2500, users=5, rate=10, seconds=60, block=1000))
    assert [block.streams for block in plan.blocks] == [1000, 1000, 500]


def test_a_real_stream_of_mixed_terms_requires_each_matching_event() -> None:
    plan = SCENARIOS["topics"].build(LoadOptions(streams=10, users=4, rate=1, seconds=1))
    assert many_topics(10_123) == "t.23.123"
    wants = wanted(plan, 1)  # the terms are t.1.*, t.1.1 and t.37.37
    assert [number for number in range(TOPICS, TOPICS + 220) if wants(number)] == [
        10_001,
        10_037,
        10_101,
        10_201,
    ]


def test_the_slope_of_memory_excludes_the_start() -> None:
    def samples(values: list[int]) -> list[Sample]:
        return [Sample(float(place), value, 0, 0, 0, 0) for place, value in enumerate(values)]

    flat = slope(samples([place * MIB for place in range(25)] + [25 * MIB] * 76))
    assert flat == (0.0, 75.0)
    growing = slope(samples([place * 1000 for place in range(101)]))
    assert growing[0] == pytest.approx(1000)
