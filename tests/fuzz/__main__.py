"""`make fuzz ARGS="sse …"`: fuzz one target, or all in turn, with atheris, from the corpus, for one minute each.

The arguments after the name of the target go to libFuzzer: `-max_total_time=600`, `-seed=1`, or a file to run once.
Inputs that reach new code are kept in build/fuzz, and the next run begins with them. `-merge=1` copies to
tests/fuzz/corpus those that reach code which the corpus does not reach.
"""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GROWN = HERE.parents[1] / "build" / "fuzz"
TARGETS = (
    "client",
    "entry",
    "forms",
    "forwarded",
    "h2",
    "heads",
    "http",
    "ids",
    "keys",
    "link",
    "ndjson",
    "settings",
    "sse",
    "store",
    "token",
    "topic",
)


def quoted(word: bytes) -> str:
    """Write a word in the format of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process. The process exits with it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["relay", "urllib", "tests.fuzz"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    found = HERE / "found"
    found.mkdir(exist_ok=True)
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    words = GROWN / f"{name}.words"
    words.write_text("".join(map(quoted, target.WORDS)))
    options = [
        f"-dict={words}",
        f"-artifact_prefix={found}/{name}-",
        "-max_len=512",
        "-timeout=10",
        "-rss_limit_mb=1024",
    ]
    # libFuzzer writes to the first folder.
    kept = HERE / "corpus" / name
    folders = [kept, grown] if "-merge=1" in arguments else [grown, kept]
    places = [] if any(Path(argument).is_file() for argument in arguments) else [str(each) for each in folders]
    # A merge runs the program again, through a shell.
    program = shlex.join([sys.executable, "-m", "tests.fuzz", name])
    atheris.Setup([program, *options, "-max_total_time=60", "-print_final_stats=1", *arguments, *places], target.check)
    atheris.Fuzz()


def main() -> int:
    """Run the targets of the command line."""
    name, *arguments = sys.argv[1:] or ["all"]
    if name in TARGETS:
        fuzz(name, arguments)
        return 0
    if name != "all" and not name.startswith("-"):
        sys.exit(f"{name}: choose one of {', '.join(TARGETS)}")
    given = sys.argv[1:] if name.startswith("-") else arguments
    codes = [subprocess.call([sys.executable, "-m", "tests.fuzz", target, *given]) for target in TARGETS]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
