"""Permissions: each carrier of a token, each claim, and every way in which a token can be invalid."""

from __future__ import annotations

import base64
import hmac
import json
import math
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.auth.keys import Keys, read_jwks, read_public, read_secret
from relay.auth.request_tokens import COOKIES_MAX
from relay.auth.tokens import LEEWAY_S, Auth
from relay.config.model import Config
from relay.core.grant import ANYBODY, EVERYTHING, Grant
from relay.errors import RequestError
from relay.http.request import Request
from relay.topic import TermTree

NOW_S = time.time()
SECRET = "s" * 64
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_pem(algorithm: str) -> str:
    key = PRIVATE[algorithm].public_key()
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "ascii")


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    whole = {"exp": NOW_S + 3600, "sub": "ann", "relay": {"subscribe": ["orders.*"], "publish": ["orders.eu"]}}
    kept = {name: value for name, value in (whole | claims).items() if value is not None}
    made: str = jwt.encode(kept, key, algorithm, headers)
    return made


KEYS = read_secret(SECRET, "jwt-secret")


def auth(keys: Keys = KEYS, revoked: frozenset[str] = frozenset(), **settings: Any) -> Auth:
    config = Config(subscribe="jwt", **settings)
    return Auth(config, frozenset({"sesame"}), keys, revoked, wall=lambda: NOW_S)


def request(query: tuple[tuple[str, str], ...] = (), **headers: str) -> Request:
    return Request("GET", "/events", "/events", query, headers, "1.1", True, False, 0)


def bearer(text: str) -> Request:
    return request(authorization=f"Bearer {text}")


def rejection(judge: Auth, asked: Request) -> str:
    with pytest.raises(RequestError) as raised:
        judge.subscriber(asked)
    assert raised.value.status == 401
    assert "WWW-Authenticate" in dict(raised.value.headers)
    return raised.value.reason


def test_reading_needs_no_token_unless_the_settings_require_one() -> None:
    judge = Auth(Config(), frozenset({"sesame"}), wall=lambda: NOW_S)
    assert judge.subscriber(request()) == ANYBODY
    assert rejection(auth(), request()) == "subscribing requires a token"


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_tokens_of_each_kind_of_key_grant_their_claims(algorithm: str) -> None:
    judge = auth(read_public(public_pem(algorithm), "x"))
    grant = judge.subscriber(bearer(token(PRIVATE[algorithm], algorithm, jti="7")))
    assert (grant.subject, grant.id) == ("ann", "7")
    assert (grant.subscribe, grant.publish) == (("orders.*",), ("orders.eu",))
    assert grant.ends_s == pytest.approx(NOW_S + 3600)


def test_tokens_signed_with_a_secret_grant_reading_and_publishing() -> None:
    assert auth().subscriber(bearer(token())).subject == "ann"
    assert auth().publisher(bearer(token())).publish == ("orders.eu",)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"exp": NOW_S - 0.01}, "expired"),
        ({"exp": True}, "the token is not valid"),
        ({"exp": str(NOW_S + 3600)}, "the token is not valid"),
        ({"exp": [NOW_S + 3600]}, "the token is not valid"),
        ({"exp": math.nan}, "the token is not valid"),
        ({"exp": math.inf}, "the token is not valid"),
        ({"exp": 10**400}, "the token is not valid"),
        ({"exp": -math.inf}, "the token is not valid"),
        ({"nbf": math.nan}, "the token is not valid"),
        ({"nbf": math.inf}, "the token is not valid"),
        ({"nbf": {}}, "the token is not valid"),
        ({"nbf": NOW_S + LEEWAY_S + 1}, "not valid yet"),
        ({"iat": NOW_S + LEEWAY_S + 1}, "not valid yet"),
        ({"iat": "x"}, "the token is not valid"),
        ({"iat": True}, "the token is not valid"),
        ({"exp": None}, "the token is not valid"),
        ({"exp": "soon"}, "the token is not valid"),
        ({"nbf": NOW_S + 3600}, "not valid yet"),
        ({"key": "t" * 32}, "the token is not valid"),
        ({"algorithm": "HS512"}, "the token is not valid"),
        ({"relay": ["orders.*"]}, "the token is not valid"),
        ({"relay": {"subscribe": "orders.*"}}, "the token is not valid"),
        ({"relay": {"subscribe": ["a..b"]}}, "the token is not valid"),
        ({"relay": {"subscribe": [7]}}, "the token is not valid"),
        ({"relay": {"subscribe": ["a"] * 1001}}, "the token is not valid"),
        ({"sub": 7}, "the token is not valid"),
        ({"jti": "a" * 9000}, "the token is not valid"),
        ({"sub": None, "relay": None, "jti": ["x"]}, "the token is not valid"),
        ({"sub": {}}, "the token is not valid"),
        ({"headers": {"crit": ["x"], "x": 1}}, "the token is not valid"),
        ({"headers": {"crit": []}}, "the token is not valid"),
    ],
)
def test_a_wrong_token_is_rejected(made: dict[str, Any], reason: str) -> None:
    assert reason in rejection(auth(), bearer(token(**made)))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "....", "\xff" * 20, "e30.e30.", "a" * 100_000])
def test_text_that_is_not_a_jwt_is_rejected(text: str) -> None:
    rejection(auth(), bearer(text))


def segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def signed(head: str, body: str) -> str:
    """Sign any two texts with HS256."""
    text = f"{segment(head)}.{segment(body)}"
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), text.encode(), "sha256"))
    return f"{text}.{signature.rstrip(b'=').decode()}"


HEAD = '{"alg": "HS256"}'
BODY = json.dumps({"exp": NOW_S + 3600})


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (HEAD, "[" * 5000),
        (HEAD, '{"exp": 9999999999, "x": ' + '{"a":' * 1000 + "1" + "}" * 1001),
        ("[" * 5000, BODY),
        (HEAD, f'{{"exp": {"9" * 5000}}}'),
        (HEAD, '{"exp": 1e999}'),
        (HEAD, '{"exp": NaN}'),
        (HEAD, '{"exp": 9999999999, "nbf": -Infinity}'),
        (HEAD, '{"exp": 9999999999, "sub": "\\ud800", "relay": {"subscribe": ["\\ud800"]}}'),
        (HEAD, "7"),
        (HEAD, "null"),
        (HEAD, "[]"),
        (HEAD, '"exp"'),
        (HEAD, "{"),
        (HEAD, ""),
        ("7", BODY),
        ("null", BODY),
        ("{}", BODY),
        ('{"alg": null}', BODY),
        ('{"alg": ["HS256"]}', BODY),
        ('{"alg": {"HS256": 1}}', BODY),
        ('{"alg": "HS256", "kid": {}}', BODY),
        ('{"alg": "HS256", "kid": 7}', BODY),
        ('{"alg": "HS256", "kid": ["1"]}', BODY),
        ('{"alg": "HS256", "b64": false, "crit": ["b64"]}', BODY),
        ('{"alg": "HS256", "b64": false}', BODY),
        ('{"alg": "HS256", "crit": "b64"}', BODY),
        ('{"alg": "HS256", "crit": [7]}', BODY),
        ('{"alg": "HS256", "crit": ["exp"], "exp": 1}', BODY),
        ('{"alg": "none"}', BODY),
    ],
    ids=range(29),
)
def test_a_malformed_token_is_rejected_even_if_its_signature_is_valid(head: str, body: str) -> None:
    for judge in (auth(), auth(jwt_audience="relay", jwt_issuer="login")):
        rejection(judge, bearer(signed(head, body)))


def test_tokens_with_a_far_expiry_or_unknown_members_are_accepted() -> None:
    head = '{"alg": "HS256", "typ": 7, "jku": "http://127.0.0.1/", "jwk": {"kty": "oct"}, "x5c": 1, "cty": []}'
    grant = auth().subscriber(bearer(signed(head, '{"exp": 1e300, "iat": 1, "relay": {"other": 7}, "x": [[]]}')))
    assert grant.ends_s == 1e300
    assert auth().subscriber(bearer(token(nbf=NOW_S + LEEWAY_S, iat=NOW_S + LEEWAY_S))).subject == "ann"


@pytest.mark.parametrize("failure", [RecursionError, MemoryError, AttributeError, KeyError, Warning])
def test_any_exception_of_the_library_rejects_the_token(
    failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    for name in ("decode", "get_unverified_header"):
        with monkeypatch.context() as patched:
            patched.setattr(jwt, name, fail)
            rejection(auth(), bearer(token()))


def test_a_token_without_a_signature_is_rejected() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=").decode()
        rejection(auth(), bearer(f"{head}.{token().split('.')[1]}."))


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_a_public_key_is_rejected_as_a_secret(algorithm: str) -> None:
    """Algorithm confusion: a token is signed with HS256 and the bytes of the public key (RFC 8725 section 2.1)."""
    pem = public_pem(algorithm)
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "HS256", "typ": "JWT"}, {"exp": NOW_S + 3600, "relay": {"subscribe": ["**"]}})
    )
    for secret in (pem, pem.strip()):
        signature = hmac.digest(secret.encode(), f"{head}.{body}".encode(), "sha256")
        forged = f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        rejection(auth(read_public(pem, "x")), bearer(forged))


def test_audience_and_issuer_are_checked_if_they_are_set() -> None:
    judge = auth(jwt_audience="relay", jwt_issuer="https://login.example")
    good: dict[str, Any] = {"aud": ["relay", "other"], "iss": "https://login.example"}
    assert judge.subscriber(bearer(token(**good))).subject == "ann"
    for wrong in ({"aud": "other"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": None}):
        rejection(judge, bearer(token(**(good | wrong))))
    assert auth().subscriber(bearer(token(**good))).subject == "ann"


def test_the_name_of_the_claim_is_configurable() -> None:
    judge = auth(jwt_claim="mercure")
    assert judge.subscriber(bearer(token(mercure={"subscribe": ["news"]}))).subscribe == ("news",)


def test_keys_of_a_set_are_found_by_their_id() -> None:
    algorithms = jwt.algorithms
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    keys = [
        algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": name, "use": "sig"}
        for name, key in (("old", old), ("new", new))
    ]
    keys.append({"kty": "RSA", "use": "enc", "kid": "not for signatures"})
    judge = auth(read_jwks(json.dumps({"keys": keys}), "x"))
    assert judge.subscriber(bearer(token(new, "ES256", {"kid": "new"}))).subject == "ann"
    assert judge.subscriber(bearer(token(old, "ES256"))).subject == "ann"
    rejection(judge, bearer(token(new, "ES256", {"kid": "old"})))
    rejection(judge, bearer(token(new, "ES256", {"kid": "unknown"})))


def test_a_token_with_an_unknown_key_id_triggers_a_fetch() -> None:
    algorithms, key = jwt.algorithms, ec.generate_private_key(ec.SECP256R1())
    entry = algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "known"}
    asked: list[bool] = []
    fetching = [True]

    def unknown_key() -> bool:
        asked.append(fetching[0])
        return fetching[0]

    keys = read_jwks(json.dumps({"keys": [entry]}), "x")
    judge = Auth(Config(subscribe="jwt"), frozenset(), keys, wall=lambda: NOW_S, unknown_key=unknown_key)
    assert judge.subscriber(bearer(token(key, "ES256", {"kid": "known"}))).subject == "ann"
    rejection(judge, bearer(token(ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "known"})))
    rejection(judge, bearer(token(ec.generate_private_key(ec.SECP256R1()), "ES256")))
    assert asked == []
    with pytest.raises(RequestError) as raised:
        judge.subscriber(bearer(token(key, "ES256", {"kid": "new"})))
    assert raised.value.status == 503
    assert dict(raised.value.headers)["Retry-After"]
    # A stale cookie beside the header does not turn the 503 into a 401, which would end an EventSource.
    judge_of_cookies = Auth(
        Config(subscribe="jwt", jwt_cookie="s"), frozenset(), keys, wall=lambda: NOW_S, unknown_key=lambda: True
    )
    fresh = token(key, "ES256", {"kid": "new"})
    for cookies in (f"s=x; s={fresh}", f"s={fresh}; s=x"):
        with pytest.raises(RequestError) as raised:
            judge_of_cookies.subscriber(request(cookie=cookies))
        assert raised.value.status == 503
    fetching[0] = False
    rejection(judge, bearer(token(key, "ES256", {"kid": "new"})))
    assert asked == [True, False]


def test_a_cookie_authorises_readers_only_if_it_is_configured_and_never_publishers() -> None:
    asked = request(cookie=f"a=b; session={token()}; c=d")
    assert auth(jwt_cookie="session").subscriber(asked).subject == "ann"
    rejection(auth(), asked)
    rejection(auth(jwt_cookie="session"), request(cookie="session"))
    with pytest.raises(RequestError):
        auth(jwt_cookie="session").publisher(asked)


@pytest.mark.parametrize(
    "others",
    [
        "a=b",
        'consent={"all":true,"list":[1;2]}',
        "list[0]=1",
        "flag",
        "",
        ";;; ;",
        "=",
        "=x",
        "name=\xe9\xff",
        "x=a b",
        "path=/; domain=.example.com; secure; HttpOnly; expires=Thu, 01 Jan 1970 00:00:00 GMT",
        '$Version="1"',
        'x="unclosed',
        'x="a; b"',
        "session",
        "session=",
        "Session=other; xsession=other; session2=other; =session=other",
        "x=" + "a" * 9000,
        "\x01=\x7f",
        "a==; b=c=d",
    ],
)
def test_a_cookie_is_found_among_malformed_and_other_cookies(others: str) -> None:
    judge = auth(jwt_cookie="session")
    for own in (f"session={token()}", f'session="{token()}"', f" session = {token()} "):
        for header in (f"{others}; {own}", f"{own}; {others}", f"{others};{own};{others}"):
            assert judge.subscriber(request(cookie=header)).subject == "ann"


def test_the_first_valid_cookie_of_several_with_the_same_name_is_used() -> None:
    judge, stale = auth(jwt_cookie="s"), token(exp=NOW_S - 60)
    assert judge.subscriber(request(cookie=f"s={stale}; s=x; s={token()}; s={token(sub='bob')}")).subject == "ann"
    assert "expired" in rejection(judge, request(cookie=f"s={stale}; s=x"))
    assert "the token is not valid" in rejection(judge, request(cookie=f"{'s=x; ' * COOKIES_MAX}s={token()}"))
    rejection(judge, request(cookie=f"s={token()}", authorization="Bearer x"))
    assert judge.subscriber(request(cookie=f"s={token()}", authorization="Basic dXNlcjpwYXNz")).subject == "ann"


def test_expired_tickets_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.auth.tokens.TICKETS_MAX", tickets_max := 100)
    now_s = [NOW_S]
    judge = Auth(Config(subscribe="jwt"), frozenset(), KEYS, wall=lambda: now_s[0])
    for _ in range(3):
        judge.ticket(bearer(token()))
        now_s[0] += 20
    judge.purge()
    assert len(judge.tickets) == 1
    now_s[0] += 30
    judge.ticket(bearer(token()))
    assert len(judge.tickets) == 1
    judge.tickets.update((str(number), (now_s[0] + 30, ANYBODY)) for number in range(tickets_max))
    with pytest.raises(RequestError, match="too many unused tickets"):
        judge.ticket(bearer(token()))
    now_s[0] += 30
    assert judge.ticket(bearer(token()))
    assert len(judge.tickets) == 1


def test_a_ticket_opens_one_stream_before_it_expires() -> None:
    now_s = [NOW_S]
    judge = Auth(Config(subscribe="jwt"), frozenset(), KEYS, wall=lambda: now_s[0])
    first, second = judge.ticket(bearer(token())), judge.ticket(bearer(token()))
    assert judge.subscriber(request((("ticket", first),))).subscribe == ("orders.*",)
    assert "used" in rejection(judge, request((("ticket", first),)))
    now_s[0] += 31
    rejection(judge, request((("ticket", second),)))
    rejection(judge, request((("ticket", "made up"),)))
    with pytest.raises(RequestError, match="another ticket"):
        judge.ticket(request((("ticket", second),)))


def test_revoked_and_expired_tokens_are_rejected() -> None:
    assert "revoked" in rejection(auth(revoked=frozenset({"ann"})), bearer(token()))
    assert "revoked" in rejection(auth(revoked=frozenset({"7"})), bearer(token(jti="7")))
    judge = auth(revoked=frozenset({"bob"}))
    assert judge.valid(judge.subscriber(bearer(token())))
    assert judge.valid(ANYBODY)
    assert not judge.valid(Grant(subject="bob"))
    assert not judge.valid(Grant(subject="ann", ends_s=NOW_S))


def test_a_configured_bearer_token_publishes_to_all_topics() -> None:
    grant = auth().publisher(bearer("sesame"))
    assert grant.publish == EVERYTHING
    assert "sesame" not in grant.subject
    for asked in (request(), bearer("sesam"), bearer("sesamee"), request(authorization="Basic sesame")):
        with pytest.raises(RequestError) as raised:
            auth().publisher(asked)
        assert raised.value.status == 401


@pytest.mark.parametrize(
    ("granted", "terms", "allowed"),
    [
        (("orders.*",), ("orders.eu",), True),
        (("orders.*",), ("orders.*",), True),
        (("orders.*",), ("orders.**",), False),
        (("orders.*",), ("orders.eu", "news"), False),
        (("orders.*",), ("*.eu",), False),
        (("**",), ("anything.at.all", "**"), True),
        ((), ("news",), False),
    ],
)
def test_a_grant_must_cover_all_of_a_request(granted: tuple[str, ...], terms: tuple[str, ...], allowed: bool) -> None:
    grant = Grant(subscribe=granted)
    if allowed:
        grant.check_subscribe(terms)
        return
    with pytest.raises(RequestError) as raised:
        grant.check_subscribe(terms)
    assert raised.value.status == 403


def test_many_patterns_of_a_grant_are_checked_with_one_lookup_per_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token can have a thousand patterns, and a stream a thousand topics."""
    walks: list[str] = []
    covering = TermTree.covering

    def counted(tree: TermTree[str], term: str) -> list[str]:
        walks.append(term)
        return covering(tree, term)

    monkeypatch.setattr(TermTree, "covering", counted)
    grant = Grant(subscribe=tuple(f"team.{number}.*" for number in range(1000)))
    terms = tuple(f"team.{number}.x" for number in range(1000))
    grant.check_subscribe(terms)
    assert walks == list(terms)
    with pytest.raises(RequestError, match=r"team\.1000\.x"):
        grant.check_subscribe((*terms, "team.1000.x"))
