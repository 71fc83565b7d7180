"""Query arguments: their values, and misspelt names.

Owns the syntax of each kind of value, and the rules that detect a misspelt name. Pure. Never depends on a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from relay.config.formats import parse_duration
from relay.errors import RequestError
from relay.http.request import Request
from relay.ids import LAST_ID_NAMES, query_readings, readings

_UNIX = re.compile(r"[0-9]{9,14}(?:\.[0-9]{1,9})?")
_SECONDS_DIGITS_MAX = 11
# RFC 3339 section 5.6. The `+` of an offset may have been decoded to a space.
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt_ ]([0-9]{2}:[0-9]{2}:)([0-9]{2})(\.[0-9]+)?([Zz]|[-+ ][0-9]{2}:[0-9]{2})"
)
_MICROSECONDS_DIGITS = 7  # including the decimal point
_LEAP_SECOND = "60"
_NAME_CHARACTERS_MAX = 32
_EDITED_CHARACTERS_MIN = 5
"""Shorter names differ from other names by one letter too often for a hint."""


class Since(NamedTuple):
    """The position at which a stream begins.

    Args:
        age_s: replay events of at most this age; `math.inf` for all retained events, None for new events only.
        ids: the readings of an id. A number can be a time too; then a known id takes precedence.
        newest: replay only the newest event of each topic and key.
    """

    age_s: float | None
    ids: tuple[str, ...] = ()
    newest: bool = False


_WORDS = {"earliest": Since(math.inf), "latest": Since(None), "last": Since(math.inf, newest=True)}


def read_since(value: str, wall_s: float) -> Since:
    """Parse the position at which a stream begins.

    Args:
        value: the value of `since`, as sent; empty for new events only.
        wall_s: the Unix time in seconds.
    """
    if not value:
        return Since(None)
    ids = query_readings(value)
    text = ids[-1]
    if text in _WORDS:
        return _WORDS[text]
    if _UNIX.fullmatch(text):
        whole = text.partition(".")[0]
        unix_s = float(text) / (1 if len(whole) <= _SECONDS_DIGITS_MAX else 1000)
        return Since(max(0.0, wall_s - unix_s), ids)
    date = _DATE_TIME.fullmatch(text)
    if date is not None and (date_s := _unix_s(date)) is not None:
        return Since(max(0.0, wall_s - date_s))
    if text[-1:].isalpha():  # a number without a unit is an id
        try:
            return Since(parse_duration(text))
        except ValueError:
            pass  # The value is not a duration; treat it as an id.
    return Since(None, ids)


def _unix_s(date: re.Match[str]) -> float | None:
    day, minutes, seconds, fraction, offset = date.groups(default="")
    seconds = "59" if seconds == _LEAP_SECOND else seconds
    offset = "+00:00" if offset in "Zz" else offset.replace(" ", "+")
    try:
        return datetime.fromisoformat(
            f"{day}T{minutes}{seconds}{fraction[:_MICROSECONDS_DIGITS]}{offset}"
        ).timestamp()
    except (ValueError, OverflowError):
        return None


class Names:
    """The query names of one path.

    Args:
        names: the exact names. If several have the same letters, a hint shows the first of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names := tuple(names))
        self._near: dict[str, str] = {}
        for name in names:
            self._near.setdefault(_letters(name), name)
        for name in names:
            letters = _letters(name)
            if len(letters) >= _EDITED_CHARACTERS_MIN:
                for shorter in _shorter(letters):
                    self._near.setdefault(shorter, name)

    def meant(self, name: str) -> str | None:
        """Return the name that a misspelt name stands for: same letters, one more, one fewer, or two swapped.

        A name with one replaced letter is treated as a foreign name: `ticker` does not mean `ticket`.
        """
        if len(name) > _NAME_CHARACTERS_MAX:
            return None
        letters = _letters(name)
        near = self._near.get(letters) or self._near.get(letters.removesuffix("s"))
        if near is None and len(letters) >= _EDITED_CHARACTERS_MIN:
            near = next((self._near[each] for each in _shorter(letters) if each in self._near), None)
            if near is not None and _is_replaced(letters, _letters(near)):
                return None
        return near


def check_names(request: Request, names: Names) -> None:
    """Reject a misspelt query name; ignore other unknown names.

    Raises:
        RequestError: 400, with the correct name.
    """
    for name, _ in request.query:
        if name not in names.names and (meant := names.meant(name)) is not None:
            raise RequestError(400, f"query: {name!a} is not known; did you mean {meant}?")


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _is_replaced(letters: str, others: str) -> bool:
    return len(letters) == len(others) and sorted(letters) != sorted(others)


def _shorter(letters: str) -> list[str]:
    return [letters[:at] + letters[at + 1 :] for at in range(len(letters))]


def read_text(request: Request, name: str) -> str | None:
    """Return the only value of a query name, decoded; None if it is absent.

    Raises:
        RequestError: 400, the name is repeated. The other functions that read a value raise this error too.
    """
    return _only(name, request.values(name))


def read_raw(request: Request, name: str) -> str | None:
    """Return the only value of a query name as sent; None if it is absent."""
    return _only(name, request.raw_values(name))


def _only(name: str, values: list[str]) -> str | None:
    if len(values) > 1:
        raise RequestError(400, f"query: {name} is repeated; give it once")
    return values[0] if values else None


def read_switch(request: Request, name: str) -> bool:
    """Return whether a query name has the value 1; False if it is absent.

    Raises:
        RequestError: 400, the value is neither 0 nor 1.
    """
    value = read_text(request, name)
    if value not in (None, "0", "1"):
        raise RequestError(400, f"query: {name} must be 0 or 1")
    return value == "1"


def read_duration(request: Request, name: str) -> float | None:
    """Return the value of a query name as a time in seconds; None if it is absent.

    Raises:
        RequestError: 400, the value is not a time.
    """
    text = read_text(request, name)
    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise RequestError(400, f"{name}: {error}") from None


def read_limit(request: Request, default: int, limit_max: int) -> int:
    """Return the value of `limit`, from 1 to `limit_max`; the default if it is absent.

    Raises:
        RequestError: 400, the value is not such a number.
    """
    text = read_text(request, "limit")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= limit_max):
        raise RequestError(400, f"query: limit must be a number from 1 to {limit_max}")
    return int(text)


def read_last_ids(request: Request) -> tuple[str, ...]:
    """Return the readings of the last id: from the header, else from the first query name with a value; else none.

    The header takes precedence, because a browser reconnects with its original URL (WHATWG HTML 9.2.3).
    """
    if header := request.headers.get("last-event-id"):
        return readings(header.encode("latin-1"))
    for name in LAST_ID_NAMES:
        values = [value for value in request.raw_values(name) if value]
        if values:
            # Several values are not an id. No id contains LF, so the values joined by LF match no id.
            return query_readings("\n".join(dict.fromkeys(values)))
    return ()
