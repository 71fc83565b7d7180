"""`relay.sources.lines`: the splitters return complete items, in order and within the limit, at every split."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.sources.lines import NO_ACK, UNFINISHED, LineSplitter, StreamSplitter, parse_line, parse_text
from tests.sources.fakes import value

TEXT = b"one\ntwo\r\n\nfour\rstill four\r\r\nlast"
LINES = [b"one", b"two", b"", b"four\rstill four\r", b"last"]


def split(chunks: list[bytes], line_bytes_max: int = 100) -> list[bytes | None]:
    splitter = LineSplitter(line_bytes_max)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.end()


def oracle(text: bytes, line_bytes_max: int) -> list[bytes | None]:
    *whole, last = text.split(b"\n")
    lines = [line[:-1] if line.endswith(b"\r") else line for line in whole]
    if last:
        lines.append(last)
    return [line if len(line) <= line_bytes_max else None for line in lines]


def test_lines_end_at_lf_and_one_cr_before_it_is_removed() -> None:
    assert split([TEXT]) == LINES


def test_lines_are_the_same_byte_by_byte() -> None:
    assert split([TEXT[i : i + 1] for i in range(len(TEXT))]) == LINES


@pytest.mark.parametrize("cut", range(len(TEXT) + 1))
def test_lines_are_the_same_at_every_split(cut: int) -> None:
    assert split([TEXT[:cut], TEXT[cut:]]) == LINES


def test_a_cr_before_the_end_of_input_stays() -> None:
    assert split([b"a\r"]) == [b"a\r"]


def test_an_empty_input_has_no_line() -> None:
    assert split([]) == split([b""]) == []


@given(
    st.lists(st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bb", b"\xff\x00"])).map(b"".join)),
    st.integers(1, 6),
)
def test_lines_equal_those_of_a_naive_splitter(chunks: list[bytes], line_bytes_max: int) -> None:
    assert split(chunks, line_bytes_max) == oracle(b"".join(chunks), line_bytes_max)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 60))
def test_random_bytes_equal_those_of_a_naive_splitter(chunks: list[bytes], line_bytes_max: int) -> None:
    assert split(chunks, line_bytes_max) == oracle(b"".join(chunks), line_bytes_max)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_limit_counts_the_line_without_its_end(end: bytes, size: int) -> None:
    text = b"x" * 10 + end
    for limit, lines in ((10, [b"x" * 10]), (9, [None])):
        assert split([text[i : i + size] for i in range(0, len(text), size)], limit) == lines


def test_a_line_that_is_too_long_is_rejected_once_and_immediately() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"ok\n" + b"x" * 11) == [b"ok", None]
    assert splitter.feed(b"x" * 1000) == []
    assert splitter.feed(b"x\r") == []
    assert splitter.feed(b"\nnext\n") == [b"next"]
    assert splitter.end() == []


def test_a_rejected_line_is_not_buffered() -> None:
    splitter = LineSplitter(1000)
    chunk = b"x" * 100_000
    tracemalloc.start()
    for _ in range(100):
        splitter.feed(chunk)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000


def test_a_line_in_single_bytes_costs_its_bytes() -> None:
    splitter = LineSplitter(100_000)
    tracemalloc.start()
    for _ in range(50_000):
        splitter.feed(b"x")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    assert splitter.feed(b"\n") == [b"x" * 50_000]


def test_a_line_is_an_event_with_an_ack() -> None:
    line = parse_line(
        b'{"topic":"t","event":"e","id":"1","data":{"a":[1]},"retry":5,"key":"k","ack": [1, "x"]}'
    )
    assert (line.topic, line.event, line.id, value(line.data)) == ("t", "e", "1", {"a": [1]})
    assert (line.retry, line.key, bytes(line.ack)) == (5, "k", b'[1, "x"]')


def test_an_ack_of_null_is_an_ack() -> None:
    assert parse_line(b'{"ack":null}').ack is not NO_ACK
    assert parse_line(b'{"data":"x"}').ack is NO_ACK


def test_an_unknown_field_is_rejected() -> None:
    with pytest.raises(msgspec.ValidationError):
        parse_line(b'{"data":"x","tpoic":"t"}')


def test_a_line_of_text_is_the_data_unchanged() -> None:
    assert parse_text(" ä\t{} ".encode()).data == " ä\t{} "
    assert parse_text(b"").data == ""


def test_bytes_of_a_text_that_are_not_utf8_are_replaced() -> None:
    assert parse_text(b"a\xff\xe2\x82b").data == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


STREAM = b"id: 7\nevent: e\nretry: 5\ndata: a\ndata: b\n\ndata: c\n\nid\ndata: d\n\ndata: torn"


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_an_event_stream_keeps_the_fields_of_each_event(cut: int) -> None:
    splitter = StreamSplitter("t", 1000)
    lines = [*splitter.feed(STREAM[:cut]), *splitter.feed(STREAM[cut:])]
    assert splitter.end() == [UNFINISHED]
    assert [(x.data, x.id, x.event, x.retry, x.topic) for x in lines if x is not None] == [
        ("a\nb", "7", "e", 5, "t"),
        ("c", None, None, None, "t"),
        ("d", None, None, None, "t"),
    ]


def test_an_event_that_is_too_long_is_rejected_and_the_others_are_returned() -> None:
    splitter = StreamSplitter("t", 20)
    lines = splitter.feed(b"data: a\n\ndata: " + b"x" * 30 + b"\n\ndata: b\n\n")
    assert [line and line.data for line in lines] == ["a", "b", None]
    assert splitter.feed(b"data: c\n\n") != []


def test_each_event_that_is_too_long_is_counted() -> None:
    splitter = StreamSplitter("t", 20)
    long = b"data: " + b"x" * 30 + b"\n\n"
    lines = splitter.feed(long + b"data: a\n\n" + long + long)
    assert [line and line.data for line in lines] == ["a", None, None, None]
