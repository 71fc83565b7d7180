"""Forms: the bytes of an entry in each of them (`relay.core.forms.form`, `relay.core.forms.registry`)."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.model import Config
from relay.core.audience import Audiences
from relay.core.forms.envelope import Envelope
from relay.core.forms.form import Form
from relay.core.forms.framing import LAST_CHUNK, Chunked, unwrap, wrap
from relay.core.forms.ndjson import Fields, Ndjson
from relay.core.forms.registry import all_forms
from relay.core.log import Log
from relay.core.policy import Rules
from relay.event import Event
from relay.sse import comment, encode, priming
from tests.properties.strategies import EVENTS
from tests.readers import Reader

MIB = 1 << 20
RULE = Rules(Config()).choose(("a.*",), None)


def entered(*events: Event) -> Log:
    """Return a log with these events."""
    log = Log("e", bytes_max=1 << 30)
    for event in events:
        log.append(log.topic(event.topic or "t"), encode(event, None, MIB, in_chunk=True), None, None, 0.0)
    return log


def test_the_forms_have_the_numbers_of_their_places() -> None:
    assert [form.number for form in all_forms().values()] == list(range(len(all_forms())))


@pytest.mark.parametrize("name", [name for name, form in all_forms().items() if not form.once])
def test_each_event_is_read_back_from_each_form(name: str) -> None:
    events = [Event("one", "e", "1", topic="a"), Event("two\nlines", topic="b.c"), Event('{"price": 1}', topic="a")]
    form, reader, log = all_forms()[name], Reader(name), entered(*events)
    content = b"".join(form.contents(log, [1, 2, 3]))
    sent = form.framing.start + form.chunk(log, [1, 2, 3], 4).data + form.framing.end(crc32(content), len(content))
    read = reader.feed(sent)
    assert [(event.event, event.id) for event in read] == [("e", "1"), (None, None), (None, None)]
    assert [event.data for event in read] == ["one", "two\nlines", '{"price": 1}']
    assert reader.complete == (form.framing.name != "plain")
    if form.syntax.name != "sse":
        assert reader.topics == ["a", "b.c", "a"]


def test_the_forms_of_a_pattern_share_one_index() -> None:
    audiences = Audiences(Log("e", bytes_max=MIB))
    subscriptions = [audiences.get(("a.*",), RULE, form) for form in all_forms().values()]
    assert len({id(subscription.indexes[0]) for subscription in subscriptions}) == 1
    assert len(audiences.indexes()) == 1
    for subscription in subscriptions:
        audiences.release(subscription)
    assert audiences.indexes() == []


def test_the_stored_chunks_are_sent_as_they_are() -> None:
    log = entered(Event("x"))
    assert all_forms()["sse"].chunk(log, [1], 2).data is log.frame(1)


def test_an_entry_is_derived_once() -> None:
    log, form = entered(Event("x")), all_forms()["ndjson"]
    assert form.contents(log, [1])[0] is form.contents(log, [1])[0]


def test_an_entry_with_the_sequence_of_an_older_one_is_derived_again() -> None:
    log, form = entered(Event("x")), all_forms()["ndjson"]
    form.contents(log, [1])
    log.begin("f", 1, 0.0)
    log.append(log.topic("t"), wrap(b"data: y\n\n"), None, None, 0.0)
    assert json.loads(form.contents(log, [1])[0]) == {"topic": "t", "data": "y"}


def test_derived_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.core.forms.form.DERIVED_BYTES_MAX", 1000)
    log, form = entered(*[Event("x" * 100)] * 100), all_forms()["envelope"]
    form.contents(log, range(1, 101))
    assert len(form._derived) < 10


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ('{"a":1}', '{"topic":"t","data":{"a":1}}'),
        ("[1, 2.50]", '{"topic":"t","data":[1, 2.50]}'),
        ('{"a":\n1}', '{"topic":"t","data":{"a": 1}}'),
        ("5", '{"topic":"t","data":"5"}'),
        ("null", '{"topic":"t","data":"null"}'),
        ('"text"', '{"topic":"t","data":"\\"text\\""}'),
        ("{not json", '{"topic":"t","data":"{not json"}'),
        ('{"a":NaN}', '{"topic":"t","data":"{\\"a\\":NaN}"}'),
        ("", '{"topic":"t","data":""}'),
        ("two\nlines", '{"topic":"t","data":"two\\nlines"}'),
    ],
)
def test_objects_and_arrays_are_embedded_and_other_data_is_a_string(data: str, line: str) -> None:
    assert Ndjson().entry(encode(Event(data), None, MIB), "t").decode() == line + "\n"


def test_notices_have_no_topic() -> None:
    frame = encode(Event('{"missed":1}', "relay.gap"), None, MIB)
    assert json.loads(Ndjson().notice(frame)) == {"event": "relay.gap", "data": {"missed": 1}}
    assert Envelope().notice(frame) == b'event: relay.gap\ndata: {"data":{"missed":1}}\n\n'


def test_notices_without_data() -> None:
    assert Ndjson().notice(comment("")) == b"\n"
    assert Ndjson().notice(priming(1500, "e-1")) == b'{"id":"e-1","retry":1500}\n'
    assert Envelope().notice(priming(1500, "e-1")) == priming(1500, "e-1")
    assert Envelope().notice(comment("")) == comment("")


def test_a_notice_is_one_chunk_and_nothing_stays_nothing() -> None:
    form = Form("ndjson", Ndjson(), Chunked(), 0)
    assert form.notice(b":\n") == b"1\r\n\n\r\n"
    assert form.notice(b"") == b""
    assert form.framing.end(0, 0) == LAST_CHUNK


@given(EVENTS)
def test_the_fields_of_a_frame_are_read_back(event: Event) -> None:
    fields = Fields(encode(event, None, MIB))
    assert (fields.event, fields.id, fields.retry) == (event.event, event.id, event.retry)


@given(st.binary(max_size=70_000))
def test_a_chunk_holds_its_content(content: bytes) -> None:
    assert unwrap(wrap(content)) == content
