"""Who may do what: a request's token in, a grant out.

Owns the tokens in force, what a JWT must say, and the tickets that are out. Never reads a file, asks the network or
looks at a clock: it is handed tokens, keys and the time. No token is ever logged or repeated in an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.auth.keys import Keys
from relay.config.model import Config
from relay.core.grant import ANYBODY, EVERYTHING, Grant, challenge
from relay.errors import RETRY_SOON, EventError, RequestError
from relay.http.request import Request
from relay.limits import Limit
from relay.topic import check_term

if TYPE_CHECKING:
    from jwt import PyJWK

TOKEN_BYTES_MAX = 8 * 1024
"""Longest token that is looked at; a JWT of a hundred patterns has some 4 KiB."""
PATTERNS_MAX = 1000
"""Topics and patterns of one claim."""
TICKETS_MAX = 100_000
COOKIES_MAX = 4
"""Cookies of the name in `jwt-cookie` that are tried: those of several paths and domains come side by side."""
LEEWAY_S = 30
"""How far in the future `nbf` and `iat` may lie, as the issuer's clock may be ahead (RFC 7519 section 4.1.5). `exp` has
no leeway: a token, and each stream opened with it, ends at that time by this machine's clock."""

_NOT_VALID = "the token is not a valid one"
_logger = logging.getLogger("relay.auth")


class Auth:
    """Judges requests.

    Args:
        config: the settings.
        tokens: bearer tokens that may publish everywhere.
        keys: what JWTs are checked with; None where none are taken.
        revoked: subjects and token ids that are void.
        wall: the time of day in seconds, which tokens go by.
        unknown_key: called when a token names an unknown key; returns whether the keys are being fetched anew.
    """

    def __init__(
        self,
        config: Config,
        tokens: frozenset[str],
        keys: Keys | None = None,
        revoked: frozenset[str] = frozenset(),
        *,
        wall: Callable[[], float],
        unknown_key: Callable[[], bool] | None = None,
    ) -> None:
        self.tokens = tokens
        self.keys = keys
        self.revoked = revoked
        self._config = config
        self.wall = wall
        self._unknown_key = unknown_key or (lambda: False)
        self.tickets: dict[str, tuple[float, Grant]] = {}

    def subscriber(self, request: Request) -> Grant:
        """Return what a request may read.

        A token comes as a ticket in the query, in `Authorization`, or in the cookie of the setting `jwt-cookie`. Of
        several cookies of that name, the first one with a valid token counts: a browser sends one for each path and
        domain, and stale ones among them.

        Raises:
            RequestError: 401 where there is no valid one and the settings ask for it.
        """
        if self._config.subscribe == "open":
            return ANYBODY
        tickets = request.values("ticket")
        if tickets:
            return self._redeem(tickets[0])
        token = _bearer(request)
        refused = RequestError(401, "reading needs a token", challenge())
        for number, each in enumerate([token] if token else _cookies(request, self._config.jwt_cookie)):
            try:
                return self._verify(each)
            except RequestError as error:
                # A 503 goes first: the browser comes back, and a key may be there that one of the cookies needs.
                refused = error if number == 0 or error.status == 503 else refused
        raise refused

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
            raise RequestError(401, _NOT_VALID, challenge("invalid_token"))
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
        self.purge()
        if len(self.tickets) >= TICKETS_MAX:
            raise RequestError(503, "too many tickets are out", (("Retry-After", "1"),), limit=Limit.TICKETS)
        name = secrets.token_urlsafe(24)
        self.tickets[name] = (now_s + self._config.ticket_s, grant)
        return name

    def _redeem(self, name: str) -> Grant:
        ends_s, grant = self.tickets.pop(name, (-math.inf, Grant()))
        if self.wall() >= ends_s or not self.valid(grant):
            raise RequestError(401, "the ticket is unknown, used or too old", challenge("invalid_token"))
        return grant

    def purge(self) -> None:
        """Forget the tickets whose time is over; they are in the order in which they end."""
        now_s = self.wall()
        while self.tickets:
            name = next(iter(self.tickets))
            if self.tickets[name][0] > now_s:
                return
            del self.tickets[name]

    # JWTs

    def _verify(self, token: str) -> Grant:
        """Check a JWT (RFC 7519, RFC 8725), and read what it grants."""
        if len(token) > TOKEN_BYTES_MAX:
            raise _refusal(_NOT_VALID)
        header = _header(token)
        if self.keys is None:
            raise RequestError(503, "the keys are not there yet", RETRY_SOON)
        for key in self.keys.candidates(header.id):
            # A key has one algorithm, and no other is tried with it: neither `none` nor HS256 with a public key.
            if key.algorithm_name != header.algorithm:
                continue
            claims = self._claims(token, key)
            if claims is not None:
                return self._grant(claims)
        if header.id is not None and header.id not in self.keys.by_id and self._unknown_key():
            # A 401 would end an EventSource for good; this one comes back, and the key may be there.
            raise RequestError(503, "the keys are being fetched", RETRY_SOON)
        raise _refusal(_NOT_VALID)

    def _claims(self, token: str, key: PyJWK) -> dict[str, Any] | None:
        """Return what a token claims; None where this key did not sign it."""
        import jwt

        config = self._config
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=config.jwt_audience or None,
                issuer=config.jwt_issuer or None,
                # Times are checked here: by one clock, and as numbers only.
                options={
                    "require": ["exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": bool(config.jwt_audience),
                },
            )
        except jwt.InvalidSignatureError:
            return None
        except Exception as error:  # noqa: BLE001  whatever the library makes of a foreign token, it is not valid
            _logger.debug("a token cannot be decoded: %s", type(error).__name__)
            raise _refusal(_NOT_VALID) from None
        return claims

    def _grant(self, claims: dict[str, Any]) -> Grant:
        """Read the claims of a token whose signature is right.

        Raises:
            RequestError: 401 where they are malformed, over or revoked.
        """
        try:
            own = claims.get(self._config.jwt_claim, {})
            if not isinstance(own, dict):
                raise ValueError
            grant = Grant(
                subject=_text(claims.get("sub", "")),
                id=_text(claims.get("jti", "")),
                subscribe=_terms(own.get("subscribe", [])),
                publish=_terms(own.get("publish", [])),
                ends_s=_time(claims["exp"]),
            )
            begins_s = max(_time(claims.get(name, 0)) for name in ("nbf", "iat"))
        except ValueError:
            raise _refusal(_NOT_VALID) from None
        if self.wall() >= grant.ends_s:
            raise _refusal("the token has expired")
        if self.wall() + LEEWAY_S < begins_s:
            raise _refusal("the token is not valid yet")
        if not self.valid(grant):
            raise _refusal("the token is revoked")
        return grant


@dataclass(frozen=True, slots=True)
class _Header:
    """What a token says of itself: the name of its key, and its algorithm."""

    id: str | None
    algorithm: object


def _header(token: str) -> _Header:
    """Read the header of a JWT, which nothing vouches for.

    Raises:
        RequestError: 401, it cannot be read.
    """
    import jwt

    try:
        header = jwt.get_unverified_header(token)
    except Exception as error:  # noqa: BLE001  whatever the library makes of a foreign token, it is not valid
        _logger.debug("a token's header cannot be read: %s", type(error).__name__)
        raise _refusal(_NOT_VALID) from None
    id = header.get("kid")
    if id is not None and not isinstance(id, str):
        raise _refusal(_NOT_VALID)
    return _Header(id, header.get("alg"))


def _refusal(reason: str) -> RequestError:
    return RequestError(401, reason, challenge("invalid_token"))


def _time(value: object) -> float:
    """Read a NumericDate (RFC 7519 section 2); ValueError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    try:
        time_s = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(time_s):
        raise ValueError
    return time_s


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


def _cookies(request: Request, name: str) -> list[str]:
    """Return the values of the cookies of one name, the first few.

    Nothing else about the header matters: cookies of others may have any name, any value, and no `=`. RFC 6265 section
    5.4 says how browsers write it; section 4.1.1 allows quotes around a value.
    """
    if not name:
        return []
    pairs = (pair.partition("=") for pair in request.headers.get("cookie", "").split(";"))
    values = [value.strip() for key, equals, value in pairs if equals and key.strip() == name]
    unquoted = (value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in values)
    return [value for value in unquoted if value][:COOKIES_MAX]
