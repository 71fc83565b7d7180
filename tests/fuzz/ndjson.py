"""The lines of a feeder: any bytes give events or the documented errors. Splits change nothing. Buffers stay small."""

from __future__ import annotations

from relay.errors import EventError
from relay.event_json import BAD_JSON, json_error
from relay.sources.lines import LineSplitter, parse_line, parse_text
from relay.sse import encode
from tests.fuzz.pieces import cut

LINE_BYTES_MAX = 200
WORDS = (
    b'{"data":',
    b'"id":',
    b'"event":',
    b'"retry":',
    b'"topic":',
    b'"key":',
    b'"ack":',
    b"}\n",
    b"\r\n",
    b"[" * 50,
    b"1e999",
    b'"\\ud800"',
    b"\xff",
)


def split(pieces: list[bytes]) -> list[bytes | None]:
    """Return the lines, with None for each line that is too long."""
    splitter, lines = LineSplitter(LINE_BYTES_MAX), list[bytes | None]()
    for piece in pieces:
        lines += splitter.feed(piece)
        assert len(splitter._unfinished) <= LINE_BYTES_MAX + 1
    return lines + splitter.end()


def check(data: bytes) -> None:
    """Check one input."""
    pieces = cut(data)
    lines = split(pieces)
    assert lines == split([b"".join(pieces)])
    for line in lines:
        if line is None:
            continue
        assert len(line) <= LINE_BYTES_MAX
        for parse in (parse_line, parse_text):
            try:
                encode(parse(line), "0-1", 1 << 20)
            except BAD_JSON as error:
                assert str(json_error(error, line))
            except EventError as error:
                assert error.reason
