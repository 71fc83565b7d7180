"""Tests of relay.workers.messages: messages in pieces of every size, and invalid bytes."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.model import Config
from relay.core.log import Entry
from relay.workers.messages import (
    VERSION,
    Answer,
    Ask,
    Beat,
    Begin,
    Drain,
    Find,
    Found,
    Hello,
    LinkError,
    Message,
    Parser,
    Published,
    PublishRequest,
    RateAnswer,
    RateRequest,
    Refuse,
    Refused,
    Setup,
    SkipTo,
    Status,
    encode,
    encode_entry,
)

MESSAGES: list[Message] = [
    Setup(
        config=Config(listen=(":1", "[::1]:2"), policy_for=("a=block",)),
        listeners=[4, 5],
        admin_listeners=[6],
        own_token="t",
    ),
    Hello(version=VERSION),
    Refuse(reason="no"),
    Begin(epoch="e", sequence=1, head=2, now_s=1.5, evicted_s=-math.inf),
    Beat(head=7),
    SkipTo(sequence=9),
    Status(sequence=3, streams=4, ready=True, holding=["a", "b.*"]),
    PublishRequest(number=1, events=b'[{"data":{"a":[1.50,null]},"topic":"a"},{"topic":"b"}]'),
    Published(number=1, ids=["e-1", "x"]),
    RateRequest(number=2, subject="ann", count=3),
    RateAnswer(number=2, wait_s=0.5),
    Find(number=2, terms=("a", "b.*"), ids=("x",)),
    Found(number=2, sequence=None),
    Refused(number=2, status=400, reason="is bad", field="id"),
    Ask(number=3, report="stats"),
    Answer(number=3, body=b"{}"),
    Drain(),
]
ENTRIES = [
    Entry(1, 0.0, "a", None, None, b"data: x\n\n"),
    Entry(2**64 - 1, -1.5, "é.b", "", "", b"\n"),
    Entry(7, 1e9, "t" * 256, "i" * 1024, "k\ud800" * 1000, b"x" * 100_000),
    Entry(8, 1.0, "a", None, None, b"x", 0.0),
]
WHOLE = b"".join(map(encode, MESSAGES)) + b"".join(map(encode_entry, ENTRIES[:2]))
ALL = [*MESSAGES, *ENTRIES[:2]]


def parse(*parts: bytes, bytes_max: int = 1 << 20) -> list[Message | Entry]:
    """Feed a parser part by part."""
    parser = Parser(bytes_max)
    return [message for part in parts for message in parser.feed(part)]


def test_all_messages_are_unchanged_after_encoding_and_decoding() -> None:
    assert parse(WHOLE) == ALL
    assert parse(b"".join(map(encode_entry, ENTRIES))) == ENTRIES


def test_messages_are_the_same_at_every_split() -> None:
    assert parse(*(bytes([byte]) for byte in WHOLE)) == ALL
    for place in range(len(WHOLE)):
        assert parse(WHOLE[:place], WHOLE[place:]) == ALL


def test_a_long_message_is_buffered_in_pieces_and_decoded_once() -> None:
    data = encode_entry(ENTRIES[2])
    parser = Parser(1 << 20)
    pieces = [data[place : place + 1000] for place in range(0, len(data), 1000)]
    assert [parser.feed(piece) for piece in pieces[:-1]] == [[]] * (len(pieces) - 1)
    assert parser.feed(pieces[-1]) == [ENTRIES[2]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "exceeds the limit"),
        (b"\xff\xff\xff\xff\x00", "exceeds the limit"),
        (b"\x01\x00\x00\x00\x07x", "has the unknown kind"),
        (b"\x01\x00\x00\x00\x00\xc1", "cannot decode"),
        (b"\x01\x00\x00\x00\x01x", "is truncated"),
        (encode_entry(Entry(1, math.nan, "a", None, None, b"x")), "is truncated"),
        (encode_entry(Entry(1, 1.0, "a", None, None, b"")), "is truncated"),
        (encode_entry(Entry(1, 1.0, "a", None, None, b"x")).replace(b"ax", b"\xffx"), "cannot decode"),
        (encode(Beat(head=1)).replace(b"Beat", b"Boat"), "cannot decode"),
        (encode(Find(number=1, terms=("a",), ids=("x",))).replace(b"number", b"numbed"), "cannot decode"),
    ],
)
def test_an_invalid_message_is_an_error(data: bytes, reason: str) -> None:
    with pytest.raises(LinkError, match=reason):
        parse(data, bytes_max=1000)


def test_an_unknown_field_is_ignored() -> None:
    data = encode(Beat(head=1))
    payload = bytes([data[5] + 1]) + data[6:] + b"\xa5later\x01"  # a map with one more field
    assert parse(len(payload).to_bytes(4, "little") + b"\0" + payload) == [Beat(head=1)]


@given(st.binary(max_size=300))
def test_any_bytes_return_messages_or_raise_a_link_error(data: bytes) -> None:
    """No input raises another exception."""
    with contextlib.suppress(LinkError):
        parse(data, bytes_max=200)


@given(st.data())
def test_damage_at_any_position_returns_messages_or_raises_a_link_error(data: st.DataObject) -> None:
    """The damaged bytes are nearly valid."""
    damaged = bytearray(WHOLE)
    for place in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), min_size=1, max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LinkError):
        parse(bytes(damaged), bytes_max=len(WHOLE))


@given(
    st.builds(
        Entry,
        st.integers(0, 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=60),
        st.none() | st.text(max_size=60),
        st.none() | st.text(st.characters(), max_size=60),
        st.binary(min_size=1, max_size=100),
        st.none() | st.floats(0, 1e9),
    ),
    st.integers(0, 400),
)
def test_any_entry_is_unchanged_after_it_was_sent_in_two_pieces(entry: Entry, place: int) -> None:
    """An absent id or key differs from an empty one."""
    data = encode_entry(entry)
    assert parse(data[:place], data[place:]) == [entry]
