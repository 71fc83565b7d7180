"""The list of all forms.

Owns the names and numbers of the forms. Never chooses one (`relay.front.negotiate`).
"""

from __future__ import annotations

from relay.core.forms.document import Document
from relay.core.forms.envelope import Envelope
from relay.core.forms.form import Form, Sse, Syntax
from relay.core.forms.framing import Chunked, Framing, Plain
from relay.core.forms.gzip import Gzip
from relay.core.forms.ndjson import Ndjson

SYNTAXES: tuple[Syntax, ...] = (Sse(), Envelope(), Ndjson(), Document())
FRAMINGS: tuple[Framing, ...] = (Chunked(), Plain(), Gzip())

DEFAULT = "sse"
"""The form for HTTP/1.1 clients that request no other. The log stores its bytes."""

PLAIN = "sse/plain"
"""The form for HTTP/1.0 clients that request no other."""

POLL = "json"
"""The form of polls whose connection stays open."""

POLL_AND_CLOSE = "json/plain"
"""The form of polls whose connection closes after the answer."""


def name_of(syntax: str, framing: str) -> str:
    """Return the name of a form."""
    return f"{syntax}/{framing}" if framing else syntax


def all_forms() -> dict[str, Form]:
    """Return new forms for one log, by name; their numbers are their places."""
    forms: dict[str, Form] = {}
    for syntax in SYNTAXES:
        for framing in FRAMINGS:
            name = name_of(syntax.name, framing.name)
            if name not in (POLL, POLL_AND_CLOSE) and isinstance(syntax, Document):
                continue
            forms[name] = Form(name, syntax, framing, len(forms))
    return forms
