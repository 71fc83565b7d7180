"""Who may do what: a request's token in, a grant out.

Owns the tokens in force, what a JWT must say, and the tickets that are out. Never reads a file, asks the network or
looks at a clock: it is handed tokens, keys and the time. No token is ever logged or repeated in an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import http.cookies
import math
import secrets
from collections.abc import Callable
from typing import Any

from relay.config import Config
from relay.errors import EventError, RequestError
from relay.grant import ANYBODY, EVERYTHING, Grant, challenge
from relay.http import Request
from relay.keys import Keys
from relay.topic import check_term

TOKEN_BYTES_MAX = 8 * 1024
"""Longest token that is looked at; a JWT of a hundred patterns has some 4 KiB."""
PATTERNS_MAX = 1000
"""Topics and patterns of one claim."""
TICKETS_MAX = 100_000
LEEWAY_S = 30
"""How far the clocks of two machines may be apart (RFC 7519 section 4.1.4)."""


class Auth:
    """Judges requests.

    Args:
        config: the settings.
        tokens: bearer tokens that may publish everywhere.
        keys: what JWTs are checked with; None where none are taken.
        revoked: subjects and token ids that are void.
        wall: the time of day in seconds, which tokens go by.
    """

    def __init__(
        self,
        config: Config,
        tokens: frozenset[str],
        keys: Keys | None = None,
        revoked: frozenset[str] = frozenset(),
        *,
        wall: Callable[[], float],
    ) -> None:
        self.tokens = tokens
        self.keys = keys
        self.revoked = revoked
        self._config = config
        self.wall = wall
        self.tickets: dict[str, tuple[float, Grant]] = {}

    def subscriber(self, request: Request) -> Grant:
        """Return what a request may read.

        A token comes in `Authorization`, in the cookie of the setting `jwt-cookie`, or as a ticket in the query.

        Raises:
            RequestError: 401 where there is no valid one and the settings ask for it.
        """
        if self._config.subscribe == "open":
            return ANYBODY
        tickets = request.values("ticket")
        if tickets:
            return self._redeem(tickets[0])
        token = _bearer(request) or _cookie(request, self._config.jwt_cookie)
        if not token:
            raise RequestError(401, "reading needs a token", challenge())
        return self._verify(token)

    def publisher(self, request: Request) -> Grant:
        """Return where a request may publish. A cookie does not do: a foreign page could send it along.

        Raises:
            RequestError: 401 where there is no valid token.
        """
        token = _bearer(request)
        if not token:
            raise RequestError(401, "publishing needs a token", challenge())
        given = token.encode("latin-1", "replace")
        # Every token is compared, so that the time does not tell which one was nearly right.
        if sum(hmac.compare_digest(given, known.encode()) for known in self.tokens):
            return Grant(subject=f"token {hashlib.sha256(given).hexdigest()[:8]}", publish=EVERYTHING)
        if self.keys is None:
            raise RequestError(401, "the token is not a valid one", challenge("invalid_token"))
        return self._verify(token)

    def valid(self, grant: Grant) -> bool:
        """Say whether a grant still holds: it has not ended and is not revoked."""
        return self.wall() < grant.ends_s and not ({grant.subject, grant.id} & self.revoked)

    # Tickets: for a browser's EventSource, which cannot set headers

    def ticket(self, request: Request) -> str:
        """Give out a ticket for what the request's token may read; it opens one stream, soon.

        Raises:
            RequestError: as for `subscriber`; 503 when too many are out.
        """
        if request.values("ticket"):
            raise RequestError(400, "a ticket gives no further ticket")
        grant, now_s = self.subscriber(request), self.wall()
        if len(self.tickets) >= TICKETS_MAX:
            # Oldest first, so whatever has ended is in front.
            self.tickets = {name: each for name, each in self.tickets.items() if each[0] > now_s}
        if len(self.tickets) >= TICKETS_MAX:
            raise RequestError(503, "too many tickets are out", (("Retry-After", "1"),), limit="tickets")
        name = secrets.token_urlsafe(24)
        self.tickets[name] = (now_s + self._config.ticket_s, grant)
        return name

    def _redeem(self, name: str) -> Grant:
        ends_s, grant = self.tickets.pop(name, (-math.inf, Grant()))
        if self.wall() >= ends_s or not self.valid(grant):
            raise RequestError(401, "the ticket is unknown, used or too old", challenge("invalid_token"))
        return grant

    # JWTs

    def _verify(self, token: str) -> Grant:
        """Check a JWT (RFC 7519, RFC 8725), and read what it grants."""
        import jwt

        if self.keys is None:
            raise RequestError(503, "the keys are not there yet", (("Retry-After", "2"),))
        config, wrong = self._config, "the token is not a valid one"
        try:
            if len(token) > TOKEN_BYTES_MAX:
                raise jwt.InvalidTokenError
            header = jwt.get_unverified_header(token)
            for key in self.keys.candidates(header.get("kid")):
                # A key has one algorithm, and no other is tried with it: neither `none` nor HS256 with a public key.
                if key.algorithm_name != header.get("alg"):
                    continue
                try:
                    claims = jwt.decode(
                        token,
                        key,
                        algorithms=[key.algorithm_name],
                        audience=config.jwt_audience or None,
                        issuer=config.jwt_issuer or None,
                        leeway=LEEWAY_S,
                        options={"require": ["exp"], "verify_aud": bool(config.jwt_audience)},
                    )
                except jwt.InvalidSignatureError:
                    continue
                grant = self._grant(claims)
                if not self.valid(grant):
                    wrong = "the token is revoked"
                    break
                return grant
        except jwt.ExpiredSignatureError:
            wrong = "the token has expired"
        except (jwt.InvalidTokenError, ValueError):
            wrong = "the token is not a valid one"
        raise RequestError(401, wrong, challenge("invalid_token"))

    def _grant(self, claims: dict[str, Any]) -> Grant:
        """Read a checked token's claims; ValueError if they are malformed."""
        own = claims.get(self._config.jwt_claim, {})
        if not isinstance(own, dict):
            raise ValueError
        return Grant(
            subject=_text(claims.get("sub", "")),
            id=_text(claims.get("jti", "")),
            subscribe=_terms(own.get("subscribe", [])),
            publish=_terms(own.get("publish", [])),
            ends_s=float(claims["exp"]) + LEEWAY_S,
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _terms(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > PATTERNS_MAX:
        raise ValueError
    try:
        return tuple(check_term(_text(term)) for term in value)
    except EventError:
        raise ValueError from None


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(request: Request, name: str) -> str:
    """Return a cookie's value; of a header that cannot be read, nothing."""
    text = request.headers.get("cookie", "")
    if not name or len(text) > 2 * TOKEN_BYTES_MAX:
        return ""
    jar: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
    try:
        jar.load(text)
    except http.cookies.CookieError:
        return ""
    return jar[name].value if name in jar else ""
