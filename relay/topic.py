"""Topics and the patterns that subscribe to many of them.

Owns what a topic and a pattern may look like, and which topics a pattern matches. Never holds a list of
either.

A topic is text in levels split at ".": `orders.eu.created`. A term is what a stream subscribes to, a topic or
a pattern. In a pattern `*` stands for exactly one level, and `**`, which may only come last, for one level or
more; so `**` alone is every topic. `*` is kept for patterns: no topic contains it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from relay.errors import EventError

JOINT = "\n"
"""Between patterns that were joined to one; no topic contains it."""

TOPIC_BYTES_MAX = 256
"""Longest topic or pattern in UTF-8; it is stored once a topic, and repeated in each line of a feeder."""

# Nearly every topic there is; what does not match goes through the rules one by one.
_PLAIN = re.compile(r"[0-9A-Za-z_:/@-]+(?:\.[0-9A-Za-z_:/@-]+)*")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""A control character, which neither a topic nor a setting contains."""


def check_topic(name: str) -> str:
    """Check the name of a topic.

    Args:
        name: at most 256 bytes of UTF-8.

    Returns:
        The name.

    Raises:
        EventError: it is empty or too long, has an empty level, a control character, a lone surrogate or a
            `*`, or is only white space.
    """
    if len(name) <= TOPIC_BYTES_MAX and _PLAIN.fullmatch(name):
        return name
    _check_text(name)
    if "*" in name:
        raise EventError("topic", "`*` is for patterns; a topic cannot contain it")
    return name


def check_term(text: str) -> str:
    """Check a topic or pattern that a stream asks for.

    Args:
        text: at most 256 bytes of UTF-8.

    Returns:
        The text.

    Raises:
        EventError: as for a topic; or a `*` does not stand alone in its level, or a `**` does not come last.
    """
    if "*" not in text:
        return check_topic(text)
    _check_text(text)
    levels = text.split(".")
    if any("*" in level and level not in ("*", "**") for level in levels):
        raise EventError("topic", "`*` and `**` must stand alone in their level")
    if "**" in levels[:-1]:
        raise EventError("topic", "`**` must be the last level")
    return text


def is_pattern(term: str) -> bool:
    """Tell whether a checked term is a pattern."""
    return "*" in term


def covers(pattern: str, term: str) -> bool:
    """Tell whether a checked pattern matches every topic that a checked term stands for."""
    wild, levels = pattern.split("."), term.split(".")
    if wild[-1] == "**":
        wild.pop()
        if len(levels) <= len(wild):
            return False
        levels = levels[: len(wild)]
    elif len(levels) != len(wild):
        return False
    return all(own in (other, "*") and other != "**" for own, other in zip(wild, levels, strict=True))


def overlap(first: str, second: str) -> bool:
    """Tell whether some topic is matched by both of two checked patterns."""
    a, b = first.split("."), second.split(".")
    if len(a) != len(b) and not (a[-1] == "**" and len(b) >= len(a)) and not (b[-1] == "**" and len(a) >= len(b)):
        return False
    for one, other in zip(a, b, strict=False):
        if "**" in (one, other):
            return True
        if one != other and "*" not in (one, other):
            return False
    return True


def disjoint(terms: tuple[str, ...]) -> tuple[str, ...]:
    """Turn terms into such that no topic is in two of them, so that no event is read or counted twice.

    Terms that a pattern among the others covers are left out; patterns that overlap in part become one, joined by
    `JOINT`. Quadratic in the patterns, whose number the settings bound.
    """
    patterns = [term for term in terms if is_pattern(term)]
    kept = [term for term in terms if not any(term != pattern and covers(pattern, term) for pattern in patterns)]
    joined: list[list[str]] = []
    for term in kept:
        near = [group for group in joined if is_pattern(term) and any(overlap(term, other) for other in group)]
        for group in near:
            joined.remove(group)
        joined.append([pattern for group in near for pattern in group] + [term])
    return tuple(JOINT.join(sorted(group)) for group in joined)


@lru_cache(maxsize=256)
def matcher(pattern: str) -> Callable[[str], object | None]:
    """Compile a checked pattern, or several that `disjoint` joined.

    Returns:
        A function from a topic to something other than None if the pattern matches it; in linear time.
    """
    wild = {"*": r"[^.]+", "**": r".+"}
    regexes = (
        r"\.".join(wild.get(level) or re.escape(level) for level in each.split(".")) for each in pattern.split(JOINT)
    )
    return re.compile("|".join(f"(?:{regex})" for regex in regexes), re.DOTALL).fullmatch


def _check_text(text: str) -> None:
    """Check what topics and patterns have in common."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise EventError("topic", "contains a lone surrogate") from None
    if size > TOPIC_BYTES_MAX:
        raise EventError("topic", f"is {size} bytes; at most {TOPIC_BYTES_MAX} are allowed")
    if not text.strip():
        raise EventError("topic", "is empty")
    if CONTROL.search(text):
        raise EventError("topic", "contains a control character")
    if "" in text.split("."):
        raise EventError("topic", "has an empty level")
