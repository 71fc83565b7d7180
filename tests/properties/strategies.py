"""Strategies of the property tests: events, streams of bytes, and their splits."""

from __future__ import annotations

from typing import AnyStr

from hypothesis import strategies as st

from relay.event import Event

# Characters that some parsers treat wrongly are drawn often: Unicode line ends that are not line ends here, a BOM,
# spaces and colons at the start of a value.
CHARACTERS = st.one_of(
    st.sampled_from("\0\n\r\t :a\x0b\x0c\x1c\x85\u2028\u2029\ufeff\ufffdé€😀"),
    st.characters(exclude_categories=["Cs"]),
)
TEXT = st.text(CHARACTERS, max_size=40)
LINES = st.lists(TEXT, max_size=6).flatmap(
    lambda lines: st.sampled_from(["\n", "\r", "\r\n"]).map(lambda line_end: line_end.join(lines))
)


def without(refused: str) -> st.SearchStrategy[str]:
    """Draw text that is not empty and contains none of these characters."""
    return st.text(CHARACTERS.filter(lambda character: character not in refused), min_size=1, max_size=20)


EVENTS = st.builds(
    Event,
    data=TEXT | LINES,
    event=st.none() | without("\r\n"),
    id=st.none() | without("\0\r\n"),
    retry=st.none() | st.integers(0, 2**31 - 1),
)
"""Events that a stream can carry."""

ANY_TEXT = st.text(st.sampled_from("\0\n\r a\ud800\udfff\ufeff") | st.characters(), max_size=300)
ANY_FIELDS = st.tuples(
    st.none() | ANY_TEXT | st.binary(max_size=300) | ANY_TEXT.map(lambda text: text.encode(errors="replace")),
    st.none() | ANY_TEXT | st.integers(),
    st.none() | ANY_TEXT | st.binary(max_size=3),
    st.none() | st.integers() | st.booleans() | st.floats(),
    st.integers(0, 400),
)
"""Arguments of `encode_event`, most of which are invalid."""

PARTS = st.sampled_from(
    [
        *(b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\n", b"\n\n", b"\r", b"\r\n", b"\0"),
        *(b"data: a\n", b"id: 1\n", b"retry: 15\n", b"event: x\n", b": comment\n", b"0", b"99999999999"),
        *(b"\xef\xbb\xbf", b"\xef", b"\xff", b"\xc3", b"\xa9", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80"),
    ]
)
STREAMS = st.lists(PARTS | st.binary(max_size=4), max_size=60).map(b"".join)
"""Bytes that resemble an event stream."""


@st.composite
def pieces(draw: st.DrawFn, stream: st.SearchStrategy[AnyStr]) -> list[AnyStr]:
    """Draw a stream, and split it anywhere."""
    whole = draw(stream)
    cuts: list[int] = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
