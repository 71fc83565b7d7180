"""Authorisation: a request's token in, a grant out.

Owns the current tokens, the checks of a JWT, and the issued tickets. Never reads a file, the network or a clock: its
caller supplies tokens, keys and the time. Never logs a token or repeats it in a response.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.auth.keys import Keys
from relay.auth.request_tokens import bearer_token, cookie_tokens, is_one_of
from relay.auth.signatures import check_present, check_signature
from relay.config.model import Config
from relay.config.webhooks import Webhook
from relay.core.grant import ANYBODY, EVERYTHING, Grant, challenge
from relay.errors import RETRY_SOON, EventError, RequestError
from relay.http.request import Request
from relay.limits import Limit
from relay.topic import check_term

if TYPE_CHECKING:
    from jwt import PyJWK

TOKEN_BYTES_MAX = 8 * 1024
"""Longest accepted token; a JWT with a hundred patterns has about 4 KiB."""
PATTERNS_MAX = 1000
"""Maximum number of topics and patterns in one claim."""
TICKETS_MAX = 100_000
VERIFIED_MAX = 10_000
"""Maximum number of verified tokens whose grants are kept, so that a client that reconnects costs no verification. The
key is the digest of the token; new keys clear them. Expiry and revocation are checked at each request."""
LEEWAY_S = 30
"""How far in the future `nbf` and `iat` may lie, because the issuer's clock may be ahead (RFC 7519 section 4.1.5).
`exp` has no leeway: a token, and each stream opened with it, ends at that time by the clock of this machine."""

_NOT_VALID = "the token is not valid"
_logger = logging.getLogger("relay.auth")


class Auth:
    """Checks the tokens of requests.

    Args:
        config: the settings.
        tokens: bearer tokens that may publish to every topic.
        keys: the keys that verify JWTs; None if there are none.
        revoked: revoked subjects and token ids.
        wall: returns the Unix time in seconds, for the times in tokens.
        unknown_key: called when a token names an unknown key; returns whether the keys are being fetched.
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
        self.admin_tokens = frozenset[str]()  # if empty, the operators' paths need no token
        self.webhook_secrets: dict[str, frozenset[str]] = {}  # by the pattern of the webhook
        self._keys = keys
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self.revoked = revoked
        self._config = config
        self.wall = wall
        self._unknown_key = unknown_key or (lambda: False)
        self.tickets: dict[str, tuple[float, Grant]] = {}

    @property
    def keys(self) -> Keys | None:
        """The keys that verify JWTs."""
        return self._keys

    @keys.setter
    def keys(self, keys: Keys | None) -> None:
        self._keys = keys
        self._verified.clear()

    def subscriber(self, request: Request) -> Grant:
        """Return the grant of a subscriber.

        The token is a ticket in the query, a bearer token in `Authorization`, or the value of the cookie that
        `jwt-cookie` names. Of several cookies, the first one with a valid token is used: a browser sends one for each
        path and domain, including stale ones.

        Raises:
            RequestError: 401 if a token is required and none is valid; 503 while the keys are being fetched.
        """
        if self._config.subscribe == "open":
            return ANYBODY
        tickets = request.values("ticket")
        if tickets:
            return self._redeem(tickets[0])
        token = bearer_token(request.headers.get("authorization", ""))
        refused = _missing("subscribing")
        for number, each in enumerate([token] if token else cookie_tokens(request, self._config.jwt_cookie)):
            try:
                return self._verify(each)
            except RequestError as error:
                # A 503 takes precedence: the browser reconnects, and by then the key of a cookie may be present.
                refused = error if number == 0 or error.status == 503 else refused
        raise refused

    def bearer(self, authorization: str) -> Grant:
        """Return the grant of a subscriber with this `Authorization` field, and without a ticket or a cookie.

        Raises:
            RequestError: as for `subscriber`.
        """
        if self._config.subscribe == "open":
            return ANYBODY
        token = bearer_token(authorization)
        if not token:
            raise _missing("subscribing")
        return self._verify(token)

    def publisher(self, request: Request, doing: str = "publishing") -> Grant:
        """Return the grant of a publisher or of a sender of signals.

        Cookies are not accepted, because a foreign page could send them.

        Raises:
            RequestError: 401 if there is no valid token.
        """
        token = bearer_token(request.headers.get("authorization", ""))
        if not token:
            raise _missing(doing)
        if is_one_of(token, self.tokens):
            subject = f"token {hashlib.sha256(token.encode('latin-1', 'replace')).hexdigest()[:8]}"
            return Grant(subject=subject, publish=EVERYTHING, signal=EVERYTHING)
        if self.keys is None:
            raise RequestError(401, _NOT_VALID, challenge("invalid_token"))
        return self._verify(token)

    def check_admin(self, request: Request) -> None:
        """Check the token of a request for a path of operators. Without admin tokens, everybody may read these paths.

        Raises:
            RequestError: 401 if there are admin tokens, and the request has none of them.
        """
        if not self.admin_tokens:
            return
        token = bearer_token(request.headers.get("authorization", ""))
        if not token:
            raise _missing("this path")
        if not is_one_of(token, self.admin_tokens):
            raise _refusal(_NOT_VALID)

    def has_secret(self, webhook: Webhook | None) -> bool:
        """Return whether a webhook has a secret, so that its requests need a signature instead of a token.

        The result never changes: a reload replaces secrets, but never removes the last one.
        """
        return webhook is not None and webhook.pattern in self.webhook_secrets

    def signer(self, request: Request, webhook: Webhook, topic: str) -> Grant:
        """Return the grant of a webhook's request, before its body is read; `check_signed` completes the check.

        Raises:
            RequestError: 401 if the request has no signature.
        """
        check_present(webhook.scheme, request.headers)
        return Grant(subject=f"webhook {webhook.pattern}", publish=(topic,))

    def check_signed(self, request: Request, webhook: Webhook, body: bytes) -> None:
        """Check the signature of a webhook's request.

        Args:
            request: the head.
            webhook: the webhook of its topic.
            body: the body as received.

        Raises:
            RequestError: 401 if the signature is not valid.
        """
        secrets = self.webhook_secrets.get(webhook.pattern, frozenset())
        check_signature(webhook.scheme, request.headers, body, secrets, self.wall())

    def valid(self, grant: Grant) -> bool:
        """Return whether a grant is valid: it has not expired and is not revoked."""
        return self.wall() < grant.ends_s and not ({grant.subject, grant.id} & self.revoked)

    # Tickets, for a browser's EventSource, which cannot set headers.

    def ticket(self, request: Request) -> str:
        """Issue a ticket with the grant of the request's token. It opens one stream, within `ticket_s` seconds.

        Raises:
            RequestError: as for `subscriber`; 400 if the request has a ticket; 503 if too many tickets are unused.
        """
        if request.values("ticket"):
            raise RequestError(400, "a ticket cannot be exchanged for another ticket")
        grant, now_s = self.subscriber(request), self.wall()
        self.purge()
        if len(self.tickets) >= TICKETS_MAX:
            raise RequestError(503, "too many unused tickets", (("Retry-After", "1"),), limit=Limit.TICKETS)
        name = secrets.token_urlsafe(24)
        self.tickets[name] = (now_s + self._config.ticket_s, grant)
        return name

    def _redeem(self, name: str) -> Grant:
        ends_s, grant = self.tickets.pop(name, (-math.inf, Grant()))
        if self.wall() >= ends_s or not self.valid(grant):
            raise RequestError(401, "the ticket is unknown, used or expired", challenge("invalid_token"))
        return grant

    def purge(self) -> None:
        """Remove expired tickets. The dict is in order of expiry."""
        now_s, expired = self.wall(), []
        # One pass: to find the first item of a dict again after each deletion would take quadratic time.
        for name, (ends_s, _) in self.tickets.items():
            if ends_s > now_s:
                break
            expired.append(name)
        for name in expired:
            del self.tickets[name]

    # JWTs.

    def _verify(self, token: str) -> Grant:
        """Verify a JWT (RFC 7519, RFC 8725) and return its grant."""
        if len(token) > TOKEN_BYTES_MAX:
            raise _refusal(_NOT_VALID)
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        verified = self._verified.get(digest)
        if verified is not None:
            self._verified.move_to_end(digest)
            return self._check(verified)
        header = _header(token)
        if self.keys is None:
            raise RequestError(503, "the keys have not been fetched yet", RETRY_SOON)
        for key in self.keys.candidates(header.id):
            # A key has one algorithm. No other is accepted: neither `none` nor HS256 with a public key.
            if key.algorithm_name != header.algorithm:
                continue
            claims = self._claims(token, key)
            if claims is not None:
                verified = self._verified[digest] = self._read(claims)
                if len(self._verified) > VERIFIED_MAX:
                    self._verified.popitem(last=False)
                return self._check(verified)
        if header.id is not None and header.id not in self.keys.by_id and self._unknown_key():
            # After a 401, an EventSource does not reconnect. After a 503 it does, and the key may be present then.
            raise RequestError(503, "the keys are being fetched", RETRY_SOON)
        raise _refusal(_NOT_VALID)

    def _claims(self, token: str, key: PyJWK) -> dict[str, Any] | None:
        """Return the claims of a token; None if this key did not sign it."""
        import jwt

        config = self._config
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=config.jwt_audience or None,
                issuer=config.jwt_issuer or None,
                # `_grant` checks the times: with one clock, and as numbers only.
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
        except Exception as error:  # noqa: BLE001  any error of the library means an invalid token
            _logger.debug("cannot decode a token: %s", type(error).__name__)
            raise _refusal(_NOT_VALID) from None
        return claims

    def _read(self, claims: dict[str, Any]) -> _Verified:
        """Return the grant in the claims of a token with a valid signature.

        Raises:
            RequestError: 401 if the claims are malformed.
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
                signal=_terms(own.get("signal", [])),
                ends_s=_time(claims["exp"]),
            )
            begins_s = max(_time(claims.get(name, 0)) for name in ("nbf", "iat"))
        except ValueError:
            raise _refusal(_NOT_VALID) from None
        return _Verified(grant, begins_s)

    def _check(self, verified: _Verified) -> Grant:
        """Return the grant of a verified token.

        Raises:
            RequestError: 401 if the token is expired, not valid yet or revoked.
        """
        grant = verified.grant
        if self.wall() >= grant.ends_s:
            raise _refusal("the token has expired")
        if self.wall() + LEEWAY_S < verified.begins_s:
            raise _refusal("the token is not valid yet")
        if not self.valid(grant):
            raise _refusal("the token is revoked")
        return grant


@dataclass(frozen=True, slots=True)
class _Verified:
    """The grant of a token with a valid signature, and the time at which it begins."""

    grant: Grant
    begins_s: float


@dataclass(frozen=True, slots=True)
class _Header:
    """The unverified header of a token: the id of its key, and its algorithm."""

    id: str | None
    algorithm: object


def _header(token: str) -> _Header:
    """Return the header of a JWT. It is not verified.

    Raises:
        RequestError: 401 if it is malformed.
    """
    import jwt

    try:
        header = jwt.get_unverified_header(token)
    except Exception as error:  # noqa: BLE001  any error of the library means an invalid token
        _logger.debug("cannot decode the header of a token: %s", type(error).__name__)
        raise _refusal(_NOT_VALID) from None
    id = header.get("kid")
    if id is not None and not isinstance(id, str):
        raise _refusal(_NOT_VALID)
    return _Header(id, header.get("alg"))


def _missing(doing: str) -> RequestError:
    return RequestError(401, f"{doing} requires a token", challenge())


def _refusal(reason: str) -> RequestError:
    return RequestError(401, reason, challenge("invalid_token"))


def _time(value: object) -> float:
    """Return the value of a NumericDate (RFC 7519 section 2); raise ValueError unless it is a finite number."""
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
