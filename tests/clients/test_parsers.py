"""Parsers by other authors read relay's frames as relay intends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from bench.implementations import Codec
from relay.event import Event
from tests.properties.strategies import EVENTS, pieces

HERE = Path(__file__).parent
MIB = 1024 * 1024


def frames(codec: Codec, events: list[Event]) -> bytes:
    return b"".join(codec.encode_event(one.data, one.event, one.id, one.retry, MIB) for one in events)


def data(event: Event) -> str:
    return re.sub(r"\r\n?", "\n", event.data)


@given(draws=st.data(), events=st.lists(EVENTS, max_size=4))
def test_httpx_sse_reads_the_events(codec: Codec, draws: st.DataObject, events: list[Event]) -> None:
    parts = draws.draw(pieces(st.just(frames(codec, events))))
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(parts))
    found = [(one.event, one.data, one.id, one.retry) for one in EventSource(response).iter_sse()]
    last_id = ""
    expected = []
    for event in events:
        last_id = last_id if event.id is None else event.id
        expected.append((event.event or "message", data(event), last_id, event.retry))
    assert found == expected


class Node:
    """A node process that parses one stream after another."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["node", "parse.mjs"], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def parse(self, parts: list[str]) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(parts) + "\n")
        self.process.stdin.flush()
        events: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        return events

    def close(self) -> None:
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (HERE / "node_modules" / "eventsource-parser").is_dir():
        pytest.skip("eventsource-parser is not installed: `make test` installs it with npm")
    process = Node()
    yield process
    process.close()


@given(draws=st.data(), events=st.lists(EVENTS, max_size=4))
def test_eventsource_parser_reads_the_events(
    node: Node, codec: Codec, draws: st.DataObject, events: list[Event]
) -> None:
    parts = draws.draw(pieces(st.just(frames(codec, events).decode())))
    expected = [{"data": data(event), "event": event.event, "id": event.id} for event in events]
    assert node.parse(parts) == expected
