"""Who may do what: each carrier of a token, each claim, and every way in which a token can be wrong."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay.auth import LEEWAY_S, Auth
from relay.config import Config
from relay.errors import ConfigError, RequestError
from relay.grant import ANYBODY, EVERYTHING, Grant
from relay.http import Request
from relay.keys import read_file, read_keys, read_lines

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


def auth(key: str = SECRET, revoked: frozenset[str] = frozenset(), **settings: Any) -> Auth:
    config = Config(subscribe="jwt", **settings)
    return Auth(config, frozenset({"sesame"}), read_keys(key, "jwt-key"), revoked, wall=lambda: NOW_S)


def request(query: tuple[tuple[str, str], ...] = (), **headers: str) -> Request:
    return Request("GET", "/events", "/events", query, headers, "1.1", True, False, 0)


def bearer(text: str) -> Request:
    return request(authorization=f"Bearer {text}")


def refused(judge: Auth, asked: Request) -> str:
    with pytest.raises(RequestError) as raised:
        judge.subscriber(asked)
    assert raised.value.status == 401
    assert "WWW-Authenticate" in dict(raised.value.headers)
    return raised.value.reason


def test_reading_is_open_unless_the_settings_ask_for_a_token() -> None:
    judge = Auth(Config(), frozenset({"sesame"}), wall=lambda: NOW_S)
    assert judge.subscriber(request()) == ANYBODY
    assert refused(auth(), request()) == "reading needs a token"


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_a_key_pair_of_each_kind_grants_what_the_claims_say(algorithm: str) -> None:
    judge = auth(public_pem(algorithm))
    grant = judge.subscriber(bearer(token(PRIVATE[algorithm], algorithm, jti="7")))
    assert (grant.subject, grant.id) == ("ann", "7")
    assert (grant.subscribe, grant.publish) == (("orders.*",), ("orders.eu",))
    assert grant.ends_s == pytest.approx(NOW_S + 3600 + LEEWAY_S)


def test_a_secret_grants_too_and_publishers_may_use_the_same_tokens() -> None:
    assert auth().subscriber(bearer(token())).subject == "ann"
    assert auth().publisher(bearer(token())).publish == ("orders.eu",)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"exp": NOW_S - LEEWAY_S - 1}, "expired"),
        ({"exp": None}, "not a valid one"),
        ({"exp": "soon"}, "not a valid one"),
        ({"nbf": NOW_S + 3600}, "not a valid one"),
        ({"key": "t" * 32}, "not a valid one"),
        ({"algorithm": "HS512"}, "not a valid one"),
        ({"relay": ["orders.*"]}, "not a valid one"),
        ({"relay": {"subscribe": "orders.*"}}, "not a valid one"),
        ({"relay": {"subscribe": ["a..b"]}}, "not a valid one"),
        ({"relay": {"subscribe": [7]}}, "not a valid one"),
        ({"relay": {"subscribe": ["a"] * 1001}}, "not a valid one"),
        ({"sub": 7}, "not a valid one"),
        ({"jti": "a" * 9000}, "not a valid one"),
        ({"headers": {"crit": ["x"], "x": 1}}, "not a valid one"),
    ],
)
def test_a_wrong_token_is_refused(made: dict[str, Any], reason: str) -> None:
    assert reason in refused(auth(), bearer(token(**made)))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "....", "\xff" * 20, "e30.e30.", "a" * 100_000])
def test_what_is_no_jwt_is_refused(text: str) -> None:
    refused(auth(), bearer(text))


def test_a_token_without_a_signature_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=").decode()
        refused(auth(), bearer(f"{head}.{token().split('.')[1]}."))


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_a_public_key_is_no_secret(algorithm: str) -> None:
    """Algorithm confusion: a token signed by HS256 with the public key's bytes (RFC 8725 section 2.1)."""
    pem = public_pem(algorithm)
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "HS256", "typ": "JWT"}, {"exp": NOW_S + 3600, "relay": {"subscribe": ["**"]}})
    )
    import hashlib
    import hmac

    for secret in (pem, pem.strip()):
        signature = hmac.digest(secret.encode(), f"{head}.{body}".encode(), hashlib.sha256)
        forged = f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        refused(auth(pem), bearer(forged))


def test_audience_and_issuer_are_checked_where_they_are_set() -> None:
    judge = auth(jwt_audience="relay", jwt_issuer="https://login.example")
    good: dict[str, Any] = {"aud": ["relay", "other"], "iss": "https://login.example"}
    assert judge.subscriber(bearer(token(**good))).subject == "ann"
    for wrong in ({"aud": "other"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": None}):
        refused(judge, bearer(token(**(good | wrong))))
    assert auth().subscriber(bearer(token(**good))).subject == "ann"


def test_the_claim_has_the_name_that_is_set() -> None:
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
    judge = auth(json.dumps({"keys": keys}))
    assert judge.subscriber(bearer(token(new, "ES256", {"kid": "new"}))).subject == "ann"
    assert judge.subscriber(bearer(token(old, "ES256"))).subject == "ann"
    refused(judge, bearer(token(new, "ES256", {"kid": "old"})))
    refused(judge, bearer(token(new, "ES256", {"kid": "unknown"})))


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "{",
        '{"keys": []}',
        '{"keys": [{"kty": "what"}]}',
        json.dumps({"kty": "oct", "k": "c2hvcnQ", "alg": "HS256"}),
        "-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----",
        PRIVATE["ES256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        rsa.generate_private_key(65537, 1024)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode(),
    ],
)
def test_a_key_that_cannot_be_used_is_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_keys(text, "jwt-key")
    assert str(raised.value).startswith("jwt-key: ")
    assert text not in str(raised.value)


def test_a_cookie_carries_a_readers_token_only_where_it_is_named_and_never_a_publishers() -> None:
    asked = request(cookie=f"a=b; session={token()}; c=d")
    assert auth(jwt_cookie="session").subscriber(asked).subject == "ann"
    refused(auth(), asked)
    refused(auth(jwt_cookie="session"), request(cookie="session"))
    with pytest.raises(RequestError):
        auth(jwt_cookie="session").publisher(asked)


def test_a_ticket_opens_one_stream_and_soon() -> None:
    now_s = [NOW_S]
    judge = Auth(Config(subscribe="jwt"), frozenset(), read_keys(SECRET, "jwt-key"), wall=lambda: now_s[0])
    first, second = judge.ticket(bearer(token())), judge.ticket(bearer(token()))
    assert judge.subscriber(request((("ticket", first),))).subscribe == ("orders.*",)
    assert "used" in refused(judge, request((("ticket", first),)))
    now_s[0] += 31
    refused(judge, request((("ticket", second),)))
    refused(judge, request((("ticket", "made up"),)))
    with pytest.raises(RequestError, match="no further ticket"):
        judge.ticket(request((("ticket", second),)))


def test_what_is_revoked_is_refused_and_what_has_ended_is_not_valid() -> None:
    assert "revoked" in refused(auth(revoked=frozenset({"ann"})), bearer(token()))
    assert "revoked" in refused(auth(revoked=frozenset({"7"})), bearer(token(jti="7")))
    judge = auth(revoked=frozenset({"bob"}))
    assert judge.valid(judge.subscriber(bearer(token())))
    assert judge.valid(ANYBODY)
    assert not judge.valid(Grant(subject="bob"))
    assert not judge.valid(Grant(subject="ann", ends_s=NOW_S))


def test_a_bearer_token_of_the_settings_publishes_everywhere() -> None:
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
def test_a_request_must_lie_wholly_within_its_grant(
    granted: tuple[str, ...], terms: tuple[str, ...], allowed: bool
) -> None:
    grant = Grant(subscribe=granted)
    if allowed:
        grant.check_subscribe(terms)
        return
    with pytest.raises(RequestError) as raised:
        grant.check_subscribe(terms)
    assert raised.value.status == 403


def test_a_file_of_tokens_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# feeders\none\n\n  two  \n")
    assert read_lines(str(path), "publish-token-file") == {"one", "two"}
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_file(str(path), "publish-token-file")
    with pytest.raises(ConfigError, match="No such file"):
        read_file(str(tmp_path / "none"), "publish-token-file")
