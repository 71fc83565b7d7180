"""NDJSON and the envelope equal a second implementation, byte for byte, and parse back to the same fields.

The second implementation is naive: it uses the `json` module, and the event instead of its frame.
"""

from __future__ import annotations

import json
import re

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.core.forms.ndjson import Ndjson
from relay.event import Event
from relay.sse import encode
from tests.core.forms.naive import MIB, check, is_embedded
from tests.properties.strategies import CHARACTERS, EVENTS, TEXT

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
JSON_TEXTS = st.builds(
    json.dumps, JSON_VALUES, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]), allow_nan=st.just(False)
)
ALMOST_JSON = st.builds(
    lambda text, place, cut, more: text[: place % (len(text) + 1)] + more + text[place % (len(text) + 1) + cut :],
    JSON_TEXTS,
    st.integers(0, 1000),
    st.integers(0, 2),
    st.text(st.sampled_from('{}[]",:0e.-\\ \n\r\t') | CHARACTERS, max_size=2),
)
TOPICS = st.sampled_from(["t", "orders.eu", "ünï", "a-b_c.d"])
SPECIAL = (
    *("{", "[", "{}", "[]", "[] ", " []", "[]x", "[1,]", "[01]", "[1e999]", "[-1e999]", "[1e-999]", "[NaN]", "[-0]"),
    *('{"a":1,"a":2}', '{"a":\n1,\r\n"b":\t2}', '["\u2028\u2029\x85"]', '["\0"]', '["\\u0000"]', '["a\nb"]'),
    "\ufeff[]",
    *(r'["\ud800"]', r'["\ude00\ud83d"]', r'["\ud83d\ude00"]', r'["\x"]', "[" + "9" * 400 + "]", "[" + "9" * 300 + "]"),
    *("[0." + "1" * 5000 + "]", "[" * 512 + "]" * 512, "[" * 1024 + "]" * 1024, "[" * 1025 + "]" * 1025, "[" * 9999),
    *("12345678901234567890", "null", '"text"', "data: x\ndata: y", "\n", "\r\r\n", "", ":", "\0", "id: 1\n\nid: 2"),
)


@pytest.mark.parametrize("data", SPECIAL)
def test_special_data(data: str) -> None:
    check(Event(data, id="7"), "t")


@given(EVENTS, TEXT | JSON_TEXTS | ALMOST_JSON, TOPICS)
@example(Event("", event="data", id="data: x", retry=0), "", "t")
def test_both_forms_equal_a_second_implementation(event: Event, data: str, topic: str) -> None:
    check(replace(event, data=data), topic)


@given(EVENTS, TEXT | JSON_TEXTS, TOPICS)
def test_a_line_parses_back_to_the_fields(event: Event, data: str, topic: str) -> None:
    line = Ndjson().entry(encode(replace(event, data=data), None, MIB), topic)
    assert len(line.decode().splitlines()) == 1
    members = json.loads(line)
    assert list(members)[-1] == "data"
    assert (members.get("id"), members.get("event"), members.get("retry")) == (event.id, event.event, event.retry)
    assert members["topic"] == topic
    text = re.sub(r"\r\n?", "\n", data)
    assert members["data"] == (json.loads(text) if is_embedded(text) else text)


@given(st.lists(TEXT | JSON_TEXTS, max_size=5))
def test_clients_that_end_lines_at_other_characters_read_whole_lines(texts: list[str]) -> None:
    body = b"".join(Ndjson().entry(encode(Event(text), None, MIB), "t") for text in texts)
    lines = list(httpx.Response(200, content=iter([body])).iter_lines())
    assert [json.loads(line)["topic"] for line in lines] == ["t"] * len(texts)
