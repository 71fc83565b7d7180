"""Topics and the patterns that subscribe to many of them.

Owns the syntax of topics and patterns, and the rule that decides whether a pattern matches a topic. Never knows a log
or a stream.

A topic is text in levels that are separated by ".": `orders.eu.created`. A term is a topic or a pattern that a stream
subscribes to. In a pattern, `*` matches exactly one level. `**` matches one or more levels and must come last, so `**`
alone matches every topic. No topic contains `*`.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from relay.errors import EventError

JOINT = "\n"
"""Separates patterns that are joined into one term; no topic contains it."""

TOPIC_BYTES_MAX = 256
"""Longest topic or pattern in UTF-8. It is stored once per topic, and repeated in each line of a feeder."""

# Matches nearly every topic. Others are checked rule by rule.
_PLAIN = re.compile(r"[0-9A-Za-z_:/@-]+(?:\.[0-9A-Za-z_:/@-]+)*")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""A control character. Topics and settings contain none."""


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
    """Check a topic or pattern that a stream requests.

    Args:
        text: at most 256 bytes of UTF-8.

    Returns:
        The text.

    Raises:
        EventError: as for a topic; or `*` is not alone in its level, or `**` is not the last level.
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
    """Return whether a checked term is a pattern."""
    return "*" in term


Value = TypeVar("Value")


class _Node(Generic[Value]):
    """One level of a tree of terms: the terms that end here, and those that end here with `**`."""

    __slots__ = ("children", "ends", "ends_wild")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Value]] = {}
        self.ends: dict[Value, None] = {}
        self.ends_wild: dict[Value, None] = {}


class TermTree(Generic[Value]):
    """A tree of terms by levels, each with hashable values.

    One walk finds the terms that cover another. The walk visits each level of the term once, and in each level only
    the nodes that match so far, of which there are at most as many as terms.
    """

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node()

    def __bool__(self) -> bool:
        root = self._root
        return bool(root.children or root.ends_wild)

    def add(self, term: str, value: Value) -> None:
        """Add a checked term, or several patterns that `disjoint` joined."""
        for each in term.split(JOINT):
            node = self._root
            levels = each.split(".")
            wild = levels[-1] == "**"
            for level in levels[:-1] if wild else levels:
                child = node.children.get(level)
                if child is None:
                    child = node.children[level] = _Node()
                node = child
            (node.ends_wild if wild else node.ends)[value] = None

    def remove(self, term: str, value: Value) -> None:
        """Undo `add` with the same arguments, and remove the nodes that are empty then."""
        for each in term.split(JOINT):
            levels = each.split(".")
            wild = levels[-1] == "**"
            if wild:
                levels.pop()
            path = [self._root]
            for level in levels:
                path.append(path[-1].children[level])
            node = path.pop()
            del (node.ends_wild if wild else node.ends)[value]
            while path and not (node.children or node.ends or node.ends_wild):
                node = path.pop()
                del node.children[levels[len(path)]]

    def covering(self, term: str) -> list[Value]:
        """Return the values of the terms that match every topic that a checked term matches.

        For a topic, these are the terms that match it. A value appears once for each of its terms that match.
        """
        found: list[Value] = []
        nodes = [self._root]
        for level in term.split("."):
            onward = []
            for node in nodes:
                if node.ends_wild:
                    found += node.ends_wild
                children = node.children
                if children:
                    child = children.get(level)
                    if child is not None:
                        onward.append(child)
                    if level != "*" and level != "**":
                        child = children.get("*")
                        if child is not None:
                            onward.append(child)
            if not onward:
                return found
            nodes = onward
        for node in nodes:
            found += node.ends
        return found


def overlap(first: str, second: str) -> bool:
    """Return whether two checked patterns match a common topic."""
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
    """Turn distinct terms into terms of which at most one matches any topic, so that no event is read or counted twice.

    A term that another pattern covers is dropped. Patterns that overlap in part are joined by `JOINT` into one. The
    work is linear in the topics, and quadratic only in the patterns, whose number `patterns-per-stream-max` bounds.
    """
    if not any(map(is_pattern, terms)):
        return terms
    tree: TermTree[str] = TermTree()
    for term in terms:
        if is_pattern(term):
            tree.add(term, term)
    made: dict[str, str] = {}
    patterns: dict[str, list[str]] = {}
    for term in terms:
        wild = is_pattern(term)
        if len(tree.covering(term)) > wild:  # a pattern covers itself
            continue
        made[term] = term
        if wild:
            near = [key for key, group in patterns.items() if any(overlap(term, each) for each in group)]
            patterns[term] = [term]
            for key in near:
                patterns[term] += patterns.pop(key)
                del made[key]
            made[term] = JOINT.join(sorted(patterns[term]))
    return tuple(made.values())


def _check_text(text: str) -> None:
    """Check the rules that topics and patterns share."""
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
