"""The tokens in the head of a request: the bearer token and the cookies, and their comparison with known tokens.

Owns the syntax. Never decides what a token permits (`relay.auth.tokens`).
"""

from __future__ import annotations

import hmac

from relay.http.request import Request

COOKIES_MAX = 4
"""Maximum number of cookies tried. A browser sends all cookies of the name, from several paths and domains."""


def is_one_of(token: str, known: frozenset[str]) -> bool:
    """Return whether a token is known. Compare every token, so that the response time does not depend on them."""
    given = token.encode("latin-1", "replace")
    return sum(hmac.compare_digest(given, each.encode()) for each in known) > 0


def bearer_token(authorization: str) -> str:
    """Return the token in the value of `Authorization`; empty if it has another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def cookie_tokens(request: Request, name: str) -> list[str]:
    """Return the values of the first `COOKIES_MAX` cookies with this name.

    Other cookies may be malformed; they are ignored. RFC 6265 section 5.4 defines the header that browsers send.
    Section 4.1.1 allows quotes around a value.
    """
    if not name:
        return []
    pairs = (pair.partition("=") for pair in request.headers.get("cookie", "").split(";"))
    values = [value.strip() for key, equals, value in pairs if equals and key.strip() == name]
    unquoted = (value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in values)
    return [value for value in unquoted if value][:COOKIES_MAX]
