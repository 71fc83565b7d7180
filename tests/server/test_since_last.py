"""`since=last` at a real server: every form and protocol, the Python client, workers and a restart from a file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator

import pytest

from relay.client import subscribe
from tests.forms import FORMS, FormStream
from tests.front.paths import opened, opens
from tests.h2_client import Http2Client
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, command, environment, relay

STATE = [("prices.us", "us 2"), ("prices.jp", "jp 1"), ("prices.eu", "eu 3")]
"""The newest events, in log order."""


def publish(server: Relay, *events: tuple[str, str]) -> None:
    """Publish events, each with its topic and data."""
    body = json.dumps([{"topic": topic, "data": data} for topic, data in events]).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    assert server.request("POST", "/publish", body, headers)[0] == 200


@pytest.fixture(scope="module", params=["alone", "workers", "file"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A server with prices of three markets: with or without workers, or after a restart from a file."""
    path = tmp_path_factory.mktemp("data") / "relay.db"
    arguments = {"alone": (), "workers": ("--workers", "2"), "file": ("--data", str(path))}[request.param]
    events = [("prices.eu", "eu 1"), ("prices.us", "us 1"), ("prices.us", "us 2"), ("prices.jp", "jp 1")]
    events += [("prices.eu", "eu 2"), ("other", "x"), ("prices.eu", "eu 3")]
    if request.param == "file":
        with relay(*arguments) as before:
            publish(before, *events)
    with relay(*arguments) as running:
        if request.param != "file":
            publish(running, *events)
            with contextlib.ExitStack() as streams:
                # A worker has the events once a stream there has received the last one.
                while not all(each.get("streams") for each in running.stats().get("workers", ())):
                    stream = streams.enter_context(Stream(running.port, "topic=prices.eu&since=earliest"))
                    assert [event.data for event in stream.take(3)] == ["eu 1", "eu 2", "eu 3"]
        yield running


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_in_each_form_begins_with_the_newest_events_and_continues(server: Relay, form: str) -> None:
    with FormStream(server.port, form, "topic=prices.*&since=last") as stream:
        assert [event.data for event in stream.take(3)] == [data for _, data in STATE]
        publish(server, ("live", "y"), ("prices.eu", "eu 3"))
        assert stream.next().data == "eu 3"


def test_a_stream_over_http2_begins_with_the_newest_events(server: Relay) -> None:
    with Http2Client(server.port) as client:
        stream = client.subscribe("/events?topic=prices.*&since=last")
        assert [event.data for event in client.take(stream, 3)] == [data for _, data in STATE]


def test_a_last_id_overrides_since(server: Relay) -> None:
    with Stream(server.port, "topic=prices.us&since=earliest") as stream:
        first = stream.next()
    with Stream(server.port, "topic=prices.us&since=last", {"Last-Event-ID": first.id or ""}) as stream:
        assert stream.next().data == "us 2"


def test_the_python_client_and_the_command_begin_with_the_newest_event(server: Relay) -> None:
    async def first() -> str:
        async with contextlib.aclosing(subscribe(server.url, topics=["prices.us"], since="last")) as events:
            return str((await anext(aiter(events))).data)

    assert asyncio.run(first()) == "us 2"
    arguments = ("subscribe", server.url, "--topic", "prices.us", "--since", "last", "--count", "1", "--output", "data")
    result = subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert result.stdout == "us 2\n"


def test_a_topic_is_opened_directly_from_its_socket() -> None:
    with relay() as server:
        publish(server, ("a", "1"), ("a", "2"))
        before = opens(server)
        for _ in range(2):
            with Stream(server.port, "topic=a&since=last") as stream:
                assert stream.next().data == "2"
        assert opened(before, opens(server)) == {"direct": 2}
