"""The instructions of each workload, counted by callgrind and held against `baseline.json`.

Owns how they are counted, what the counts depend on, the baseline file and the comparison. Only the work is counted,
not Python's start and imports, since callgrind collects within the one C function that calls the work. Never decides
what a bad comparison means for the exit code; `bench.gate` does.

What the C library does counts as its callers' own: which of its variants of memcpy runs says nothing about relay, who
called it does.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench import HERE
from bench.report import machine
from bench.workloads import COLLECTED, WORKLOADS
from loadtest.rig.harness import MeasureError

BASELINE = HERE / "baseline.json"
GROWTH_MAX = 0.05
NAMED_MAX = 5
RUN_S = 240
# Functions below this share of a workload are not kept: what grows there from nothing is still named.
SHARE_MIN = 0.001
# Counts of one of these do not compare with those of another. Packages are named where counts grew, no more.
DECISIVE = ("cpu", "python", "cc", "libc", "valgrind")
PACKAGES = ("Cython", "msgspec", "orjson")
_CYTHON_NAME = re.compile(r"__pyx_[a-z]+_5relay_9_speedups_(?:\d+([A-Z][a-zA-Z]*)_)?\d*(.*)")
_C_LIBRARY = re.compile(r"(libc|libm|ld-linux[^/]*|ld-musl[^/]*)[.-][^/]*$")


class Count(msgspec.Struct, frozen=True):
    """What one unit of a workload executes.

    Args:
        instructions: of the processor, in user mode.
        functions: the same for each C function by itself, from `SHARE_MIN` on.
        bytecodes: of each Python function by itself, which to callgrind are all one interpreter.
    """

    instructions: float
    functions: dict[str, float] = {}
    bytecodes: dict[str, float] = {}


class Baseline(msgspec.Struct, frozen=True):
    """What is compared with: counts, and what they were taken on."""

    environment: dict[str, str]
    workloads: dict[str, Count]


@dataclass(slots=True)
class Comparison:
    """What became of the baseline.

    Args:
        lines: for people, one for each workload and for each function that grew.
        bad: the workloads that are more than `GROWTH_MAX` worse, or only on one side.
    """

    lines: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


# Counting


def environment() -> dict[str, str]:
    """What the counts depend on; `valgrind` is missing where it is not installed."""
    facts = machine()
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    # Valgrind shows every processor as one of three kinds, by these; so the C library's choices follow them alone.
    kinds = [flag for flag in ("avx", "avx2") if flag in flags]
    versions = {
        "cpu": " ".join([platform.machine(), *kinds]),
        "python": f"{facts['python']} {platform.python_compiler()}",
        "cc": facts["cc"],
        "libc": " ".join(platform.libc_ver()),
        **{name: facts[name] for name in PACKAGES if name in facts},
    }
    valgrind = shutil.which("valgrind")
    if valgrind:
        versions["valgrind"] = subprocess.run(
            [valgrind, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return versions


def count(names: Collection[str], *, command: tuple[str, ...] = ("-m", "bench.workloads")) -> dict[str, Count]:
    """Count the instructions of workloads, as many at a time as there are cores.

    Args:
        names: of `WORKLOADS`.
        command: Python's arguments in front of a workload's name and size.

    Raises:
        MeasureError: a workload failed, or callgrind saw nothing of it.
    """

    def one(name: str) -> Count:
        units = WORKLOADS[name].count
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            out = Path(folder) / "callgrind"
            valgrind = [
                "valgrind",
                "-q",
                "--tool=callgrind",
                f"--toggle-collect={COLLECTED}",
                f"--callgrind-out-file={out}",
            ]
            _run([*valgrind, sys.executable, *command, name, str(units)])
            functions = parse(out.read_text(errors="replace").splitlines())
        total = sum(functions.values())
        if not total:
            raise MeasureError(f"{name}: callgrind saw no call of {COLLECTED}, which the work is called through")
        return Count(
            round(total / units, 1),
            {name: round(cost / units, 1) for name, cost in functions.items() if cost >= total * SHARE_MIN},
        )

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def with_bytecodes(counts: Mapping[str, Count], names: Collection[str]) -> dict[str, Count]:
    """Add the bytecodes of some workloads.

    Raises:
        MeasureError: a workload failed.
    """
    added = dict(counts)
    for name in names:
        units = WORKLOADS[name].count
        said = _run([sys.executable, "-m", "bench.workloads", name, str(units), "--bytecodes"])
        executed = msgspec.json.decode(said, type=dict[str, int])
        bytecodes = {function: round(number / units, 1) for function, number in executed.items()}
        added[name] = msgspec.structs.replace(counts[name], bytecodes=bytecodes)
    return added


def _run(command: list[str]) -> str:
    """What a command prints. It sees next to nothing of this environment, whose size moves its stack."""
    environment = {
        "PATH": os.defpath,
        "PYTHONHASHSEED": "0",
        "RELAY_ENGINE": "speedups",
        "LD_BIND_NOW": "1",
    }
    made = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=RUN_S)
    if made.returncode != 0:
        raise MeasureError(f"{' '.join(command[-3:])}: {made.stderr.strip()[-2000:]}")
    return made.stdout


def parse(lines: Iterable[str]) -> dict[str, int]:
    """Read callgrind's file (its format: valgrind manual, section 6).

    Returns:
        The instructions of each function by itself, with those of the C library in its callers'.
    """
    costs: Counter[str] = Counter()
    names: dict[tuple[str, str], str] = {}
    at: dict[str, str] = {"ob": "", "fn": "", "cob": "", "cfn": ""}
    called = False
    for line in lines:
        key, separator, rest = line.partition("=")
        if separator and key in at:
            number, _, name = rest.partition(" ")
            kind = key.removeprefix("c")
            at[key] = names.setdefault((kind, number), name)
        elif separator and key == "calls":
            called = True
        elif line[:1] in "+-*0123456789" and line[:1]:
            words = line.split()
            cost = int(words[1]) if len(words) > 1 else 0
            outside = at["fn"] == "(below main)" or _C_LIBRARY.search(at["ob"])
            if not outside and (not called or _C_LIBRARY.search(at["cob"] or at["ob"])):
                costs[_readable(at["fn"], at["ob"])] += cost
            if called:
                at["cob"], called = "", False
    return {name: cost for name, cost in costs.items() if cost}


def _readable(symbol: str, object: str) -> str:
    """A symbol without the compiler's and callgrind's marks; Cython's by what it stands for."""
    if symbol.startswith("0x"):
        return f"{Path(object).name} (no symbol)"
    symbol = re.sub(r"('\d+|\.(isra|constprop|part|cold)\b.*)$", "", re.sub(r"'\d+$", "", symbol))
    cython = _CYTHON_NAME.fullmatch(symbol)
    return ".".join(["_speedups", *filter(None, cython.groups())]) if cython else symbol


# Comparing


def differing(base: Mapping[str, str], here: Mapping[str, str], names: Collection[str]) -> list[str]:
    """Say which of these the baseline was not taken on."""
    return [
        f"{name}: {base.get(name, 'none')} in the baseline, {here.get(name, 'none')} here"
        for name in names
        if base.get(name) != here.get(name)
    ]


def compare(base: Mapping[str, Count], now: Mapping[str, Count]) -> Comparison:
    """Hold counts against the baseline's.

    Args:
        base: the baseline's.
        now: new ones; where a workload grew, its functions are named from what is in both.
    """
    result = Comparison()
    for name in sorted({*base, *now}):
        if name not in base:
            result.bad.append(name)
            result.lines.append(f"{name}: not in the baseline; make bench-baseline adds it")
        elif name not in now:
            result.bad.append(name)
            result.lines.append(f"{name}: in the baseline, but there is no such workload; make bench-baseline drops it")
        else:
            before, after = base[name].instructions, now[name].instructions
            change = f"{before:,.0f} → {after:,.0f} instructions ({after / before - 1:+.1%})"
            if after > before * (1 + GROWTH_MAX):
                result.bad.append(name)
                result.lines.append(f"{name}: {change}, more than {GROWTH_MAX:.0%} worse")
            elif after < before * (1 - GROWTH_MAX):
                result.lines.append(f"{name}: {change}, better; make bench-baseline keeps it so")
            else:
                result.lines.append(f"{name}: {change}")
    return result


def grown(base: Count, now: Count) -> list[str]:
    """Name the functions that grew, most grown first: C functions by instructions, Python's by bytecodes."""
    return [
        *_grown(base.functions, now.functions, base.instructions * SHARE_MIN, "instructions"),
        *_grown(base.bytecodes, now.bytecodes, 0.0, "bytecodes"),
    ]


def _grown(base: Mapping[str, float], now: Mapping[str, float], least: float, unit: str) -> list[str]:
    growth = {name: amount - base.get(name, 0.0) for name, amount in now.items()}
    names = sorted((name for name in growth if growth[name] > least), key=lambda name: -growth[name])[:NAMED_MAX]
    return [f"{name}: {base.get(name, 0.0):,.0f} → {now[name]:,.0f} {unit}" for name in names]


# The file


def read(path: Path = BASELINE) -> Baseline:
    """Read a baseline.

    Raises:
        MeasureError: there is none.
    """
    if not path.exists():
        raise MeasureError(f"{path.name} is missing: make bench-baseline writes it")
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def write(baseline: Baseline, path: Path = BASELINE) -> None:
    """Write a baseline, in an order that makes differences small."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baseline, order="sorted"), indent=1) + b"\n")
