"""Topics and patterns: their syntax, and the topics that they match."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import topic as topic_module
from relay.errors import EventError
from relay.topic import JOINT, TermTree, check_term, check_topic, disjoint, is_pattern, overlap
from tests.oracle import matches

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
def test_a_valid_topic_is_returned(name: str) -> None:
    assert check_topic(name) == name
    assert check_term(name) == name
    assert not is_pattern(name)


@pytest.mark.parametrize("check", [check_topic, check_term])
@pytest.mark.parametrize(("name", "reason"), BAD.items())
def test_an_invalid_topic_is_rejected_with_a_reason(name: str, reason: str, check: object) -> None:
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
def test_a_malformed_pattern_is_rejected(pattern: str) -> None:
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
    assert [topic for topic in yes + no if covering([pattern], topic)] == yes


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
        assert len(covering(made, topic)) == any(matches(term, topic) for term in terms)


LEVELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4)
TOPICS = LEVELS.map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), max_size=4).flatmap(
    lambda levels: st.sampled_from(["*", "**", "a"]).map(lambda last: ".".join((*levels, last)))
)


@given(st.lists(PATTERNS, max_size=12, unique=True), st.lists(PATTERNS, max_size=8), TOPICS, PATTERNS)
def test_a_tree_finds_the_same_terms_as_a_linear_search(
    terms: list[str], removed: list[str], topic: str, other: str
) -> None:
    """Terms are added and removed. For a pattern, the tree finds the terms that match every topic that it matches."""
    tree: TermTree[str] = TermTree()
    for term in terms:
        tree.add(term, term)
    left = list(terms)
    for term in removed:
        if term in left:
            tree.remove(term, term)
            left.remove(term)
    assert sorted(tree.covering(topic)) == sorted(term for term in left if matches(term, topic))
    samples = [".".join(levels) for count in range(1, 7) for levels in product("abx", repeat=count)]
    heard = [sample for sample in samples if matches(other, sample)]
    assert sorted(tree.covering(other)) == sorted(
        term for term in left if all(matches(term, sample) for sample in heard)
    )
    for term in left:
        tree.remove(term, term)
    assert not tree
    assert not tree._root.children


def test_a_value_that_several_patterns_share_is_found_until_the_last_is_removed() -> None:
    tree: TermTree[str] = TermTree()
    tree.add(JOINT.join(("a.*", "*.x")), "joined")
    tree.add("a.*", "alone")
    assert sorted(tree.covering("a.x")) == ["alone", "joined", "joined"]
    tree.remove(JOINT.join(("a.*", "*.x")), "joined")
    assert tree.covering("a.x") == ["alone"]
    assert tree.covering("b.x") == []


@pytest.mark.parametrize("patterns", [0, 1, 16])
def test_terms_are_made_disjoint_without_comparing_each_pair(patterns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grows with the number of topics, and with the square of the number of patterns only."""
    compared: list[tuple[str, str]] = []

    def counted(first: str, second: str) -> bool:
        compared.append((first, second))
        return overlap(first, second)

    monkeypatch.setattr(topic_module, "overlap", counted)
    terms = tuple(f"t.{number}" for number in range(1000)) + tuple(f"p.{number}.*" for number in range(patterns))
    assert disjoint(terms) == terms
    assert len(compared) <= patterns * patterns / 2


def covering(terms: Iterable[str], topic: str) -> list[str]:
    """Return the terms that match a topic, found by a tree of the terms."""
    tree: TermTree[str] = TermTree()
    for term in terms:
        tree.add(term, term)
    return list(dict.fromkeys(tree.covering(topic)))
