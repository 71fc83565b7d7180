"""`relay publish`, `relay subscribe` and `relay demo` against a real server (`relay.commands.subscribe`, `.demo`)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from relay.commands import demo
from relay.event import Event
from relay.sse import encode
from tests.oracle import matches
from tests.running import TIMEOUT_S, TOKEN, Relay, command, environment, relay, run
from tests.scripted_http import answer, scripted


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    path = tmp_path_factory.mktemp("relay") / "relay.sock"
    with relay("--unix", str(path), "--heartbeat-as", "event") as running:
        yield running


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic that only this test uses."""
    return f"{request.node.originalname}.{random.getrandbits(32):x}"


def received(server: Relay, topic: str, number: int) -> list[dict[str, Any]]:
    """Subscribe from the beginning, and return the first events."""
    done = run("subscribe", server.url, "--topic", topic, "--since", "earliest", "--count", str(number))
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("way", ["unix", "http"])
def test_arguments_are_published_and_their_ids_printed(server: Relay, topic: str, way: str) -> None:
    target = f"unix:{server.unix_path}" if way == "unix" else server.url
    options = ("--to", target, "--topic", topic, "--event", "note", "--key", "k", "--retry", "5")
    done = run("publish", *options, "first", "zweite\nZeile ü", RELAY_PUBLISH_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    ids = done.stdout.split()
    assert received(server, topic, 2) == [
        {"id": ids[0], "event": "note", "data": "first", "retry": 5, "topic": topic},
        {"id": ids[1], "event": "note", "data": "zweite\nZeile ü", "retry": 5, "topic": topic},
    ]


@pytest.mark.parametrize("way", ["unix", "http"])
def test_a_bad_line_is_reported_and_the_others_are_published(server: Relay, topic: str, way: str) -> None:
    target = f"unix:{server.unix_path}" if way == "unix" else server.url
    lines = [
        '{"data": {"n": 1}}',
        "",
        "not JSON",
        '{"data": 2, "topic": "a..b"}',
        json.dumps({"data": "3", "event": "own", "id": f"own-3-{topic}"}),
    ]
    done = run(
        "publish", "--to", target, "--topic", topic, "--event", "e", "--token", TOKEN, input="\n".join(lines)
    )
    assert done.returncode == 1
    assert len(done.stdout.split()) == 2
    errors = done.stderr.splitlines()
    assert sorted(error.split(":")[1] for error in errors) == [" line 3", " line 4"]
    events = received(server, topic, 2)
    assert [(event["event"], event["data"]) for event in events] == [("e", '{"n":1}'), ("own", "3")]
    assert events[1]["id"] == f"own-3-{topic}"


def test_lines_are_published_as_they_arrive(server: Relay, topic: str) -> None:
    options = ("--to", str(server.unix_path), "--topic", topic)
    with subprocess.Popen(
        command("publish", *options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            print(json.dumps({"data": str(number)}), file=process.stdin, flush=True)
            assert process.stdout.readline().strip() == received(server, topic, number + 1)[number]["id"]
        process.stdin.close()
        assert process.wait(TIMEOUT_S) == 0


def test_a_file_is_published(server: Relay, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text("".join(f'{{"data":"{number}"}}\n' for number in range(5000)))
    with file.open() as lines:
        done = subprocess.run(
            command("publish", "-", "-q", "--to", str(server.unix_path), "--topic", topic),
            stdin=lines,
            capture_output=True,
            timeout=TIMEOUT_S,
            env=environment(),
            check=True,
        )
    assert done.stdout == done.stderr == b""
    assert [event["data"] for event in received(server, topic, 5000)] == list(map(str, range(5000)))


def test_without_the_token_nothing_is_published_over_http(server: Relay, topic: str) -> None:
    done = run("publish", "--to", server.url, "--topic", topic, "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relay: 401: ")


def test_an_unreachable_server_is_reported_in_one_line(tmp_path: Path) -> None:
    done = run("publish", "--to", str(tmp_path / "none"), "x")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot connect to" in done.stderr


def test_output_data_prints_only_data_and_reports_gaps_on_standard_error(server: Relay, topic: str) -> None:
    run("publish", "--to", str(server.unix_path), "--topic", topic, "one", "two\nlines")
    options = ("--topic", topic, "--output", "data", "--count", "2", "--last-event-id", "other-7")
    done = run("subscribe", server.url, *options)
    assert done.stdout == "one\ntwo\nlines\n"
    assert done.stderr == "relay: gap: missed an unknown number of events (unknown)\n"


def test_a_subscriber_resumes_after_an_id(server: Relay, topic: str) -> None:
    ids = run("publish", "--to", str(server.unix_path), "--topic", topic, "a", "b", "c").stdout.split()
    done = run(
        "subscribe", server.url, "--topic", topic, "--last-event-id", ids[0], "--count", "2", "--output", "data"
    )
    assert done.stdout == "b\nc\n"


def test_a_rejected_subscriber_prints_the_reason(server: Relay) -> None:
    done = run("subscribe", server.url, "--topic", "a..b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relay: 400: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("output", [os.pipe, lambda: [end.detach() for end in socket.socketpair()], os.openpty])
def test_a_subscriber_whose_reader_exits_dies_of_sigpipe(
    server: Relay, topic: str, output: Callable[[], tuple[int, int]], writes: bool
) -> None:
    """The command exits at the next event that it prints, and immediately on a quiet topic."""
    run("publish", "--to", str(server.unix_path), "--topic", topic, *map(str, range(3)))
    reading, writing = output()
    with subprocess.Popen(
        command("subscribe", server.url, "--topic", topic, "--since", "earliest"),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        os.close(writing)
        assert os.read(reading, 1)
        os.close(reading)
        if writes:
            run("publish", "--to", str(server.unix_path), "--topic", topic, "one more")
        assert process.wait(TIMEOUT_S) == -signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_subscriber_exits_at_the_end_of_its_topic_without_a_message(server: Relay, topic: str) -> None:
    lines = '{"data": "x"}\n{"event": "relay.end", "data": "bye"}\n'
    run("publish", "--to", str(server.unix_path), "--topic", topic, input=lines)
    done = run("subscribe", server.url, "--topic", topic, "--since", "earliest", "--output", "data")
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\nbye\n", "")


@pytest.mark.parametrize("name", ["subscribe", "publish"])
def test_an_interrupt_ends_the_command_without_a_traceback(server: Relay, topic: str, name: str) -> None:
    arguments = {
        "subscribe": ("subscribe", server.url, "--topic", topic, "--since", "earliest"),
        "publish": ("publish", "--to", str(server.unix_path), "--topic", topic),
    }[name]
    run("publish", "--to", str(server.unix_path), "--topic", topic, "x")
    with subprocess.Popen(
        command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b'{"data":"x"}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        assert process.stderr.read().strip() == b""


async def test_heartbeats_are_not_printed() -> None:
    body = b"".join(encode(event, None, 1000) for event in (Event(event="relay.heartbeat", data=""), Event(data="a")))
    async with scripted([answer(body=body)]) as scripted_server:
        from relay.commands.subscribe import _print_events

        shown: list[bytes] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", _Stdout(shown))
            patch.setenv("NO_PROXY", "*")
            await _print_events(scripted_server.url, (), None, None, "json", 1, {}, None)
    assert shown == [b'{"data":"a"}\n']


class _Stdout:
    """The part of standard output that the command uses."""

    def __init__(self, shown: list[bytes]) -> None:
        self.buffer = self
        self.write = shown.append

    def flush(self) -> None:
        """Do nothing."""


def test_the_sample_feed_is_valid_and_the_same_for_a_seed() -> None:
    events = list(islice(demo.sample_events(7, map(float, count())), 500))
    assert events == list(islice(demo.sample_events(7, map(float, count())), 500))
    for number, event in enumerate(events):
        assert event.topic is not None
        assert any(matches(pattern, event.topic) for pattern in demo.TOPICS)
        assert event.data["t"] == number * 1000
        assert encode(event, "1", 1000)
        assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event
    assert len({event.topic for event in events}) == 6


@contextlib.contextmanager
def running_demo(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run a demo on a free port. Yield its process, its address and the lines that it prints at the start."""
    with subprocess.Popen(
        command("demo", "--listen", "127.0.0.1:0", *arguments),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]
            found = re.search(r"open (http://127\.0\.0\.1:\d+)/\?topic=prices\.\*", lines[0])
            assert found, lines
            yield process, found[1], lines
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0


def test_the_demo_serves_a_live_feed_to_pages_of_every_origin_until_ctrl_c() -> None:
    # The variable is a setting of other servers. The demo's server ignores it.
    with running_demo("--rate", "200", RELAY_LISTEN="127.0.0.1:1") as (_, address, lines):
        assert f"curl -N '{address}/events?topic=" in lines[1]
        done = run("subscribe", address, "--topic", "prices.*", "--count", "3")
        assert len(done.stdout.splitlines()) == 3
        port = address.rpartition(":")[2]
        answers = [
            httpx.get(f"{address}/healthz", headers={"Origin": "http://example.com", "Host": f"{name}:{port}"})
            for name in ("localhost", "127.0.0.1", "[::1]", "evil.example")
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 421]
        assert {answer.headers["Access-Control-Allow-Origin"] for answer in answers[:3]} == {"*"}


def test_the_demo_stops_after_its_duration() -> None:
    assert run("demo", "--listen", "127.0.0.1:0", "--seconds", "0").returncode == 0


def test_nothing_is_lost_when_the_demo_server_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "demo.db"
    with running_demo("--rate", "300", "--data", str(data)) as (process, address, lines):
        options = ("--topic", "**", "--since", "earliest", "--count", "600")
        with subprocess.Popen(
            command("subscribe", address, *options), stdout=subprocess.PIPE, text=True, env=environment()
        ) as subscriber:
            assert subscriber.stdout is not None
            read = [subscriber.stdout.readline() for _ in range(100)]
            found = re.search(r"kill -9 (\d+)", lines[2])
            assert found
            os.kill(int(found[1]), signal.SIGKILL)
            read += subscriber.stdout.readlines()
            assert subscriber.wait(TIMEOUT_S) == 0
        assert process.stdout is not None
        assert "the server was killed; restarted it as process" in process.stdout.readline()
    events = [json.loads(line) for line in read]
    assert [event["event"] for event in events if event.get("event", "").startswith("relay.")] == []
    # The ids of the log count the events of all topics, so they reveal a missing or repeated event.
    epochs, numbers = zip(*(event["id"].rsplit("-", 1) for event in events), strict=True)
    assert len(set(epochs)) == 1
    assert list(map(int, numbers)) == list(range(int(numbers[0]), int(numbers[0]) + 600))
    assert data.exists()


def test_the_demo_reports_that_its_port_is_in_use_and_suggests_a_remedy(server: Relay) -> None:
    done = run("demo", "--listen", server.url.removeprefix("http://"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "in use" in done.stderr
    assert "--listen 127.0.0.1:0" in done.stderr


def test_without_a_given_port_the_demo_uses_the_next_free_one(
    server: Relay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "LISTEN", server.url.removeprefix("http://"))
    _, port = demo.choose_address(None)
    assert server.port < port < server.port + demo.PORTS_TRIED
    assert f"port {server.port} is in use" in capsys.readouterr().out
