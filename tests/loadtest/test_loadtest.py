"""The load test: each scenario passes on a relay that keeps its promise, and fails with a planted fault.

Most of a run is waiting, so all runs start with the first test and proceed at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from loadtest.plan import SCENARIOS
from tests.running import ASIDE_BYTES

RUN_S = 120
AT_ONCE = 5
SHORT = ("--ramp-s", "1", "--settle-s", "2")
SIZES = {
    "steady": "--streams 30 --users 3 --rate 40 --seconds 3 --block 20 --publish http",
    "burst": "--streams 30 --users 3 --rate 20 --seconds 3",
    "storm": "--streams 100 --users 3 --seconds 3",
    "slow": "--streams 100 --users 2 --slow-users 4 --rate 200 --seconds 5 --read-on-s 4 --pairs 1",
    "topics": "--streams 200 --users 8 --rate 300 --seconds 3 --ramp-s 2",
    "churn": "--streams 60 --users 2 --seconds 4",
    "soak": "--streams 60 --users 3 --seconds 4",
}
PLANTED = ("gap", "duplicate", "foreign")
WORKERS = 2
Done = subprocess.CompletedProcess[str]
Runs = Callable[[str], Done]


def command_of(name: str, results: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command of a run by its name (a scenario and a variation), and the variable that plants a fault."""
    scenario, _, more = name.partition(" ")
    policies = ("--policy", more) if scenario == "slow" else ()
    workers = ("--workers", str(WORKERS)) if more == "workers" else ()
    command = [sys.executable, "-m", "loadtest", "--scenario", scenario, "--results", str(results)]
    return [*command, *SHORT, *SIZES[scenario].split(), *policies, *workers], {
        "LOADTEST_PLANT": more if more in PLANTED else ""
    }


# A run takes long. The load test is under test here, not relay, so one engine is enough.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("RELAY_ENGINE") == "native", reason="run with the compiled engine"),
]

NAMES = [
    *(f"slow {policy}" for policy in SCENARIOS["slow"].policies),
    *("steady", "steady workers", "steady gap", "steady duplicate", "topics foreign"),
    *("burst", "storm", "topics", "churn", "soak"),
]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> None:
    """Do not count descriptors as other tests do: runs in the background open and close pipes during a test."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def finished(results: Path, request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Return the function that waits for a run by its name. The runs of the selected tests have already started."""

    def run(name: str) -> Done:
        command, setting = command_of(name, results / name.replace(" ", "-"))
        return subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_S, check=False, env={**os.environ, **setting}
        )

    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = {
        test.callspec.params.get("name")
        for test in tests
        if test.module is request.module and hasattr(test, "callspec")
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way: dict[str, Future[Done]] = {name: pool.submit(run, name) for name in NAMES if name in asked}
        yield lambda name: under_way[name].result()


def verdict(done: Done, *, but: str = "") -> list[str]:
    """Return the criteria that were not met, except for those whose line contains `but`."""
    assert "passes:" in done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("  FAIL") and not (but and but in line)]


@pytest.mark.parametrize("name", ["steady", "burst", "storm", "topics", "churn", "soak"])
def test_a_scenario_passes_on_a_relay_that_keeps_its_promise(name: str, finished: Runs) -> None:
    done = finished(name)
    sanitized = ASIDE_BYTES > 0  # ASan sets freed memory aside and does not return it
    assert verdict(done, but="memory is back" if sanitized else "") == []
    assert done.returncode == 0 or sanitized


@pytest.mark.parametrize("name", [f"slow {policy}" for policy in SCENARIOS["slow"].policies])
def test_slow_streams_receive_the_events_that_their_policy_promises(name: str, finished: Runs) -> None:
    # The effect on other streams needs the real size and an idle machine, so it is not tested here.
    assert verdict(finished(name), but="p99 of the healthy") == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("steady gap", "events missing that it was not told of"),
        ("steady duplicate", "an event twice"),
        ("topics foreign", "an event of another topic"),
    ],
)
def test_a_planted_fault_fails_the_run_by_its_name(name: str, fault: str, finished: Runs) -> None:
    done = finished(name)
    assert done.returncode == 1
    assert [line for line in verdict(done) if "no gap, duplicate" in line]
    seen = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if fault in line]
    assert any("SWARM" in line for line in seen), done.stdout
    assert any("SSE" in line for line in seen), done.stdout


@pytest.mark.parametrize("name", ["steady workers"])
def test_a_master_collects_the_results_of_its_workers(name: str, finished: Runs, results: Path) -> None:
    done = finished(name)
    assert verdict(done) == []
    saw = msgspec.json.decode((results / "steady-workers" / "steady.json").read_bytes())
    swarms = [part["report"]["deliveries"] for part in saw if part["part"] == "SWARM"]
    assert len(swarms) == 2
    rows = [line.split() for line in done.stdout.splitlines() + done.stderr.splitlines()]
    counted = next(int(row[2]) for row in rows if row[:2] == ["SWARM", "delivery"])
    assert counted == sum(swarms)


@pytest.mark.parametrize("name", ["steady"])
def test_the_reports_are_written(name: str, finished: Runs, results: Path) -> None:
    finished(name)
    written = {path.name for path in (results / name).iterdir()}
    assert {"steady.html", "steady.json", "steady_stats.csv", "steady_failures.csv"} <= written


def test_the_help_describes_each_scenario_and_its_criteria() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "--help"], capture_output=True, text=True, timeout=RUN_S, check=True
    )
    for name, scenario in SCENARIOS.items():
        assert f"  {name:8} {scenario.what}\n           passes: {scenario.passes}" in done.stdout
