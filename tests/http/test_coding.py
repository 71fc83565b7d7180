"""`relay.http.coding`: a compressed body is decoded in bounded pieces, and a body that expands too much is rejected."""

from __future__ import annotations

import gzip
import importlib
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from relay.errors import RequestError
from relay.http.coding import CODINGS, MEMBERS_MAX, PIECE_BYTES, BodyDecoder, check_coding, decode_body
from relay.limits import Limit

MIB = 1024 * 1024


def compress(coding: str, data: bytes) -> bytes:
    """Compress data as one member."""
    if coding == "gzip":
        return gzip.compress(data, mtime=0)
    if coding == "br":
        return bytes(importlib.import_module("brotli").compress(data, quality=4))
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return bytes(importlib.import_module(module).compress(data))


def refused(step: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        step()
    return caught.value


def decode_in_parts(coding: str, body: bytes, size: int) -> bytes:
    """Decode a body that arrives in parts of `size` bytes."""
    decoder, decoded = BodyDecoder(coding), b""
    for place in range(0, len(body), size):
        decoder.feed(body[place : place + size])
        while piece := decoder.read():
            assert len(piece) <= PIECE_BYTES * (2 if coding == "br" else 1)
            decoded += piece
    decoder.end()
    return decoded


def test_the_tests_have_every_coding() -> None:
    assert CODINGS == ("gzip", "br", "zstd")


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_whole_body_has_a_limited_number_of_members(coding: str) -> None:
    member = compress(coding, b"")
    assert decode_body(coding, member * MEMBERS_MAX, 1) == b""
    error = refused(lambda: decode_body(coding, member * (MEMBERS_MAX + 1), 1))
    assert (error.status, error.reason) == (413, "the body has more than 10000 members; compress it as one")
    assert decode_in_parts(coding, compress(coding, b"a") * (MEMBERS_MAX + 1), 1000) == b"a" * (MEMBERS_MAX + 1)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * MIB])
def test_a_body_is_decoded(coding: str, size: int) -> None:
    data = random.Random(size).randbytes(size // 2)
    data += b"a" * (size - len(data))
    body = compress(coding, data)
    assert decode_body(coding, body, max(1, size)) == data
    assert decode_in_parts(coding, body, 1000) == data


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_is_decoded_byte_by_byte(coding: str) -> None:
    data = b'{"data": "some text, some text"}\n' * 50
    assert decode_in_parts(coding, compress(coding, data), 1) == data


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("count", [2, 3000])
def test_members_follow_each_other(coding: str, count: int) -> None:
    body = compress(coding, b"one") * count
    assert decode_body(coding, body, MIB) == b"one" * count
    assert decode_in_parts(coding, body, 7) == b"one" * count


@pytest.mark.parametrize("coding", CODINGS)
def test_a_malformed_or_truncated_body_is_rejected(coding: str) -> None:
    body = compress(coding, b"a" * 1000)
    for wrong in (b"", body[:-1], body[: len(body) // 2], b"not compressed at all", body + b"\x00rest"):
        assert refused(lambda wrong=wrong: decode_body(coding, wrong, MIB)).status == 400  # type: ignore[misc]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_is_not_larger_than_the_limit(coding: str) -> None:
    body = compress(coding, b"ab" * 500)
    assert len(decode_body(coding, body, 1000)) == 1000
    error = refused(lambda: decode_body(coding, body, 999))
    assert (error.status, error.limit) == (413, Limit.BODY_BYTES_MAX)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_expands_too_much_is_rejected_and_takes_little_memory(coding: str) -> None:
    body = compress(coding, bytes(32 * MIB))
    tracemalloc.start()
    error = refused(lambda: decode_body(coding, body, 100 * MIB))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (error.status, error.limit) == (413, Limit.BODY_RATIO)
    # Up to the ratio, the decoded bytes are within the limit of the caller.
    assert peak < 2 * (MIB + 250 * len(body)) + MIB


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_takes_only_the_memory_of_the_limit(coding: str) -> None:
    body = compress(coding, bytes(32 * MIB))
    tracemalloc.start()
    assert refused(lambda: decode_body(coding, body, MIB)).status == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_window_of_zstd_is_limited() -> None:
    module = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    options = {module.CompressionParameter.window_log: 27, module.CompressionParameter.compression_level: 3}
    compressor = module.ZstdCompressor(options=options)
    body = compressor.compress(random.Random(1).randbytes(1000)) + compressor.flush()
    assert refused(lambda: decode_body("zstd", body, MIB)).status == 400


def test_the_header_names_one_accepted_coding() -> None:
    assert [check_coding(name) for name in ("", "identity", "gzip", " X-GZIP", "br", "zstd")] == [
        *("", "", "gzip", "gzip", "br", "zstd")
    ]
    for name in ("deflate", "gzip, gzip", "compress", "*"):
        error = refused(lambda name=name: check_coding(name))  # type: ignore[misc]
        assert error.status == 415
        assert dict(error.headers)["Accept-Encoding"] == "gzip, br, zstd"
        assert "gzip, br, zstd" in error.reason


def test_gzip_accepts_every_header_field() -> None:
    compressor = zlib.compressobj(wbits=31)
    assert decode_body("gzip", compressor.compress(b"a") + compressor.flush(), 10) == b"a"
