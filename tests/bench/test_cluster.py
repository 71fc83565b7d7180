"""The cluster benchmark measures all runs and all faults."""

from __future__ import annotations

import json

import pytest

from bench.cluster import RUNS, main
from tests.redis_server import need_redis

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_all_runs_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    need_redis()
    monkeypatch.setattr("bench.cluster.LATENCY_EVENTS", 200)
    monkeypatch.setattr("sys.argv", ["bench.cluster", "--events", "2000", "--history", "3000"])
    assert main() == 0
    _, alone, one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["run"] for each in (alone, one, two)] == list(RUNS)
    for each in (alone, one, two):
        assert each["events_per_s"] > 0
        assert 0 < each["latency_ms"]["p50"] <= each["latency_ms"]["p99"] <= each["latency_ms"]["max"]
    assert "start_s" not in alone
    assert one["start_events"] >= 3000
    assert set(two["cpu_us_per_event"]) == {"publisher", "follower", "broker"}
    assert len(two["recovery_s"]) == 3
    assert all(0 < seconds < 30 for seconds in two["recovery_s"].values())
