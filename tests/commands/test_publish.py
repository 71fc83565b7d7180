"""`relay.commands.publish`: each line is published once despite server failures, or is reported."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from pathlib import Path

import pytest

from relay.commands import publish as command_publish
from relay.commands.publish import _Report, _Sender
from relay.errors import RelayError
from relay.event import Event
from tests.client.test_publish import accept, feeder_socket
from tests.running import TIMEOUT_S, TOKEN, Stream, command, environment, free_port, relay, run
from tests.scripted_http import answer, scripted

JSON = "Content-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(command_publish, "BACKOFF_MOST_S", 0.001)


def numbered(*data: str) -> list[tuple[int, Event]]:
    return list(enumerate(map(Event, data), 1))


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


async def test_unacknowledged_lines_are_resent_in_order_with_the_same_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server closes each connection after some acknowledgements."""
    path = tmp_path / "s"
    async with feeder_socket(path, lambda line, number: accept(line, number) if number <= 2 else None) as lines:
        sender = _Sender(str(path), None, None, _Report("line", quiet=False))
        await sender.publish([*numbered("a", "b", "c", "d"), (5, Event("e", dedup="own"))])
        await sender.close()
    keys: dict[str, set[str]] = {line["data"]: set() for line in lines}
    for line in lines:
        keys[line["data"]].add(line["dedup"])
    assert list(keys) == ["a", "b", "c", "d", "e"]
    assert all(len(each) == 1 for each in keys.values())
    assert len({key for each in keys.values() for key in each}) == 5
    assert keys["e"] == {"own"}
    output = capsys.readouterr()
    assert output.out.split() == ["e-1", "e-2"] * 2 + ["e-1"]
    assert "closed the connection; resending in" in output.err


async def test_after_a_busy_response_the_request_is_resent(capsys: pytest.CaptureFixture[str]) -> None:
    busy = answer(503, JSON, b'{"error": "draining"}')
    scripts = [busy], [answer(429, "")], [b""], [answer(200, JSON, b'{"ids": ["e-1"]}')]
    async with scripted(*scripts) as server:
        sender = _Sender(server.url, None, None, _Report("line", quiet=False))
        await sender.publish(numbered("a"))
    assert capsys.readouterr().out == "e-1\n"
    bodies = [json.loads(request.partition("\r\n\r\n")[2])[0] for request in server.requests]
    assert len(bodies) == 4
    assert len({body["dedup"] for body in bodies}) == 1


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


async def test_a_server_that_stays_unavailable_ends_the_command_which_names_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_publish, "GIVE_UP_S", 0.05)
    async with feeder_socket(tmp_path / "s", lambda line, number: accept(line, 1) if line["data"] == "a" else None):
        sender = _Sender(str(tmp_path / "s"), None, None, _Report("line", quiet=True))
        with pytest.raises(RelayError, match=r"closed the connection; not acknowledged: lines 2 to 3$"):
            async with asyncio.timeout(TIMEOUT_S):
                await sender.publish(numbered("a", "b", "c"))
        await sender.close()


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
def test_plain_lines_are_data_and_the_first_line_decides_the_format(text: str, form: str, data: list[str]) -> None:
    with relay() as server:
        done = run("publish", "--to", server.url, "--token", TOKEN, "--input", form, input=text)
        assert (done.returncode, done.stderr) == (0, "")
        with Stream(server.port, "topic=default&since=earliest") as stream:
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


def test_an_event_with_the_same_dedup_key_is_published_once() -> None:
    with relay() as server:
        arguments = ("publish", "--to", server.url, "--token", TOKEN, "--dedup", "order-7", "paid")
        ids = [run(*arguments).stdout for _ in range(2)]
        assert ids[0] == ids[1] != ""
        assert server.stats()["events"] == 1
