"""Parses and formats sizes and times, and parses addresses, modes and groups.

Owns the notation of these values. Never knows the setting that a value belongs to (`relay.config.values`).
"""

from __future__ import annotations

import grp
import re
from decimal import Decimal

from relay.config.declaration import KIB, NUMBER_MAX

DURATION_S_MAX = 10 * 366 * 86400.0
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgt])i?)?b?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MODE = re.compile(r"(?:0o)?0?[0-7]{3}")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s/]*)):([0-9]{1,5})")


def parse_size(text: str) -> int:
    """Parse a number of bytes: `1048576`, `64KiB`, `64K`, `1.5M`. Every unit is a power of 1024.

    Raises:
        ValueError: the text is not a size, or the size is too large.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 1048576, 64KiB or 64M")
    number, unit = match.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    size = (float(number) if "." in number else int(number)) * KIB**power
    if size > NUMBER_MAX:
        raise ValueError(f"{text!r} is too large")
    return int(size)


def parse_duration(text: str) -> float:
    """Parse a time and return it in seconds: `15`, `0.5`, `500ms`, `15s`, `2m`, `1h30m`, `7d`.

    Raises:
        ValueError: the text is not a time, or the time exceeds ten years.
    """
    text = text.strip()
    parts = _DURATION.findall(text)
    if text and _DURATION.sub("", text) == "":
        seconds = sum(float(number) / 1000 if unit == "ms" else float(number) * _UNIT_S[unit] for number, unit in parts)
    elif re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        seconds = float(text)
    else:
        raise ValueError(f"{text!r} is not a time like 15s, 500ms, 2m or 1h30m")
    if seconds > DURATION_S_MAX:
        raise ValueError(f"{text!r} is longer than ten years")
    return seconds


def parse_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[IPv6]:PORT` or `:PORT` into host and port. An empty host means every IPv4 address.

    Raises:
        ValueError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080")
    return match[1] or match[2] or "", int(match[3])


def parse_mode(text: str) -> int:
    """Parse the mode of a file: `0660`, `660` or `0o660`.

    Raises:
        ValueError: the text is not an octal mode.
    """
    if not _MODE.fullmatch(text):
        raise ValueError(f"{text!r} is not an octal mode like 0660, at most 0777")
    return int(text, 8)


def parse_group(text: str) -> int:
    """Return the id of a group from its name or number, or -1 for an empty text.

    Raises:
        ValueError: no group has this name.
    """
    if not text:
        return -1
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"this system has no group {text!r}") from None


def size_text(size: int) -> str:
    """Format a number of bytes in its largest whole unit. `parse_size` reads it back."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % KIB**power == 0:
            return f"{size // KIB**power}{unit}"
    return str(size)


def duration_text(seconds: float) -> str:
    """Format a time. `parse_duration` returns exactly the same number."""
    milliseconds = f"{seconds * 1000:.12g}ms"
    if 0 < seconds < 1 and "e" not in milliseconds and parse_duration(milliseconds) == seconds:
        return milliseconds
    text = f"{Decimal(repr(float(seconds))):f}"
    return f"{text.removesuffix('.0')}s"
