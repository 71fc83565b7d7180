"""The gate counts the same code equally, and names the functions that became slower."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench import gate, instructions, ratios
from bench.instructions import Baseline, Count, compare, grown, parse
from bench.limits import CASES
from bench.ratios import LIMITS, RatioLimit
from bench.workloads import WORKLOADS
from loadtest.rig.harness import MeasureError
from relay.speedups import ENGINE
from tests import ROOT
from tests.running import ASIDE_BYTES

pytestmark = pytest.mark.slow

TIMEOUT_S = 240.0

needs_callgrind = pytest.mark.skipif(
    ENGINE == "native" or shutil.which("valgrind") is None or ASIDE_BYTES > 0,
    reason="counts the compiled engine and needs valgrind, which cannot run with ASan",
)


# The comparison


def count(instructions: float, **functions: float) -> Count:
    return Count(instructions, functions)


@pytest.mark.parametrize(
    ("base", "now", "bad", "said"),
    [
        (1000, 1050, [], r"w: 1,000 → 1,050 instructions \(\+5\.0%\)$"),
        (1000, 1051, ["w"], "more than 5% worse"),
        (1000, 949, [], "make bench-baseline keeps it so"),
        (1000, 951, [], r"\(-4\.9%\)$"),
    ],
)
def test_a_workload_can_grow_by_five_percent(base: float, now: float, bad: list[str], said: str) -> None:
    comparison = compare({"w": count(base)}, {"w": count(now)})
    assert comparison.bad == bad
    assert len(comparison.lines) == 1
    assert re.search(said, comparison.lines[0])


def test_a_workload_on_one_side_only_is_bad() -> None:
    comparison = compare({"old": count(1), "both": count(1)}, {"new": count(1), "both": count(1)})
    assert comparison.bad == ["new", "old"]
    assert "make bench-baseline adds it" in comparison.lines[1]
    assert "make bench-baseline drops it" in comparison.lines[2]


def test_functions_that_grew_are_listed_by_growth() -> None:
    base = Count(1000, {"steady": 500, "a": 100, "b": 100, "shrunk": 300}, {"module.f": 20, "module.g": 7})
    now = Count(1500, {"steady": 500, "a": 200, "b": 400, "shrunk": 1, "fresh": 250}, {"module.f": 30, "module.g": 7})
    assert grown(base, now) == [
        "b: 100 → 400 instructions",
        "fresh: 0 → 250 instructions",
        "a: 100 → 200 instructions",
        "module.f: 20 → 30 bytecodes",
    ]


# Callgrind's file

PROFILE = """\
# callgrind format
version: 1
cmd: python -m bench.workloads encode 1
positions: line
events: Ir
summary: 1111

ob=(1) /relay/_speedups.so
fl=(1) _speedups.c
fn=(1) __pyx_f_5relay_9_speedups_6Engine__send.constprop.0
10 1000
+3 50
cob=(2) /usr/lib/libc.so.6
cfi=(2) memcpy.S
cfn=(2) __memcpy_avx_unaligned_erms
calls=2 7
* 30
cfn=(3) __pyx_pw_5relay_9_speedups_1encode_event
calls=1 9
+1 20

fn=(3)
5 20
+1

ob=(2)
fl=(2)
fn=(2)
1 25
cfn=(4) __memcpy_tail
calls=1 1
2 5

fn=(4)
1 5

ob=(3) /lib/libpython3.11.so.1.0
fn=(5) _PyEval_EvalFrameDefault'2
1 6

fn=(6) _PyEval_EvalFrameDefault
1 4

fn=(7) 0x0000000004936750
1 1

ob=(2)
fn=(8) (below main)
cob=(1)
cfn=(1)
calls=1 1
1 1111
"""


def test_a_profile_counts_the_c_library_towards_its_callers() -> None:
    assert parse(PROFILE.splitlines()) == {
        "_speedups.Engine._send": 1000 + 50 + 30,
        "_speedups.encode_event": 20,
        "_PyEval_EvalFrameDefault": 6 + 4,
        "libpython3.11.so.1.0 (no symbol)": 1,
    }


# The workloads


def work(*arguments: str) -> str:
    """Run `python -m bench.workloads` and return its output."""
    command = [sys.executable, "-m", "bench.workloads", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_workload_runs(name: str) -> None:
    work(name, "3")


def test_bytecodes_are_counted_per_function_and_grow_with_the_work() -> None:
    once, twice = (json.loads(work("publish", count, "--bytecodes")) for count in ("10", "20"))
    assert once["relay.core.writer.Writer.publish_one"] > 0
    assert twice["relay.core.writer.Writer.publish_one"] == 2 * once["relay.core.writer.Writer.publish_one"]


# The instructions, counted


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    """Return a baseline of one workload, counted on this machine."""
    counts = instructions.with_bytecodes(instructions.count(["encode"]), ["encode"])
    return Baseline(instructions.environment(), counts)


@pytest.fixture
def checkout(tmp_path: Path, baseline: Baseline) -> Path:
    """Return a copy of the measured code, with that baseline."""
    for folder in ("relay", "bench", "loadtest"):
        ignored = shutil.ignore_patterns("__pycache__", "results", ".installed")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    instructions.write(baseline, tmp_path / "bench" / "baseline.json")
    return tmp_path


def gate_in(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gate", "instructions", "encode"]
    environment = {"PATH": os.environ["PATH"], "CI": "true"}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def plant(checkout: Path, statement: str) -> None:
    """Make the encoder execute a statement first."""
    source = checkout / "relay" / "sse.py"
    before, encoding, after = source.read_text().partition("    return encode_event(data, event.event")
    assert encoding
    source.write_text(f"{before}    {statement}\n{encoding}{after}")


# An allocation costs more if it empties or fills a pool of the interpreter's heap, and the heap of a copy of the code
# has another layout: the same encoder took up to 2.4 % more instructions in a copy.
LAYOUT_MAX = 3.0


@needs_callgrind
def test_the_same_code_counts_the_same(checkout: Path) -> None:
    same = gate_in(checkout)
    assert same.returncode == 0, same.stdout + same.stderr
    growth = re.search(r"\(([+-]\d+\.\d)%\)", same.stdout)
    assert growth, same.stdout
    assert abs(float(growth[1])) < LAYOUT_MAX


@needs_callgrind
def test_a_slower_encoder_fails_and_is_named(checkout: Path) -> None:
    plant(checkout, "encode_event(data, event.event, id, event.retry, bytes_max)")
    slower = gate_in(checkout)
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert "more than 5% worse" in slower.stdout
    named = slower.stdout.partition("what grew most in encode")[2]
    assert "_speedups.encode_event: " in named
    assert "relay.sse.encode: " in named


@needs_callgrind
def test_a_failed_workload_does_not_count_as_fast(checkout: Path) -> None:
    plant(checkout, "raise RuntimeError('planted')")
    failed = gate_in(checkout)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "planted" in failed.stderr


# Runs that cannot be compared


def planted(monkeypatch: pytest.MonkeyPatch, here: Mapping[str, str], ci: str) -> None:
    base = {"cpu": "x", "python": "3.11.7", "cc": "gcc 12", "libc": "glibc", "valgrind": "3.19", "msgspec": "1"}
    monkeypatch.setattr(instructions, "read", lambda _: Baseline(base, {name: count(100) for name in WORKLOADS}))
    monkeypatch.setattr(instructions, "environment", lambda: {**base, **here})
    monkeypatch.setattr(instructions, "count", lambda names: {name: count(100) for name in names})
    monkeypatch.setattr(instructions, "with_bytecodes", lambda counts, names: counts)
    monkeypatch.setenv("CI", ci)


@pytest.mark.parametrize(("ci", "code", "word"), [("true", 2, "not compared"), ("", 0, "skipped")])
def test_counts_of_another_compiler_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int, word: str
) -> None:
    planted(monkeypatch, {"cc": "gcc 14"}, ci)
    assert gate.check_instructions([]) == code
    said = capsys.readouterr().out
    assert word in said
    assert "cc: gcc 12 in the baseline, gcc 14 here" in said
    assert "make bench-baseline" in said


def test_another_version_of_a_package_is_compared_and_reported_beside_growth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, {"msgspec": "2"}, "true")
    assert gate.check_instructions([]) == 0
    assert "msgspec" not in capsys.readouterr().out
    monkeypatch.setattr(instructions, "count", lambda names: {name: count(106) for name in names})
    assert gate.check_instructions([]) == 1
    assert "note: msgspec: 1 in the baseline, 2 here" in capsys.readouterr().out


def test_an_earlier_baseline_is_compared_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environment = {"cpu": "x"}
    instructions.write(Baseline(environment, {"open": count(100)}), tmp_path / "earlier.json")
    monkeypatch.setattr(instructions, "environment", lambda: {**environment, "valgrind": "3.19"})
    monkeypatch.setattr(instructions, "DECISIVE", ("cpu",))
    monkeypatch.setattr(instructions, "count", lambda names: {name: count(102) for name in names})
    assert gate.check_instructions(["open"], tmp_path / "earlier.json") == 0
    assert capsys.readouterr().out == "open: 100 → 102 instructions (+2.0%)\n"


@pytest.mark.parametrize(("ci", "code"), [("true", 2), ("", 0)])
def test_without_valgrind_ci_fails_and_other_runs_print_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    planted(monkeypatch, {}, ci)
    monkeypatch.setattr(instructions, "environment", lambda: {"cpu": "x"})
    assert gate.check_instructions([]) == code
    assert "apt install valgrind" in capsys.readouterr().out


def test_the_committed_baseline_has_every_workload() -> None:
    base = instructions.read()
    assert set(base.workloads) == set(WORKLOADS)
    assert {*instructions.DECISIVE, *instructions.PACKAGES} <= set(base.environment)


# The ratios


def test_each_limit_names_an_existing_case() -> None:
    assert {limit.case for limit in LIMITS} <= set(CASES)


def measured(monkeypatch: pytest.MonkeyPatch, *runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Replace the measurements of a case: these runs for relay, 10 for the floor. Return the cases that were run."""
    left, made = list(runs), []

    def measure(case: object, *_: object, **__: object) -> dict[str, object]:
        made.append(getattr(case, "name", ""))
        relay = left.pop(0)
        return {"runs": {"relay": relay, "floor": [{"value": 10.0}] * len(relay)}}

    monkeypatch.setattr(ratios, "measure", measure)
    return made


LIMIT = RatioLimit("memory-10000", "value", 1.1)
GOOD, BAD = [{"value": 11.0}, {"value": 8.0}, {"value": 90.0}], [{"value": 11.0}, {"value": 12.0}, {"value": 90.0}]


def test_the_median_decides_and_a_passing_case_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured(monkeypatch, GOOD)
    assert ratios.check([LIMIT]) == []
    assert len(made) == 1


def test_a_failed_measurement_is_repeated_and_both_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = measured(monkeypatch, BAD, GOOD)
    assert ratios.check([LIMIT]) == []
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in said] == [
        "memory-10000: value 1.2 × floor (1.1 to 9)",
        "memory-10000: measured once more",
        "memory-10000: value 1.1 × floor (0.8 to 9)",
    ]
    made = measured(monkeypatch, BAD, BAD)
    assert ratios.check([LIMIT]) == [LIMIT]
    assert len(made) == 2


def test_a_lost_event_fails_without_another_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured(monkeypatch, [*GOOD, {"value": 1.0, "lost": 1.0}])
    with pytest.raises(MeasureError, match="1 lost"):
        ratios.check([LIMIT])
    assert len(made) == 1
