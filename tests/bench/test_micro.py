"""Each micro-benchmark runs, and the table shows the results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.micro.table import CYTHON, PYTHON, render
from tests import ROOT
from tests.twins import NAMES, NATIVE_ONLY

pytestmark = pytest.mark.slow



@pytest.mark.parametrize("engine", NAMES)
def test_each_benchmark_runs(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "bench/micro"],
        cwd=ROOT,
        env={**os.environ, "RELAY_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    # A program that is not installed may be left out. The compiled twin may be left out only if it is not tested.
    assert NATIVE_ONLY or "not built" not in done.stdout


def found(case: str, by: str, median: float, *, units: int = 1, turn: int = 0) -> dict[str, object]:
    """Return the fields of pytest-benchmark's output for one benchmark that the table needs."""
    about = {"group": "encode", "case": case, "by": by, "units": units}
    return {"extra_info": about, "stats": {"median": median}, "params": {"turn": turn}}


def table(*benchmarks: dict[str, object]) -> str:
    stamp = {"date": "today", "command": "python -m bench.micro", "machine": {"kernel": "Linux"}}
    return render(list(benchmarks), stamp)


def test_the_table_shows_the_best_run_of_a_unit_beside_the_compiled_twin() -> None:
    text = table(
        found("small", PYTHON, 4e-6),
        found("small", CYTHON, 2e-6, units=10),
        found("small", CYTHON, 1e-6, units=10, turn=1),
        found("small", "a peer", 1e-3),
        found("large", CYTHON, 1e-6),
    )
    assert f"| | {CYTHON} | {PYTHON} | a peer |" in text
    assert "| small | 100 ns | 4 µs (40.0) | 1 ms (10,000) |" in text
    assert "| large | 1 µs | – | – |" in text
    assert "of 2 turns the best" in text
    assert text.endswith("- date: today\n- command: `python -m bench.micro`\n- kernel: Linux\n")


def test_the_table_marks_units_with_a_faster_peer() -> None:
    text = table(found("small", CYTHON, 1e-6), found("small", PYTHON, 4e-6), found("small", "a peer", 2e-6))
    assert f"Than {CYTHON}: nowhere." in text
    assert f"Than {PYTHON}:\n\n- encode, small: a peer takes 2 µs, {PYTHON} 4 µs\n" in text
