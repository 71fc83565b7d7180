"""Tokens: any text as a token, any signed header and claims, and any Cookie header give a grant or a 401."""

from __future__ import annotations

import base64
import hmac

from relay.auth.keys import read_secret
from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.core.grant import Grant
from relay.errors import RequestError
from relay.http.request import Request

SECRET = "s" * 32
NOW_S = 1_000_000_000.0
COOKIE = "session"
HEAD = b'{"alg":"HS256"}'
WORDS = (
    b".",
    b"\n",
    b"e30",
    HEAD,
    b'{"alg":"none"}',
    b'"kid":',
    b'"crit":["b64"]',
    b'"b64":false',
    b'{"exp":2000000000}',
    b'"exp":1e999',
    b'"nbf":NaN',
    b'"relay":{"subscribe":["a.*"]}',
    b'"sub":"\\ud800"',
    b"[" * 20,
    b'{"":' * 10,
    b"9" * 20,
    b"; session=",
    b'"',
    b"\xff",
)


def judge(audience: str = "") -> Auth:
    """Return the object that validates the tokens."""
    config = Config(subscribe="jwt", jwt_cookie=COOKIE, jwt_audience=audience, jwt_issuer=audience)
    return Auth(config, frozenset({"t"}), read_secret(SECRET, "jwt-secret"), wall=lambda: NOW_S)


AUTHS = (judge(), judge("relay"))


def encoded(data: bytes) -> bytes:
    """Encode one part of a token."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(head: bytes, claims: bytes) -> str:
    """Sign any bytes as the header and claims of a token."""
    text = encoded(head) + b"." + encoded(claims)
    return (text + b"." + encoded(hmac.digest(SECRET.encode(), text, "sha256"))).decode()


def ask(auth: Auth, **headers: str) -> Grant | None:
    """Authorise a request as a reader and as a publisher; return the reader's grant."""
    request = Request("GET", "/events", "/events", (), headers, "1.1", True, False, 0)
    granted = None
    for way in (auth.publisher, auth.subscriber):
        try:
            granted = way(request)
        except RequestError as error:
            assert error.status == 401
            granted = None
        else:
            assert granted.ends_s > NOW_S
    return granted


def check(data: bytes) -> None:
    """Check one input: a token, the header and claims of a token (before and after a line end), or a Cookie header."""
    text = data.decode("latin-1")
    head, _, claims = data.partition(b"\n")
    good = signed(HEAD, b'{"exp":2000000000,"sub":"ann"}')
    for auth in AUTHS:
        ask(auth, authorization=f"Bearer {text}")
        ask(auth, authorization=f"Bearer {signed(head, claims)}")
        ask(auth, authorization=f"Bearer {signed(HEAD, data)}")
        ask(auth, cookie=text)
    if text.count(COOKIE) == 0:
        for cookie in (f"{text}; {COOKIE}={good}", f"{COOKIE}={good};{text}"):
            granted = ask(AUTHS[0], cookie=cookie)
            assert granted is not None
            assert granted.subject == "ann"
