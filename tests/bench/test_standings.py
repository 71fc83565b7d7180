"""The comparison with other servers shows the measured values and the cases in which another server is better.

`tests.bench.test_measurements` covers its chart.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report, standings
from bench.fanout import Load, measure
from bench.feed import Bench, Figures
from bench.report import Spread
from bench.runs import fed, one
from bench.standings import FanoutRun, Result, ServerInfo
from bench.targets import TARGETS
from loadtest.rig.harness import MeasureError
from loadtest.rig.targets import Target

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SERVERS = {name: ServerInfo("", "1.0", "socket", ()) for name in ("floor", "relay", "other")}


def result(figure: str, **medians: float) -> Result:
    servers: dict[str, standings.Figures] = {
        name: {figure: Spread(value, value, value)} for name, value in medians.items()
    }
    return Result("1000x100", "a load", 1, servers)


def run(*results: Result) -> FanoutRun:
    return FanoutRun("python -m bench.fanout", "2026-01-01", 5.0, {}, SERVERS, list(results))


def test_relay_and_the_floor_are_measured_in_one_run_and_lose_nothing() -> None:
    load = Load(name="small", what="20 streams × 200 events/s", run=fed(20, 200))
    of = measure(load, [TARGETS["floor"], TARGETS["relay"]], Bench(seconds=0.3), repeat=2)
    for name in ("floor", "relay"):
        assert of.median(name, "delivered") == 1
        assert of.median(name, "faults") == 0
    assert standings.table(of).count("\n| ") == 4


def test_single_events_reach_every_idle_stream() -> None:
    load = Load(name="one", what="one event to 30 idle streams", run=one(30))
    of = measure(load, [TARGETS["relay"]], Bench(), repeat=1)
    assert of.median("relay", "delivered") == 1
    last_ms = of.median("relay", "last_ms")
    assert last_ms is not None
    assert last_ms > 0


def test_a_failed_server_is_shown_with_its_reason_and_the_others_continue() -> None:
    def only_the_floor(target: Target, _bench: Bench) -> Figures:
        if target.name == "relay":
            raise MeasureError("it fell over")
        return {"delivered": 1.0, "gc_objects_per_stream": float("nan")}

    load = Load(name="odd", what="an odd load", run=only_the_floor)
    of = measure(load, [TARGETS["relay"], TARGETS["floor"]], Bench(), repeat=2)
    assert of.servers["relay"] == {"error": "it fell over"}
    assert of.servers["floor"] == {"delivered": Spread(1, 1, 1)}  # an invalid number is omitted
    assert "| relay | failed: it fell over |" in standings.table(of)


def test_the_cases_in_which_another_server_is_better_are_listed() -> None:
    slower = result("p99_ms", relay=10, floor=5, other=20)
    assert standings.better(run(slower)) == ["a load, p99: floor 5; relay 10"]
    assert standings.better(run(slower), floor=False) == []
    less = result("deliveries_per_s", relay=10, floor=9, other=20)
    assert standings.better(run(less)) == ["a load, deliveries: other 20; relay 10"]


def test_a_faster_server_that_delivered_less_is_not_better() -> None:
    servers: dict[str, standings.Figures] = {
        "relay": {"p99_ms": Spread(10, 10, 10), "delivered": Spread(1, 1, 1)},
        "other": {"p99_ms": Spread(0, 0, 0), "delivered": Spread(0, 0, 0)},
    }
    of = Result("1000x100", "a load", 1, servers)
    assert standings.better(run(of)) == []
    assert "| other | 0 % | – |" in standings.table(of)


def test_a_difference_within_the_noise_does_not_count() -> None:
    assert standings.better(run(result("p99_ms", relay=10, other=9.5))) == []


def test_the_tables_show_every_server() -> None:
    made = run(result("p99_ms", relay=10, floor=5, other=20))
    text = standings.render(made)
    for name in SERVERS:
        assert f"| {name} |" in text
        assert f"| {name} |" in standings.summary(made)


def test_a_section_is_replaced_and_the_rest_is_unchanged(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    begin, end = "<!-- figures: written by a program; do not edit -->\n", "<!-- figures: end -->\n"
    document.write_text(f"before\n{begin}old\n{end}after\n")
    report.put(document, "figures", "new\n")
    report.put(document, "figures", "newer\n")
    assert document.read_text() == f"before\n{begin}newer\n{end}after\n"
    with pytest.raises(ValueError, match="no section 'other'"):
        report.put(document, "other", "text\n")


@pytest.mark.parametrize("document", [report.README, standings.PROJECT])
def test_the_committed_comparison_equals_the_programs_output(document: Path) -> None:
    if not standings.RESULTS.exists():
        pytest.skip("no comparison is committed")
    made = standings.kept()
    text = standings.render(made) if document == report.README else standings.summary(made)
    assert text in document.read_text()
