"""Every kind of subscription and feeder continues after an upgrade, in any order of arrival."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle import matches
from tests.running import TIMEOUT_S, Feeder, Relay, Stream, relay

POLICIES = ("block", "conflate", "disconnect", "drop-newest", "drop-oldest")
TERMS = (
    *((f"policy.{policy}",) for policy in POLICIES),
    ("silent",),
    ("silent", "a.b"),
    ("quiet.deep", "*.deep"),
    ("*",),
    ("*.*",),
    ("**",),
    ("a.b",),
    ("a.*", "*.b"),
    ("a.**", "a.b", "x"),
)
TOPICS = ("a.b", "a.c", "c.b", "x", *(f"policy.{policy}" for policy in POLICIES))
"""Topics that have an event before the upgrade; `silent` and `quiet.deep` have one only after it."""


def expected(terms: tuple[str, ...], topics: tuple[str, ...]) -> list[str]:
    """Return the data of the events that a subscription receives. The data is the topic."""
    return [topic for topic in topics if any(matches(term, topic) for term in terms)]


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_subscription_continues(seed: int) -> None:
    draw = random.Random(seed)
    policies = [text for policy in POLICIES for text in ("--policy-for", f"policy.{policy}={policy}")]
    kinds = draw.sample(TERMS, len(TERMS))
    with relay("--history-events", "5", *policies) as server, contextlib.ExitStack() as stack:
        before, late = (TOPICS, kinds[:7]) if seed else ((), kinds[:0])
        streams = {}
        for terms in kinds:
            if terms not in late:
                query = "&".join(f"topic={term}" for term in terms)
                streams[terms] = stack.enter_context(Stream(server.port, query))
        for topic in before:
            server.publish(topic, topic)
        for terms in late:
            query = "&".join(f"topic={term}" for term in terms)
            streams[terms] = stack.enter_context(Stream(server.port, query))
        for _ in range(2):
            server.upgrade()
        after = (*TOPICS, "silent", "quiet.deep")
        for topic in after:
            server.publish(topic, topic)
        for terms, stream in streams.items():
            wanted = expected(terms, after if terms in late else (*before, *after))
            assert [event.data for event in stream.take(len(wanted))] == wanted, terms
        assert server.stats()["closes"] == {}


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[Relay]:
    """A relay whose topic `a` has the policy `block`."""
    rule = "a=block lag-events=10 lag-bytes=64KiB"
    settings = ("--unix", str(tmp_path / "u"), "--client-buffer", "4KiB", "--block-timeout", "60s")
    with relay(*settings, "--policy-for", rule) as server:
        yield server


def test_a_lagging_block_stream_and_its_held_feeder_continue(blocked: Relay) -> None:
    path = blocked.unix_path
    with Stream(blocked.port, "topic=a", receive_buffer=4096) as stream, Feeder(path) as feeder:
        feeder.socket.settimeout(0.5)
        sent = answered = 0
        with contextlib.suppress(TimeoutError):
            while sent < 2000:
                feeder.send({"topic": "a", "data": "x" * 5000 + str(sent), "ack": sent})
                sent += 1
                feeder.answer()
                answered += 1
        assert answered < sent < 2000, "the feeder is never held"
        blocked.upgrade()
        assert blocked.metric("relay_streams_lagging") == 1
        with Feeder(path) as other:
            assert other.publish(topic="b", data="free")
        got = stream.take(sent)
        assert [int(event.data.lstrip("x")) for event in got] == list(range(sent))
        feeder.socket.settimeout(TIMEOUT_S)
        answers = b""
        while answers.count(b"\n") < sent - answered:
            answers += feeder.socket.recv(4096)
        assert [json.loads(line)["ack"] for line in answers.splitlines()] == list(range(answered, sent))


def test_feeders_continue_within_a_line_with_their_dedup_keys(tmp_path: Path) -> None:
    settings = ("--unix", str(tmp_path / "u"), "--data", str(tmp_path / "f.db"), "--durable")
    with relay(*settings, stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        stdin = server.process.stdin
        assert stdin is not None
        with Feeder(server.unix_path) as feeder:
            first = feeder.publish(data="once", dedup="key")
            line = json.dumps({"data": "once", "dedup": "key", "ack": 7}).encode() + b"\n"
            stdin.write(b'{"data": "standard ')
            stdin.flush()
            for place in range(3):
                feeder.socket.sendall(line[: 9 * place])
                server.upgrade()
                feeder.socket.sendall(line[9 * place :])
                assert feeder.answer() == {"ack": 7, "id": first}
        stdin.write(b'input"}\n')
        stdin.close()
        assert [event.data for event in stream.take(2)] == ["once", "standard input"]
