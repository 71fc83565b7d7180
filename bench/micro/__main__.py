"""`python -m bench.micro`: run the micro-benchmarks and write their table.

Arguments are passed to pytest (`-k encode`). With any argument, the table is printed and not saved.
"""

from __future__ import annotations

import shlex
import sys

import msgspec
import pytest

from bench import HERE, report
from bench.micro.table import render

RESULTS = HERE / "results-micro.json"
TABLE = HERE / "MICRO.md"
PACKAGES = (*report.PACKAGES, "pytest-benchmark", "sse-starlette", "httpx-sse", "httpx", "sseclient-py")

# Turns are short and many. A round is half a millisecond. The default of pytest-benchmark, 5 µs, can be one cold call;
# each call of 150 ns would then be timed alone, with an overhead of 200 ns for the clock.
OPTIONS = (
    "--benchmark-only",
    "--benchmark-disable-gc",
    "--benchmark-min-time=0.0005",
    "--benchmark-max-time=0.05",
    "--benchmark-min-rounds=20",
)


def main(arguments: list[str]) -> int:
    """Run the micro-benchmarks; return pytest's exit status."""
    RESULTS.unlink(missing_ok=True)
    wanted = [str(HERE / "micro"), "-q", "--benchmark-quiet", *OPTIONS, f"--benchmark-json={RESULTS}", *arguments]
    status = int(pytest.main(wanted))
    if status != 0:
        return status
    command = shlex.join(["python", "-m", "bench.micro", *arguments])
    benchmarks = msgspec.json.decode(RESULTS.read_bytes())["benchmarks"]
    text = render(benchmarks, report.stamp({}, command, PACKAGES))
    if arguments:
        print(text)
    else:
        TABLE.write_text(text)
        print(f"written: {TABLE.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
