"""Events from JSON: data keeps its original text, and invalid JSON is rejected with its position.

Covers `relay._native.jsontext`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.implementations import load
from relay.errors import EventError
from relay.event_json import DEPTH_MAX, parse_event, parse_events
from relay.sources.lines import parse_line
from relay.sse import encode
from tests.twins import NAMES

NUMBERS = ["0.12345678901234567890", "12345678901234567890.5", "-0", "10.10", "1E5", "1e400", "9" * 5000, "-1.0e-07"]


@pytest.fixture(params=NAMES)
def compact(request: pytest.FixtureRequest) -> Callable[[bytes, int], bytes]:
    """Return `compact_json` of each implementation."""
    function: Callable[[bytes, int], bytes] = load(request.param, "jsontext").compact_json
    return function


@pytest.mark.parametrize("parse", [parse_event, parse_line, lambda text: parse_events(b"[%b]" % text)[0]])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_sent_as_written(parse: Callable[[bytes], Any], number: str) -> None:
    event = parse(b'{"data": {"v": %b, "w":[ %b ]}}' % (number.encode(), number.encode()))
    assert encode(event, None, 1 << 20) == b'data: {"v":%b,"w":[%b]}\n\n' % (number.encode(), number.encode())
    assert encode(parse(b'{"data":%b}' % number.encode()), None, 1 << 20) == b"data: %b\n\n" % number.encode()


def test_json_data_becomes_one_line_and_strings_keep_their_white_space() -> None:
    event = parse_event(b'{"data": {\r\n\t"a b": "c\\" d  \\\\",\n "e": null }}')
    assert encode(event, None, 1000) == b'data: {"a b":"c\\" d  \\\\","e":null}\n\n'


def test_a_string_is_text_null_is_a_value_and_missing_data_is_none() -> None:
    assert parse_event(b'{"data":"a\\u00e9"}').data == "a\u00e9"
    assert encode(parse_event(b'{"data":null}'), None, 100) == b"data: null\n\n"
    assert parse_event(b'{"event":"e"}').data is msgspec.UNSET


def test_two_members_with_one_name_are_both_kept() -> None:
    assert encode(parse_event(b'{"data":{"a":1,"a":2}}'), None, 100) == b'data: {"a":1,"a":2}\n\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "event: not valid JSON: it ends after byte 0"),
        (b'{"data":1', "event: not valid JSON: it ends after byte 9"),
        (b'{"data":tru', "event: not valid JSON: it ends after byte 11"),
        (b'{"data":1} x', "event: not valid JSON: trailing characters (byte 12)"),
        (b'{"data":NaN}', "event: not valid JSON: invalid character (byte 8)"),
        (b'{"data":01}', "event: not valid JSON: invalid number (byte 9)"),
        (b'{"data":"\xff"}', "event: not valid JSON: byte 9 is not UTF-8"),
        (b'{"data":{"a":"\xff"}}', "data: invalid UTF-8 at byte 6"),
        (b'{"data":"\\ud83d\\ude00 \\\\ \\ud800"}', r"event: not valid JSON: lone surrogate \ud800 at byte 25"),
        (b'{"retry":"x"}', "retry: Expected `int | null`, got `str`"),
    ],
)
def test_an_error_states_its_position(text: bytes, said: str) -> None:
    with pytest.raises(EventError) as caught:
        encode(parse_event(text), None, 1000)
    assert str(caught.value) == said


@pytest.mark.parametrize("depth", [DEPTH_MAX, DEPTH_MAX + 1, 900, 100_000])
def test_the_depth_is_bounded_and_the_error_names_the_bound(depth: int) -> None:
    text = b'{"data":%b%b}' % (b"[" * depth, b"]" * depth)
    if depth <= DEPTH_MAX:
        assert encode(parse_event(text), None, 10_000).count(b"[") == depth
        return
    with pytest.raises(EventError, match="JSON is nested more than 512 levels deep"):
        parse_event(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, indent=st.sampled_from([None, 0, 1, "\t"]), ascii_only=st.booleans())
def test_compact_text_has_the_same_tokens(value: object, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    expected = json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only).encode(errors="surrogatepass")
    for name in NAMES:
        assert load(name, "jsontext").compact_json(text, 100) == expected


def test_nesting_is_counted_outside_strings(compact: Callable[[bytes, int], bytes]) -> None:
    assert compact(b'["[[[[", {"]": "{{"}]', 2) == b'["[[[[",{"]":"{{"}]'
    assert compact(b"[[],[],[[]]]", 3) == b"[[],[],[[]]]"
    with pytest.raises(EventError, match="more than 2 levels"):
        compact(b"[[],[],[[]]]", 2)
