"""Uploads at a real server: curl over HTTP/1.1 and HTTP/2, through workers, in a drain and in an upgrade."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import TOKEN, Relay, Stream, eventually, relay

NDJSON = "application/x-ndjson"


@contextlib.contextmanager
def curl(server: Relay, *arguments: str, target: str = "/publish/build?lines=1") -> Iterator[subprocess.Popen[bytes]]:
    """Run curl with an upload from its standard input. With `-T .`, it reads the response while it waits for input."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "--silent", "--show-error", "--no-buffer", "-X", "POST", "-T", "."]
    fields = ["-H", f"Authorization: Bearer {TOKEN}", "-H", "Content-Type: text/plain"]
    process = subprocess.Popen(
        [*command, *fields, *arguments, f"{server.url}{target}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def write(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def report(process: subprocess.Popen[bytes], *, ends: bool = True) -> dict[str, Any]:
    """Return the response; with `ends`, end the input first. Without it, the server ends the request."""
    assert process.stdin is not None
    assert process.stdout is not None
    if ends:
        process.stdin.close()
    result: dict[str, Any] = json.loads(process.stdout.read())
    return result


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_each_line_arrives_before_the_next_is_sent(workers: str, version: str) -> None:
    with (
        relay("--workers", workers) as server,
        Stream(server.port, "topic=build") as stream,
        curl(server, version) as process,
    ):
        for number in range(3):
            write(process, f"line {number}\n")
            assert stream.next().data == f"line {number}"
        result = report(process)
        assert (result["complete"], result["published"]) == (True, 3)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_each_line_is_answered_before_the_next_is_sent(version: str, tmp_path: Path) -> None:
    with (
        relay("--data", str(tmp_path / "data"), "--durable", "--workers", "2") as server,
        curl(server, version, "-H", f"Accept: {NDJSON}", "-H", 'Idempotency-Key: "k"') as process,
    ):
        assert process.stdout is not None
        ids = []
        for number in range(1, 4):
            write(process, f"line {number}\n")
            answer = json.loads(process.stdout.readline())
            assert answer["line"] == number
            ids.append(answer["id"])
        assert report(process)["complete"]
        assert len(set(ids)) == 3
        # An upload that is repeated with the same key publishes nothing twice.
        with curl(server, version, "-H", 'Idempotency-Key: "k"') as again:
            write(again, "line 1\nline 2\nline 3\nline 4\n")
            assert report(again)["published"] == 4
        assert server.stats()["events"] == 4


def test_a_drain_ends_an_upload_with_a_report() -> None:
    with relay("--workers", "2") as server, curl(server) as process:
        write(process, "one\n")
        eventually(lambda: server.stats()["events"] == 1, "the line is published")
        server.process.terminate()
        result = report(process, ends=False)
        assert (result["complete"], result["published"]) == (False, 1)
        assert server.wait() == 0


def test_an_upgrade_ends_an_upload_with_a_report() -> None:
    with relay() as server, curl(server) as process:
        write(process, "one\n")
        eventually(lambda: server.stats()["events"] == 1, "the line is published")
        server.upgrade()
        result = report(process, ends=False)
        assert (result["complete"], result["published"]) == (False, 1)
        with curl(server) as again:
            write(again, "two\n")
            assert report(again)["complete"]
