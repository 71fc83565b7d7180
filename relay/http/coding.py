"""Content codings of request bodies, sans-IO (RFC 9110 section 8.4): compressed bytes in, bytes out in pieces.

Theory of operation. `feed()` stores compressed bytes, and each `read()` returns about `PIECE_BYTES` at most. So a
small body that expands to a large one never takes more memory than its reader keeps. The decoder rejects a body that
expands too much, also if its reader keeps nothing. gzip and zstd may consist of several members, one after the other.

Owns the list of codings. gzip is part of Python; `br` and `zstd` need the extra `compression`. Never keeps decoded
bytes, and never knows the limit on the size of a body, except in `decode_body`.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from relay.errors import RequestError
from relay.http.chunks import too_large
from relay.limits import Limit

PIECE_BYTES = 64 * 1024
"""Most bytes of one `read()`. The library of brotli completes a block first, and may return up to twice as many."""
SLICE_BYTES_MIN, SLICE_BYTES_MAX = 256, 16 * 1024
"""Compressed bytes that are decoded at once. The first slice of a member is small, because the rest of the slice in
which a member ends is copied."""
MEMBERS_MAX = 10_000
"""Most members of a whole body. Each takes some microseconds, even if it is empty."""
RATIO_MAX = 250
"""Most decoded bytes for each compressed byte. Logs and JSON stay below 100."""
RATIO_FREE_BYTES = 1024 * 1024
"""Decoded bytes to which the ratio does not apply, because a short body of repeated text has a high ratio."""
ZSTD_WINDOW_LOG_MAX = 23
"""Largest window of zstd: 8 MiB (RFC 9659 section 3)."""


class _Decompressor(Protocol):
    """Decompresses one member. It buffers the input that it has not decoded yet."""

    @property
    def eof(self) -> bool:
        """Whether the member is complete."""

    @property
    def needs_input(self) -> bool:
        """Whether `decompress` needs input to return more."""

    @property
    def unused_data(self) -> bytes:
        """The input after the member."""

    def decompress(self, data: bytes) -> bytes:
        """Add input, and return the next piece."""


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, PIECE_BYTES)
        # zlib may still have output although it has consumed all input.
        self.needs_input = not piece and not self._inflate.unconsumed_tail
        return piece


class _Brotli:
    unused_data = b""  # brotli has no members, and the library rejects input after the end

    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped]

        self._decompressor = brotli.Decompressor()
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.is_finished())

    def decompress(self, data: bytes) -> bytes:
        piece = bytes(self._decompressor.process(data, output_buffer_limit=PIECE_BYTES))
        # The library accepts more input although it still has output.
        self.needs_input = not piece and self._decompressor.can_accept_more_data()
        return piece


class _Zstd:
    def __init__(self) -> None:
        zstd = _zstd()
        options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
        self._decompressor = zstd.ZstdDecompressor(options=options)

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._decompressor.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def decompress(self, data: bytes) -> bytes:
        return bytes(self._decompressor.decompress(data, PIECE_BYTES))


def _zstd() -> Any:
    """Import and return the module of zstd: of Python 3.14 or later, or its backport."""
    return importlib.import_module(_ZSTD)


_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_CODINGS: dict[str, tuple[Callable[[], _Decompressor], str, str]] = {
    "gzip": (_Gzip, "zlib", "error"),
    "br": (_Brotli, "brotli", "error"),
    "zstd": (_Zstd, _ZSTD, "ZstdError"),
}
"""By name: the decompressor, the module that implements it, and the name of the module's error."""


def _is_installed(module: str) -> bool:
    parent = module.partition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


CODINGS = tuple(name for name, (_, module, _) in _CODINGS.items() if _is_installed(module))
"""The codings that this installation accepts."""


def check_coding(header: str) -> str:
    """Return the coding that a Content-Encoding header names; empty for none.

    Raises:
        RequestError: 415, the coding is not accepted. `Accept-Encoding` lists the accepted ones.
    """
    name = header.strip().lower()
    if name in ("", "identity"):
        return ""
    name = "gzip" if name == "x-gzip" else name  # RFC 9110 section 8.4.1.3
    if name not in CODINGS:
        accepted = ", ".join(CODINGS)
        reason = f"the content coding {header!r} is not accepted; send one of {accepted}, or none"
        raise RequestError(415, reason, (("Accept-Encoding", accepted),))
    return name


class BodyDecoder:
    """Decodes one body.

    Args:
        coding: one of `CODINGS`.
        members_max: most members; None for no limit.
    """

    def __init__(self, coding: str, members_max: int | None = None) -> None:
        self._coding = coding
        self._members_left = members_max
        self._begin, module, error = _CODINGS[coding]
        self._errors: type[Exception] = getattr(importlib.import_module(module), error)
        self._member = self._begin()
        self._input = b""
        self._place = 0  # of the next byte in the input
        self._slice_bytes = SLICE_BYTES_MIN
        self._consumed = 0  # compressed bytes
        self._decoded = 0

    def feed(self, data: bytes) -> None:
        """Store compressed bytes. Call only when `read()` has returned nothing."""
        self._input, self._place = self._input[self._place :] + data, 0

    def read(self) -> bytes:
        """Return the next bytes, about `PIECE_BYTES` at most; nothing if more input is needed.

        Raises:
            RequestError: 400 the body is not valid; 413 it expands too much, or has too many members.
        """
        while True:
            if self._member.eof:
                unused = len(self._member.unused_data)  # the end of the last slice
                if self._place - unused == len(self._input):
                    return b""
                self._place -= unused
                self._consumed -= unused
                self._begin_member()
            data = b""
            if self._member.needs_input:
                data = self._input[self._place : self._place + self._slice_bytes]
                if not data:
                    return b""
                self._slice_bytes = min(2 * self._slice_bytes, SLICE_BYTES_MAX)
                self._place += len(data)
                self._consumed += len(data)
            try:
                piece = self._member.decompress(data)
            except self._errors:
                raise RequestError(400, f"the body is not valid {self._coding}") from None
            self._decoded += len(piece)
            if self._decoded > RATIO_FREE_BYTES + RATIO_MAX * self._consumed:
                reason = f"the body expands more than {RATIO_MAX} times; send it without Content-Encoding"
                raise RequestError(413, reason, limit=Limit.BODY_RATIO)
            if piece:
                return piece

    def _begin_member(self) -> None:
        """Begin the next member."""
        if self._members_left is not None:
            self._members_left -= 1
            if self._members_left <= 0:
                raise RequestError(413, f"the body has more than {MEMBERS_MAX} members; compress it as one")
        self._member, self._slice_bytes = self._begin(), SLICE_BYTES_MIN

    def end(self) -> None:
        """Check that the body is complete. Call when `read()` has returned nothing.

        Raises:
            RequestError: 400, the body is truncated.
        """
        if not self._member.eof:
            raise RequestError(400, f"the body is not valid {self._coding}: it is truncated")


def decode_body(coding: str, body: bytes, bytes_max: int) -> bytes:
    """Return a whole decoded body.

    Args:
        coding: one of `CODINGS`; empty for a body without a coding.
        body: the body as received.
        bytes_max: largest decoded body.

    Raises:
        RequestError: 400 the body is not valid; 413 it is too large, expands too much, or has too many members.
    """
    if not coding:
        return body
    decoder = BodyDecoder(coding, MEMBERS_MAX)
    decoder.feed(body)
    decoded = bytearray()
    while piece := decoder.read():
        decoded += piece
        if len(decoded) > bytes_max:
            raise too_large(bytes_max, decoded=True)
    decoder.end()
    return bytes(decoded)
