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

TOPIC_BYTES_MAX = 256
"""Longest topic or pattern in UTF-8; it is stored once a topic, and repeated in each line of a feeder."""

# Nearly every topic there is; what does not match goes through the rules one by one.
_PLAIN = re.compile(r"[0-9A-Za-z_:/@-]+(?:\.[0-9A-Za-z_:/@-]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


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


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a checked pattern matches a checked topic.

    Args:
        pattern: a pattern; a topic matches only itself.
        topic: the topic's name.
    """
    return matcher(pattern)(topic) is not None


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


def without_covered(terms: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the terms that a pattern among the others covers, so that no event is counted twice."""
    patterns = [term for term in terms if is_pattern(term)]
    return tuple(
        term for term in terms if not any(term != pattern and covers(pattern, term) for pattern in patterns)
    )


@lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], object | None]:
    """Compile a checked pattern.

    Args:
        pattern: a pattern or a topic.

    Returns:
        A function from a topic to something other than None if the pattern matches it; in linear time.
    """
    wild = {"*": r"[^.]+", "**": r".+"}
    levels = (wild.get(level) or re.escape(level) for level in pattern.split("."))
    return re.compile(r"\.".join(levels), re.DOTALL).fullmatch


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
    if _CONTROL.search(text):
        raise EventError("topic", "contains a control character")
    if "" in text.split("."):
        raise EventError("topic", "has an empty level")
