"""`relay.commands.publish`: each line is published once despite server failures, or is reported."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.client import Publisher
from relay.commands.publish import _publish_batch, _Report
from relay.errors import RelayError
from relay.event import Event
from tests.client.test_publish import accept, feeder_socket
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, command, environment, free_port, relay, run


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    """Run a server for tests that need no settings."""
    with relay() as running:
        yield running


@pytest.mark.parametrize("way", ["unix", "http"])
def test_lines_are_published_once_while_the_server_is_killed_and_restarted(tmp_path: Path, way: str) -> None:
    """The server is killed three times while lines arrive. Unacknowledged lines are resent."""
    port, path, count = free_port(), tmp_path / "s", 3000
    flags = ("--listen", f"127.0.0.1:{port}", "--unix", str(path), "--data", str(tmp_path / "d"), "--durable")
    target = str(path) if way == "unix" else f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(relay(*flags))
        process = stack.enter_context(
            subprocess.Popen(
                command("publish", "-", "--to", target, "--token", TOKEN),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ids = []
        for number in range(count):
            print(number, file=process.stdin, flush=True)
            if number == 0:
                ids.append(process.stdout.readline().strip())
            if number % 1000 == 500:
                server.stop(signal.SIGKILL)
                server = stack.enter_context(relay(*flags))
        process.stdin.close()
        ids += process.stdout.read().split()
        assert process.wait(TIMEOUT_S) == 0
        with Stream(server.port, "topic=default&since=earliest") as stream:
            events = stream.take(count)
        assert [event.data for event in events] == list(map(str, range(count)))
        assert ids == [event.id for event in events]
        server.stop(signal.SIGKILL)


def test_more_lines_than_the_request_limit_are_sent_in_several_requests() -> None:
    lines = [str(number % 10) for number in range(12_000)]
    with relay("--batch-events-max", "500") as server:
        done = run("publish", "--to", server.url, "--token", TOKEN, input="\n".join(lines))
        assert (done.returncode, done.stderr) == (0, "")
        with Stream(server.port, "topic=default&since=earliest") as stream:
            events = stream.take(len(lines))
    assert [event.data for event in events] == lines
    assert done.stdout.split() == [event.id for event in events]


def test_a_line_larger_than_the_request_limit_is_rejected_and_the_others_are_published() -> None:
    lines = ["a", "b" * 20_000, *"cd"]
    with relay("--body-bytes-max", "10KiB") as server:
        done = run("publish", "--to", server.url, "--token", TOKEN, input="\n".join(lines))
        assert done.returncode == 1
        assert done.stderr.startswith("relay: line 2: 413: ")
        with Stream(server.port, "topic=default&since=earliest") as stream:
            assert [event.data for event in stream.take(3)] == ["a", "c", "d"]


async def test_a_server_that_stays_unavailable_ends_the_command_which_names_the_lines(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with feeder_socket(tmp_path / "s", lambda line, number: accept(line, 1) if line["data"] == "a" else None):
        publisher = await Publisher(path, resend_s_max=0.05).__aenter__()
        with pytest.raises(RelayError, match=r"closed the connection; not acknowledged: lines 2 to 3$"):
            async with asyncio.timeout(TIMEOUT_S):
                await _publish_batch(publisher, list(enumerate(map(Event, "abc"), 1)), _Report("line", quiet=True))
        await publisher.__aexit__(RelayError, None, None)


@pytest.mark.parametrize(
    ("text", "form", "data"),
    [
        ("a\nb\r\n\n  c \n", "auto", ["a", "b", "  c "]),
        ("\n[1]\n{\n", "auto", ["[1]", "{"]),
        ("\ufeffä", "auto", ["ä"]),
        ('\ufeff {"data": 1}\n{"data": 2}', "auto", ["1", "2"]),
        ('{"data": 1}\n', "lines", ['{"data": 1}']),
    ],
)
def test_plain_lines_are_data_and_the_first_line_decides_the_format(
    server: Relay, text: str, form: str, data: list[str]
) -> None:
    with Stream(server.port) as stream:
        done = run("publish", "--to", server.url, "--token", TOKEN, "--input", form, input=text)
        assert (done.returncode, done.stderr) == (0, "")
        assert [event.data for event in stream.take(len(data))] == data


@pytest.mark.parametrize("way", ["unix", "http"])
def test_rejected_lines_are_named_and_the_others_are_published(tmp_path: Path, way: str) -> None:
    large = '{"data": "' + "x" * 9_000_000 + '"}'
    lines = ['{"data": 1}', "text", '{"data": 2, "topic": "a..b"}', large, '{"data": 3}']
    with relay("--unix", str(tmp_path / "s")) as server:
        target = str(server.unix_path) if way == "unix" else server.url
        done = run("publish", "--to", target, "--token", TOKEN, input="\n".join(lines))
        assert done.returncode == 1
        assert [line.split(": ")[1] for line in sorted(done.stderr.splitlines())] == ["line 2", "line 3", "line 4"]
        assert len(done.stdout.split()) == 2
        done = run("publish", "--to", target, "--token", TOKEN, "--key", "k", "--event", "relay.end", "a", "b")
        assert done.returncode == 1
        assert done.stderr.startswith("relay: argument 2: topic: ")


def test_an_event_with_the_same_dedup_key_is_published_once(server: Relay) -> None:
    before = server.stats()["events"]
    arguments = ("publish", "--to", server.url, "--token", TOKEN, "--dedup", "order-7", "paid")
    ids = [run(*arguments).stdout for _ in range(2)]
    assert ids[0] == ids[1] != ""
    assert server.stats()["events"] == before + 1
