"""A client can send an accepted id back in any way: resume continues right after that event, or reports a gap."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relay.config.model import Config
from relay.core.log import Log
from relay.core.stream import Subscribe
from relay.errors import EventError
from relay.event import Event
from relay.front.routes import Router
from relay.http.request import parse_head
from relay.ids import LAST_ID_NAMES, check_id
from tests.properties.strategies import CHARACTERS
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]

ROUTER = Router(Config())
ANY_ID = st.text(CHARACTERS | st.sampled_from("+%&=#?; \u0101\ud800"), max_size=12)
PLAIN_ID = st.text(st.sampled_from("ab+%&=#?; \"'<>~-0123456789"), min_size=1, max_size=8)
RAW = "!$'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~+"
"""Characters that a query can contain unescaped. Only `+` has a meaning of its own."""


def accepted(id: str) -> bool:
    """Return whether a publisher may use an id."""
    try:
        check_id(id)
    except EventError:
        return False
    return True


def heads(id: str) -> list[bytes]:
    """Return requests that send an id back, in the way of each client."""
    values = (id.encode(), id.encode("latin-1", "replace"), id.strip(" \t").encode(), b"\t" + id.encode() + b" ")
    requests = [(b"/events?topic=t", b"Last-Event-ID: %b\r\n" % value) for value in values]
    escaped = [quote(id, safe=""), quote_plus(id), quote(id, safe="!'()*")]
    escaped += [id] if set(id) <= set(RAW) else []
    requests += [(f"/events?topic=t&{name}={value}".encode(), b"") for name in LAST_ID_NAMES for value in escaped]
    return [b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % request for request in requests]


def place(log: Log, head: bytes) -> int | None:
    """Return the sequence of the event after which a request resumes, or None for a gap."""
    subscribe = ROUTER.route(parse_head(head))
    assert isinstance(subscribe, Subscribe)
    assert subscribe.last_ids
    return log.find(subscribe.last_ids, subscribe.terms)


@settings(max_examples=300, deadline=None)
@given(id=PLAIN_ID | ANY_ID, others=st.lists(PLAIN_ID, max_size=4), number=st.integers(0, 3))
def test_every_client_returns_every_accepted_id(id: str, others: list[str], number: int) -> None:
    assume(accepted(id))
    log = Log("5f0c21aa", bytes_max=1 << 20)
    others = [other for other in others if accepted(other) and other != id]
    for other in (*others[:number], id, *others[number:]):
        log.append(log.topic("t"), b"x", other, None, 0.0)
        log.append(log.topic("elsewhere"), b"x", id, None, 0.0)
    wanted = 2 * len(others[:number]) + 1
    confusable = {id.replace("+", " "), id.replace(" ", "+")} & set(others)
    for head in heads(id):
        found = place(log, head)
        assert found == wanted or (found is None and confusable), (head, found)


@settings(max_examples=200, deadline=None)
@given(value=st.binary(max_size=20) | st.binary(min_size=2000, max_size=2001))
def test_a_last_id_of_any_bytes_is_answered(value: bytes) -> None:
    assume(b"\r" not in value)
    assume(b"\n" not in value)
    log = Log("5f0c21aa", bytes_max=1 << 20)
    log.append(log.topic("t"), b"x", "known", None, 0.0)
    requests = [b"GET /events?topic=t HTTP/1.1\r\nHost: a\r\nLast-Event-ID: %b\r\n\r\n" % (b"x" + value)]
    for name in LAST_ID_NAMES:
        target = f"/events?topic=t&{name}=x{quote(value, safe='')}"
        requests.append(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    for head in requests:
        assert place(log, head) is None


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_a_gap_names_no_event_of_another_topic(policy: str) -> None:
    """Each missed event is between two events of another topic, whose ids only its readers may know."""
    world = World(Config(lag_events=3, policy=policy, history_events=60))
    client = world.client(("a",), None, 300)
    world.connect(client)
    world.read(client, 1 << 20)
    for number in range(100):
        for topic in ("other", "a", "other"):
            id = f"own-{topic}-{number}-{len(world.published.events)}"
            world.published.add(Event(data=id, topic=topic, id=id), id)
            world.hub.publish_one(Event(data=id, topic=topic, id=id), world.now_s)
        if number % 7 == 0:
            world.step()
    world.settle()  # the oracle checks each gap
    assert client.oracle.gaps
