"""`python -m bench.micro`: run the micro-benchmarks and write their table.

Arguments are pytest's (`-k encode`); with any, the table is printed and not kept.
"""

from __future__ import annotations

import shlex
import sys

import msgspec
import pytest

from bench import report
from bench.harness import HERE
from bench.micro.table import render

RESULTS = HERE / "results-micro.json"
TABLE = HERE / "MICRO.md"
PACKAGES = (*report.PACKAGES, "pytest-benchmark", "sse-starlette", "httpx-sse", "httpx", "sseclient-py")

# A tenth of a second in each turn: the whole run takes about a minute.
OPTIONS = ("--benchmark-only", "--benchmark-disable-gc", "--benchmark-max-time=0.1", "--benchmark-min-rounds=20")


def main(arguments: list[str]) -> int:
    """Run them; return pytest's exit status."""
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
