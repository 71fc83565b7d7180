"""An upload at one node of a cluster reaches the others, and reports the lines that the broker does not have."""

from __future__ import annotations

import json
from pathlib import Path

from tests.curl import curl, report, write
from tests.redis_server import RedisServer
from tests.running import Stream, relay

QUICK = ("--retry-min", "1ms", "--retry-max", "2ms", "--cluster-timeout", "2s")
ANSWERS = ("-H", "Accept: application/x-ndjson")


def test_an_upload_at_a_worker_of_one_node_reaches_the_other(redis: RedisServer) -> None:
    with (
        relay("--cluster", redis.url, "--workers", "2", *QUICK) as a,
        relay("--cluster", redis.url, *QUICK) as b,
        Stream(b.port, "topic=build") as stream,
        curl(a, *ANSWERS, "-H", 'Idempotency-Key: "k"') as process,
    ):
        assert process.stdout is not None
        ids = []
        for number in range(1, 4):
            write(process, f"line {number}\n")
            event = stream.next()
            answer = json.loads(process.stdout.readline())
            assert (event.data, answer) == (f"line {number}", {"line": number, "id": event.id})
            ids.append(answer["id"])
        assert report(process)["complete"]
        with curl(b, "-H", 'Idempotency-Key: "k"') as again:
            write(again, "line 1\nline 2\nline 3\n")
            assert report(again)["last_id"] == ids[-1]


def test_a_broker_that_fails_ends_an_upload_with_a_report(redis: RedisServer, tmp_path: Path) -> None:
    with relay("--cluster", redis.url, *QUICK) as node, curl(node, *ANSWERS) as process:
        assert process.stdout is not None
        write(process, "one\n")
        assert json.loads(process.stdout.readline())["line"] == 1
        redis.kill()
        write(process, "two\n")
        result = report(process, ends=False)
        assert (result["complete"], result["lines"], result["published"]) == (False, 1, 1)
        assert "the lines after line 1 are not published" in result["error"]
