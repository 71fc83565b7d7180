"""Converts one value of a setting from text or TOML to its type, and back to text.

Owns the parsing and formatting of each kind of setting. Never combines sources (`relay.config.load`) and never compares
settings (`relay.config.check`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

from relay.config.formats import duration_text, parse_duration, parse_size, size_text
from relay.errors import ConfigError, EventError
from relay.topic import CONTROL, check_term

_SWITCH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_EXPECTED = {"number": "a whole number", "size": "a size such as 64MiB", "duration": "a time such as 15s"}


def read(where: str, each: Field[Any], value: object) -> Any:
    """Convert text or a TOML value to the type of a setting.

    Args:
        where: the place of the value, for errors.
        each: the setting.
        value: text, a TOML value, or a list of these.

    Raises:
        ConfigError: the value is malformed or out of range.
    """
    try:
        if not isinstance(each.default, tuple):
            return _read_one(each, value)
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_read_one(each, item) for item in items if item != "")
    except ValueError as error:
        shown = _unseen(each, value) if each.metadata["secret"] else error
        raise ConfigError(f"{where}: {shown}") from None


def check_pattern(setting: str, pattern: str) -> None:
    """Check the topic or pattern in a value of a setting.

    Raises:
        ConfigError: it is malformed.
    """
    try:
        check_term(pattern)
    except EventError as error:
        raise ConfigError(f"{setting}: {pattern!r}: {error.reason}") from None


def _unseen(each: Field[Any], value: object) -> str:
    """Describe the error in a secret without its value."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(text, str) and CONTROL.search(text) for text in values):
        return f"the value contains a control character, such as a line feed. {each.metadata['help']}"
    return "the value cannot be used"


def _read_one(each: Field[Any], value: object) -> Any:
    """Convert one value. ValueError describes the error."""
    kind = each.metadata["kind"]
    if kind == "switch":
        return _read_switch(value)
    if kind in ("number", "size", "duration"):
        return _read_number(each, value)
    if kind == "count" and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {value!r}")
    if CONTROL.search(value):
        raise ValueError(f"{value!r} contains a control character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value!r} is not UTF-8")
    if "|" in kind and value not in kind.split("|"):
        raise ValueError(f"{value!r} is not one of {kind.replace('|', ', ')}{hint(value, kind.split('|'))}")
    return value


def _read_switch(value: object) -> bool:
    """Convert a switch."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _SWITCH:
        return _SWITCH[value.strip().lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def _read_number(each: Field[Any], value: object) -> int | float:
    """Convert a number, size or duration, and check the limits of the setting."""
    kind = each.metadata["kind"]
    number: int | float
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be {_EXPECTED[kind]}, not {value!r}")
    if isinstance(value, float) and kind != "duration":
        raise ValueError(f"{value!r} is not a whole number")
    if kind == "duration":
        number = parse_duration(value if isinstance(value, str) else repr(value))
    elif kind == "size":
        number = parse_size(str(value))
    else:
        digits = str(value).strip().replace("_", "")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise ValueError(f"{value!r} is not a whole number")
        number = int(digits)
    least, most = each.metadata["least"], each.metadata["most"]
    if number < least:
        raise ValueError(f"must be at least {show(kind, least)}, not {value}")
    if number > most:
        raise ValueError(f"must be at most {show(kind, most)}, not {value}")
    return number


def show(kind: str, value: Any) -> str:
    """Format a value as text. `read` returns the same value for it."""
    if kind == "size":
        return size_text(value)
    if kind == "duration":
        return duration_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value)


def hint(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if a known name is similar, else an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
