"""Any head of a request gets the same answer on both paths that open streams.

Covers `relay.front.openings`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.front.paths import opened, opens, outcomes, send_in_pieces, send_whole
from tests.fuzz.heads import check_head
from tests.running import TOKEN, Relay, relay

LINES = (
    *(b"GET /events HTTP/1.1", b"GET /events/a?padding HTTP/1.1", b"GET /events?topic=a.* HTTP/1.1"),
    *(b"GET /events?topic=a&topic=b&envelope=1 HTTP/1.1", b"GET /events?topic=a&lastEventId=a-1 HTTP/1.1"),
    *(b"GET /events?topic=a&since=earliest HTTP/1.1", b"GET /events?topic=a&since=a-0 HTTP/1.0"),
    *(b"GET /events?topic=a&policy=conflate HTTP/1.0", b"GET /events?topic=%zz HTTP/1.1", b"GET  /events HTTP/1.1"),
    *(b"GET http://a/events?topic=over HTTP/1.1", b"GET /events?topic=a&ticket=x HTTP/1.2", b"HEAD /events HTTP/1.1"),
)
NAMES = (
    *(b"Last-Event-ID", b"last-event-id", b"Authorization", b"X-Forwarded-For", b"Cookie", b"User-Agent", b"Referer"),
    *(b"X-Real-IP", b"Traceparent", b"Accept", b"Accept-Encoding", b"Origin", b"Connection", b"Upgrade", b"X"),
)
VALUES = (
    *(b"", b" ", b"a-0", b" a-1\t", b"a-2, a-3", b"none", b"Bearer x", b"1.2.3.4", b"10.0.0.1, 1.2.3.4", b"a", b"*/*"),
    *(b"application/x-ndjson", b"text/event-stream", b"gzip", b"https://a.example", b"close", b"h2c", b"x" * 1100),
)
RARE_NAMES = (b"host", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Cookie ", b" Cookie", b"Last-Event-ID\0")
RARE_VALUES = (
    *(b"0", b"3", b"chunked", b"100-continue", b"\xe9", b"\xff", b"a\x01", b"a\0b", b"a\rb", b"a\nb"),
    *(b"a\r\n b", b"a\r\n b: c"),
)
RARE = 0.1
EVENTS = 4
HEADS = 300
"""Number of heads per run; a seed reproduces the run."""


def head(choose: random.Random) -> bytes:
    """Make a head, most of which are valid."""

    def rare() -> bool:
        return choose.random() < RARE

    fields = [
        choose.choice(RARE_NAMES if rare() else NAMES) + b":" + choose.choice(RARE_VALUES if rare() else VALUES)
        for _ in range(choose.randrange(5))
    ]
    lines = [choose.choice(LINES), b"X: y" if rare() and rare() else b"Host: a", *fields]
    return b"\r\n".join(lines) + (b"\n" if rare() and rare() else b"\r\n") + b"\r\n" + (b"GET " if rare() else b"")


@given(st.randoms(use_true_random=False))
def test_a_shape_and_its_removed_fields_mean_the_same_as_the_head(choose: random.Random) -> None:
    check_head(head(choose))


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    """A server with a few events, which draws the same reconnection time for all clients."""
    fixed = ("--retry-min", "2s", "--retry-max", "2s", "--heartbeat", "0", "--head-timeout", "60s")
    with relay(
        *fixed, "--cors-origin", "https://a.example", "--compress", "gzip", "--trusted-proxy", "10.0.0.1"
    ) as running:
        events = [{"topic": "a", "id": f"a-{number}", "data": "x\ny"} for number in range(EVENTS)]
        events += [{"topic": "over", "id": "a-1", "data": "1"}, {"topic": "over", "event": "relay.end", "id": "a-2"}]
        fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        assert running.request("POST", "/publish", json.dumps(events).encode(), fields)[0] == 200
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, random.randrange(1 << 32)], ids=["fixed", "random"])
def test_random_heads_get_the_same_answers_whole_and_in_two_pieces(server: Relay, seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    heads = [head(choose) for _ in range(HEADS)]
    before = opens(server)
    whole = outcomes(server, send_whole(server, heads))
    direct = opened(before, opens(server))["direct"]
    pieces = outcomes(server, send_in_pieces(server, heads))
    assert [each for each in zip(heads, whole, pieces, strict=True) if each[1] != each[2]] == []
    assert direct > HEADS / 10
