"""The subscribers of docs/languages.md, which use the usual library of each language.

Each program follows a stream that is cut within an event, then a server that has lost its history. It prints every
event once, reports the gap and exits after the end of the topic. Swift and .NET are not run, because their compilers
are not available here. `make languages` runs Kotlin too, whose compiler Maven downloads.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from loadtest.rig.cable import Cable
from tests import ROOT
from tests.auth.test_access import JWT, token
from tests.examples.test_examples import output, program, running
from tests.running import TIMEOUT_S, eventually, free_port, relay

LANGUAGES = ROOT / "examples" / "languages"
PAGE = ROOT / "docs" / "languages.md"
FAST_RETRY = ("--retry-min", "50ms", "--retry-max", "100ms")
LARGE = "x" * 100_000
SOURCES = (
    *("go/main.go", "java/Subscribe.java", "kotlin/Subscribe.kt", "swift/Sources/Subscribe/main.swift"),
    "dotnet/Subscribe.cs",
)


def maven(folder: Path, *goals: str) -> None:
    command = [program("mvn"), "--quiet", "--batch-mode", *goals, "-DoutputDirectory=lib"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build(language: str, folder: Path) -> tuple[str, ...]:
    """Build a program in a folder with its sources; return its command."""
    if language == "go":
        return (program("go"), "run", ".")
    if language == "java":
        maven(folder, "dependency:copy-dependencies")
        return ("java", "-cp", "lib/*", "Subscribe.java")
    maven(folder, "compile", "dependency:copy-dependencies")
    return ("java", "-cp", "target/classes:lib/*", "SubscribeKt")


@pytest.mark.parametrize("source", SOURCES)
def test_the_page_contains_the_program(source: str) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert (LANGUAGES / source).read_text() in blocks


@pytest.mark.parametrize(
    "language",
    [
        "go",
        pytest.param("java", marks=pytest.mark.slow),
        pytest.param("kotlin", marks=pytest.mark.skipif(os.environ.get("LANGUAGES") != "all", reason="make languages")),
    ],
)
def test_a_subscriber_resumes_reports_a_gap_and_ends(language: str, tmp_path: Path) -> None:
    folder = tmp_path / language
    shutil.copytree(LANGUAGES / language, folder)
    command = build(language, folder)
    port = free_port()  # in addition to the one that each relay of a test has
    flags = (*JWT, *FAST_RETRY, "--listen", f"127.0.0.1:{port}")
    variables = {"TOKEN": token(exp=time.time() + 300, relay={"subscribe": ["news"]})}
    with relay(*flags) as server:
        cable = Cable(port)
        try:
            address = f"http://127.0.0.1:{cable.port}/events?topic=news"
            with running(*command, address, cwd=folder, **variables) as process:
                eventually(lambda: server.stats()["streams"] == 1, "the program has subscribed", 2 * TIMEOUT_S)
                ids = server.publish("one", "news")
                read = output(process, f"{ids[0]} one\n")
                cable.cut_after(20_000)
                ids += server.publish(LARGE, "news") + server.publish("three", "news")
                read += output(process, f"{ids[2]} three\n")
                assert re.findall(r" (\S+) (?:one|x+|three)\n", read) == ids
                assert read.count(LARGE) == 1
                assert "missed" not in read
                server.stop(signal.SIGKILL)
                with relay(*flags) as restarted:
                    eventually(lambda: restarted.stats()["streams"] == 1, "the program has reconnected")
                    [id] = restarted.publish("four", "news")
                    read = output(process, f"{id} four\n")
                    assert re.search(r"missed events.*unknown", read)
                    restarted.publish('{"event": "relay.end", "data": "bye"}', "news", "application/json")
                    assert process.wait(TIMEOUT_S) == 0
        finally:
            cable.close()
