"""`relay.client.ndjson`: NDJSON gives the same events as the event stream, and their topics."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.client.follow import Position
from relay.client.ndjson import LineDecoder
from relay.client.subscribe import subscribe
from relay.core.forms.ndjson import Ndjson
from relay.errors import EventError
from relay.event import Event
from relay.sse import Decoder, encode
from tests.client.test_subscribe import collect
from tests.properties.strategies import EVENTS, pieces
from tests.running import relay
from tests.scripted_http import answer, scripted

MIB = 1024 * 1024
LINES = (
    b'\n{"id":"e-0","retry":2000}\n'
    b'{"event":"relay.gap","data":{"reason":"epoch"}}\n'
    b'{"id":"e-1","topic":"a","data":"x\\u2028\\ny"}\n\n'
    b'{"topic":"b","unknown":[1],"data":[1.00, 12345678901234567890]}\n'
    b'{"id":"e-2","event":"t","topic":"a","data":""}\n'
    b'{"retry":9000}\n{"id":"e-3","data":"torn"}'
)


def ndjson(body: bytes) -> bytes:
    return answer(200, "Content-Type: application/x-ndjson\r\n", body)


async def test_the_client_reads_ndjson_with_topics_and_resumes() -> None:
    async with scripted([ndjson(LINES)]) as server:
        events = await collect(server.url)
    assert [(event.id, event.event, event.topic, event.data) for event in events] == [
        ("e-0", "relay.gap", None, '{"reason":"epoch"}'),
        ("e-1", None, "a", "x\u2028\ny"),
        ("e-1", None, "b", "[1.00, 12345678901234567890]"),
        ("e-2", "t", "a", ""),
    ]
    assert server.header(1, "Last-Event-ID") == "e-2"


async def test_a_caller_may_ask_for_the_event_stream() -> None:
    async with scripted([answer(body=b"data: a\n\n")]) as server:
        [event] = await collect(server.url, headers={"Accept": "text/event-stream"})
    assert server.header(0, "Accept") == "text/event-stream"
    assert (event.topic, event.data) == (None, "a")


@given(draws=st.data(), events=st.lists(EVENTS, max_size=4))
def test_ndjson_gives_the_events_of_the_event_stream_at_every_split(draws: st.DataObject, events: list[Event]) -> None:
    frames = [encode(event, None, MIB) for event in events]
    plain, lines = Position(""), Position("")
    expected = [item for item in plain.read(Decoder(MIB), b"".join(frames)) if isinstance(item, Event)]
    decoder = LineDecoder(8 * MIB)
    body = b"".join(Ndjson().entry(frame, "t") for frame in frames)
    found = [item for piece in draws.draw(pieces(st.just(body))) for item in lines.read(decoder, piece)]
    assert [(event.id, event.event, event.topic, event.data) for event in found if isinstance(event, Event)] == [
        (event.id, event.event, "t", as_one_line(event.data))
        for event in expected
    ]
    assert (lines.last_event_id, lines.retry_s) == (plain.last_event_id, plain.retry_s)


def as_one_line(data: str) -> str:
    """Return data as NDJSON keeps it: a JSON object or array in one line, all other data as it is."""
    if not data.startswith(("{", "[")):
        return data
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    return re.sub("[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", data.replace("\n", " "))


@pytest.mark.parametrize("depth", [512, 1024, 2000])
def test_data_nested_deeply_is_kept(depth: int) -> None:
    data = "[" * depth + "]" * depth
    line = Ndjson().entry(encode(Event(data, id='a,"data":'), None, MIB), "t")
    [event] = LineDecoder(MIB).feed(line)
    assert (event.id, event.topic, event.data) == ('a,"data":', "t", data)


def test_a_line_that_is_too_large_is_an_error_and_the_next_one_is_read() -> None:
    decoder, position = LineDecoder(100), Position("")
    small = b'{"id":"2","data":"b"}\n'
    for size in (90, 200):
        found = list(position.read(decoder, b'{"id":"1","data":"%b"}\n%b' % (b"a" * size, small)))
        assert isinstance(found[0], EventError)
        assert found[1:] == [Event("b", id="2")]
    assert position.last_event_id == "2"


@pytest.mark.parametrize("line", [b"[1]", b"x", b'{"id":1}', b'{"retry":"1"}', b'{"data":"\xff"}', b"{" * 3000])
def test_a_line_of_another_format_is_an_error(line: bytes) -> None:
    with pytest.raises(EventError, match="not a line of a relay's NDJSON"):
        LineDecoder(MIB).feed(line + b"\n")


async def test_events_of_a_pattern_have_their_topics_and_a_gap_has_none() -> None:
    with relay() as server:
        lines = '{"topic":"prices.eu","data":{"n":1}}\n{"topic":"prices.us","data":2}'
        server.publish(lines, content_type="application/x-ndjson")
        stream = subscribe(server.url, ["prices.*"], last_event_id="unknown")
        events = [await anext(stream) for _ in range(3)]
        await stream.aclose()
    assert [(event.topic, event.data) for event in events[1:]] == [("prices.eu", '{"n":1}'), ("prices.us", "2")]
    assert (events[0].event, events[0].topic) == ("relay.gap", None)
