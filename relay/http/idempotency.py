"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header).

Owns its syntax. Never knows which requests were made before: the key becomes the `dedup` of events.
"""

from __future__ import annotations

import re

from relay.errors import RequestError

KEY_CHARACTERS_MAX = 200
"""Longest key. With the number of an event, it fits into a `dedup` key."""

# RFC 8941 section 3.3.3: a string. Many clients send the key without quotes.
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_BARE = re.compile(r"[!#-+\--~]+")


def read_key(value: str | None) -> str | None:
    """Return the key in the header; None if the header is absent.

    Raises:
        RequestError: 400, the header is malformed or too long.
    """
    if value is None:
        return None
    quoted = _STRING.fullmatch(value)
    if quoted is not None:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(value):
        key = value
    else:
        raise RequestError(400, 'Idempotency-Key: send one string in quotes, such as "8e03978e-40d5"')
    if len(key) > KEY_CHARACTERS_MAX:
        raise RequestError(400, f"Idempotency-Key: longer than {KEY_CHARACTERS_MAX} characters")
    return key


def number_key(key: str, number: int) -> str:
    """Return the `dedup` of one event of several in a request; `number` is its number, counted from 1."""
    return f"{key}:{number}"
