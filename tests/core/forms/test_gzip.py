"""The framing gzip: stored blocks, key frames and the end (`relay.core.forms.gzip`, `relay.core.forms.framing`)."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.forms import gzip
from relay.core.forms.framing import LAST_CHUNK, unwrap
from relay.core.forms.gzip import Compressor, Gzip, stored


def inflated(*parts: bytes) -> bytes:
    """Return the content of raw deflate blocks."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(b"".join(parts))


@given(st.sampled_from([0, 1, 150, 65534, 65535, 65536, 200_000]))
def test_stored_blocks_hold_any_content(size: int) -> None:
    content = os.urandom(size)
    blocks = stored(content)
    assert inflated(blocks) == content
    assert len(blocks) <= size + 5 * (1 + size // 65535)


def test_a_complete_body_is_one_gzip_member() -> None:
    framing, contents = Gzip(), [b"one", b"two" * 100_000]
    content = b"".join(contents)
    end = framing.end(zlib.crc32(content), len(content)).removesuffix(LAST_CHUNK)
    parts = [framing.start, *map(framing.wrap, contents), end]
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert b"".join(decoder.decompress(unwrap(part)) for part in parts) == content
    assert decoder.eof


def test_a_wrong_check_is_an_error() -> None:
    framing = Gzip()
    parts = [framing.start, framing.wrap(b"one"), framing.end(zlib.crc32(b"two"), 3).removesuffix(LAST_CHUNK)]
    with pytest.raises(zlib.error, match="incorrect data check"):
        zlib.decompress(b"".join(map(unwrap, parts)), 16 + zlib.MAX_WBITS)


def test_an_output_refers_to_what_was_fed_since_the_key_frame() -> None:
    compressor, content = Compressor(6), os.urandom(1000)
    first = unwrap(compressor.feed(content, 1, 10))
    second = unwrap(compressor.feed(content, 2, 10))
    assert compressor.key_cursor == 1
    assert len(second) < 100
    assert inflated(first, second) == content * 2
    assert inflated(stored(content), second) == content * 2, "the content counts, not its blocks"
    with pytest.raises(zlib.error):
        inflated(second)


def test_what_follows_a_key_frame_can_be_read_alone() -> None:
    compressor, content = Compressor(6), os.urandom(1000)
    compressor.feed(content, 1, 10)
    compressor.lose()
    output = unwrap(compressor.feed(content, 7, 10))
    assert compressor.key_cursor == 7
    assert inflated(stored(b"anything"), output) == b"anything" + content


@pytest.mark.parametrize(("waiting", "has_key_frame"), [(0, False), (1, False), (5, True), (10, True)])
def test_a_key_frame_comes_at_once_if_half_of_the_streams_wait(waiting: int, *, has_key_frame: bool) -> None:
    compressor = Compressor(6)
    compressor.feed(b"one", 1, 10)
    compressor.waiting = waiting
    compressor.feed(b"two", 2, 10)
    assert compressor.key_cursor == (2 if has_key_frame else 1)


def test_a_single_stream_waits_for_a_window_of_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip, "KEY_BYTES", 100)
    compressor = Compressor(6)
    for cursor in range(1, 5):
        compressor.feed(b"x" * 40, cursor, 10)
        compressor.waiting = 1
        assert compressor.key_cursor == (4 if cursor == 4 else 1)


def test_without_waiting_streams_there_is_no_key_frame() -> None:
    compressor = Compressor(1)
    for cursor in range(1, 100):
        compressor.feed(os.urandom(2000), cursor, 10)
    assert compressor.key_cursor == 1
