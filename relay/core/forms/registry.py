"""The list of all forms.

Owns the names and numbers of the forms. Never chooses one (`relay.front.negotiate`).
"""

from __future__ import annotations

from relay.core.forms.envelope import Envelope
from relay.core.forms.form import Form, Sse, Syntax
from relay.core.forms.ndjson import Ndjson

SYNTAXES: tuple[Syntax, ...] = (Sse(), Envelope(), Ndjson())

DEFAULT = "sse"
"""The form of HTTP/1.1 clients that ask for nothing else. The log stores its bytes."""

PLAIN = "/plain"
"""Ending of the names of forms without chunks."""


def all_forms() -> dict[str, Form]:
    """Return new forms for one log, by name; their numbers are their places."""
    forms: dict[str, Form] = {}
    for syntax in SYNTAXES:
        for chunked in (True, False):
            form = Form(syntax, len(forms), chunked=chunked)
            forms[form.name] = form
    return forms
