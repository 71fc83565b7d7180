"""Topics and patterns: what they may look like, and what matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import EventError
from relay.topic import check_term, check_topic, disjoint, is_pattern, matcher

GOOD = [
    "a",
    "orders.eu.created",
    "user:42",
    "a/b",
    "Größe.日本",
    "with space",
    "x" * 256,
    "é" * 128,
    "-",
    "a.b.c" * 20,
]
BAD = {
    "": "empty",
    "   ": "empty",
    "a..b": "empty level",
    ".a": "empty level",
    "a.": "empty level",
    "a\nb": "control",
    "a\0": "control",
    "\x7f": "control",
    "\x85x": "control",
    "\ud800": "surrogate",
    "x" * 257: "257 bytes",
    "é" * 129: "258 bytes",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_topic_is_given_back(name: str) -> None:
    assert check_topic(name) == name
    assert check_term(name) == name
    assert not is_pattern(name)


@pytest.mark.parametrize("check", [check_topic, check_term])
@pytest.mark.parametrize(("name", "reason"), BAD.items())
def test_a_bad_topic_is_refused_with_a_reason(name: str, reason: str, check: object) -> None:
    assert callable(check)
    with pytest.raises(EventError, match=reason) as caught:
        check(name)
    assert caught.value.field == "topic"


@pytest.mark.parametrize("pattern", ["*", "**", "orders.*", "orders.**", "*.created", "a.*.c", "*.*", "*.**"])
def test_a_pattern_is_a_term_but_not_a_topic(pattern: str) -> None:
    assert check_term(pattern) == pattern
    assert is_pattern(pattern)
    with pytest.raises(EventError, match="patterns"):
        check_topic(pattern)


@pytest.mark.parametrize("pattern", ["a*", "*a", "a.b*", "***", "a.**.b", "**.a", "a..*", "*.", "*\n"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(EventError):
        check_term(pattern)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["a", "日本"], ["a.b"]),
        ("**", ["a", "a.b", "a.b.c"], []),
        ("orders.*", ["orders.eu"], ["orders", "orders.eu.new", "order.eu", "ordersxeu"]),
        ("orders.**", ["orders.eu", "orders.eu.new"], ["orders", "orders2.eu"]),
        ("*.created", ["a.created"], ["created", "a.b.created", "a.createdx"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c", "a.b.d"]),
        ("a+.*", ["a+.b"], ["aa.b"]),
        ("a.b", ["a.b"], ["a", "a.b.c", "axb"]),
    ],
)
def test_a_pattern_matches_whole_levels(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [topic for topic in yes + no if matcher(pattern)(topic)] == yes


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (("a", "b"), ("a", "b")),
        (("a.x", "a.*"), ("a.*",)),
        (("a.*", "a.**", "b"), ("a.**", "b")),
        (("**", "a", "b.*", "c.**"), ("**",)),
        (("a.*", "*.x"), ("*.x\na.*",)),
        (("a.*", "b.*"), ("a.*", "b.*")),
        (("a.*", "c.*", "*.x"), ("*.x\na.*\nc.*",)),
        (("a.*.c", "a.b.**"), ("a.*.c\na.b.**",)),
        (("a.b.**", "a.*"), ("a.b.**", "a.*")),
    ],
)
def test_terms_are_made_disjoint(terms: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert disjoint(terms) == expected


@given(st.lists(st.sampled_from(["a", "b", "a.b", "a.*", "*.b", "*.*", "a.**", "**", "a.*.c", "*.b.**"]), unique=True))
def test_disjoint_terms_match_the_same_topics_each_once(terms: list[str]) -> None:
    made = disjoint(tuple(terms))
    for topic in ("a", "b", "c", "a.b", "a.c", "b.b", "c.c", "a.b.c", "a.c.c", "b.b.d", "a.b.c.d"):
        assert sum(matcher(term)(topic) is not None for term in made) == any(matcher(term)(topic) for term in terms)
