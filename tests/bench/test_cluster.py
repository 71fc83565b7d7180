"""The cluster benchmark measures all runs and all faults, and the page has the saved results."""

from __future__ import annotations

import json

import pytest

from bench import cluster_report
from bench.cluster import main
from bench.report import README
from bench.targets import TARGETS
from tests.redis_server import need_redis


def test_the_page_has_the_saved_results() -> None:
    page = README.read_text()
    assert cluster_report.render(json.loads(cluster_report.RESULTS.read_bytes())["runs"]) in page
    assert cluster_report.render_peers(json.loads(cluster_report.PEER_RESULTS.read_bytes())["runs"]) in page


@pytest.mark.slow
@pytest.mark.alone
def test_all_runs_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    need_redis()
    monkeypatch.setattr("bench.cluster.LATENCY_EVENTS", 200)
    monkeypatch.setattr("bench.cluster.STALL_S", 0.5)
    monkeypatch.setattr("sys.argv", ["bench.cluster", "--brokers", "redis", "--events", "2000", "--history", "3000"])
    assert main() == 0
    alone, one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(each["broker"], each["nodes"]) for each in (alone, one, two)] == [("", 1), ("redis", 1), ("redis", 2)]
    for each in (alone, one, two):
        assert each["events_per_s"] > 0
        assert 0 < each["latency_ms"]["p50"] <= each["latency_ms"]["p99"] <= each["latency_ms"]["max"]
    assert "start_s" not in alone
    assert one["start_events"] >= 3000
    assert set(two["cpu_us_per_event"]) == {"publisher", "follower", "broker"}
    assert len(two["recovery_s"]) == 6
    assert all(0 < seconds < 30 for seconds in two["recovery_s"].values())


@pytest.mark.slow
@pytest.mark.alone
def test_relay_is_compared_with_the_installed_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_redis()
    monkeypatch.setattr("bench.cluster_peers.LATENCY_S", 0.5)
    monkeypatch.setattr("sys.argv", ["bench.cluster", "--peers", "--events", "2000"])
    assert main() == 0
    runs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(runs) == 1 + len({"relay", "centrifugo", "nchan"} & set(TARGETS))
    assert [run["server"] for run in runs[:2]] == ["relay, Unix socket", "relay"]
    for run in runs[:2]:
        assert (run["missed"], run["faults"]) == ([0, 0], [0, 0])
    for run in runs:
        assert run["events_per_s"] > 0
        assert run["latency_ms"]["p50"] > 0
