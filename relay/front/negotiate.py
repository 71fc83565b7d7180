"""Content negotiation: the form of a stream from its request.

A client gets NDJSON if it names that media type in `Accept` (RFC 9110 section 12.5.1), else the event stream. It gets
the envelope if it asks by `?envelope=1`, or if a pattern of `envelope` covers one of its terms. HTTP/1.0 has no chunks.

Owns these rules. Never parses an event, and never builds a response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from relay.config.model import Config
from relay.core.forms.registry import DEFAULT, PLAIN, SYNTAXES
from relay.errors import RequestError
from relay.http.request import Request
from relay.topic import TermTree

ENVELOPE = "envelope"

_SYNTAX_OF = {kind: syntax.name for syntax in reversed(SYNTAXES) for kind in syntax.media_types}
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


class Negotiator:
    """Chooses the forms of streams.

    Args:
        config: the patterns of `envelope`.
    """

    def __init__(self, config: Config) -> None:
        self._envelope: TermTree[bool] = TermTree()
        for term in config.envelope:
            self._envelope.add(term, True)

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
        name = _accepted(request.headers.get("accept", ""))
        if name == DEFAULT and (self._wraps(terms) if envelope is None else envelope == "1"):
            name = ENVELOPE
        return name if request.version == "1.1" else name + PLAIN

    def _wraps(self, terms: Iterable[str]) -> bool:
        return bool(self._envelope) and any(self._envelope.covering(term) for term in terms)


def _accepted(accept: str) -> str:
    """Return the syntax with the highest quality among those that Accept names; the first of several, else `sse`."""
    best, best_quality = DEFAULT, 0.0
    for item in accept.split(","):
        kind, semicolon, parameters = item.partition(";")
        syntax = _SYNTAX_OF.get(kind.strip().lower())
        if syntax is None:
            continue
        found = _QUALITY.search(semicolon + parameters)
        quality = float(found[1]) if found else 1.0
        if quality > best_quality:
            best, best_quality = syntax, quality
    return best
