"""Converts JSON text to data: removes the white space between tokens and keeps everything else as written.

Numbers are never decoded, so no digit and no sign is lost. `relay._speedups` has the same functions in Cython. Owns the
bound on the depth. Never checks that the text is JSON; the parser has already checked it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from relay.errors import EventError

decode_string: Callable[[bytes], str] = msgspec.json.Decoder(str).decode

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^"{}\[\] \t\n\r]+', re.DOTALL)


def json_data(raw: msgspec.Raw, depth_max: int) -> object:
    """Return the data of an event from its JSON text.

    Args:
        raw: well-formed JSON, or empty.
        depth_max: deepest nesting of objects and arrays.

    Returns:
        a string for a string, UNSET for empty text, and `msgspec.Raw` without white space for every other value.

    Raises:
        EventError: the text is nested more deeply.
        UnicodeDecodeError: the text is a string that is not UTF-8.
    """
    text = bytes(raw)
    if not text:
        return msgspec.UNSET
    if text.startswith(b'"'):
        return decode_string(text)
    return msgspec.Raw(compact_json(text, depth_max))


def compact_json(text: bytes, depth_max: int) -> bytes:
    """Return JSON text without the white space between its tokens.

    Args:
        text: well-formed JSON.
        depth_max: deepest nesting of objects and arrays.

    Raises:
        EventError: the text is nested more deeply.
    """
    depth = 0
    tokens = _TOKEN.findall(text)
    for token in tokens:
        if token in (b"{", b"["):
            depth += 1
            if depth > depth_max:
                raise too_deep(depth_max)
        elif token in (b"}", b"]"):
            depth -= 1
    return b"".join(tokens)


def too_deep(depth_max: int) -> EventError:
    """Return the error of data that is nested too deeply."""
    return EventError("data", f"JSON is nested more than {depth_max} levels deep")
