"""The rules of the event stream (WHATWG HTML 9.2), checked for each implementation of the codec."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from msgspec import UNSET

from bench.implementations import Codec
from relay import sse
from relay.errors import EventError
from relay.event import Event

MIB = 1024 * 1024


def encode(
    codec: Codec,
    data: Any = None,
    event: Any = None,
    id: Any = None,
    retry: Any = None,
    bytes_max: int = MIB,
) -> bytes:
    return codec.encode_event(data, event, id, retry, bytes_max)


def decode(codec: Codec, *pieces: bytes) -> list[Event]:
    decoder = codec.decoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


# Encoder


def test_fields_have_the_order_event_id_retry_data(codec: Codec) -> None:
    frame = encode(codec, "a", event="tick", id="7", retry=1500)
    assert frame == b"event: tick\nid: 7\nretry: 1500\ndata: a\n\n"


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        ("a", b"data: a\n\n"),
        ("", b"data: \n\n"),
        (" a", b"data:  a\n\n"),
        (":a", b"data: :a\n\n"),
        ("a\nb", b"data: a\ndata: b\n\n"),
        ("a\rb", b"data: a\ndata: b\n\n"),
        ("a\r\nb", b"data: a\ndata: b\n\n"),
        ("a\n\rb", b"data: a\ndata: \ndata: b\n\n"),
        ("a\r\r\n\nb", b"data: a\ndata: \ndata: \ndata: b\n\n"),
        ("a\n", b"data: a\ndata: \n\n"),
        ("a\r", b"data: a\ndata: \n\n"),
        ("a\r\n", b"data: a\ndata: \n\n"),
        ("\n", b"data: \ndata: \n\n"),
        ("\r\r", b"data: \ndata: \ndata: \n\n"),
        ("\r\n\r\n", b"data: \ndata: \ndata: \n\n"),
        ("a\0b", b"data: a\0b\n\n"),
        ("é€😀", "data: é€😀\n\n".encode()),
        ("é\n€\r😀", "data: é\ndata: €\ndata: 😀\n\n".encode()),
        ("\ufeffa", "data: \ufeffa\n\n".encode()),
        ("a\x0b\x0c\x1c\x85\u2028\u2029b", "data: a\x0b\x0c\x1c\x85\u2028\u2029b\n\n".encode()),
    ],
)
def test_data_has_a_field_for_each_of_its_lines(codec: Codec, data: str, frame: bytes) -> None:
    assert encode(codec, data) == frame
    assert encode(codec, data.encode()) == frame


@pytest.mark.parametrize("size", [1, 7, 8, 9, 239, 240, 241, 480, 1000])
@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_line_ends_are_found_at_every_position(codec: Codec, size: int, line_end: str) -> None:
    for place in (0, size // 2, size - 1, size):
        data = "x" * place + line_end + "y" * (size - place)
        expected = b"data: " + b"x" * place + b"\ndata: " + b"y" * (size - place) + b"\n\n"
        assert encode(codec, data) == expected


def test_an_event_without_data_has_no_data_field(codec: Codec) -> None:
    assert encode(codec, id="7") == b"id: 7\n\n"
    assert encode(codec, retry=0) == b"retry: 0\n\n"
    assert encode(codec, event="tick") == b"event: tick\n\n"
    assert encode(codec) == b"\n"


@pytest.mark.parametrize("retry", [0, 1, 9, 10, 3000, 2**31 - 1])
def test_retry_is_written_in_ascii_digits(codec: Codec, retry: int) -> None:
    assert encode(codec, retry=retry) == b"retry: " + str(retry).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"id": ""}, "id", "must not be empty; leave it out instead"),
        ({"id": "a\0b"}, "id", "must not contain U+0000"),
        ({"id": "a\rb"}, "id", "must not contain U+000D"),
        ({"id": "a\n"}, "id", "must not contain U+000A"),
        ({"id": "\ud800"}, "id", "lone surrogate U+D800 at character 0"),
        ({"id": 7}, "id", "must be a string, not int"),
        ({"id": b"7"}, "id", "must be a string, not bytes"),
        ({"event": ""}, "event", "must not be empty; leave it out instead"),
        ({"event": "a\rb"}, "event", "must not contain U+000D"),
        ({"event": "\na"}, "event", "must not contain U+000A"),
        ({"event": "ab\udfff"}, "event", "lone surrogate U+DFFF at character 2"),
        ({"event": 7}, "event", "must be a string, not int"),
        ({"retry": -1}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"retry": 2**31}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"retry": 10**30}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"retry": True}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"retry": 1.0}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"retry": "1"}, "retry", "must be a whole number of milliseconds from 0 to 2147483647"),
        ({"data": "a\ud83d"}, "data", "lone surrogate U+D83D at character 1"),
        ({"data": b"ab\xff"}, "data", "invalid UTF-8 at byte 2"),
        ({"data": b"\xed\xa0\x80"}, "data", "invalid UTF-8 at byte 0"),
        ({"data": b"12345678\xc3"}, "data", "invalid UTF-8 at byte 8"),
        ({"data": 7}, "data", "must be a string or bytes, not int"),
        ({"data": bytearray(b"a")}, "data", "must be a string or bytes, not bytearray"),
    ],
)
def test_the_error_for_a_value_that_the_format_cannot_carry_names_its_field(
    codec: Codec, fields: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(EventError) as caught:
        encode(codec, **fields)
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_nul_is_rejected_only_in_ids(codec: Codec) -> None:
    assert encode(codec, "a\0", event="b\0") == b"event: b\0\ndata: a\0\n\n"


def test_the_limit_counts_every_byte_of_the_frame(codec: Codec) -> None:
    fields: dict[str, Any] = {"data": "a\nb", "event": "tick", "id": "7", "retry": 15}
    frame = encode(codec, **fields)
    assert encode(codec, **fields, bytes_max=len(frame)) == frame
    with pytest.raises(EventError, match=rf"^data: the event is larger than {len(frame) - 1} bytes$"):
        encode(codec, **fields, bytes_max=len(frame) - 1)


def test_the_error_names_the_first_wrong_field(codec: Codec) -> None:
    with pytest.raises(EventError, match=r"^event: "):
        encode(codec, "\ud800", event="", id="", retry=-1, bytes_max=1)
    with pytest.raises(EventError, match=r"^id: "):
        encode(codec, "\ud800", id="", retry=-1, bytes_max=1)
    with pytest.raises(EventError, match=r"^retry: "):
        encode(codec, "\ud800", retry=-1, bytes_max=1)


@pytest.mark.parametrize("data", ["x" * MIB, b"x" * MIB, "\n".join(["x" * 63] * 16384), "é".encode() * 1000])
def test_the_compiled_encoder_copies_the_payload_once(twins: tuple[Codec, Codec], data: str | bytes) -> None:
    speedups = twins[1]
    tracemalloc.start()
    try:
        frame = encode(speedups, data, id="7", bytes_max=4 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(frame) + 4096


# Event values


def test_a_string_is_sent_unchanged_and_json_values_as_compact_json() -> None:
    assert sse.encode(Event("a b"), None, MIB) == b"data: a b\n\n"
    assert sse.encode(Event({"a": [1, None, "é\n"]}), None, MIB) == b'data: {"a":[1,null,"\xc3\xa9\\n"]}\n\n'
    assert sse.encode(Event(None), None, MIB) == b"data: null\n\n"
    assert sse.encode(Event(0), None, MIB) == b"data: 0\n\n"
    assert sse.encode(Event([]), None, MIB) == b"data: []\n\n"


def test_an_event_whose_data_is_unset_dispatches_nothing() -> None:
    assert sse.encode(Event(UNSET, id="7"), "8", MIB) == b"id: 7\n\n"


def test_the_given_id_is_used_if_the_event_has_none() -> None:
    assert sse.encode(Event("a"), "8", MIB) == b"id: 8\ndata: a\n\n"
    assert sse.encode(Event("a", id="7"), "8", MIB) == b"id: 7\ndata: a\n\n"
    with pytest.raises(EventError, match=r"^id: must not be empty"):
        sse.encode(Event("a", id=""), "8", MIB)


@pytest.mark.parametrize("data", [{"a": object()}, {1: "a"}, ["\ud800"], 2**64, {"a": {1, 2}}])
def test_a_value_outside_json_is_rejected(data: object) -> None:
    with pytest.raises(EventError, match=r"^data: not a JSON value: "):
        sse.encode(Event(data), None, MIB)


def test_recursive_json_is_rejected() -> None:
    data: list[object] = []
    data.append(data)
    with pytest.raises(EventError, match=r"^data: not a JSON value: "):
        sse.encode(Event(data), None, MIB)


def test_a_comment_is_one_line() -> None:
    assert sse.comment("") == b":\n"
    assert sse.comment("hello é") == ": hello é\n".encode()
    for text in ("a\nb", "a\rb", "\ud800"):
        with pytest.raises(EventError, match=r"^comment: "):
            sse.comment(text)


def test_priming_sets_the_id_and_the_reconnection_time_and_dispatches_nothing(codec: Codec) -> None:
    frame = sse.priming(1500, "e-0")
    assert frame == b"retry: 1500\nid: e-0\n\n"
    decoder = codec.decoder()
    assert decoder.feed(frame) == []
    assert (decoder.retry_ms, decoder.last_event_id) == (1500, "e-0")
    with pytest.raises(EventError, match=r"^retry: "):
        sse.priming(-1, "e-0")
    with pytest.raises(EventError, match=r"^id: "):
        sse.priming(1, "")


# Decoder

STREAMS: list[tuple[bytes, list[Event]]] = [
    (b"data: a\n\n", [Event("a")]),
    (b"data:a\n\n", [Event("a")]),
    (b"data:  a \n\n", [Event(" a ")]),
    (b"data:\ta\n\n", [Event("\ta")]),
    (b"data\n\n", [Event("")]),
    (b"data:\n\n", [Event("")]),
    (b"data\ndata\n\n", [Event("\n")]),
    (b"data: a\ndata: b\ndata:\n\n", [Event("a\nb\n")]),
    (b"data: a:b\n\n", [Event("a:b")]),
    (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\ndata: d\r\n\n", [Event("a"), Event("b"), Event("c"), Event("d")]),
    (b"\n\n\r\r\n\ndata: a\n\n\n\n", [Event("a")]),
    (b"event: tick\ndata: a\n\ndata: b\n\n", [Event("a", event="tick"), Event("b")]),
    (b"event: tick\n\ndata: b\n\n", [Event("b")]),
    (b"event: a\nevent: b\ndata\n\n", [Event("", event="b")]),
    (b"event: a\nevent\ndata\n\n", [Event("")]),
    (b"id: 1\ndata: a\n\ndata: b\n\n", [Event("a", id="1"), Event("b")]),
    (b"id: 1\nid: 2\ndata: a\n\n", [Event("a", id="2")]),
    (b"id: 1\nid: 2\0\ndata: a\n\n", [Event("a", id="1")]),
    (b"id: 1\nid\ndata: a\n\n", [Event("a")]),
    (b"retry: 15\ndata: a\n\ndata: b\n\n", [Event("a", retry=15), Event("b")]),
    (b"retry: 0015\ndata: a\n\n", [Event("a", retry=15)]),
    (b"retry: 0\ndata: a\n\n", [Event("a", retry=0)]),
    (b"retry: 99999999999999999999999\ndata: a\n\n", [Event("a", retry=2**31 - 1)]),
    (b"retry: 00000000000000000000003\ndata: a\n\n", [Event("a", retry=3)]),
    (b"retry: 1\nretry: -2\nretry: 3x\nretry\nretry:  4\nretry: 5 \ndata\n\n", [Event("", retry=1)]),
    ("retry: ٣\ndata\n\n".encode(), [Event("")]),
    (b": a\n:data: b\n:\n\n", []),
    (b"data: a\n: b\ndata: c\n\n", [Event("a\nc")]),
    (b"Data: a\n data: b\ndata : c\nx\nx: y\nid2: z\n\n", []),
    (b"id: 1\nevent: tick\nretry: 15\n\n", []),
    (b"data: a\n", []),
    (b"data: a", []),
    (b"data: a\n\ndata: b\nid: 2\n", [Event("a")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    (b"\xef\xbb", []),
    (b"\xef\xbbdata: a\n\ndata: b\n\n", [Event("b")]),
    (b"\n\xef\xbb\xbfdata: a\n\n", []),
    (b"data: \xef\xbb\xbfa\n\n", [Event("\ufeffa")]),
    (b"data: \xff\xc3\n\n", [Event("\ufffd\ufffd")]),
    (b"data: \xf0\x9f\x98x\ndata: \xed\xa0\x80\n\n", [Event("\ufffdx\n\ufffd\ufffd\ufffd")]),
    (b"id: \xff\nevent: \xfe\ndata\n\n", [Event("", event="\ufffd", id="\ufffd")]),
    ("id: é\nevent: €\ndata: 😀\n\n".encode(), [Event("😀", event="€", id="é")]),
    (b"event: a\0b\ndata: c\0d\n\n", [Event("c\0d", event="a\0b")]),
    (b"data: a\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8b\n\n", [Event("a\x0b\x0c\x1c\x85\u2028b")]),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_the_decoder_reads_a_stream_fed_whole(codec: Codec, stream: bytes, events: list[Event]) -> None:
    assert decode(codec, stream) == events


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_the_decoder_reads_a_stream_fed_byte_by_byte(codec: Codec, stream: bytes, events: list[Event]) -> None:
    assert decode(codec, *(stream[place : place + 1] for place in range(len(stream)))) == events


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_the_decoder_reads_a_stream_split_at_every_position(codec: Codec, stream: bytes, events: list[Event]) -> None:
    for place in range(len(stream) + 1):
        assert decode(codec, stream[:place], b"", stream[place:]) == events


def test_an_event_is_returned_at_its_cr_and_the_next_lf_belongs_to_it(codec: Codec) -> None:
    decoder = codec.decoder()
    assert decoder.feed(b"data: a\r\n\r") == [Event("a")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: b\r") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\n") == [Event("b")]


def test_the_last_id_persists_across_events_and_changes_at_the_end_of_a_block(codec: Codec) -> None:
    decoder = codec.decoder()
    assert decoder.last_event_id == ""
    decoder.feed(b"id: 1\n")
    assert decoder.last_event_id == ""
    decoder.feed(b"\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"data: a\n\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"id: 2\0\n\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"id\n\n")
    assert decoder.last_event_id == ""


def test_the_reconnection_time_is_kept(codec: Codec) -> None:
    decoder = codec.decoder()
    assert decoder.retry_ms is None
    decoder.feed(b"retry: 15\n\nretry: x\n\ndata: a\n\n")
    assert decoder.retry_ms == 15


def test_a_block_at_the_limit_is_accepted_and_one_more_byte_is_rejected(codec: Codec) -> None:
    frame = encode(codec, "aaa\nbbb", event="tick", id="7", retry=15)
    assert codec.decoder(len(frame)).feed(frame) == [Event("aaa\nbbb", "tick", "7", 15)]
    with pytest.raises(EventError, match=rf"^data: the event is larger than {len(frame) - 1} bytes$"):
        codec.decoder(len(frame) - 1).feed(frame)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 1000])
def test_a_rejected_block_does_not_affect_others(codec: Codec, size: int) -> None:
    stream = b"id: 1\ndata: a\n\nid: 2\ndata: " + b"x" * 50 + b"\nid: 3\n\ndata: b\n\ndata: c\n\n"
    decoder = codec.decoder(30)
    events = []
    refusals = 0
    for place in range(0, len(stream), size):
        try:
            events += decoder.feed(stream[place : place + size])
        except EventError:
            refusals += 1
    assert refusals == 1
    assert events + decoder.feed(b"") == [Event("a", id="1"), Event("b"), Event("c")]
    # The last id in the rejected block counts, so that a client does not request the block again.
    assert decoder.last_event_id == "3"


def test_a_decoder_of_a_resumed_stream_starts_with_the_last_id(codec: Codec) -> None:
    decoder = codec.decoder(100, "7")
    assert decoder.last_event_id == "7"
    assert decoder.feed(b"data: a\n\n") == [Event("a")]
    assert decoder.last_event_id == "7"
    assert decoder.feed(b"id:\ndata: b\n\n") == [Event("b")]
    assert decoder.last_event_id == ""


def test_a_line_without_end_is_rejected_before_it_is_buffered(codec: Codec) -> None:
    decoder = codec.decoder(1000)
    with pytest.raises(EventError):
        decoder.feed(b"data: " + b"x" * 1000)
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert decoder.feed(b"x" * 1000) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000
    assert decoder.feed(b"\n\ndata: a\n\n") == [Event("a")]


def test_comments_of_any_length_are_neither_buffered_nor_counted(codec: Codec) -> None:
    decoder = codec.decoder(30)
    assert decoder.feed(b"data: a\n:") == []
    for _ in range(100):
        assert decoder.feed(b"x" * 1000) == []
    assert decoder.feed(b"\n" + b": keep-alive\n" * 100 + b"data: b\n\n") == [Event("a\nb")]


def test_many_lines_are_rejected_like_a_long_one(codec: Codec) -> None:
    for line in (b"data\n", b"data: a\r\n", b"id: 1\n", b"x\r", b"event: y\n", b"retry: 1\n"):
        decoder = codec.decoder(100)
        with pytest.raises(EventError):
            decoder.feed(line * 100)
        assert decoder.feed(b"\n\ndata: a\n\n") == [Event("a")]
