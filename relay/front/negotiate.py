"""Content negotiation: chooses the form of a stream for its request.

A client receives NDJSON or one JSON document if it names that media type in `Accept` (RFC 9110 section 12.5.1),
otherwise the event stream.
It receives the envelope if it requests `?envelope=1`, or if a pattern of the setting `envelope` covers one of its
terms. HTTP/1.0 has no chunks. A client that accepts gzip receives it if the setting `compress` is on.

Owns these rules. Never parses an event, and never builds a response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from relay.config.model import Config
from relay.core.forms.registry import DEFAULT, POLL, SYNTAXES, name_of
from relay.errors import RequestError
from relay.http.request import Request
from relay.topic import TermTree

ENVELOPE = "envelope"
NDJSON = "ndjson"
GZIP = "gzip"
Value = TypeVar("Value")

_SYNTAX_OF = {kind: syntax.name for syntax in reversed(SYNTAXES) for kind in syntax.media_types}
_CODING_OF = {"gzip": GZIP, "x-gzip": GZIP}  # RFC 9110 section 8.4.1.3
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


class Negotiator:
    """Chooses the forms of streams.

    Args:
        config: `compress`, and the patterns of `envelope`.
    """

    def __init__(self, config: Config) -> None:
        self._compresses = config.compress == GZIP
        self._envelope: TermTree[bool] = TermTree()
        for term in config.envelope:
            self._envelope.add(term, True)
        self.vary: tuple[str, ...] = ("Accept", "Accept-Encoding") if self._compresses else ("Accept",)

    def form(self, request: Request, terms: Iterable[str], envelope: str | None) -> str:
        """Return the name of the form.

        Args:
            request: the request of the stream.
            terms: its topics and patterns.
            envelope: the value of `?envelope=`; None if absent.

        Raises:
            RequestError: 400, the value is neither 0 nor 1.
        """
        if envelope not in (None, "0", "1"):
            raise RequestError(400, "query: envelope must be 0 or 1")
        syntax = _best(request.headers.get("accept", ""), _SYNTAX_OF, DEFAULT)
        if syntax == DEFAULT and (self._wraps(terms) if envelope is None else envelope == "1"):
            syntax = ENVELOPE
        if syntax == POLL:
            return POLL
        if request.version != "1.1":
            return name_of(syntax, "plain")
        coding = request.headers.get("accept-encoding", "") if self._compresses else ""
        return name_of(syntax, _best(coding, _CODING_OF, ""))

    def _wraps(self, terms: Iterable[str]) -> bool:
        return bool(self._envelope) and any(self._envelope.covering(term) for term in terms)


def accepts_ndjson(header: str) -> bool:
    """Return whether an Accept header names NDJSON with a quality above 0."""
    names = dict.fromkeys((kind for kind, syntax in _SYNTAX_OF.items() if syntax == NDJSON), True)
    return _best(header, names, False)


def _best(header: str, names: Mapping[str, Value], default: Value) -> Value:
    """Return the value of the name with the highest quality in an Accept header; the first of several."""
    best, best_quality = default, 0.0
    for name, quality in _qualities(header):
        if name in names and quality > best_quality:
            best, best_quality = names[name], quality
    return best


def _qualities(header: str) -> Iterator[tuple[str, float]]:
    """Yield the items of an Accept header and their qualities (RFC 9110 section 12.4.2), 1 if absent or invalid."""
    for item in header.split(","):
        name, semicolon, parameters = item.partition(";")
        found = _QUALITY.search(semicolon + parameters)
        yield name.strip().lower(), float(found[1]) if found else 1.0
