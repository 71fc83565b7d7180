"""Uploads at a real server: curl over HTTP/1.1 and HTTP/2, through workers, in a drain and in an upgrade."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.curl import curl, report, write
from tests.running import Stream, eventually, relay

NDJSON = "application/x-ndjson"


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
