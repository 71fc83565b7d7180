"""Topics and patterns: any text is a term or an EventError, and all functions agree on two terms."""

from __future__ import annotations

from relay.errors import EventError
from relay.topic import TermTree, check_term, check_topic, disjoint, is_pattern, overlap

WORDS = (b"a", b".", b"*", b"**", b"\n", b"a.b", b"*.a", b"a.**", b"\xff", b"\xe2\x80\xa8", b"\0")


def check(data: bytes) -> None:
    """Check one input: one term per line. The last is matched as a topic against the others."""
    terms = []
    for text in data.decode(errors="surrogateescape").split("\n")[:8]:
        try:
            terms.append(check_term(text))
        except EventError as error:
            assert error.reason
    if not terms:
        return
    topic = terms[-1]
    try:
        check_topic(topic)
    except EventError:
        assert is_pattern(topic)
        return
    for term in terms:
        assert is_pattern(term) or _matches(term, topic) == (term == topic)
        assert _matches(term, topic) == overlap(term, topic)
    parts = disjoint(tuple(dict.fromkeys(terms)))
    assert sum(_matches(part, topic) for part in parts) == 1


def _matches(term: str, topic: str) -> bool:
    tree: TermTree[str] = TermTree()
    tree.add(term, term)
    return bool(tree.covering(topic))
