"""Count the instructions of each workload with callgrind and compare them with `baseline.json`.

Owns the counting, the environment of the counts, the baseline file and the comparison. Only the work is counted, not
Python's start and imports, because callgrind collects only within the C function that calls the work. Never decides
the exit code; `bench.gate` does.

Instructions of the C library count as those of the calling function. The variant of memcpy that runs says nothing about
relay; the caller does.
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
# The baseline omits functions below this share of a workload. A function that grows beyond the share is still named.
SHARE_MIN = 0.001
# Counts are comparable only if all DECISIVE versions are equal. Different PACKAGES are only named if counts grew.
DECISIVE = ("cpu", "python", "cc", "libc", "valgrind")
PACKAGES = ("Cython", "msgspec", "orjson")
_CYTHON_NAME = re.compile(r"__pyx_[a-z]+_5relay_9_speedups_(?:\d+([A-Z][a-zA-Z]*)_)?\d*(.*)")
_C_LIBRARY = re.compile(r"(libc|libm|ld-linux[^/]*|ld-musl[^/]*)[.-][^/]*$")


class Count(msgspec.Struct, frozen=True):
    """The counts for one unit of a workload.

    Args:
        instructions: processor instructions in user mode.
        functions: instructions of each C function without its callees, from the share `SHARE_MIN` on.
        bytecodes: bytecodes of each Python function without its callees; callgrind sees only the interpreter.
    """

    instructions: float
    functions: dict[str, float] = {}
    bytecodes: dict[str, float] = {}


class Baseline(msgspec.Struct, frozen=True):
    """The counts to compare with, and the environment in which they were taken."""

    environment: dict[str, str]
    workloads: dict[str, Count]


@dataclass(slots=True)
class Comparison:
    """The result of a comparison with the baseline.

    Args:
        lines: one line for each workload, for people.
        bad: the workloads that are more than `GROWTH_MAX` worse, or that exist on one side only.
    """

    lines: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


# Counting


def environment() -> dict[str, str]:
    """Return the versions that the counts depend on; without `valgrind` if it is not installed."""
    facts = machine()
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    # Valgrind presents one of three kinds of processor, depending on these flags; the C library's choices follow it.
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
    """Count the instructions of workloads, one workload per core at a time.

    Args:
        names: names in `WORKLOADS`.
        command: Python's arguments before the name and size of a workload.

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
            raise MeasureError(f"{name}: callgrind saw no call of {COLLECTED}, through which ctypes calls the work")
        return Count(
            round(total / units, 1),
            {name: round(cost / units, 1) for name, cost in functions.items() if cost >= total * SHARE_MIN},
        )

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def with_bytecodes(counts: Mapping[str, Count], names: Collection[str]) -> dict[str, Count]:
    """Return the counts with the bytecodes of the named workloads added.

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
    """Return the output of a command, run in a minimal environment: its size moves the stack and changes the counts."""
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
        The instructions of each function without its callees, except for those of the C library.
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
    """Strip the compiler's and callgrind's suffixes from a symbol; return a Cython symbol as its Python name."""
    if symbol.startswith("0x"):
        return f"{Path(object).name} (no symbol)"
    symbol = re.sub(r"('\d+|\.(isra|constprop|part|cold)\b.*)$", "", re.sub(r"'\d+$", "", symbol))
    cython = _CYTHON_NAME.fullmatch(symbol)
    return ".".join(["_speedups", *filter(None, cython.groups())]) if cython else symbol


# Comparing


def differing(base: Mapping[str, str], here: Mapping[str, str], names: Collection[str]) -> list[str]:
    """Describe the named versions in which this environment differs from the baseline's."""
    return [
        f"{name}: {base.get(name, 'none')} in the baseline, {here.get(name, 'none')} here"
        for name in names
        if base.get(name) != here.get(name)
    ]


def compare(base: Mapping[str, Count], now: Mapping[str, Count]) -> Comparison:
    """Compare counts with the baseline.

    Args:
        base: the counts of the baseline.
        now: the new counts.
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
        MeasureError: the file is missing.
    """
    if not path.exists():
        raise MeasureError(f"{path.name} is missing: make bench-baseline writes it")
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def write(baseline: Baseline, path: Path = BASELINE) -> None:
    """Write a baseline with sorted keys, so that diffs are small."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baseline, order="sorted"), indent=1) + b"\n")
